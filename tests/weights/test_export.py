"""Conversion to the references' names: bit for bit, or with an error message."""

import functools
import json
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.weights import from_torch, read_checkpoint, to_torch

GOLDEN = Path(__file__).parents[1] / "golden"
seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
SMALL = {"depths": (1, 1), "block": dz.BasicBlock, "width": 2}


def described():
    """The golden files that contain the description of a model, by name."""
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path) as golden:
            if "ours" in golden.files:
                yield path.stem


def reference(case):
    """A model, and the reference's weights by name."""
    golden = np.load(GOLDEN / f"{case}.npz")
    ours = json.loads(str(golden["ours"]))
    if "model" in ours:
        model = dz.create_model(ours["model"], ours["encoder"], golden["output_logits"].shape[-1], **ours["fields"])
    else:
        model = dz.create_encoder(ours["encoder"], **ours["fields"])
    return model, {name: seeded(name, tuple(shape)) for name, shape in json.loads(str(golden["shapes"])).items()}


def filled(model, channels=3):
    """Variables with different numbers, without computing the initialisation."""
    side = 2 * max(32, *getattr(model, "encoder", model).reductions)
    tree = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels))))
    generator = np.random.default_rng(0)
    return unflatten_dict(
        {path: jnp.asarray(generator.normal(size=x.shape), x.dtype) for path, x in sorted(tree.items())}
    )


@functools.cache
def unet():
    model = dz.create_model("unet", dz.ResNet(**SMALL), 2, features=(4, 3, 2))
    return model, filled(model)


def assert_same(ours, other):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, other)


QUICK = ("smp_deeplabv3plus_resnet18", "smp_segformer_mit_b0")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.parity) for case in described()]
)
@pytest.mark.filterwarnings("ignore:the checkpoint. Names and shapes are also those of:UserWarning")
def test_there_and_back(case):
    model, arrays = reference(case)
    # The reference's epsilon is added to the variance and subtracted again, which rounds.
    rounding = 2e-7 if case in ("torchvision_efficientnet_b5", "torchvision_mobilenet_v3_small") else 0
    variables = from_torch(model, arrays)
    back = to_torch(model, variables, like=arrays)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        if name.endswith(".bias") and not back[name].any():
            # It went into the mean of the norm behind it, which is the next of its sequence, or bn1 behind conv1.
            module, place = name.removesuffix(".bias").rsplit(".", 1)
            norm = int(place) + 1 if place.isdecimal() else place.replace("conv", "bn")
            mean = f"{module}.{norm}.running_mean"
            np.testing.assert_array_equal(back[mean], arrays[mean] - array)
        elif not name.endswith(".running_mean"):
            np.testing.assert_allclose(back[name], array, rtol=rounding, atol=0, strict=True)
    again = from_torch(model, back)
    if rounding:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rounding, atol=0), again, variables)
    else:
        assert_same(again, variables)


@pytest.mark.parametrize("case", QUICK)
def test_whole_models_have_all_of_the_references_names(case):
    model, arrays = reference(case)
    assert_same(to_torch(model, from_torch(model, arrays)), arrays)


def test_names_of_several_references():
    model, variables = unet()
    smp = to_torch(model, variables)
    assert smp["encoder.layer1.0.bn1.num_batches_tracked"].dtype == np.int64
    assert smp["encoder.layer1.0.bn1.num_batches_tracked"].shape == ()
    assert_same(from_torch(model, smp), variables)
    wrapped = to_torch(model, variables, naming="encoder.model.")
    assert {name.replace("encoder.model.", "encoder.") for name in wrapped} == set(smp)
    assert_same(from_torch(model, wrapped), variables)

    encoder, part = dz.ResNet(**SMALL), {name: tree["encoder"] for name, tree in variables.items()}
    alone = to_torch(encoder, part)
    assert {f"encoder.{name}" for name in alone} == {name for name in smp if name.startswith("encoder.")}
    assert "backbone.body.conv1.weight" in to_torch(encoder, part, naming="torchvision's detectors")

    pyramid = dz.PyramidModel(encoder=encoder, neck=dz.FPNNeck(features=5, levels=2))
    arrays = to_torch(pyramid, filled(pyramid))
    assert {"backbone.body.conv1.weight", "backbone.fpn.inner_blocks.1.0.bias"} < set(arrays)


def test_hrnet_has_its_authors_names():
    model, arrays = reference("hrnet_w18_small_segmentation")
    variables = from_torch(model, arrays)
    assert_same(to_torch(model, variables), arrays)
    assert_same(to_torch(model, variables, naming="HRNet's authors"), arrays)


def test_auxiliary_heads_stay_here(recwarn):
    arrays = to_torch(*unet())
    model = dz.create_model("unet", dz.ResNet(**SMALL), 2, features=(4, 3, 2), auxiliary=1)
    variables = from_torch(model, arrays)
    made = filled(model)
    assert "auxiliary" in variables["params"]
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)
    assert variables["params"]["auxiliary"]["head0"]["conv"]["kernel"].any()
    assert not recwarn.list
    assert_same(to_torch(model, variables), arrays)
    assert_same(to_torch(model, variables, like=arrays), arrays)
    with pytest.raises(ValueError, match="part must be one of encoder, decoder, head; got 'auxiliary'"):
        from_torch(model, arrays, part="auxiliary")


