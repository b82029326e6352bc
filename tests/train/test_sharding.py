"""Meshes of several devices: the same training as on one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from benchmarks.mesh_tasks import CASES
from densezoo.train import RULES, Layout, create_state, over_fsdp
from densezoo.train.optimizer import make_optimizer

MESHES = """
import sys
import jax, jax.numpy as jnp, numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from benchmarks.meshes import traffic
import densezoo as dz
from densezoo.tasks import Segmentation
from densezoo.train import Layout, create_state, fit, make_optimizer, make_train_step

def mesh_of(**axes):
    sides = tuple(axes.values())
    return jax.make_mesh(sides, tuple(axes), devices=jax.devices()[: int(np.prod(sides))])

draw = np.random.default_rng(0)
shape = (4, 32, 32)
batches = [
    {"image": draw.standard_normal((*shape, 3)).astype(np.float32), "mask": draw.integers(0, 2, shape)}
    for _ in range(3)
]
image = batches[0]["image"]
model = dz.create_model("unet", dz.PlainEncoder((8, 16)), num_classes=2)
step = make_train_step(Segmentation(2).loss)

def run(directory, mesh, steps=3, **options):
    state = create_state(model, make_optimizer(1e-3, 3), jax.random.key(0), image, ema_decay=0.9, mesh=mesh)
    placed = batches[0] if mesh is None else state.layout.batch(batches[0])
    compiled = step.lower(state, placed).compile()
    sharded = [x.sharding for x in jax.tree.leaves((state.params, state.opt_state, state.ema)) if mesh is not None]
    state, history = fit(
        state, compiled, lambda done: iter(batches[done:]), steps=steps, log_every=1, directory=directory,
        progress=False, **options,
    )
    # XLA keeps the placement, or the second step would not accept its own result.
    assert mesh is None or [x.sharding for x in jax.tree.leaves((state.params, state.opt_state, state.ema))] == sharded
    return compiled, state, history

