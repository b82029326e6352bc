"""Starting from another model's file: other classes, other decoders, other formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.weights import start_from

ENCODER = dz.PlainEncoder((4, 8))
IMAGES = jnp.zeros((1, 16, 16, 3))


@pytest.fixture
def trained():
    """A model, and variables that differ from those of any `init`."""
    model = dz.create_model("unet", ENCODER, num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    return model, jax.tree.map(lambda x: x + 3, variables)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_other_classes_start_with_another_head_alone(trained, tmp_path, caplog):
    model, variables = trained
    dz.save(tmp_path / "model.safetensors", model, variables)
    found = start_from(dz.create_model("unet", ENCODER, num_classes=5), tmp_path / "model.safetensors")
    for collection, parts in variables.items():
        for part in set(parts) - {"head"}:
            assert_same(found[collection][part], parts[part])
    assert found["params"]["head"]["conv"]["kernel"].shape[-1] == 5
    assert float(jnp.abs(found["params"]["head"]["conv"]["kernel"]).max()) < 3
    assert "the head of" in caplog.text
    other = dz.create_model("unet", ENCODER, num_classes=5)
    assert_same(dz.load(tmp_path / "model.safetensors", model=other, strict=False)[1], found)
    with pytest.raises(ValueError, match=r"For other classes .*dz\.weights\.start_from\(model, path\)"):
        dz.load(tmp_path / "model.safetensors", model=other)
    with pytest.raises(ValueError, match="pass model= too"):
        dz.load(tmp_path / "model.safetensors", strict=False)
    caplog.clear()
    assert_same(start_from(model, tmp_path / "model.safetensors"), variables)
    assert not caplog.records


def test_an_encoder_moves_into_another_model(trained, tmp_path):
    model, variables = trained
    dz.save(tmp_path / "model.safetensors", model, variables)
    alone = {collection: parts["encoder"] for collection, parts in variables.items() if "encoder" in parts}
    dz.save(tmp_path / "encoder.safetensors", ENCODER, alone)
    for file in ("model", "encoder"):
        found = start_from(dz.create_model("fpn", ENCODER), tmp_path / f"{file}.safetensors", part="encoder")
        assert_same(found["params"]["encoder"], variables["params"]["encoder"])
        assert float(max(jnp.abs(x).max() for x in jax.tree.leaves(found["params"]["decoder"]))) < 3


def test_what_does_not_fit_is_named(trained, tmp_path):
    model, variables = trained
    path = tmp_path / "model.safetensors"
    dz.save(path, model, variables)
    wider = dz.create_model("unet", dz.PlainEncoder((4, 16)), num_classes=2)
    with pytest.raises(ValueError, match=r"params/encoder/.* is mismatched: \(3, 3, 4, 8\), expected \(3, 3, 4, 16\)"):
        start_from(wider, path)
    deeper = dz.create_model("unet", dz.PlainEncoder((4, 8, 16)), num_classes=2)
    with pytest.raises(ValueError, match="is missing"):
        start_from(deeper, path, part="encoder")
    with pytest.raises(ValueError, match="part must be one of encoder, decoder, head"):
        start_from(model, path, part="backbone")
    with pytest.raises(FileNotFoundError):
        start_from(model, tmp_path / "none.safetensors")


@pytest.mark.parametrize("part", [None, "encoder"])
def test_another_encoder_of_the_zoo_is_named(tmp_path, part):
    model = dz.create_model("linknet", "mobilenetv3_small_100", num_classes=2)
    saved = model if part is None else model.encoder
    shapes = jax.eval_shape(saved.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))
    dz.save(tmp_path / "model.safetensors", saved, variables)
    with pytest.raises(ValueError, match=r"The file's encoder is mobilenetv3_small_100 .*, the model's is resnet18"):
        start_from(dz.create_model("linknet", "resnet18", num_classes=2), tmp_path / "model.safetensors", part=part)


def test_a_pytorch_checkpoint_of_other_classes(tmp_path, caplog):
    encoder, features = dz.ResNet((1, 1), dz.BasicBlock, width=4), (6, 5, 4)
    model = dz.create_model("unet", encoder, num_classes=2, features=features)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), variables)
    checkpoint = dz.weights.to_torch(model, variables)
    found = start_from(dz.create_model("unet", encoder, num_classes=4, features=features), checkpoint)
    for part in ("encoder", "decoder"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found["params"][part], variables["params"][part]
        )
        jax.tree.map(np.testing.assert_allclose, found["batch_stats"][part], variables["batch_stats"][part])
    assert found["params"]["head"]["conv"]["kernel"].shape[-1] == 4 and "newly initialised" in caplog.text


def detector(classes, family="faster_rcnn", blocks=(1, 1, 1)):
    encoder = dz.ResNet(blocks, dz.BasicBlock, width=4)
    return dz.create_model(family, encoder, classes, features=8, levels=3, hidden=(8, 8))


def trained_file(model, pytorch, folder):
    """A file of a detector, of densezoo or of PyTorch, with values above 3, and its variables."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: 3 + rng.random(x.shape, np.float32), shapes)
    if pytorch:
        return dz.weights.to_torch(model, variables), variables
    dz.save(folder / "model.safetensors", model, variables)
    return folder / "model.safetensors", variables


@pytest.mark.parametrize("pytorch", [False, True])
def test_heads_that_the_model_lacks_are_skipped(pytorch, tmp_path, caplog):
    source, variables = trained_file(detector(3, "mask_rcnn"), pytorch, tmp_path)
    found = start_from(detector(3), source)
    expected = {name: part for name, part in variables["params"].items() if name != "mask_head"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found["params"], expected)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "no part for 12 arrays" in said and ("mask_fcn_logits" if pytorch else "params/mask_head/") in said
    # Arrays of a larger encoder are no heads.
    with pytest.raises(ValueError, match="unexpected"):
        start_from(detector(3, blocks=(1, 1)), source)


@pytest.mark.parametrize("pytorch", [False, True])
def test_all_of_a_head_that_fits_is_kept(pytorch, tmp_path, caplog):
    source, _ = trained_file(detector(3), pytorch, tmp_path)
    found = start_from(detector(5), source)
    new = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, x in jax.tree_util.tree_leaves_with_path(found["params"])
        if float(jnp.abs(x).max()) < 3
    ]
    assert sorted(new) == [f"box_head/{layer}/{leaf}" for layer in ("deltas", "logits") for leaf in ("bias", "kernel")]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "the box_head of" in said and all(f"params/{name}" in said for name in new) and "fc" not in said


@pytest.mark.parametrize("pytorch", [False, True])
def test_norms_can_be_frozen_or_released(pytorch, tmp_path):
    encoders = [dz.ResNet((1, 1), dz.BasicBlock, width=4, norm=norm) for norm in (dz.BatchNorm, dz.FrozenBatchNorm)]
    ordinary, frozen = (dz.create_model("unet", encoder, features=(6, 5, 4)) for encoder in encoders)
    shapes = jax.eval_shape(ordinary.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: 1 + rng.random(x.shape, np.float32), shapes)
    image = rng.random((1, 16, 16, 3), np.float32)
    for source, target in ((ordinary, frozen), (frozen, ordinary)):
        path = dz.weights.to_torch(source, variables) if pytorch else tmp_path / "model.safetensors"
        if not pytorch:
            dz.save(path, source, variables)
            assert repr(dz.load(path)[0]) == repr(source)
        expected = source.apply(variables, image)
        variables = start_from(target, path)
        np.testing.assert_allclose(target.apply(variables, image), expected, rtol=1e-4)
    assert "scale" not in variables["batch_stats"]["encoder"]["conv1"]["norm"]
