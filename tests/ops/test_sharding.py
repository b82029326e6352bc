"""Two devices that share the batch: the operations' gradients, and that no maps are moved between the devices."""

import json
import math
import os
import subprocess
import sys

import pytest

from benchmarks import sharding

PROGRAM = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from densezoo import ops
from densezoo.blocks import attend
from densezoo.ops.implementation import with_onednn
from densezoo.ops.sharding import repeat_for, reshape

draw = np.random.default_rng(0).standard_normal
x = draw((4, 6, 6, 4)).astype(np.float32)
kernel = lambda *shape: draw(shape).astype(np.float32)
scale, bias = np.full(4, 1.5, np.float32), jnp.zeros(4)
times = lambda x, s: x * s.reshape(1, 1, 1, -1)

def sample(x, k):
    return ops.sample_bilinear(x, 3 * reshape(ops.conv(x, k), len(x), 6, 6, 2, 2))

def carafe(x, k):
    return ops.carafe(x, ops.pixel_shuffle(ops.conv(x, k)), kernel_size=3)

def attention(x, s):
    tokens = reshape(times(x, s), len(x), 36, 2, 2)
    return attend(jnp.concatenate([repeat_for(x, jnp.ones((1, 1, 2, 2))), tokens], 1), tokens, tokens)

def regions(x, s):
    boxes = 8 * x[:, :5, 0] + np.array([0, 0, 24, 24], np.float32)
    fine = times(x, s)
    y = ops.multiscale_roi_align((fine, ops.max_pool(fine)), boxes, (48, 48), 2, canonical_size=64)
    return y + ops.roi_align(fine, boxes, 2, 1 / 8, sampling_ratio=0)

PLAIN = {  # in the plain form too
    "sample": (sample, kernel(1, 1, 4, 4)),
    "carafe": (carafe, kernel(1, 1, 4, 36)),
    "bilinear": (lambda x, s: times(ops.resize_bilinear(x, (7, 12)), s), scale),
    "max_unpool": (lambda x, s: times(ops.max_unpool(*ops.max_pool_with_indices(x)), s), scale),
    "regions": (regions, scale),
    "grouped": (lambda x, k: ops.conv(x, k, padding=1, groups=2), kernel(3, 3, 2, 4)),
}
OPERATIONS = {
    "conv_1x1": (lambda x, k: ops.conv(x, k), kernel(1, 1, 4, 4)),
    "conv_3x3": (lambda x, k: ops.conv(x, k, padding=1), kernel(3, 3, 4, 4)),
    "conv_by_onednn": (with_onednn()(lambda x, k: ops.conv(x, k, padding=1)), kernel(3, 3, 4, 4)),
    "depthwise": (lambda x, k: ops.conv(x, k, padding=1, groups=4), kernel(3, 3, 1, 4)),
    "depthwise_by_onednn": (with_onednn()(lambda x, k: ops.conv(x, k, padding=1, groups=4)), kernel(3, 3, 1, 4)),
    "conv_transpose": (lambda x, k: ops.conv_transpose(x, k), kernel(2, 2, 4, 4)),
    "conv_transpose_4x4": (lambda x, k: ops.conv_transpose(x, k, padding=1), kernel(4, 4, 4, 4)),
    "upsample_concat_conv": (lambda x, k: ops.upsample_concat_conv(x, None, k), kernel(3, 3, 4, 4)),
    "group_norm": (lambda x, s: ops.group_norm(x, s, bias, groups=2, epsilon=1e-5, relu=True), scale),
    "bicubic": (lambda x, s: times(ops.resize_bicubic(x, (7, 5)), s), scale),
    "nearest": (lambda x, s: times(ops.resize_nearest(x, (12, 12)), s), scale),
    "nearest_to_odd": (lambda x, s: times(ops.resize_nearest(x, (7, 9)), s), scale),
    "max_pool": (lambda x, s: times(ops.max_pool(x), s), scale),
    "max_pool_3x3": (lambda x, s: times(ops.max_pool(x, 3, 2, 1), s), scale),
    "adaptive_avg_pool": (lambda x, s: times(ops.adaptive_avg_pool(x, (4, 4)), s), scale),
    "attention": (attention, scale),
    **PLAIN,
}

def check_traffic(name, program):
    for results, kind in re.findall(r"= (.+?) (all-\\w+|collective-\\w+|reduce-scatter)(?:-start)?\\(", program):
        assert kind == "all-reduce", (name, results, kind)
        # A device's part of the maps has at least 288 numbers; weights and derived arrays have at most 256.
        for shape in re.findall(r"\\[([\\d,]*)\\]", results):
            assert np.prod([int(side) for side in shape.split(",") if side]) <= 256, (name, results)

