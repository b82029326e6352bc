"""Checkpoints that fit by names and shapes but belong to other networks raise an error or a warning."""

import functools
import json
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.weights import from_torch, to_torch

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def weights(case):
    """Arrays with the reference's names and shapes; variances are one."""
    shapes = json.loads(str(np.load(GOLDEN / f"{case}.npz")["shapes"]))
    return {name: np.full(shape, "running_var" in name, np.float32) for name, shape in shapes.items()}


@functools.cache
def exported(name, source=None, model=None):
    """The arrays of an encoder of the zoo, or of a model with it, with a reference's names."""
    module = dz.create_encoder(name) if model is None else dz.create_model(model, name, num_classes=2)
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return to_torch(module, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree), naming=source)


def said(module, arrays, **options):
    """The warning during loading, or nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_torch(module, arrays, **options)
    return "\n".join(str(warning.message) for warning in caught)


def refused(module, arrays, **options):
    with pytest.raises(ValueError) as error:
        from_torch(module, arrays, **options)
    return str(error.value)


def test_efficientnet_pytorch_is_another_network_than_timms():
    # Named `efficientnet-b2` in segmentation_models_pytorch; the arrays are those of efficientnet_b2.
    arrays = weights("smp_efficientnet-b2")
    message = refused(dz.create_encoder("efficientnet_b2"), arrays)
    assert "looks like a checkpoint over efficientnet-b2; the model's encoder is efficientnet_b2." in message
    assert "padding='SAME' where the model's encoder has None" in message
    assert "epsilon=0.001 where the model's encoder has 1e-05" in message


@pytest.mark.parametrize(
    ("names", "ours", "other"),
    [
        ("timm_efficientnet_b0", "efficientnet_b0", "tf_efficientnet_b0"),
        pytest.param("timm_tf_efficientnet_b1", "tf_efficientnet_b1", "efficientnet_b1", marks=pytest.mark.parity),
        ("timm_mobilenetv3_small_100", "tf_mobilenetv3_small_100", "mobilenetv3_small_100"),
    ],
)
def test_what_the_arrays_do_not_tell_is_an_argument_or_a_warning(names, ours, other):
    # That the argument silences the warning is seen in the tests of parity.
    encoder, arrays = dz.create_encoder(ours), weights(names)
    message = said(encoder, arrays)
    assert f"also those of {other}" in message and f"architecture='{ours}'" in message
    assert "padding=" in message and "epsilon=" in message
    message = refused(encoder, arrays, architecture=other)
    assert f"{other} has padding=" in message and f"Create the encoder as '{other}'" in message


def test_architectures_that_are_none_or_another_family():
    encoder = dz.ResNet((1,), dz.BasicBlock, width=2)
    arrays = {"conv1.weight": np.zeros((2, 3, 7, 7), np.float32)}
    assert "perhaps resnet18" in refused(encoder, arrays, architecture="resnet18x")
    assert "vgg11 is a VGG, the model's encoder a ResNet" in refused(encoder, arrays, architecture="vgg11")


@pytest.mark.parity
def test_the_efficientnets_of_segmentation_models_pytorch():
    inside = weights("smp_efficientnet-b2")
    assert not said(dz.create_encoder("efficientnet-b2"), inside)
    model = dz.create_model("fpn", "tf_efficientnet_b2", num_classes=2)
    assert "looks like a checkpoint over efficientnet-b2" in refused(model, inside, part="encoder")
    # `timm-efficientnet-*` have no other reading within its models.
    arrays = exported("timm-efficientnet-b0", model="fpn")
    assert "encoder.conv_stem.weight" in arrays
    assert not said(dz.create_model("fpn", "timm-efficientnet-b0", num_classes=2), arrays)
    assert "timm-efficientnet-b0" in said(dz.create_model("fpn", "tf_efficientnet_b0", num_classes=2), arrays)


def test_torchvisions_epsilon_goes_into_the_variances():
    arrays = weights("torchvision_mobilenet_v3_small")
    name = "mobilenetv3_small_100"
    encoder = dz.create_encoder(name)
    stats = from_torch(encoder, arrays)["batch_stats"]["conv_stem"]["norm"]
    np.testing.assert_allclose(stats["var"], 1 + 1e-3 - 1e-5, rtol=1e-6)
    as_there = dz.create_encoder(name, norm=partial(dz.BatchNorm, epsilon=1e-3))
    assert (from_torch(as_there, arrays)["batch_stats"]["conv_stem"]["norm"]["var"] == 1).all()
    back = to_torch(encoder, from_torch(encoder, arrays), like=arrays)
    np.testing.assert_allclose(back["features.0.1.running_var"], 1, rtol=1e-6)
    small = {n: a * 0 if "running_var" in n else a for n, a in arrays.items()}
    assert "smaller epsilon" in refused(dz.create_encoder(name, norm=partial(dz.BatchNorm, epsilon=1e-2)), small)
    # These names are those of symmetric padding.
    message = refused(dz.create_encoder(f"tf_{name}"), arrays)
    assert f"looks like a checkpoint over {name}; the model's encoder is tf_{name}." in message


def test_torchvisions_swin_pads_first():
    arrays = weights("torchvision_swin")
    fields = {"depths": (2, 2, 2, 2), "embed_dim": 12, "num_heads": (1, 2, 3, 6)}
    assert not said(dz.create_encoder("swin_t", **fields), arrays)


@pytest.mark.parity
@pytest.mark.parametrize("names", ["swin_t", "swin_tiny_patch4_window7_224"])
def test_timms_and_torchvisions_swin(names):
    arrays = exported(names)
    assert ("features.0.0.weight" in arrays) == (names == "swin_t")
    other = "swin_t" if names != "swin_t" else "swin_tiny_patch4_window7_224"
    assert f"also those of {names}, which has pad_first=" in said(dz.create_encoder(other), arrays)


def test_torchvisions_deeplab_is_another_model_than_segmentation_models_pytorchs():
    arrays = weights("torchvision_deeplabv3_resnet50")
    model = dz.create_model("deeplabv3", "resnet50", num_classes=2)
    message = refused(model, arrays)
    assert "its head has upsample=dz.Bilinear" in message and "output_stride=8, dilate_first=False" in message
    with pytest.warns(UserWarning, match="output_stride=8, dilate_first=False"):
        from_torch(dz.create_encoder("resnet50"), arrays)
    # Others too call an encoder `backbone`.
    assert not said(dz.create_encoder("resnet50"), {n: a for n, a in arrays.items() if "classifier" not in n})


def test_frozen_norms_of_detectors_whose_epsilon_is_unknown():
    def detector(name, norm=dz.BatchNorm):
        encoder = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, norm=norm)
        return dz.create_model(name, encoder, 4, features=32)

    def frozen(case):  # as FrozenBatchNorm2d writes them
        return {name: array for name, array in weights(case).items() if "num_batches_tracked" not in name}

    for name in ("retinanet", "mask_rcnn"):
        message = said(detector(name), frozen(f"detector_{name}"))
        assert "epsilon of 0, and the model's encoder has 1e-05" in message
        assert "norm=partial(dz.FrozenBatchNorm, epsilon=0.0)" in message
    retinanet = frozen("detector_retinanet")
    assert "epsilon of 0" in said(detector("retinanet"), retinanet, part="encoder")
    for norm in (dz.FrozenBatchNorm, partial(dz.FrozenBatchNorm, epsilon=0.0)):
        assert not said(detector("retinanet", norm), retinanet)
    assert not said(detector("retinanet"), weights("detector_retinanet"))  # with counters: ordinary norms
    assert not said(detector("fcos"), frozen("detector_fcos"))  # whose published weights have 1e-5
