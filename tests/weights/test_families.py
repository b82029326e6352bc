"""Whole models from folders of the hub: outputs equal the originals', and bad folders are told what is wrong."""

import functools
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import densezoo as dz
from densezoo.weights import from_hub, from_torch, hub_settings, to_torch

GOLDEN = Path(__file__).parents[1] / "golden"
seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]


@functools.cache
def load(case):
    """The configuration, the weights, the image and the output of a golden file."""
    with np.load(GOLDEN / f"transformers_{case}.npz") as golden:
        config, shapes = (json.loads(str(golden[name])) for name in ("config", "shapes"))
        arrays = {name: seeded(name, tuple(shape)) for name, shape in shapes.items()}
        return config, arrays, seeded("image", tuple(golden["image_shape"].tolist())), golden["output_y"]


def write(folder, case="segformer", config=None, arrays=None, **options):
    loaded = load(case)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps((config or loaded[0]) | options))
    save_file(arrays or loaded[1], folder / "model.safetensors")
    return folder


def cases():
    for path in sorted(GOLDEN.glob("transformers_*.npz")):
        with np.load(path) as golden:
            marks = () if golden["quick"] else pytest.mark.parity
        yield pytest.param(path.stem.removeprefix("transformers_"), marks=marks)


@pytest.mark.parametrize("case", list(cases()))
def test_golden(case, tmp_path, recwarn):
    model, variables = from_hub(write(tmp_path / "f", case))
    assert not recwarn.list
    _, arrays, image, reference = load(case)
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    ours = np.asarray(apply(variables, image))
    assert ours.shape == reference.shape
    error = np.abs(ours - reference).max() / np.abs(reference).max()
    print(f"{error:.2e}")
    assert error <= 2e-5
    dz.save(tmp_path / "model", model, variables)
    jax.tree.map(np.testing.assert_array_equal, dz.load(tmp_path / "model")[1], variables)
    # Back: all that the model has, and nothing else.
    exported = to_torch(model, variables, naming="transformers")
    assert exported.keys() <= arrays.keys()
    for name, array in exported.items():
        if not name.endswith("running_mean"):  # biases before norms are merged into them
            np.testing.assert_array_equal(array, arrays[name])


def test_the_checkpoint_as_a_template(tmp_path):
    arrays = load("segformer")[1]
    model, variables = from_hub(write(tmp_path / "f"))
    exported = to_torch(model, variables, like=arrays)
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(exported[name], array)


