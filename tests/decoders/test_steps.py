"""The upsampling steps that decoders share."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import densezoo as dz
from densezoo.blueprint import MODELS

KEY = jax.random.key(0)
DECODERS = {
    "unet": dz.UNetDecoder((8, 4, 4), upsample=dz.TransposedConv),
    "unetplusplus": dz.UNetPlusPlusDecoder((8, 4, 4), upsample=dz.TransposedConv),
    "manet": dz.MAnetDecoder((8, 4, 4), reduction=2, upsample=dz.TransposedConv),
    "linknet": dz.LinknetDecoder(4),
    "fpn": dz.FPNDecoder(8, 32, levels=3, upsample=dz.TransposedConv, segmentation_upsample=dz.TransposedConv),
}


def upsamplers(decoder, reductions, size=(32, 24)):
    """The weights of upsamplers, and the resulting map."""
    features = tuple(jnp.zeros((1, -(-size[0] // r), -(-size[1] // r), 8)) for r in reductions)
    pyramid = dz.Pyramid(features, reductions=reductions, image_size=size)
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid)
    paths = (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]))
    return {path for path in paths if "upsample" in path and "kernel" in path}, y


@pytest.mark.parametrize("name", DECODERS)
def test_nothing_is_learned_between_two_maps_of_one_scale(name):
    strided, y = upsamplers(DECODERS[name], (2, 4, 8))
    dilated, same = upsamplers(DECODERS[name], (2, 4, 4))
    assert dilated < strided and y.shape == same.shape
    # What an image of one pixel shows of the scales says nothing.
    assert upsamplers(DECODERS[name], (2, 4, 8), size=(1, 1))[0] == strided


class Nothing(nn.Module):
    dtype: object = None
    param_dtype: object = jnp.float32

    def __call__(self, x, size):
        pass


class Halves(Nothing):
    def __call__(self, x, size):
        return x[:, ::2]


class Bare(nn.Module):
    def __call__(self, x, size):
        return x


def decoders_with_upsamplers():
    """For each decoder and head, its fields that take an upsampler."""
    classes = {blueprint.decoder for blueprint in MODELS.values() if blueprint.decoder} | {dz.SegmentationHead}
    return [
        (cls, field.name)
        for cls in sorted(classes, key=lambda cls: cls.__name__)
        for field in dataclasses.fields(cls)
        if field.name.endswith("upsample")
    ]


@pytest.mark.parametrize(("cls", "field"), decoders_with_upsamplers())
def test_every_decoder_names_an_upsampler_that_does_not_fit(cls, field):
    def run(upsample):
        if cls is dz.SegmentationHead:
            cls(2, upsample=upsample).init(KEY, jnp.zeros((1, 4, 4, 8)), (8, 8))
            return
        reductions = (16,) * 4 if cls is dz.DPTDecoder else (4, 8, 16, 32)
        maps = tuple(jnp.zeros((1, 64 // r, 64 // r, 8)) for r in reductions)
        pyramid = dz.Pyramid(maps, reductions=reductions, image_size=(64, 64))
        fields = {"intermediate_features": (8,) * 4} if cls is dz.DPTDecoder else {}
        jax.eval_shape(cls(**{field: upsample}, **fields).init, KEY, pyramid)

    with pytest.raises(TypeError, match=r"Nothing, called as upsample\(x, size\).*gave None"):
        run(Nothing)
    with pytest.raises(ValueError, match=r"Halves, called as upsample\(x, size\).*gave a map of"):
        run(Halves)
    with pytest.raises(TypeError, match=r"Bare cannot be built as .*upsample: got an unexpected keyword argument"):
        run(Bare)
    with pytest.raises(
        TypeError, match=r"upsample='bilinear': only dz\.create_model and dz\.create_encoder accept names"
    ):
        run("bilinear")


def test_decoders_say_how_many_maps_they_need():
    one = dz.Pyramid((jnp.zeros((1, 8, 8, 4)),), pool_indices=(), reductions=(1,), image_size=(8, 8))
    for decoder, message in (
        (dz.SegNetDecoder(), "SegNetDecoder needs 5 of the encoder's poolings for depths=.*, .* gives 0"),
        (dz.SegNetDecoder(()), "SegNetDecoder needs at least 1 of the encoder's poolings for depths=.*, .* gives 0"),
        (dz.DPTDecoder(), "DPTDecoder needs 4 of the encoder's maps for intermediate_features=.*, .* gives 1"),
        (dz.FPNDecoder(levels=3), "FPNDecoder needs at least 3 of the encoder's maps for levels=3, .* gives 1"),
        (dz.FPNNeck(levels=3), "FPNNeck needs at least 3 of the encoder's maps for levels=3, .* gives 1"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.init(KEY, one)
    with pytest.raises(ValueError, match=r"segnet does not work .* and this encoder has none"):
        dz.create_model("segnet", dz.PlainEncoder((4,)))
