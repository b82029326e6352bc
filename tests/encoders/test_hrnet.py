"""HRNet: the exchange between scales, which of them are built, rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.encoders.hrnet import ExchangeUnit

KEY = jax.random.key(0)


def small(**fields):
    fields = {"depths": (1, 1), "branch_size": 1, "incre": False} | fields
    return dz.HRNet(width=4, layer1_size=1, layer1_features=4, **fields)


@pytest.mark.parametrize(
    ("fields", "reductions", "channels"),
    [
        ({}, (4, 8, 16), (4, 8, 16)),
        ({"incre": True}, (2, 4, 8, 16), (64, 128, 256, 512)),
        ({"coarsest": 8}, (4, 8), (4, 8)),
        ({"incre": True, "coarsest": 4}, (2, 4), (64, 128)),
        ({"depths": (1, 2, 1)}, (4, 8, 16, 32), (4, 8, 16, 32)),
    ],
)
def test_features(fields, reductions, channels):
    encoder, weights = small(**fields), []
    assert encoder.reductions == reductions
    for size in ((65, 47), (1, 3)):
        pyramid, variables = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))
        weights.append(variables)
        for feature, reduction, width in zip(pyramid.maps, reductions, channels, strict=True):
            assert feature.shape == (1, -(-size[0] // reduction), -(-size[1] // reduction), width)
    assert weights[0] == weights[1]


def test_coarsest_builds_no_more_than_is_needed():
    encoder = small(incre=True, coarsest=8)
    params = jax.eval_shape(encoder.init, KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    assert {name for name in params if name.startswith("incre")} == {"incre0", "incre1"}
    assert {name[:5] for name in params["stage3_0"] if name.startswith("fuse")} == {"fuse0", "fuse1"}
    with pytest.raises(ValueError, match="got 2"):
        small(coarsest=2).init(KEY, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parity
def test_every_parameter_counts_even_for_the_finest_scale():
    encoder, x = small(depths=(1,), coarsest=4), jax.random.normal(KEY, (2, 24, 17, 3))
    variables = jax.jit(encoder.init)(KEY, x)

    def gradient(encoder):
        def loss(params):
            pyramid, _ = encoder.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return sum((y * jax.random.normal(KEY, y.shape)).sum() for y in pyramid.maps)

        return jax.jit(jax.grad(loss))(variables["params"])

    plain = gradient(encoder)
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)
    again = gradient(encoder.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), again, plain)


def test_the_exchange_lays_odd_maps_as_strided_convolutions_do():
    # Without residual blocks and with kernels of one: each scale is the sum of all, upsampled or taken apart.
    conv = lambda channels, size, strides=1, act=None, name=None: dz.ConvNormAct(  # noqa: E731
        channels, size, strides, norm=None, act=act, kernel_init=centred, name=name
    )
    upsample = dz.HRNet(width=4).upsample
    unit = ExchangeUnit(0, 3, conv, lambda x: x, upsample)
    fine = jnp.reshape(jnp.arange(5.0), (1, 5, 1, 1))
    maps = [fine, 10 * fine[:, :3], 100 * fine[:, :2]]
    fused, _ = unit.init_with_output(KEY, maps)
    np.testing.assert_array_equal(fused[0][0, :, 0, 0], [0, 1, 12, 13 + 100, 24 + 100])
    np.testing.assert_array_equal(fused[1][0, :, 0, 0], [0, 12, 24 + 100])
    np.testing.assert_array_equal(fused[2][0, :, 0, 0], [0, 4 + 20 + 100])


def centred(key, shape, dtype):
    """A kernel that copies its centre pixel."""
    return jnp.zeros(shape, dtype).at[shape[0] // 2, shape[1] // 2].set(1)
