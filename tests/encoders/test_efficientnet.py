"""EfficientNet and its code shared with the MobileNets: padding, kernels, dilation, stages, stochastic depth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.encoders.inverted_residual import Block, InvertedResidualEncoder, Plan
from densezoo.weights import from_torch

KEY = jax.random.key(0)


class Tiny(InvertedResidualEncoder):
    """A short list with all kinds of blocks."""

    @property
    def plan(self):
        blocks = (
            Block(0, 3, 1, 8, 8),
            Block(1, 5, 2, 16, 8, 4),
            Block(1, 3, 1, 16, 8, 4, jax.nn.silu),
            Block(2, 3, 2, 16, 8),
            Block(3, 5, 2, 16, 8, 4),
            Block(3, 3, 1, 16, 8),
        )
        return Plan(8, blocks, head=12)


def images(*size):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32))


def run(encoder, variables, x, **kwargs):
    apply = jax.jit(lambda v, x: encoder.apply(v, x, **kwargs), compiler_options={"xla_backend_optimization_level": 0})
    return apply(variables, x)


def shapes(encoder, size):
    pyramid, _ = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))
    return [feature.shape[1:] for feature in pyramid.maps]


def test_taps_are_the_last_maps_of_their_size_or_those_given():
    assert Tiny().all_taps == (0, 2, 3, 5)
    assert shapes(Tiny(), (33, 40)) == [(17, 20, 8), (9, 10, 8), (5, 5, 8), (3, 3, 12)]
    assert shapes(dz.EfficientNet(width=0.5, taps=(-1, 2, 4, 8, 15)), (64, 64))[0] == (32, 32, 16)


def test_the_feature_in_the_middle_of_a_stage_is_that_of_b0_only():
    encoders = {name: dz.create_encoder(name) for name in dz.list_encoders("efficientnet-b*")}
    stages = {name: [e.layout()[tap + 1].name[-2:] for tap in e.all_taps[:-1]] for name, e in encoders.items()}
    assert {name for name, firsts in stages.items() if any(first != "_0" for first in firsts)} == {"efficientnet-b0"}


@pytest.mark.parametrize(
    ("dilate_first", "expected"),
    [(False, [1, 1, 1, 1, 1, 2]), (True, [1, 1, 1, 1, 2, 2])],
)
def test_output_stride_leaves_the_parameters_and_the_sizes_before_it(dilate_first, expected):
    encoder = Tiny(output_stride=8, dilate_first=dilate_first)
    assert [placed.dilation for placed in encoder.layout()] == expected
    assert encoder.reductions == (2, 4, 8, 8)
    assert shapes(encoder, (64, 40))[2:] == [(8, 5, 8), (8, 5, 12)]
    x = images(32, 32)
    assert jax.eval_shape(encoder.init, KEY, x) == jax.eval_shape(Tiny().init, KEY, x)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet-b0", "mobilenet_v2", "mobilenetv3_small_100"])
def test_coarsest_leaves_the_deeper_blocks_out(name):
    whole, part = dz.create_encoder(name), dz.create_encoder(name, coarsest=8)
    assert part.reductions == (2, 4, 8)
    x = jnp.zeros((1, 64, 64, 3))
    (features, params), (part_features, part_params) = [
        jax.eval_shape(encoder.init_with_output, KEY, x) for encoder in (whole, part)
    ]
    assert part_features.maps == features.maps[:3]
    assert set(part_params["params"]) < set(params["params"])


def test_same_padding_is_that_of_tensorflow():
    x = images(20, 21)
    encoder = Tiny(padding="SAME", taps=(-1, 2), coarsest=2, norm=None, act=lambda x: x)
    variables = jax.jit(encoder.init)(KEY, x)
    kernel = variables["params"]["conv_stem"]["conv"]["kernel"]
    stem = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(encoder.apply(variables, x).maps[0], stem, atol=1e-5)


def test_padding_for_one_size_equals_same_padding_at_that_size():
    encoder = Tiny(padding="SAME", padded_for=44)  # 44, 22, 11, 6, 3, of which only 11 is odd before a stride
    x = images(44, 44)
    variables = jax.jit(encoder.init)(KEY, x)
    same = run(Tiny(padding="SAME"), variables, x)
    for ours, theirs in zip(run(encoder, variables, x).maps, same.maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Elsewhere it is fixed, so that odd sides are rounded down where the given image's are even.
    assert shapes(encoder, (45, 47)) == [(22, 23, 8), (11, 11, 8), (6, 6, 8), (3, 3, 12)]


@pytest.mark.parametrize("fields", [{"padded_for": 44}, {"padded_for": 44, "output_stride": 8}, {"padded_for": 64}])
def test_min_size_is_the_smallest_that_works(fields):
    encoder = Tiny(padding="SAME", **fields)
    side = encoder.min_size
    assert min(shapes(encoder, (side, side))[-1]) == 1
    with pytest.raises(ValueError, match=f"at least {side}x{side}"):
        shapes(encoder, (side - 1, 99))
    assert Tiny(padding="SAME").min_size == 1
    model = dz.create_model("unet", encoder, 2)
    assert jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 3, 5, 3)))[0].shape == (1, 3, 5, 2)


def test_drop_path_acts_in_training_only():
    encoder = Tiny(drop_path=2.0, norm=None, coarsest=4)  # four in seven, in the last of these blocks
    x = jnp.ones((16, 8, 8, 3))
    variables = jax.jit(encoder.init)(KEY, x)

    def last(train):
        return run(encoder, variables, x, train=train, rngs={"dropout": KEY}).maps[-1]

    whole, parts = last(False), last(True)
    np.testing.assert_allclose(whole, jnp.broadcast_to(whole[:1], whole.shape), atol=1e-6)
    assert len(np.unique(np.round(np.abs(parts - whole).max((1, 2, 3)), 4))) == 2


@pytest.mark.parity
def test_remat_gives_the_same_gradients():
    x = images(8, 8)
    variables = jax.jit(Tiny(coarsest=4).init)(KEY, x)

    def gradient(encoder):
        def loss(params):
            pyramid, _ = encoder.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return sum(jnp.square(feature).mean() for feature in pyramid.maps)

        return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(variables["params"])

    ours, theirs = gradient(Tiny(coarsest=4, remat=True)), gradient(Tiny(coarsest=4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), ours, theirs)


def test_bfloat16_stays_bfloat16():
    encoder = Tiny(dtype=jnp.bfloat16)
    pyramid, variables = jax.eval_shape(encoder.init_with_output, KEY, images(32, 32))
    assert {feature.dtype for feature in pyramid.maps} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_checkpoints_of_whole_networks_fit_an_encoder_without_its_last_blocks():
    norm = partial(dz.BatchNorm, epsilon=1e-3)
    encoder = dz.EfficientNet(
        width=0.25, depth=0.5, coarsest=2, taps=(-1, 1), padding="SAME", padded_for=224, norm=norm
    )
    names = {"_conv_stem.weight": (8, 3, 3, 3)} | {
        f"_bn0.{leaf}": (8,) for leaf in ("weight", "bias", "running_mean", "running_var")
    }
    deeper = {"_blocks.0._bn1.bias": (8,), "_blocks.6._se_reduce.bias": (8,), "_conv_head.weight": (8, 8, 1, 1)}
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in (names | deeper).items()}
    assert float(from_torch(encoder, arrays)["params"]["conv_stem"]["norm"]["bias"][0]) == 0.5
    with pytest.raises(ValueError, match=r"_blocks\.10"):
        from_torch(encoder, arrays | {"_blocks.10._bn1.bias": np.zeros(8, np.float32)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ({"coarsest": 1}, "coarsest must be 2, 4, 8, 16 or 32"),
        ({"padding": "VALID"}, 'padding is None or "SAME"'),
        ({"padded_for": 224}, 'and "SAME" with padded_for'),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(dz.EfficientNet(**fields), (64, 64))
