"""Training and prediction on small folders: they work, they resume, and they report errors before training."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tyro
from PIL import Image

import densezoo as dz
from densezoo.messages import as_flags

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import predict  # noqa: E402
import resuming  # noqa: E402
import train_segmentation  # noqa: E402


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
        for index in range(3):
            mask = rng.integers(0, 2, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / "data" / part / "masks" / f"{index}.png")
            Image.fromarray(mask * 200).save(tmp_path / "data" / part / "images" / f"{index}.png")
    return tmp_path / "data"


def arguments(data, **changes):
    defaults = train_segmentation.Arguments(
        data=data,
        num_classes=2,
        model="segnet",
        encoder="plain",
        crop_size=16,
        batch_size=2,
        steps=1,
        out=data.parent / "run",
    )
    return dataclasses.replace(defaults, **changes)


@pytest.fixture
def narrow(monkeypatch):
    """A plain encoder narrow enough to train in a test."""
    from densezoo.encoders import ENCODERS, PlainEncoder

    def make(dtype=None, param_dtype=np.float32):
        return PlainEncoder((4, 8), dtype=dtype, param_dtype=param_dtype)

    monkeypatch.setitem(ENCODERS, "plain", make)
    monkeypatch.setattr("densezoo.zoo.check_fields", lambda *_: None)


def test_trains_resumes_and_predicts(data, narrow, capsys):
    train_segmentation.main(arguments(data))
    with pytest.raises(FileExistsError, match="--resume"):
        train_segmentation.main(arguments(data))
    with pytest.raises(ValueError, match=r"other options.*: model was segnet, is unet"):
        train_segmentation.main(arguments(data, model="unet", resume=True))
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        train_segmentation.main(arguments(data, seed=1, resume=True))
    train_segmentation.main(arguments(data, steps=3, resume=True))
    shown = capsys.readouterr()
    assert "continuing after step 1 of 3" in shown.err
    result = json.loads(shown.out.splitlines()[-1])
    assert result["steps"] == 3
    assert len(result["per_class_iou"]) == 2
    np.testing.assert_allclose(result["mean_iou"], np.mean(result["per_class_iou"]), rtol=1e-6)
    assert result["seconds"] > 0
    run = pathlib.Path(result["out"])
    assert (run / "curves.png").stat().st_size > 1000
    assert (run / "predictions.png").stat().st_size > 1000

    picture = data.parent / "odd.png"
    Image.fromarray(np.zeros((23, 37), np.uint8)).save(picture)
    model = run / "model.safetensors"
    predict.main(predict.Arguments(model=model, images=[picture], out=data.parent / "masks", probabilities=True))
    with Image.open(data.parent / "masks" / "odd.png") as picture_of_mask:
        mask = np.asarray(picture_of_mask)
    assert mask.shape == (23, 37)
    assert mask.max() <= 1
    with Image.open(data.parent / "masks" / "odd_overlay.png") as overlay:
        assert overlay.size == (37, 23)
    with np.load(data.parent / "masks" / "odd_probabilities.npz") as found:
        assert found["classes"].tolist() == ["0", "1"]
        np.testing.assert_array_equal(found["probabilities"].argmax(-1), mask)
    with pytest.raises(FileNotFoundError, match="no such picture file"):
        predict.main(predict.Arguments(model=run, images=[data / "none.png"]))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        predict.main(predict.Arguments(checkpoint=data, images=[picture]))
    with pytest.raises(ValueError, match="--model must be a model file"):
        predict.main(predict.Arguments(images=[picture]))

    # To other classes, from the file that the run left; the masks' numbers become other classes.
    options = {"num_classes": 3, "weights": model, "out": data.parent / "more", "loss": "cross_entropy+dice"}
    options |= {"labels": ("0:2", "1:1"), "bits": 8, "class_names": ("sky", "road", "car")}
    train_segmentation.main(arguments(data, **options))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["classes"] == ["sky", "road", "car"] and len(result["per_class_iou"]) == 3
    assert json.loads((data.parent / "more" / "options.json").read_text())["labels"] == ["0:2", "1:1"]
    predictor = dz.load_predictor(data.parent / "more")
    assert predictor.preprocessing.value_range == (0, 255)
    assert predictor.task.class_names == ("sky", "road", "car")
    assert dict(predictor.task.labels) == {0: 2, 1: 1}


def test_a_resumed_run_knows_its_options(data):
    run = data.parent / "run"
    run.mkdir()
    given = arguments(data, crop_size=(16, 24), labels=("0:2", "1:1"), value_range=(0.0, 9.0), seed=3)
    given = dataclasses.replace(given, mesh=("data=2",), distributed=True)
    resuming.write_options(run / "options.json", given)

    def parsed(*command):
        known = resuming.options_of_run(train_segmentation.Arguments, command)
        return tyro.cli(train_segmentation.Arguments, default=known, args=command)

    here = dataclasses.replace(given, resume=True, mesh=(), distributed=False)  # It may go on on other devices.
    assert parsed("--out", str(run), "--resume") == here
    assert parsed("--resume", f"--out={run}", "--steps", "9").steps == 9
    (run / "log.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"--seed was 3, is 4$"), as_flags({"seed": "--seed"}):
        resuming.check_out(parsed("--out", str(run), "--resume", "--seed", "4"))
    assert resuming.options_of_run(train_segmentation.Arguments, ("--out", str(run))) is None
    assert resuming.options_of_run(train_segmentation.Arguments, ("--out", str(data), "--resume")) is None


def test_reads_the_run_of_an_older_version(data, narrow):
    train_segmentation.main(arguments(data))
    run = data.parent / "run"
    expected = data.parent / "expected"
    pictures = sorted((data / "val" / "images").iterdir())
    predict.main(predict.Arguments(model=run, images=pictures, out=expected))
    (run / "model.safetensors").unlink()
    (run / "options.json").unlink()
    old = {"model": "segnet", "encoder": "plain", "num_classes": 2, "channels": 1, "upsample": None, "skip": None}
    (run / "model.json").write_text(json.dumps(old | {"mean": [0.5], "std": [0.25]}))
    found = data.parent / "found"
    predict.main(predict.Arguments(checkpoint=run, images=pictures, out=found))
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="older densezoo"):
        train_segmentation.main(arguments(data, resume=True))
    (run / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.json is not the configuration"):
        predict.main(predict.Arguments(checkpoint=run, images=pictures))


def damage(data, how):
    images, masks = data / "train" / "images", data / "train" / "masks"
    if how == "no mask":
        (masks / "1.png").unlink()
    elif how == "size":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / "1.png")
    elif how == "value":
        Image.fromarray(np.full((32, 32), 7, np.uint8)).save(masks / "1.png")
    elif how == "truncated":
        (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    elif how == "empty":
        shutil.rmtree(images)
        shutil.rmtree(masks)
        images.mkdir()
        masks.mkdir()
    elif how == "255":
        for path in masks.iterdir():
            with Image.open(path) as mask:
                Image.fromarray(np.asarray(mask) * np.uint8(255)).save(path)
    elif how == "channels":
        for path in (data / "val" / "images").iterdir():
            Image.new("RGB", (32, 32)).save(path)
    elif how == "val":
        shutil.rmtree(data / "val")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no mask", r"1\.png"),
        ("size", r"1\.png.*8"),
        ("value", r"(?s)1\.png.*7"),
        ("truncated", r"1\.png"),
        ("empty", "images"),
        ("val", "val"),
        ("255", "255 is ignore_index"),
        ("channels", "validation images 3"),
    ],
)
def test_damaged_folders_are_named_before_training(data, how, message):
    damage(data, how)
    with pytest.raises((ValueError, OSError), match=message):
        train_segmentation.main(arguments(data))
    assert not (data.parent / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "unte"}, "unknown model 'unte'; did you mean 'unet'"),
        ({"encoder": "plian"}, "unknown encoder 'plian'; did you mean 'plain'"),
        ({"encoder": "resnet18"}, "2x2 max-pooling"),
        ({"upsample": "nearest"}, "no argument 'upsample'"),
        ({"norm": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'"),
        ({"labels": ("7",)}, "--labels has '7'; expected NUMBER:CLASS"),
        ({"labels": ("0:0", "2:1")}, "mask value 1 .* not in labels"),
        ({"bits": 12, "value_range": (0, 1)}, "--bits and --value-range set the same"),
        ({"bits": 0}, "--bits must be 1 to 32"),
        ({"crop_size": 0}, "crop_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 0}, "step"),
        ({"encoder_weights": pathlib.Path("none.pth")}, r"none\.pth"),
        ({"freeze_encoder": True}, "random encoder"),
        ({"mean": (0.5, 0.5)}, "mean and std need 1"),
        ({"mesh": ("data",)}, "--mesh has 'data'; expected AXIS=DEVICES"),
        ({"mesh": ("data=4096",)}, "--mesh data=4096 has 4096 devices, and there are"),
        ({"distributed": True}, "--distributed needs --mesh"),
    ],
)
def test_mistaken_arguments_are_named_before_training(data, changes, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        train_segmentation.main(arguments(data, **changes))
    assert not list((data.parent / "run").rglob("*step*"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[]"])
def test_damaged_options_are_named(data, content):
    run = data.parent / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (run / "options.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"options\.json does not contain the options of a run"):
        train_segmentation.main(arguments(data, resume=True))


def test_a_mistake_ends_the_script_with_one_message(tmp_path):
    command = [sys.executable, str(EXAMPLES / "train_segmentation.py"), "--data", str(tmp_path / "none")]
    done = subprocess.run([*command, "--num-classes", "2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr


def test_starts_from_an_encoder_of_pytorch(data, monkeypatch):
    # VGG without norms, so that only the decoder has batch statistics.
    from safetensors.numpy import save_file

    from densezoo.encoders import ENCODERS, VGG
    from densezoo.train import load_variables

    depths, widths = (1, 2), (4, 8)
    monkeypatch.setitem(ENCODERS, "tiny_vgg", functools.partial(VGG, depths=depths, widths=widths))
    rng = np.random.default_rng(0)
    checkpoint, width, position = {}, 1, 0
    for convolutions, features in zip(depths, widths, strict=True):
        for _ in range(convolutions):
            checkpoint[f"features.{position}.weight"] = rng.normal(0, 0.05, (features, width, 3, 3)).astype(np.float32)
            checkpoint[f"features.{position}.bias"] = np.zeros(features, np.float32)
            width, position = features, position + 2
        position += 1
    save_file(checkpoint, data.parent / "vgg.safetensors")
    options = {"encoder": "tiny_vgg", "encoder_weights": data.parent / "vgg.safetensors", "freeze_encoder": True}
    train_segmentation.main(arguments(data, **options))
    trained = load_variables(data.parent / "run", "last")["params"]["encoder"]
    expected = checkpoint["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(trained["features_0"]["kernel"], expected)
