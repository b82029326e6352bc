"""Receptive fields, compared with published numbers and with gradients."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import densezoo as dz
from densezoo.inspect import effective_receptive_field, receptive_fields

SHAPE = (60, 76, 3)


def test_vgg16():
    # Simonyan and Zisserman's network: 196 after the last convolution, 212 after the last pooling.
    fields = receptive_fields(dz.create_encoder("vgg16"), (320, 320, 3))
    assert fields["features_28"].size == (196, 196)
    assert fields["4"].size == (212, 212)
    assert "196x196" in str(fields)


def test_dilation_and_global_pooling():
    plain, dilated = (
        receptive_fields(dz.create_encoder("resnet18", **fields), (1, 900, 3)) for fields in ({}, {"output_stride": 8})
    )
    # Dilation keeps what each window reaches: the field of the last map hardly changes, its resolution does.
    assert (plain["4"].shape[2], dilated["4"].shape[2]) == (29, 113)
    assert abs(plain["4"].size[1] - dilated["4"].size[1]) <= 64
    assert not plain["4"].whole
    assert receptive_fields(dz.create_model("pspnet", "resnet18"), (64, 64, 3)).layers[-1].whole


class Plain(nn.Module):
    """Strides, dilation, even sizes, slices, and an axis that is split and merged."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (5, 3), strides=2, padding=((2, 1), (0, 3)))(x)
        x = nn.Conv(4, (3, 3), kernel_dilation=3)(x)
        x = nn.max_pool(x, (2, 3), (1, 2))
        x = x[:, 1:, ::-1][:, :, ::-1]
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, 2, c // 2).transpose(0, 1, 3, 2, 4).reshape(b, h * 2, w, c // 2)
        return nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x)


# Unlike ReLU, SiLU lets every gradient through.
ENCODER = dz.PlainEncoder((4, 8, 8), act=nn.silu)
MODELS = {
    "plain": Plain(),
    "segnet": dz.create_model("segnet", ENCODER, act=nn.silu),
    **{
        f"unet {upsample}": dz.create_model("unet", ENCODER, upsample=upsample, act=nn.silu)
        for upsample in ("nearest", "bilinear", "bicubic", "transposed_conv_4x4", "pixel_shuffle")
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_fields_are_the_support_of_the_gradient(name):
    model = MODELS[name]
    field = receptive_fields(model, SHAPE).layers[-1]
    images = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    measured = effective_receptive_field(model, model.init(jax.random.key(1), images), images)
    np.testing.assert_allclose(measured.sum(), 1, rtol=1e-6)
    rows, columns = (np.flatnonzero(measured.sum(axis)) for axis in (1, 0))
    assert (field.rows, field.columns) == ((rows[0], rows[-1]), (columns[0], columns[-1]))


def test_fields_of_layers_in_recomputed_blocks():
    images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    encoder = dz.PlainEncoder((4, 8))
    plain, recomputed = (dz.create_model("unet", encoder, features=(4,), remat=remat) for remat in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(1), images)
    # A layer that is only called with plain operations; otherwise the convolution after it includes it.
    layer = "decoder/block0/upsample"
    expected, found = (effective_receptive_field(model, variables, images, layer) for model in (plain, recomputed))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.any()


def test_bad_input():
    encoder = dz.PlainEncoder((4, 8))
    images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    variables = encoder.init(jax.random.key(1), images)
    with pytest.raises(ValueError, match=r"no map of shape .* 'block7'; there are block0"):
        effective_receptive_field(encoder, variables, images, "block7")
    with pytest.raises(ValueError, match=r"position \(16, 0\) is outside of block0, which is 16x16"):
        effective_receptive_field(encoder, variables, images, "block0", position=(16, 0))
    for shape, got in (((16, 16), r"\(16, 16\)"), (48, "48"), (images, r"an array of shape \(1, 16, 16, 3\)")):
        with pytest.raises(ValueError, match=f"image_shape must be .*; got {got}$"):
            receptive_fields(encoder, shape)
    with pytest.raises(TypeError, match=r"must be a Flax module, .*; got 'resnet18'"):
        receptive_fields("resnet18")
    with pytest.raises(ValueError, match="expected the model's variables"):
        effective_receptive_field(encoder, variables["params"], images)


def test_a_field_as_large_as_the_image_is_the_whole_image():
    fields = receptive_fields(dz.PlainEncoder((4, 8)), (12, 12, 3))
    assert not fields["block1"].whole and fields["block1"].size == (12, 12)  # only in the middle
    *_, last, note = str(fields).splitlines()
    assert last.endswith("the whole image") and note.endswith("cut off at the border of the image.")