BACKBONE = {"model_type": "swin", "embed_dim": 8, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN = {"architectures": None, "model_type": "upernet", "backbone_config": BACKBONE}


@pytest.mark.parametrize(
    ("case", "options", "match"),
    [
        (
            "segformer",
            {"model_type": "mask2former"},
            r"is of a 'mask2former', which densezoo cannot build; .*segformer",
        ),
        ("segformer", {"depths": [1, 1, 1, 1]}, r"cannot load the segformer that .* describes: .*unexpected in"),
        ("segformer", {"hidden_sizes": [8, 16, 24, 64]}, "mismatched in shape"),
        ("segformer", {"num_labels": 7, "id2label": None}, r"decode_head\.classifier\.weight came \(2, 16, 1, 1\)"),
        ("segformer", {"num_labels": 7, "id2label": {"0": "a"}}, "num_labels=7, and id2label names 1 classes"),
        ("segformer", {"depths": [1, 2]}, r"expected depths to be 4 numbers in 1\.\.1000, got \[1, 2\]"),
        ("segformer", {"depths": 10**6}, r"expected depths to be 4 numbers in 1\.\.1000"),
        ("segformer", {"hidden_sizes": "tiny"}, "expected hidden_sizes to be of type list, got 'tiny'"),
        (
            "segformer",
            {"strides": [4, 2, 2, 1]},
            r"strides='\(4, 2, 2, 1\)' is not .*: \(4, 2, 2, 2\)",
        ),
        ("segformer", {"hidden_act": "laplace"}, "hidden_act='laplace' is not supported.*'gelu'"),
        ("segformer", {"architectures": ["SegformerForImageClassification"]}, "SegformerForSemanticSegmentation"),
        ("segformer", SWIN | {"backbone_config": {"model_type": "resnet"}}, "model_type='resnet' is not.*convnext"),
        ("segformer", SWIN | {"pool_scales": [0]}, "pool_scales"),
        ("segformer", SWIN | {"backbone_config": BACKBONE | {"out_features": ["stage4"]}}, "out_features=.* is not"),
        ("segformer", SWIN | {"backbone_config": BACKBONE | {"window_size": 700}}, r"window_size to be .* 1\.\.64"),
        ("dpt", {"is_hybrid": True}, "is_hybrid='True' is not supported"),
        ("dpt", {"readout_type": "sum"}, "readout_type='sum' is not supported.*'project', 'add', 'ignore'"),
        ("dpt", {"reassemble_factors": [4, 2, 1.5, 1]}, "reassemble_factors"),
        ("dpt", {"backbone_out_indices": [0, 2, 3, 9]}, r"ascending numbers among the 5 blocks.*\(1, 3, 4, 10\)"),
        ("dpt", {"head_in_index": 2}, "head_in_index='2' is not supported"),
        ("dpt", {"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=16"),
        ("dpt", {"image_size": [64, 128]}, "squares"),
        ("dpt", {"qkv_bias": False}, "unexpected in the checkpoint"),
        ("depth_anything", {"depth_estimation_type": "stereo"}, "supported: 'relative', 'metric'"),
        ("depth_anything", {"reassemble_hidden_size": 32}, "not those of its backbone_config, which are 14 and 16"),
        ("depth_anything", {"backbone_config": None}, "has no backbone_config"),
        ("depth_anything", {"max_depth": "far"}, "expected max_depth to be of type float"),
    ],
)
def test_bad_configurations(case, options, match, tmp_path):
    config = {name: value for name, value in (load(case)[0] | options).items() if value is not None}
    with pytest.raises(ValueError, match=f"(?s){match}"):
        from_hub(write(tmp_path / "f", case, config))


def test_missing_files(tmp_path):
    folder = write(tmp_path / "f")
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        from_hub(folder)
    arrays.pop("segformer.encoder.block.0.0.attention.self.key.bias")
    with pytest.raises(ValueError, match=r"1 missing in the checkpoint: .*self\.\{key,value\}\.bias"):
        from_hub(write(tmp_path / "f", arrays=arrays))


def test_from_torch_warns_of_other_computations():
    arrays = {name: array for name, array in load("segformer")[1].items() if name.startswith("segformer.")}
    encoder = dz.MixTransformer((1, 2, 1, 1), (8, 16, 24, 32), (1, 2, 3, 4), mlp_ratios=(2, 4, 3, 4))
    with pytest.warns(UserWarning, match="has the names of transformers.*epsilon=1e-05"):
        from_torch(encoder, arrays)
    from_torch(encoder.clone(epsilon=1e-5), arrays)


IMAGES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "rescale_factor": 1 / 255}


def test_to_a_predictor(tmp_path):
    folder = write(tmp_path / "f", id2label={"0": "sky", "1": "ground"})
    model, variables = from_hub(folder)
    assert "preprocessing" not in hub_settings(folder)
    images = IMAGES | {"do_resize": True, "size": {"height": 32, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    settings = hub_settings(folder)
    assert settings["classes"] == settings["task"].class_names == ("sky", "ground")
    dz.save(tmp_path / "model", model, variables, preprocessing=settings["preprocessing"], classes=settings["classes"])
    predict = dz.load_predictor(tmp_path / "model")
    assert predict.task.class_names == ("sky", "ground") and predict.preprocessing == settings["preprocessing"]
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    normalised = (picture.astype(np.float32) / 255 - np.float32(IMAGES["image_mean"])) / np.float32(0.2)
    logits = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})(variables, normalised[None])
    np.testing.assert_array_equal(predict(picture), jnp.argmax(logits[0], -1))


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        ({"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}, (518, 686)),
        ({"size": {"height": 512, "width": 256}}, (512, 256)),
        ({"size": 384}, (384, 384)),
        ({"size": {"shortest_edge": 240}}, (240, 320)),
        ({"size": {"longest_edge": 320}}, (240, 320)),
        ({"size": 384, "do_resize": False}, (480, 640)),
    ],
)
def test_sizes_of_images(images, sizes, tmp_path):
    folder = write(tmp_path / "f", "depth_anything")
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES | images))
    assert hub_settings(folder)["preprocessing"].size_of(480, 640) == sizes