def check(name, history, state):
    for record, wanted in zip(history, expected[0], strict=True):
        for metric in ("loss", "grad_norm"):
            np.testing.assert_allclose(record[metric], wanted[metric], rtol=1e-5, err_msg=f"{name}, {record['step']}")
    for a, b in zip(*(jax.tree.leaves((s.params, s.ema, s.collections)) for s in (state, expected[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=name)

alone, *rest = run(None, None)
expected = rest[1], rest[0]
parameters = sum(x.nbytes for x in jax.tree.leaves(rest[0].params))
data, *_ = run(sys.argv[1], mesh_of(data=4), steps=2)
fsdp, state, history = run(sys.argv[1], mesh_of(data=2, fsdp=2), resume=True)  # the same run on another mesh
check("data, then fsdp", history, state)
both, state, history = run(None, mesh_of(data=2, rows=2, columns=2))
check("rows and columns", history, state)

# Under data parallelism, gradients and the statistics of batch norms are added up. One map has 131072 bytes.
moved = traffic(data.as_text())
assert set(moved) == {"all-reduce"} and parameters <= moved["all-reduce"] < 1.5 * parameters, moved
# With fsdp, parameters are also gathered once. A device holds about half of the state.
moved = traffic(fsdp.as_text())
assert set(moved) == {"all-reduce", "all-gather"} and max(moved.values()) < 2 * parameters, moved
sizes = [compiled.memory_analysis().argument_size_in_bytes for compiled in (fsdp, data)]
assert sizes[0] < 0.7 * sizes[1], sizes
# Devices that share rows and columns exchange those at their borders, and no map is gathered. Gradients are added up
# once, over all axes of the mesh. A device's maps have at least 16384 bytes in the full size, and a border 2304.
moved = traffic(both.as_text())
assert set(moved) == {"all-reduce", "collective-permute"} and moved["all-reduce"] < 1.5 * parameters, moved
borders = [traffic(line)["collective-permute"] for line in both.as_text().splitlines() if "permute(" in line]
assert borders and max(borders) <= 2304, borders

layout = Layout(mesh_of(data=2, space=2))
for arguments, message in (
    ((3, (32, 32)), "batch_size=3 must be a multiple of 2"),
    ((4, (32, 32), 4), "batch_size=4 must be a multiple of 4 x 2"),
    ((4, (33, 32)), "crop_size has 33 rows"),
):
    with pytest.raises(ValueError, match=message):
        layout.check(*arguments)
with pytest.raises(ValueError, match="a batch must be a multiple of 2"):
    layout.batch({"image": np.zeros((3, 4, 4, 3))})
placed = layout.batch({name: np.zeros((2, 4, 4)) for name in ("mask", "boxes")} | {"depth": np.zeros((2, 3, 4))})
assert {name: x.sharding.spec for name, x in placed.items()} == {
    "mask": P(("data",), "space"), "boxes": P(("data",)), "depth": P(("data",)),
}
layout = Layout(mesh_of(rows=2, columns=2))
with pytest.raises(ValueError, match="crop_size has 33 columns, which the axis columns"):
    layout.check(1, (32, 33))
fields = {"mask": np.zeros((1, 4, 4)), "depth": np.zeros((1, 3, 4)), "size": jax.ShapeDtypeStruct((1, 2), jnp.int32)}
placed = layout.batch(fields | {"image": jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)})
assert {name: x.sharding.spec for name, x in placed.items()} == {
    "mask": P((), "rows", "columns"), "image": P((), "rows", "columns"), "depth": P((), None, "columns"), "size": P(()),
}
print("agree")
"""


def environment(devices: int) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": root,
    }


def run(*arguments: object, devices: int) -> str:
    command = [sys.executable, "-W", "error::UserWarning", *map(str, arguments)]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


# One process compiles four steps, which takes nearly all of the time.
def test_every_mesh_trains_like_one_device(tmp_path):
    assert "agree" in run("-c", MESHES, tmp_path, devices=8)


# The training on one device and on the mesh compile all that `train` needs. Others take up to a minute.
@pytest.mark.parametrize(
    "task", [task if task == "depth" else pytest.param(task, marks=pytest.mark.parity) for task in CASES]
)
def test_every_task_trains_on_a_mesh_like_on_one_device(task, tmp_path):
    options = "--meshes", "fsdp 2, rows 2, columns 2", "--tasks", task, "--out", tmp_path / "rows.jsonl"
    run("-m", "benchmarks.mesh_tasks", *options, devices=8)


def test_rules_shard_the_longest_axis_or_what_users_choose(net, key, batch_of):
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    assert over_fsdp((3, 3, 64, 30), mesh) == PartitionSpec(None, None, "fsdp")
    assert over_fsdp((7, 7, 63, 30), mesh) == over_fsdp((512,), mesh) == PartitionSpec()
    assert over_fsdp((64, 64), AbstractMesh((8,), ("data",))) == PartitionSpec()

    mesh = jax.make_mesh((1, 1), ("data", "fsdp"))
    rules = (("head/kernel", PartitionSpec(None, None, "fsdp")), ("params/encoder", PartitionSpec("fsdp")))
    layout = Layout(mesh, rules)
    image = batch_of()["image"]
    state = create_state(net(), make_optimizer(0.1, 2), key(), image, mesh=layout)
    assert state.layout == layout
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.spec
        for path, x in jax.tree.leaves_with_path((state.params, state.opt_state))
    }
    heads = {spec for name, spec in specs.items() if name.endswith("head/kernel")}
    assert heads == {PartitionSpec(None, None, "fsdp")} and sum("head/kernel" in name for name in specs) == 3
    assert {spec for name, spec in specs.items() if name.endswith("norm/scale")} == {PartitionSpec()}
    with pytest.raises(ValueError, match=r"the rules shard params/encoder/bias of shape \(3,\) by"):
        create_state(
            net(), make_optimizer(0.1, 2), key(), image, mesh=Layout(mesh, (("bias", PartitionSpec(None, "fsdp")),))
        )


def test_what_does_not_fit_a_mesh_is_said():
    with pytest.raises(ValueError, match=r"axes \['model'\]; expected some of data, fsdp, rows, space, columns"):
        Layout(jax.make_mesh((1,), ("model",)))
    with pytest.raises(ValueError, match="axes rows and space, which are two names for the same"):
        Layout(jax.make_mesh((1, 1), ("rows", "space")))


def test_rules_that_match_nothing_or_are_no_expressions(net, key, batch_of):
    mesh = jax.make_mesh((1,), ("data",))
    layout = Layout(mesh, (("decoder/.*kernel", PartitionSpec()), *RULES))
    with pytest.raises(
        ValueError, match=r"the rule 'decoder/\.\*kernel' matches no array of the state: names are such"
    ):
        create_state(net(), make_optimizer(0.1, 2), key(), batch_of()["image"], mesh=layout)
    with pytest.raises(ValueError, match=r"the rule 'head/\(' is not a valid regular expression: missing \)"):
        Layout(mesh, (("head/(", PartitionSpec()),))
