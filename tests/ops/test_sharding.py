"""The operations' gradients where two devices share the batch: in shard_map, and in a mesh with explicit axes."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from densezoo import ops
from densezoo.ops.implementation import with_onednn

draw = np.random.default_rng(0).standard_normal
x = draw((4, 4, 4, 4)).astype(np.float32)
kernels = {size: draw((size, size, 4, 4)).astype(np.float32) for size in (1, 2, 3, 4)}
scale, bias = np.full(4, 1.5, np.float32), jnp.zeros(4)
OPERATIONS = {
    "conv_1x1": (lambda x, k: ops.conv(x, k), kernels[1]),
    "conv_3x3": (lambda x, k: ops.conv(x, k, padding=1), kernels[3]),
    "conv_by_onednn": (with_onednn()(lambda x, k: ops.conv(x, k, padding=1)), kernels[3]),
    "conv_transpose": (lambda x, k: ops.conv_transpose(x, k), kernels[2]),
    "conv_transpose_4x4": (lambda x, k: ops.conv_transpose(x, k, padding=1), kernels[4]),
    "upsample_concat_conv": (lambda x, k: ops.upsample_concat_conv(x, None, k), kernels[3]),
    "group_norm": (lambda x, s: ops.group_norm(x, s, bias, groups=2, epsilon=1e-5, relu=True), scale),
    "bilinear": (lambda x, s: ops.resize_bilinear(x, (8, 8)) * s.reshape(1, 1, 1, 4), scale),
    "nearest": (lambda x, s: ops.resize_nearest(x, (8, 8)) * s.reshape(1, 1, 1, 4), scale),
    "max_pool": (lambda x, s: ops.max_pool(x) * s.reshape(1, 1, 1, 4), scale),
    "max_pool_3x3": (lambda x, s: ops.max_pool(x, 3, 2, 1) * s.reshape(1, 1, 1, 4), scale),
}
implicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
positions = draw((4, 4, 4, 2)).astype(np.float32)
gradient = jax.grad(lambda x, p: jnp.square(ops.sample_bilinear(x, p)).sum(), (0, 1))
shared = jax.shard_map(gradient, mesh=implicit, in_specs=(P("data"), P("data")), out_specs=(P("data"), P("data")))
for a, b in zip(jax.jit(shared)(x, positions), jax.jit(gradient)(x, positions)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg="sample_bilinear")
for name, (operation, weights) in OPERATIONS.items():
    gradient = jax.grad(lambda x, w: jnp.square(operation(x, w)).sum(), (0, 1))
    expected = jax.jit(gradient)(x, weights)
    specs = (P("data"), P())
    results = [jax.jit(jax.shard_map(gradient, mesh=implicit, in_specs=specs, out_specs=specs))(x, weights)]
    with jax.set_mesh(explicit):
        shared = [jax.device_put(a, NamedSharding(explicit, spec)) for a, spec in zip((x, weights), specs)]
        results.append(jax.jit(gradient)(*shared))
    for result in results:
        for a, b in zip(result, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()), err_msg=name)
print("agree:", len(OPERATIONS))
"""


def test_gradients_of_shared_batches():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "agree: 11" in done.stdout