def test_range_of_images(tmp_path):
    folder = write(tmp_path / "f")
    for options, mean, std in (
        ({"do_rescale": False}, 0.5 / 255, 0.2 / 255),
        ({"rescale_factor": 2 / 255}, 0.25, 0.1),
        ({"do_normalize": False}, 0.0, 1.0),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES | options | {"do_resize": False}))
        preprocessing = hub_settings(folder)["preprocessing"]
        np.testing.assert_allclose((preprocessing.mean[0], preprocessing.std[0]), (mean, std), rtol=1e-6)
    for options in ({"do_center_crop": True}, {"size": {"area": 3}}, {"image_mean": [0.5]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES | options))
        with pytest.raises(ValueError, match=r"the preprocessor_config\.json of"):
            hub_settings(folder)


def test_names_of_classes(tmp_path):
    for labels, names in (({"1": "b", "0": "a"}, ("a", "b")), ({"0": "a", "1": "a"}, ("a (0)", "a (1)"))):
        assert hub_settings(write(tmp_path / "f", id2label=labels))["classes"] == names
    with pytest.raises(ValueError, match="the keys of id2label must be 0 to 1"):
        hub_settings(write(tmp_path / "f", id2label={"1": "a", "2": "b"}))


@pytest.mark.skipif("depth" not in dz.tasks.TASKS, reason="the task is not there")
@pytest.mark.parametrize(("case", "relative"), [("depth_anything", True), ("depth_anything_metric", False)])
def test_the_task_of_depth(case, relative, tmp_path):
    task = hub_settings(write(tmp_path / "f", case))["task"]
    assert task.relative is relative and task.activation == "identity"


SMP = {
    "_model_class": "Unet",
    "encoder_name": "tu-resnet18.a1_in1k",
    "encoder_depth": 3,
    "in_channels": 3,
    "classes": 2,
}
SMP |= {"decoder_channels": [8, 6, 4], "decoder_attention_type": "scse", "decoder_interpolation": "bilinear"}


def test_segmentation_models_pytorchs_models(tmp_path):
    encoder = dz.create_encoder("resnet18", coarsest=8)
    model = dz.create_model("unet", encoder, 2, features=(8, 6, 4), attention=dz.SCSE, upsample=dz.Bilinear)
    variables = jax.tree.map(
        lambda x: jnp.zeros(x.shape), jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    )
    arrays = to_torch(model, variables)
    folder = write(tmp_path / "f", config=SMP | {"activation": "sigmoid"}, arrays=arrays)
    with pytest.warns(UserWarning, match="returns logits, without activation='sigmoid'"):
        same, loaded = from_hub(folder)
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert hub_settings(folder)["task"].num_classes == 2
    for options, match in (
        ({"decoder_use_norm": "layernorm"}, "decoder_use_norm='layernorm' is not supported"),
        ({"encoder_depth": 4}, "expected decoder_channels to be 4 numbers"),
        ({"classes": 3}, "mismatched in shape"),
        ({"_model_class": "FPN"}, "decoder_channels='.*' is not supported"),
        ({"dilation": 2}, "dilation='2' is not supported"),
        ({"encoder_name": "resnet19"}, "unknown encoder 'resnet19'; did you mean"),
        ({"encoder_name": "tu-vit_tiny_patch16_224"}, "no argument 'coarsest'"),
    ):
        with pytest.raises(ValueError, match=match):
            from_hub(write(tmp_path / "f", config=SMP | options, arrays=arrays))
