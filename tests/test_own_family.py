"""The decoder and the encoders of docs/own_decoder.md, registered from outside densezoo."""

import re
import runpy
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import viz
from densezoo.blueprint import MODELS
from densezoo.viz.readme import zoo_tables

PAGE = Path(__file__).parents[1] / "docs" / "own_decoder.md"
CONTRACT = Path(__file__).with_name("test_contract.py")
IMAGES = jax.ShapeDtypeStruct((1, 33, 50, 3), jnp.float32)


def block():
    return re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


@pytest.fixture
def additive():
    """Registers the family during a test."""
    before = dict(MODELS)
    exec(block(), {"__name__": "own_decoder"})
    yield "additive"
    MODELS.clear()
    MODELS.update(before)


def shapes(model, images=IMAGES):
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def test_it_is_short():
    assert len(block().splitlines()) <= 60


def test_it_is_a_family_like_the_others(additive):
    assert shapes(dz.create_model(additive, num_classes=3))[0].shape == (1, 33, 50, 3)
    assert additive in dz.list_models("add*") and dz.blueprints()[-1].name == additive
    assert f"| `{additive}` | The same number of channels" in zoo_tables()
    with pytest.raises(TypeError, match="no argument 'feature'; did you mean 'features'"):
        dz.create_model(additive, feature=3)
    with pytest.raises(ValueError, match="additive does not work with this encoder: it needs several maps"):
        dz.create_model(additive, dz.PlainEncoder((4,)))


def test_diagrams_show_its_skips(additive):
    read = viz.architecture(dz.create_model(additive, dz.PlainEncoder((4, 8, 16))))
    assert [link.join for link in read.links if link.kind == "skip"] == ["add", "add"]


def test_its_weights_come_and_go_by_its_names(additive):
    model = dz.create_model(additive, dz.ResNet((1, 1), dz.BasicBlock, width=4), 2, features=8)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes(model)[1])
    arrays = dz.weights.to_torch(model, variables)
    assert arrays["decoder.convs.1.0.weight"].shape == (8, 8, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, dz.weights.from_torch(model, arrays), variables)
    with pytest.raises(ValueError, match=r"1 missing in the checkpoint: decoder\.laterals\.0\.1\.weight"):
        dz.weights.from_torch(model, {k: v for k, v in arrays.items() if k != "decoder.laterals.0.1.weight"})


def test_the_contract_suite_takes_it(additive):
    contract = runpy.run_path(str(CONTRACT))
    assert (additive, "resnet") in contract["MODELS_ONCE"]
    contract["test_any_image_gives_logits_of_its_size"](additive)
    contract["test_every_parameter_and_every_map_that_the_entry_names_receives_a_gradient"](additive, "resnet")


class Halves(dz.Encoder):
    """A custom encoder."""

    coarsest: int = 8
    scales = (2, 4, 8)
    min_size = 8

    @nn.compact
    def __call__(self, images, *, train=False):
        self.check(images)
        x, maps = images, []
        for level in range(len(self.reductions)):
            x = dz.Conv(4 * 2**level, strides=2)(x)
            maps.append(x)
        return self.pyramid(images, maps)


def test_an_encoder_of_ones_own_works_with_every_decoder_that_does_not_refuse_it():
    for name, entry in MODELS.items():
        if entry.task != "segmentation":
            continue
        if entry.misfit(Halves()):
            with pytest.raises(ValueError, match="does not work with"):
                dz.create_model(name, Halves())
        else:
            assert shapes(dz.create_model(name, Halves(), 2))[0].shape == (1, 33, 50, 2), name
    assert not MODELS["unet"].misfit(Halves()) and MODELS["dpt"].misfit(Halves()) and MODELS["segnet"].misfit(Halves())


