"""Blocks by name, and messages for custom modules with an unsuitable interface."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import densezoo as dz
from densezoo.blocks import BLOCKS, build, norm_act
from densezoo.zoo import SKIPS, UPSAMPLERS

ENCODER = dz.PlainEncoder((4, 8))


def trace(model):
    images = jnp.zeros((1, 9, 12, 3))
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape


def test_every_name_of_a_block_makes_the_block():
    assert UPSAMPLERS is BLOCKS["upsample"] and SKIPS is BLOCKS["skip"]
    for field, blocks in BLOCKS.items():
        for name, block in blocks.items():
            if field == "downsample":
                made = dz.create_model("diffusion_unet", downsample=name).down[0].keywords[field]
            else:
                made = getattr(dz.create_model("unet", ENCODER, **{field: name}).decoder, field)
            assert made is block, (field, name)
    assert {dz.Nearest, dz.Bicubic, dz.CARAFE, dz.DySample} <= set(BLOCKS["upsample"].values())
    assert BLOCKS["norm"] == {"batch": dz.BatchNorm, "group": dz.GroupNorm, "layer": dz.LayerNorm, "none": None}
    model = dz.create_model("unet", ENCODER, 2, upsample="dysample", norm="batch", act="silu", attention="scse")
    assert trace(model) == (1, 9, 12, 2)
    # A field whose last word is one of the kinds takes its names too.
    assert dz.create_model("pan", attention_upsample="carafe").decoder.attention_upsample is dz.CARAFE
    assert dz.create_encoder("resnet18", norm="group", act="gelu").norm is dz.GroupNorm


def test_blocks_of_ones_own_get_names(monkeypatch):
    monkeypatch.setitem(BLOCKS, "norm", dict(BLOCKS["norm"]))
    dz.register_blocks("norm", groups_of_four=partial(dz.GroupNorm, num_groups=1))
    assert dz.create_model("unet", ENCODER, norm="groups_of_four").decoder.norm.keywords == {"num_groups": 1}
    with pytest.raises(ValueError, match="unknown field of blocks 'upsampler'; there are: upsample, downsample, skip"):
        dz.register_blocks("upsampler", mine=dz.Nearest)


class Bare(nn.Module):
    """An upsampler or norm without the fields that a block needs."""

    def __call__(self, x, size=None):
        return x if size is None else dz.ops.resize_nearest(x, size)


class WrongCall(nn.Module):
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __call__(self, x):
        return x.maps[0] if isinstance(x, dz.Pyramid) else x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(dz.create_model, "unet", upsample="dysampel"), ValueError, "upsample 'dysampel'.*mean 'dysample'"),
        (partial(dz.create_model, "unet", norm="BatchNorm"), ValueError, "unknown norm 'BatchNorm'.*mean 'batch'"),
        (partial(dz.create_encoder, "resnet18", act="sliu"), ValueError, "unknown act 'sliu'; did you mean 'silu'"),
        (
            lambda: trace(dz.create_model("unet", ENCODER, upsample=Bare)),
            TypeError,
            "Bare .*upsample: .*'dtype'",
        ),
        (lambda: trace(dz.create_model("unet", ENCODER, norm=Bare)), TypeError, "Bare .*norm: .*'dtype'"),
        (lambda: trace(dz.create_model("unet", ENCODER, upsample=dz.Conv)), TypeError, "Conv .*argument: 'features'"),
        (
            lambda: trace(dz.create_model("unet", ENCODER, upsample=WrongCall)),
            TypeError,
            r"WrongCall cannot be called as upsample\(x, size\)",
        ),
        (
            lambda: trace(dz.SegmentationModel(ENCODER, WrongCall(), dz.SegmentationHead(2))),
            TypeError,
            r"WrongCall cannot be called as decoder\(pyramid, train=.*'train'",
        ),
        (
            lambda: trace(dz.SegmentationModel(WrongCall(), dz.UNetDecoder(), dz.SegmentationHead(2))),
            TypeError,
            r"WrongCall cannot be called as encoder\(images, train=.*'train'",
        ),
        (lambda: build("dysample", name="upsample1"), TypeError, "upsample='dysample': only dz.create_model"),
        (lambda: build(dz.Nearest(), name="upsample1"), TypeError, "got an instance of Nearest"),
        (lambda: build(3, name="skip0"), TypeError, "skip: expected a factory of modules.*got 3"),
        (
            lambda: norm_act(None, "silu", 0, train=False, name="norm", dtype=None, param_dtype=None),
            TypeError,
            "act: .*got 'silu'",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Gives(nn.Module):
    """An upsampler that returns a given value."""

    result: Any = lambda x: x
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __call__(self, x, size):
        return self.result(x)


@pytest.mark.parametrize("name", ["unet", "linknet", "manet", "fpn"])
def test_an_upsampler_that_gives_another_size_is_named(name):
    def model(result, **fields):
        return dz.create_model(name, dz.PlainEncoder((4, 8)), upsample=partial(Gives, result), **fields)

    with pytest.raises(TypeError, match=r"Gives, .* map of \(4, 6\) and size=\(9, 12\), gave None"):
        trace(model(lambda x: None))
    with pytest.raises(ValueError, match=r"Gives, .* gave a map of \(8, 12\): it must give one of that size"):
        trace(model(lambda x: x.repeat(2, 1).repeat(2, 2)))
    if name == "unet":
        with pytest.raises(ValueError, match=r"Gives, .* gave a map of"):
            trace(model(lambda x: x, attention="scse"))


def test_a_family_says_which_field_its_decoder_lacks(monkeypatch):
    monkeypatch.setattr("densezoo.blueprint.MODELS", dict(dz.blueprint.MODELS))
    unet = dz.blueprint.MODELS["unet"]
    bare = dz.blueprint.dataclasses.replace(unet, decoder=Bare, decoder_fields=lambda encoder: {})
    monkeypatch.setitem(dz.zoo.MODELS, "bare", bare)
    with pytest.raises(TypeError, match="Bare, the decoder of unet, lacks dtype and param_dtype"):
        dz.create_model("bare", ENCODER)


def test_a_class_that_lacks_the_fields_fits_through_a_function():
    def upsample(dtype, param_dtype, name):
        return Bare(name=name)

    assert trace(dz.create_model("unet", ENCODER, 2, upsample=upsample)) == (1, 9, 12, 2)


def test_a_norm_of_ones_own_is_told_whether_it_trains():
    class Doubles(nn.Module):
        dtype: Any = None
        param_dtype: Any = None

        @nn.compact
        def __call__(self, x, *, train):
            return 2 * x if train else x

    for train, expected in ((True, 2.0), (False, 1.0)):
        y = dz.blocks.ConvNormAct(1, 1, norm=Doubles, act=None, kernel_init=nn.initializers.ones).apply
        params = {"params": {"conv": {"kernel": jnp.ones((1, 1, 1, 1))}}}
        assert float(y(params, jnp.ones((1, 1, 1, 1)), train=train).item()) == expected