automatic = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
specs = (P("data"), P())
forms = [(name, case, "auto") for name, case in OPERATIONS.items()]
forms += [(name, case, "reference") for name, case in PLAIN.items()]
for name, (operation, weights), form in forms:
    name = f"{name}, {form}"
    gradient = ops.implementation(form)(jax.grad(lambda x, w: jnp.square(operation(x, w)).sum(), (0, 1)))
    expected = jax.jit(gradient)(x, weights)
    results = []
    if form == "auto":
        results.append(jax.jit(jax.shard_map(gradient, mesh=automatic, in_specs=specs, out_specs=specs))(x, weights))
    for mesh in (automatic, explicit):
        shared = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((x, weights), specs)]
        compiled = jax.jit(gradient).lower(*shared).compile()
        check_traffic(name, compiled.as_text())
        results.append(compiled(*shared))
    for result in results:
        for a, b in zip(result, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()), err_msg=name)
print("agree:", len(forms))
"""

DETECTOR = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import densezoo as dz

noise = np.random.default_rng(0)
name, images = NAME, noise.standard_normal((4, 64, 64, 3)).astype(np.float32)
fields = {} if name == "fcos" else {"hidden": (16,)}
model = dz.create_model(name, dz.ResNet((1, 1), dz.BasicBlock, width=8, coarsest=8), 3, features=8, **fields)
# More than 256 candidates, which are suppressed in several blocks.
model = model.clone(max_detections=8, candidates=300 if name == "fcos" else (300, 300))
variables = jax.jit(model.init)(jax.random.key(0), images)
variables = jax.tree.map(lambda x: x + 0.05 * noise.standard_normal(x.shape).astype(np.float32), variables)
task = dz.tasks.Detection(3, masks=name != "fcos", region_samples=16)
boxes = 8 * noise.integers(0, 4, (4, 2, 4)) + np.array([0, 0, 24, 24])
batch = {"image": images, "boxes": boxes.astype(np.float32), "labels": np.array([[1, 2], [2, -1]] * 2)}
batch["instances"] = noise.integers(0, 3, (4, 64, 64))

def run(variables, batch, least):
    def loss(params):
        apply = lambda *inputs, **options: model.apply(variables | {"params": params}, *inputs, **options)
        return task.loss(apply, batch, jax.random.key(1))[0]

    return dz.detect(model, variables, batch["image"], score_threshold=least), jax.value_and_grad(loss)(
        variables["params"]
    )

expected = jax.jit(run)(variables, batch, jnp.float32(0.01))
assert bool(expected[0].valid.any())
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
    with jax.set_mesh(mesh):
        found = jax.jit(run)(place(variables), place(batch, "data"), place(jnp.float32(0.01)))
    assert len(found[0].boxes.devices()) == 2 and found[0].boxes.sharding.spec[0] == "data"
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(b).max()), err_msg=str(kind))
print("agree")
"""


PARTS = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from densezoo import ops