def test_plain_networks_have_their_own_names():
    model = dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=(2, 4)),
        decoder=dz.UNetDecoder(features=(2,), upsample=partial(dz.TransposedConv, reduction=2)),
        head=dz.SegmentationHead(2, kernel_size=1),
    )
    variables = filled(model)
    arrays = to_torch(model, variables)
    assert {"inc.double_conv.0.weight", "up1.up.weight", "outc.conv.bias"} < set(arrays)
    assert arrays["up1.up.weight"].shape == (4, 2, 2, 2)
    found, same = dz.weights.plain_unet(arrays)
    assert_same(same, variables)
    assert found.decoder.features == (2,)


def test_a_checkpoint_to_follow():
    model, variables = unet()
    arrays = to_torch(model, variables)
    extras = {"classification_head.3.weight": np.ones((2, 3), np.float32)}
    like = {f"module.{name}": np.zeros_like(array) for name, array in (arrays | extras).items()}
    like["module.classification_head.3.weight"] += 1
    followed = to_torch(model, variables, like=like)
    assert_same(followed, {f"module.{name}": array for name, array in (arrays | extras).items()})

    # A reference with a bias before its norm.
    encoder = dz.PlainEncoder(features=(4,))
    plain = to_torch(encoder, filled(encoder))
    followed = to_torch(encoder, filled(encoder), like=plain | {"inc.double_conv.0.bias": np.ones(4, np.float32)})
    assert not followed.pop("inc.double_conv.0.bias").any()
    assert_same(followed, plain)

    other = dict(arrays)
    del other["decoder.blocks.0.conv1.0.weight"]
    other["segmentation_head.0.bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"conv1\.0\.weight is missing in it; segmentation_head\.0\.bias is \(3,\)"):
        to_torch(model, variables, like=other)
    with pytest.raises(ValueError, match="omit naming='x'"):
        to_torch(model, variables, naming="x", like=arrays)


def test_what_the_reference_does_not_have():
    segnet = dz.create_model("segnet", dz.PlainEncoder((2, 4)), 2)
    with pytest.raises(ValueError, match=r"\d+ arrays of the model have no name in .*params/decoder/.*; and \d+ more"):
        to_torch(segnet, filled(segnet), naming="plain U-Nets")
    model = dz.create_model("unet", dz.ResNet(**SMALL), 2, features=(4, 3, 2), upsample=dz.TransposedConv)
    with pytest.raises(ValueError, match=r"no name in 'segmentation_models_pytorch': params/decoder/block0/upsample"):
        to_torch(model, filled(model))
    model, variables = unet()
    with pytest.raises(ValueError, match=r"no names in 'keras'; there are: segmentation_models_pytorch, torchvision"):
        to_torch(model, variables, naming="keras")


def test_variables_of_another_model():
    model, variables = unet()
    with pytest.raises(ValueError, match=r"not the variables of the model: batch_stats/\S+ is missing"):
        to_torch(model, {"params": variables["params"]})
    other = dz.create_model("unet", dz.ResNet(**SMALL), 3, features=(4, 3, 2))
    with pytest.raises(ValueError, match=r"params/head/conv/\w+ is \(.*\), expected \("):
        to_torch(other, variables)
    with pytest.raises(ValueError, match="is unexpected"):
        to_torch(model, variables | {"cache": {"x": jnp.zeros(3)}})


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_input_channels(channels):
    encoder = dz.ResNet(**SMALL)
    variables = filled(encoder, channels)
    arrays = to_torch(encoder, variables)
    assert arrays["conv1.weight"].shape == (2, channels, 7, 7)
    assert_same(from_torch(encoder, arrays), variables)


def test_files_and_types(tmp_path):
    encoder = dz.ResNet(**SMALL, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    variables = filled(encoder)
    arrays = to_torch(encoder, variables)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32), np.dtype(np.int64)}
    save_file(arrays, tmp_path / "w.safetensors")
    assert_same(read_checkpoint(tmp_path / "w.safetensors"), dict(sorted(arrays.items())))
    assert_same(from_torch(encoder, tmp_path / "w.safetensors"), variables)
    like = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items() if "tracked" not in name}
    followed = to_torch(encoder, variables, like=like | {"fc.bias": np.ones(3, ml_dtypes.bfloat16)})
    assert {array.dtype for array in followed.values()} == {np.dtype(np.float32)}
    assert followed["fc.bias"].tolist() == [1, 1, 1]
    # Copies: the arrays can be changed.
    arrays["conv1.weight"][:] = 0
    assert np.asarray(variables["params"]["conv1"]["conv"]["kernel"]).any()


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("resnet18", "encoder.layer1.0.conv1.weight"),
        ("resnet18d", "encoder.model.layer1.0.conv1.weight"),
        ("hrnet_w18_small", "encoder.model.conv1.weight"),
        ("mobilenet_v2", "encoder.features.0.0.weight"),
        ("mobilenetv2_100", "encoder.model.conv_stem.weight"),
        ("mobilenetv3_small_100", "encoder.model.conv_stem.weight"),
        ("efficientnet-b0", "encoder._conv_stem.weight"),
        ("timm-efficientnet-b0", "encoder.conv_stem.weight"),
        ("tf_efficientnet_b0", "encoder.model.conv_stem.weight"),
    ],
)
def test_an_encoder_is_found_where_segmentation_models_pytorch_has_it(encoder, name):
    model = dz.create_model("unet", dz.create_encoder(encoder, coarsest=4), 2)
    assert name in to_torch(model, filled(model))