def test_what_the_base_class_checks():
    assert Halves().reductions == (2, 4, 8) and Halves(coarsest=4).reductions == (2, 4)
    assert shapes(dz.create_model("unet", Halves()), jax.ShapeDtypeStruct((1, 3, 9, 3), jnp.float32))[0].shape == (
        1,
        3,
        9,
        1,
    )
    with pytest.raises(ValueError, match=r"Halves needs images of at least 8x8 pixels, got \(3, 9\)"):
        shapes(Halves(), jax.ShapeDtypeStruct((1, 3, 9, 3), jnp.float32))
    with pytest.raises(ValueError, match="coarsest must be 2, 4, 8, 16 or 32, got 6"):
        dz.create_model("unet", Halves(coarsest=6))
    with pytest.raises(NotImplementedError, match="Encoder needs `scales`"):
        _ = dz.Encoder().reductions


def test_encoders_are_registered_by_name(monkeypatch):
    monkeypatch.setattr("densezoo.encoders.base.ENCODERS", table := {})
    dz.register_encoders({"halves": Halves})
    assert table == {"halves": Halves}
    with pytest.raises(TypeError, match=r"'quarter': .* got a Halves: pass Halves or a partial\(Halves, ...\)"):
        dz.register_encoders({"half": Halves, "quarter": Halves()})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"'quarter': .* got a tuple: pass a class"):
        dz.register_encoders({"quarter": (8, 16)})  # pyright: ignore[reportArgumentType]
    assert set(table) == {"halves"}


def test_only_a_whole_blueprint_is_registered():
    before = dict(MODELS)
    with pytest.raises(TypeError, match=r"takes a dz.Blueprint, got UNetDecoder"):
        dz.register(dz.UNetDecoder)  # pyright: ignore[reportArgumentType]
    texts = dict.fromkeys(("name", "description", "skip_strategy", "excels_at", "paper", "encoder"), "some")
    with pytest.raises(ValueError, match="'some' lacks head: give it a decoder and a head, or a make"):
        dz.register(dz.Blueprint(**texts, decoder=dz.UNetDecoder))
    with pytest.raises(ValueError, match="lacks decoder and head"):
        dz.register(dz.Blueprint(**texts))
    assert before == MODELS


class Plain(nn.Module):
    """An encoder that is not a `dz.Encoder`."""

    wrap: Any = dz.Pyramid
    count: int = 3

    @nn.compact
    def __call__(self, images, *, train=False):
        maps = []
        for _ in range(self.count):
            maps.append(dz.Conv(4, strides=2)(maps[-1] if maps else images))
        return self.wrap(tuple(maps))


def test_an_encoder_that_gives_no_pyramid_is_named():
    for wrap in (tuple, list):
        with pytest.raises(TypeError, match=rf"Plain, the encoder, returned a {wrap.__name__}: .* dz.Pyramid\(maps"):
            shapes(dz.create_model("unet", Plain(wrap)))


def test_a_model_by_hand_takes_modules():
    head = dz.SegmentationHead(2)
    with pytest.raises(TypeError, match=r"encoder='resnet18': names are for dz.create_model and dz.create_encoder"):
        shapes(dz.SegmentationModel("resnet18", dz.UNetDecoder((8,)), head))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="decoder=UNetDecoder: expected an instance of a Flax module"):
        shapes(dz.SegmentationModel(dz.PlainEncoder((4,)), dz.UNetDecoder, head))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["retinanet", "plain_detector"])
def test_a_detector_reads_the_reductions_of_a_plain_modules_pyramid(name):
    model = dz.create_model(name, Plain(lambda maps: dz.Pyramid(maps, reductions=(2, 4, 8))), 3, features=8)
    outputs, _ = shapes(model)
    pixels = 32 * 32 * 9 if name == "retinanet" else 8 * 8 * 45  # of images padded to 64 by 64
    assert outputs.grid.counts[0] == pixels
    with pytest.raises(ValueError, match="a detector needs an encoder whose pyramid has reductions"):
        shapes(dz.create_model(name, Plain(), 3, features=8))
    if name == "retinanet":
        with pytest.raises(ValueError, match=r"change the field or the encoder\. .* if it is a dz\.Encoder"):
            shapes(dz.create_model(name, Plain(lambda maps: dz.Pyramid(maps, reductions=(2, 4)), 2), 3, features=8))
