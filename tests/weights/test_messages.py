"""Error messages for checkpoints that do not fit: each describes what the checkpoint appears to be."""

import functools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.encoders import ENCODERS
from densezoo.weights import from_torch
from densezoo.weights._fingerprints import FILE, fingerprint, identify, names_of
from densezoo.weights._parameters import shapes_of, stem_path

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def shapes(case):
    return {name: tuple(shape) for name, shape in json.loads(str(np.load(GOLDEN / f"{case}.npz")["shapes"])).items()}


def zeros(shapes):
    """Arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def message(model, arrays, **options):
    with pytest.raises(ValueError) as error:
        from_torch(model, arrays, **options)
    assert len(str(error.value)) < 2500
    return str(error.value)


@functools.cache
def fpn():
    return dz.create_model("fpn", "resnet18", 2)


def test_another_encoder():
    said = message(fpn(), zeros(shapes("smp_unet_resnet50")))
    assert "looks like a checkpoint over resnet50; the model's encoder is resnet18." in said
    own = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=4)
    said = message(own, zeros(shapes("smp_unet_resnet50")))
    assert "looks like a checkpoint over resnet50; the model's encoder is another ResNet." in said
    said = message(dz.create_encoder("resnet18"), zeros(shapes("smp_unet_vgg11_bn")))
    assert "looks like a checkpoint over vgg11_bn; the model's encoder is resnet18." in said


def test_another_decoder():
    said = message(fpn(), zeros(shapes("smp_linknet_resnet18")))
    assert "It fits the encoder, and nothing of the decoder and the head.\n" in said
    assert "looks like" not in said and "unexpected in the checkpoint: decoder.blocks.0" in said


def test_an_encoder_alone():
    arrays = {k.removeprefix("encoder."): v for k, v in zeros(shapes("smp_fpn_resnet18")).items() if "encoder" in k}
    assert "To initialise the others: part='encoder'." in message(fpn(), arrays)


def test_no_name_fits():
    said = message(fpn(), zeros({"blocks.0.a": (3,), "blocks.1.a": (3,)}))
    assert "No name matches" in said and "blocks.0.a; blocks.1.a" in said


def test_a_renamed_tensor():
    arrays = zeros(shapes("smp_fpn_resnet18"))
    arrays["encoder.layer2.0.first.weight"] = arrays.pop("encoder.layer2.0.conv1.weight")
    said = message(fpn(), arrays)
    assert "Perhaps renamed: encoder.layer2.0.first.weight came, encoder.layer2.0.conv1.weight was expected." in said
    assert len(said.splitlines()) == 4


def test_a_missing_tensor():
    arrays = zeros(shapes("smp_fpn_resnet18"))
    del arrays["decoder.seg_blocks.0.block.0.block.1.weight"]
    said = message(fpn(), arrays)
    assert "1 missing in the checkpoint: decoder.seg_blocks.0.block.0.block.1.weight" in said
    assert "strict=False initialises" in said and len(said.splitlines()) == 3


def test_a_part_that_is_not_complete():
    arrays = zeros(shapes("smp_fpn_resnet18"))
    del arrays["encoder.layer4.1.bn2.weight"]
    said = message(fpn(), arrays, part="encoder")
    assert said.startswith("the checkpoint does not fit the model's encoder:")
    assert "1 missing in the checkpoint: encoder.layer4.1.bn2.weight" in said and "decoder" not in said


def test_a_pickle_with_code(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Attack()}))
    assert "unpickling could run arbitrary code" in message(fpn(), tmp_path / "weights.pth")
    assert not marker.exists()


def test_a_truncated_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} cannot be read, it may be damaged or truncated" in message(fpn(), path)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("smp_unet_resnet34", "resnet34"),
        ("smp_unet_vgg16", "vgg16"),
        ("torchvision_wide_resnet50_2", "wide_resnet50_2"),
        ("torchvision_resnet18_fpn", "resnet18"),
        ("smp_segformer_mit_b0", "mit_b0"),
        ("timm_tf_efficientnet_b1", "tf_efficientnet_b1"),
        ("smp_unet_mobilenet_v2", "mobilenet_v2"),
        ("plain_unet_bilinear", None),
        ("upsampler_carafe", None),
    ],
)
def test_encoders_are_known_by_their_numbers(case, name):
    found = identify(shapes(case))
    assert name in found if name else not found


def test_the_numbers_cover_every_encoder():
    known = json.loads(FILE.read_text())
    assert set(known) == set(ENCODERS), "call densezoo.weights._fingerprints.write()"
    for name in ("resnet18", "vgg11_bn"):
        check(name)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_the_numbers_are_those_of(name):
    check(name)


def check(name):
    encoder = dz.create_encoder(name)
    tree = {path: array.shape for path, array in shapes_of(encoder, 3).items()}
    assert json.loads(FILE.read_text())[name] == list(fingerprint(tree.values(), tree[stem_path(encoder)]))
    assert name in names_of(tree, stem_path(encoder))


def test_another_number_of_classes():
    model = dz.create_model("unet", "resnet34", num_classes=5)
    said = message(model, zeros(shapes("smp_unet_resnet34")))
    assert "It fits the encoder and the decoder, and nothing of the head.\n" in said
    assert "To initialise the head anew: strict=False." in said
