"""The upsampling steps that decoders share."""

import jax
import jax.numpy as jnp
import pytest

import densezoo as dz

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
