"""DeepLab: the maps that it reads, options, messages, and torchvision's model."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import densezoo as dz
from densezoo import weights

KEY = jax.random.key(0)
PARITY = Path(__file__).parents[1] / "weights" / "test_parity.py"
SMALL = {"features": 8, "atrous_rates": (1, 2)}


def pyramid_of(reductions, size=(33, 50), told=True):
    """Shapes of maps, whose number of channels is their index in the pyramid."""
    sizes = [(-(-size[0] // r), -(-size[1] // r)) for r in reductions]
    maps = [jax.ShapeDtypeStruct((1, *size, level), jnp.float32) for level, size in enumerate(sizes, start=1)]
    return dz.Pyramid(tuple(maps), None, tuple(reductions) if told else None, size)


def shapes(decoder, pyramid):
    return jax.eval_shape(decoder.init_with_output, KEY, pyramid)


@pytest.mark.parametrize(
    ("reductions", "joins"),
    [
        ((1, 2, 4, 8, 16), 3),
        ((2, 4, 8, 16, 16), 2),
        ((2, 4, 8, 8, 8), 2),
        ((4, 8, 16, 32), 1),
        ((8, 16), 1),
        ((1, 2, 4), 3),
        ((1, 2), 2),
    ],
)
def test_the_map_at_a_quarter_joins(reductions, joins):
    pyramid = pyramid_of(reductions)
    y, variables = shapes(dz.DeepLabV3PlusDecoder(**SMALL), pyramid)
    assert variables["params"]["block1"]["conv"]["kernel"].shape == (1, 1, joins, 48)
    assert variables["params"]["aspp"]["convs_0"]["conv"]["kernel"].shape == (1, 1, len(reductions), 8)
    assert y.shape == (*pyramid.maps[joins - 1].shape[:3], 8)
    y, _ = shapes(dz.DeepLabV3Decoder(**SMALL), pyramid)
    assert y.shape == (*pyramid.maps[-1].shape[:3], 8)


def test_without_reductions_the_finest_map_joins():
    y, variables = shapes(dz.DeepLabV3PlusDecoder(**SMALL), pyramid_of((2, 4, 8), told=False))
    assert variables["params"]["block1"]["conv"]["kernel"].shape == (1, 1, 1, 48)
    assert y.shape == (1, 17, 25, 8)


def test_weights_of_an_upsampler_do_not_depend_on_the_size():
    decoder = dz.DeepLabV3PlusDecoder(**SMALL, upsample=dz.TransposedConv)
    _, small = shapes(decoder, pyramid_of((2, 4, 8), (1, 1)))
    _, large = shapes(decoder, pyramid_of((2, 4, 8)))
    assert small == large
    assert "upsample" in small["params"]


@pytest.mark.parametrize("kind", [dz.DeepLabV3Decoder, dz.DeepLabV3PlusDecoder])
@pytest.mark.parametrize("norm", [None, partial(dz.GroupNorm, num_groups=4)])
def test_other_norms(kind, norm):
    pyramid = pyramid_of((2, 4, 8, 8))
    _, variables = shapes(kind(**SMALL, norm=norm), pyramid)
    assert set(variables) == {"params"}
    assert set(variables["params"]["aspp"]["pool"]) == ({"conv"} if norm is None else {"conv", "norm"})
    if norm is not None and kind is dz.DeepLabV3PlusDecoder:
        with pytest.raises(ValueError, match="must divide the 48 channels"):
            shapes(kind(features=32, norm=partial(dz.GroupNorm, num_groups=32)), pyramid)
        shapes(kind(features=32, norm=dz.GroupNorm), pyramid)  # which chooses 24 groups there


def test_an_encoder_by_its_name_is_dilated():
    for name, reductions in (("deeplabv3", (2, 4, 8, 8, 8)), ("deeplabv3plus", (2, 4, 8, 16, 16))):
        assert dz.create_model(name, "resnet18").encoder.reductions == reductions
        with pytest.raises(ValueError, match=r"with output_stride.* vgg11 does not support.* resnet18"):
            dz.create_model(name, "vgg11")
        # Unchanged, if requested.
        dz.create_model(name, dz.create_encoder("vgg11"))


def test_initialised_as_torch_does():
    decoder = dz.DeepLabV3Decoder(features=64, atrous_rates=(1,))
    pyramid = dz.Pyramid((jnp.ones((1, 2, 2, 1)),))
    kernel = jax.jit(lambda: decoder.init(KEY, pyramid)["params"]["conv"]["conv"]["kernel"])()
    bound = (9 * 64) ** -0.5
    assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound


def test_names_of_old_checkpoints():
    decoder = dz.DeepLabV3Decoder()
    names = {
        "aspp/convs_2/norm": "decoder.0.convs.2.1",
        "aspp/pool/conv": "decoder.0.convs.4.1",
        "aspp/project/conv": "decoder.0.project.0",
        "conv/conv": "decoder.1",
        "conv/norm": "decoder.2",
    }
    namings = decoder.reference_names()
    assert any(all(naming.find(path) == (name, "conv") for path, name in names.items()) for naming in namings)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "encoder", "fields"),
    [
        ("resnet50", "resnet50", {"output_stride": 8, "dilate_first": False}),
        ("mobilenet", "mobilenetv3_large_100", {"output_stride": 16, "dilate_first": True}),
    ],
)
def test_torchvision(case, encoder, fields):
    parity = runpy.run_path(str(PARITY))
    arrays, image, outputs = parity["load"](f"torchvision_deeplabv3_{case}")
    model = dz.SegmentationModel(
        encoder=dz.create_encoder(encoder, **fields),
        decoder=dz.DeepLabV3Decoder(),
        head=dz.SegmentationHead(2, kernel_size=1, upsample=dz.Bilinear),
    )
    assert case == "mobilenet" or any(name.startswith("aux_classifier.") for name in arrays)
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    parity["assert_close"](apply(weights.from_torch(model, arrays), image), outputs["logits"])