draw = np.random.default_rng(0).standard_normal
x = draw((2, 16, 16, 4)).astype(np.float32)
kernel = lambda *shape: draw(shape).astype(np.float32)
times = lambda x, s: x * s.reshape(1, 1, 1, -1)
scale = np.full(4, 1.5, np.float32)
FEW = {  # which exchange few pixels or none
    "conv_1x1": (lambda x, k: ops.conv(x, k), kernel(1, 1, 4, 4)),
    "conv_3x3": (lambda x, k: ops.conv(x, k, padding=1), kernel(3, 3, 4, 4)),
    "conv_strided": (lambda x, k: ops.conv(x, k, padding=1, strides=2), kernel(3, 3, 4, 4)),
    "grouped": (lambda x, k: ops.conv(x, k, padding=1, groups=2), kernel(3, 3, 2, 4)),
    "grouped_strided": (lambda x, k: ops.conv(x, k, padding=1, strides=2, groups=2), kernel(3, 3, 2, 4)),
    "depthwise": (lambda x, k: ops.conv(x, k, padding=2, dilation=2, groups=4), kernel(3, 3, 1, 4)),
    "conv_transpose": (lambda x, k: ops.conv_transpose(x, k), kernel(2, 2, 4, 4)),
    "conv_transpose_4x4": (lambda x, k: ops.conv_transpose(x, k, padding=1), kernel(4, 4, 4, 4)),
    "bilinear": (lambda x, s: times(ops.resize_bilinear(x, (32, 48)), s), scale),
    "bilinear_of_rows": (lambda x, s: times(ops.resize_bilinear(x, (32, 16)), s), scale),
    "bicubic": (lambda x, s: times(ops.resize_bicubic(x, (48, 32)), s), scale),
    "nearest": (lambda x, s: times(ops.resize_nearest(x, (32, 32)), s), scale),
    "max_pool": (lambda x, s: times(ops.max_pool(x), s), scale),
    "max_pool_3x3": (lambda x, s: times(ops.max_pool(x, 3, 2, 1), s), scale),
    "avg_pool": (lambda x, s: times(ops.avg_pool(x), s), scale),
    "global_avg_pool": (lambda x, s: times(ops.global_avg_pool(x), s), scale),
}
ANY = {
    "bilinear_to_odd": (lambda x, s: times(ops.resize_bilinear(x, (17, 32)), s), scale),
    "bilinear_by_corners": (lambda x, s: times(ops.resize_bilinear(x, (32, 17), align_corners=True), s), scale),
    "grouped_valid": (lambda x, k: ops.conv(x, k, groups=2), kernel(3, 3, 2, 4)),
    "adaptive_avg_pool": (lambda x, s: times(ops.adaptive_avg_pool(x, (3, 3)), s), scale),
}
axes = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2])))
mesh = jax.make_mesh((1, *axes.values()), ("data", *axes), axis_types=(AxisType.Auto,) * (1 + len(axes)))
placed = NamedSharding(mesh, P("data", *axes)), NamedSharding(mesh, P())
for name, (operation, weights) in (FEW | ANY).items():
    gradient = jax.grad(lambda x, w: jnp.square(operation(x, w)).sum(), (0, 1))
    both = lambda x, w: (operation(x, w), *gradient(x, w))
    shared = [jax.device_put(a, sharding) for a, sharding in zip((x, weights), placed)]
    compiled = jax.jit(both).lower(*shared).compile()
    for a, b in zip(compiled(*shared), jax.jit(both)(x, weights)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()), err_msg=name)
    found = re.findall(r"= (.+?) (all-\\w+|collective-\\w+|reduce-scatter)(?:-start)?\\(", compiled.as_text())
    for results, kind in found if name in FEW else ():
        sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in re.findall(r"\\[([\\d,]*)\\]", results)]
        # The kernels' gradients and two rows of maps have at most 256 numbers, a device's part of a map 512.
        assert kind in ("all-reduce", "collective-permute") and max(sizes) <= 256, (name, results, kind)
print("agree:", len(FEW | ANY))
"""


def on_two_devices(*arguments):
    return on_devices(2, *arguments)


def on_devices(count, *arguments):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


# The one test of many programs for two devices; it takes some 15 s, nearly all of it compiling.
def test_gradients_of_shared_batches_without_moving_maps():
    assert "agree: 28" in on_two_devices("-c", PROGRAM)


# One process compiles 20 small programs for two or four devices.
@pytest.mark.parametrize("axes", [("space", 2), ("columns", 2), ("rows", 2, "columns", 2)], ids=str)
def test_devices_that_share_maps_exchange_only_pixels_at_their_borders(axes):
    devices = math.prod(axes[1::2])
    assert "agree: 20" in on_devices(devices, "-c", PARTS, *map(str, axes))


# Each compiles detections and gradients three times, which takes most of a minute for Mask R-CNN.
@pytest.mark.parity
@pytest.mark.parametrize("name", ["fcos", "mask_rcnn"])
def test_detections_and_losses_are_those_of_one_device(name):
    assert "agree" in on_two_devices("-c", DETECTOR.replace("NAME", repr(name)))


@pytest.mark.parity
@pytest.mark.parametrize("name", sharding.CASES)
def test_a_model_moves_nothing_but_gradients_and_statistics(name, tmp_path):
    out = tmp_path / "out.jsonl"
    on_two_devices("-m", "benchmarks.sharding", "--out", str(out), "--models", name)
    row = json.loads(out.read_text())
    for kind in sharding.KINDS:
        assert row["inference"][kind] == {"moved": [], "added": 0}
        # In training, something must be added up: every parameter's gradient.
        assert row["train_step"][kind]["moved"] == [] and row["train_step"][kind]["added"] >= row["parameters"] // 2


def test_what_is_counted():
    program = """
        %a = (f32[8]{0}, f32[11,4]{1,0}) all-reduce(%b, %c)
        %d = f32[3,4]{1,0} all-reduce-start(%e)
        %f = f32[8]{0} all-gather(%g)
        %h = f32[] all-reduce(%i)
    """
    counted = sharding.summed_up(program)
    assert counted == {"moved": ["all-reduce f32[11,4]", "all-gather f32[8]"], "added": 8 + 12 + 1}
    nothing = {"moved": [], "added": 0}
    row = {"model": "unet", "parameters": 20, "inference": {"Auto": nothing, "Explicit": counted}}
    row["train_step"] = {"Auto": counted | {"moved": []}, "Explicit": nothing}
    assert sharding.table([row]).splitlines()[-1] == "| unet | 0 | 2 | 0 | 0 | 21 | 20 |"
