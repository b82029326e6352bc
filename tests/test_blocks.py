"""Blocks: exact outputs with kernels of ones, torch's conventions, any size for every upsampler."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.blocks import icnr
from densezoo.blocks.norm import default_groups
from densezoo.zoo import UPSAMPLERS

KEY = jax.random.key(0)


def test_conv_pads_as_torch_does():
    # Ones convolved with a kernel of ones count the pixels under the window.
    conv = dz.Conv(1, 3, strides=2, kernel_init=nn.initializers.ones)
    y, _ = conv.init_with_output(KEY, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])


def test_conv_norm_act_leaves_out_what_is_none():
    x = -jnp.ones((1, 4, 4, 2))
    ones = nn.initializers.ones
    y, variables = dz.ConvNormAct(1, 1, norm=None, act=None, kernel_init=ones).init_with_output(KEY, x)
    np.testing.assert_array_equal(y, np.full((1, 4, 4, 1), -2))
    assert set(variables["params"]["conv"]) == {"kernel", "bias"}
    y, variables = dz.ConvNormAct(1, 1, kernel_init=ones).init_with_output(KEY, x)
    assert float(y.max()) == 0.0  # the activation
    assert set(variables["params"]["conv"]) == {"kernel"}
    assert set(variables["params"]["norm"]) == {"scale", "bias"}


def test_batch_norm_in_training_and_after():
    x = np.random.default_rng(0).normal(3.0, 2.0, (3, 2, 4, 5)).astype(np.float32)
    norm = dz.BatchNorm()
    variables = norm.init(KEY, jnp.asarray(x))
    y, updated = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    # torch's running variance is the unbiased one, over n - 1.
    count = x.size // 5
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var * count / (count - 1), rtol=1e-5)
    y = norm.apply(variables | updated, jnp.asarray(x))
    running = jax.tree.map(np.asarray, updated["batch_stats"])
    np.testing.assert_allclose(y, (x - running["mean"]) / np.sqrt(running["var"] + 1e-5), atol=1e-5)


def test_batch_norm_in_training_needs_more_than_one_value():
    norm, x = dz.BatchNorm(), jnp.ones((1, 1, 1, 3))
    variables = norm.init(KEY, x, train=True)
    with pytest.raises(ValueError, match=r"one value per channel.*\(1, 1, 1, 3\)"):
        norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert norm.apply(variables, x).shape == x.shape


def test_batch_norm_survives_a_large_mean():
    # E[x^2] - E[x]^2 in float32 would lose the variance here.
    x = jnp.asarray(np.random.default_rng(1).normal(1000.0, 0.1, (2, 16, 16, 1)).astype(np.float32))
    y, _ = dz.BatchNorm().init_with_output(KEY, x, train=True)
    np.testing.assert_allclose(float(y.std()), 1.0, atol=0.02)


@pytest.mark.parametrize(
    "norm",
    [
        dz.BatchNorm,
        nn.BatchNorm,
        partial(dz.GroupNorm, num_groups=2),
        partial(nn.GroupNorm, num_groups=2),
        nn.LayerNorm,
    ],
)
def test_any_norm_factory_will_do(norm):
    block = dz.ConvNormAct(4, norm=norm)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 4, 3)).astype(np.float32))
    variables = block.init(KEY, x)
    train, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    assert train.shape == block.apply(variables, x).shape == (2, 4, 4, 4)
    changes_in_training = bool((jnp.abs(train - block.apply(variables, x)) > 1e-3).any())
    assert changes_in_training == ("batch_stats" in variables)


def test_group_norm_equals_loop():
    # Small values, whose variance is near the epsilon, so that another epsilon shows.
    x = np.random.default_rng(5).normal(0.002, 0.003, (2, 3, 5, 6)).astype(np.float32)
    y, variables = dz.GroupNorm(num_groups=3).init_with_output(KEY, jnp.asarray(x))
    for sample in range(2):
        for group in range(3):
            part = x[sample, :, :, 2 * group : 2 * group + 2]
            expected = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            np.testing.assert_allclose(y[sample, :, :, 2 * group : 2 * group + 2], expected, atol=1e-5)
    assert {name: leaf.shape for name, leaf in variables["params"].items()} == {"scale": (6,), "bias": (6,)}
    with pytest.raises(ValueError, match=r"must divide the 6 channels: pass .*num_groups=3"):
        dz.GroupNorm(num_groups=4).init(KEY, jnp.asarray(x))


def test_layer_norm_divides_by_the_root_of_variance_and_epsilon():
    x = np.random.default_rng(5).normal(0.002, 0.003, (2, 3, 6)).astype(np.float32)
    for options, epsilon in (({}, 1e-6), ({"epsilon": 1e-5}, 1e-5)):
        y, _ = dz.LayerNorm(**options).init_with_output(KEY, jnp.asarray(x))
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_group_norm_chooses_its_groups():
    expected = {64: 32, 32: 32, 16: 8, 48: 24, 24: 12, 7: 1, 2: 1, 1: 1}
    assert {channels: default_groups(channels) for channels in expected} == expected
    x = jnp.asarray(np.random.default_rng(6).normal(size=(1, 2, 2, 16)).astype(np.float32))
    variables = {"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}
    np.testing.assert_array_equal(dz.GroupNorm().apply(variables, x), dz.GroupNorm(8).apply(variables, x))


def test_skips_join():
    x, feature = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 5))
    joined = dz.ConcatSkip().apply({}, x, feature)
    np.testing.assert_array_equal(joined[0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0])
    joined = dz.ConcatSkip(skip_first=True).apply({}, x, feature)
    np.testing.assert_array_equal(joined[0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1])
    added, _ = dz.LateralAdd(kernel_init=nn.initializers.ones).init_with_output(KEY, x, jnp.full((1, 2, 2, 5), 2.0))
    np.testing.assert_array_equal(added, np.full((1, 2, 2, 3), 11))


@pytest.mark.parametrize("name", sorted(UPSAMPLERS))
def test_every_upsampler_reaches_every_size(name):
    layer, sizes = UPSAMPLERS[name](), [(8, 6), (7, 5), (9, 7), (16, 12), (5, 5), (4, 3)]

    def gradient_and_result(x, size):
        def loss(x):
            y, _ = layer.init_with_output(KEY, x, size)
            return jnp.square(y).sum(), y

        return jax.grad(loss, has_aux=True)(x)

    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 3, 4)).astype(np.float32))
    found = jax.jit(lambda x: [gradient_and_result(x, size) for size in sizes])(x)
    for size, (gradient, y) in zip(sizes, found, strict=True):
        assert y.shape == (1, *size, 4)
        assert bool((gradient != 0).all()), f"some input pixels are not used at {size}"


def test_learned_upsamplers_have_the_same_weights_at_every_size():
    for name in ("transposed_conv", "transposed_conv_4x4", "pixel_shuffle", "resize_conv", "carafe", "dysample"):
        layer = UPSAMPLERS[name]()
        shapes = [
            jax.eval_shape(lambda x, layer=layer, after=after: layer.init(KEY, x, after), jnp.zeros((1, *before, 4)))
            for before, after in (((1, 1), (1, 1)), ((4, 4), (8, 8)), ((2, 2), (16, 16)))
        ]
        assert shapes[0] == shapes[1] == shapes[2]


def test_icnr_starts_as_nearest():
    layer = dz.PixelShuffle(kernel_init=icnr(nn.initializers.normal(1.0)))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 3, 3, 2)).astype(np.float32))
    y, _ = layer.init_with_output(KEY, x, (6, 6))
    blocks = np.asarray(y).reshape(1, 3, 2, 3, 2, 2)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))


def test_carafe_is_a_box_blur_and_dysample_bilinear_until_they_have_learned():
    x = jnp.asarray(np.random.default_rng(8).normal(size=(2, 6, 5, 4)).astype(np.float32))
    zeros = nn.initializers.zeros
    y, variables = dz.CARAFE(kernel_size=3, encoder_init=zeros).init_with_output(KEY, x, (12, 10))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blurred = sum(padded[:, i : i + 6, j : j + 5] for i, j in np.ndindex(3, 3)) / 9
    np.testing.assert_allclose(y, dz.ops.resize_nearest(blurred, (12, 10)), atol=1e-5)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["channel_compressor"] == {"kernel": (1, 1, 4, 64), "bias": (64,)}
    assert shapes["content_encoder"] == {"kernel": (3, 3, 64, 36), "bias": (36,)}
    y, variables = dz.DySample(kernel_init=zeros).init_with_output(KEY, x, (12, 10))
    np.testing.assert_allclose(y, dz.ops.resize_bilinear(x, (12, 10)), atol=1e-5)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"offset": {"kernel": (1, 1, 4, 32), "bias": (32,)}}


def test_dysample_moves_each_group_by_its_own_offset():
    # Biases alone: x comes before y, then the group, then the pixel of the block; a bias of 4 moves by one pixel.
    x = jnp.asarray(np.random.default_rng(9).normal(size=(1, 6, 6, 4)).astype(np.float32))
    layer = dz.DySample(groups=2, kernel_init=nn.initializers.zeros)
    bias = np.zeros((2, 2, 4), np.float32)
    bias[0, 1], bias[1, 0] = 4, -4
    params = layer.init(KEY, x, (12, 12))["params"]
    y = layer.apply({"params": {"offset": params["offset"] | {"bias": jnp.asarray(bias.reshape(-1))}}}, x, (12, 12))
    still = dz.ops.resize_bilinear(x, (12, 12))
    np.testing.assert_allclose(y[:, 4:, :, :2], still[:, 2:-2, :, :2], atol=1e-6)  # the first group from above
    np.testing.assert_allclose(y[:, :, :8, 2:], still[:, :, 2:-2, 2:], atol=1e-6)  # the second from the right


def test_content_aware_upsamplers_keep_the_dtype_of_the_maps():
    x = jnp.zeros((1, 4, 4, 4))
    for layer in (dz.CARAFE(dtype=jnp.bfloat16), dz.DySample(dtype=jnp.bfloat16)):
        for dtype in (jnp.float32, jnp.bfloat16):
            y, _ = jax.eval_shape(lambda x, layer=layer: layer.init_with_output(KEY, x, (8, 8)), x.astype(dtype))
            assert y.dtype == dtype


def test_dysample_names_groups_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="groups=4 must divide the 6 channels"):
        dz.DySample().init(KEY, jnp.zeros((1, 4, 4, 6)), (8, 8))


def test_transposed_conv_halves_channels_on_request():
    y, _ = dz.TransposedConv(reduction=2).init_with_output(KEY, jnp.zeros((1, 4, 4, 6)), (8, 8))
    assert y.shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="reduction"):
        dz.TransposedConv(reduction=4).init(KEY, jnp.zeros((1, 4, 4, 6)), (8, 8))
    with pytest.raises(ValueError, match="cannot reduce a map"):
        dz.TransposedConv().init(KEY, jnp.zeros((1, 4, 4, 6)), (3, 8))


def test_an_instance_in_place_of_a_factory_is_named():
    with pytest.raises(TypeError, match="partial\\(Bilinear"):
        model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2, upsample=dz.Bilinear())
        jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 3)))
    model = dz.SegmentationModel(dz.PlainEncoder((4, 8)), dz.UNetDecoder(skip="add"), dz.SegmentationHead(2))
    with pytest.raises(TypeError, match="skip='add': only"):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 3)))


def test_channel_halving_upsampler_reaches_a_size_more_than_twice_its_own():
    layer = dz.TransposedConv(reduction=2)
    y, _ = layer.init_with_output(KEY, jnp.ones((1, 1, 1, 4)), (3, 3))
    assert y.shape == (1, 3, 3, 2)


def test_transposed_conv_keeps_the_scale_of_its_input():
    x = jnp.asarray(np.random.default_rng(6).normal(size=(8, 8, 8, 64)).astype(np.float32))
    for kernel_size in (2, 4):
        y, _ = dz.TransposedConv(kernel_size).init_with_output(KEY, x, (16, 16))
        # He's initialisation gives twice the variance, for a ReLU to halve.
        assert 1.7 < float(y[:, 2:-2, 2:-2].var()) < 2.3


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="even kernel"):
        dz.Conv(2, kernel_size=4).init(KEY, jnp.zeros((1, 4, 4, 2)))


def test_an_upsampler_of_ones_own_is_called():
    class Zeros(dz.Nearest):
        def __call__(self, x, size):
            return jnp.zeros((x.shape[0], *size, x.shape[3]))

    pyramid = dz.Pyramid((jnp.ones((1, 8, 8, 4)), jnp.ones((1, 4, 4, 8))))
    for upsample, zero in ((Zeros, True), (dz.Nearest, False)):
        decoder = dz.UNetDecoder(features=(4,), norm=None, upsample=upsample)
        variables = decoder.init(KEY, pyramid)
        kernel = variables["params"]["block0"]["convs"]["conv1"]["conv"]["kernel"]
        changed = jax.tree.map(jnp.copy, variables)
        changed["params"]["block0"]["convs"]["conv1"]["conv"]["kernel"] = kernel.at[:, :, :8].add(1.0)
        same = bool(jnp.allclose(decoder.apply(changed, pyramid), decoder.apply(variables, pyramid)))
        assert same == zero, upsample
