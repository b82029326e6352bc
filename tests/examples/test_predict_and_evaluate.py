"""`predict.py` on folders, and `evaluate.py`, with an untrained model."""

import csv
import dataclasses
import json
import sys
import unittest.mock
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

import densezoo as dz
from densezoo.messages import as_flags
from densezoo.tasks import Segmentation

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import common
import evaluate
import predict
import train_segmentation

SIZE = (12, 16)


@pytest.fixture(scope="module")
def untrained():
    model = dz.create_model("segnet", dz.PlainEncoder((4, 8)), 3)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))


@pytest.fixture(scope="module")
def model(tmp_path_factory, untrained):
    """Three named classes; the masks are as random as the weights."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    task = Segmentation(3, class_names=("sky", "road", "car"))
    dz.save(path, *untrained, task=task, preprocessing=dz.Preprocessing(channels=1))
    return path


@pytest.fixture(scope="module")
def predictor(model):
    return dz.load_predictor(model)


@pytest.fixture
def same_predictor(predictor, monkeypatch):
    """Lets all tests share compiled programs."""
    monkeypatch.setattr(dz, "load_predictor", lambda path, **options: predictor)


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels[..., None]


def test_a_folder_is_predicted_under_its_names(tmp_path, model, predictor, same_predictor, capsys):
    pictures = {
        name: picture(tmp_path / "in" / f"{name}.png", seed)
        for seed, name in enumerate(["a", "b.1", "sub/a", "sub/deep/c"])
    }
    (tmp_path / "in" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    options = predict.Arguments(model=model, images=[tmp_path / "in"], out=tmp_path / "in" / "out")
    predict.main(options)
    shown = capsys.readouterr()
    assert "not read: notes.txt, sub/" in shown.err
    result = json.loads(shown.out.splitlines()[-1])
    assert result["pictures"] == 2 and result["classes"] == ["sky", "road", "car"] and result["failed"] == []
    # Again with subfolders: the masks of before are in the folder, and are no pictures.
    predict.main(dataclasses.replace(options, recursive=True, probabilities=True))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"] == 4
    for name, pixels in pictures.items():
        with Image.open(options.out / f"{name}.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), predictor(pixels), err_msg=name)
        assert (options.out / f"{name}_overlay.png").is_file() and (options.out / f"{name}_probabilities.npz").is_file()
    classes = json.loads((options.out / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == ["sky", "road", "car"] and classes[1]["colour"] == [230, 159, 0]


def test_a_damaged_picture_does_not_stop_the_others(tmp_path, model, same_predictor, capsys):
    for name in "abc":
        picture(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 3 pictures failed:\n.*b\.png: cannot be decoded"):
        predict.main(predict.Arguments(model=model, images=[tmp_path / "in"], out=tmp_path / "out"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == [str(tmp_path / "in" / "b.png")]
    assert sorted(path.name for path in (tmp_path / "out").glob("?.png")) == ["a.png", "c.png"]


def test_folders_that_cannot_be_predicted_say_why(tmp_path, model, same_predictor):
    def run(*images, **options):
        predict.main(predict.Arguments(model=model, images=list(images), **{"out": tmp_path / "out"} | options))

    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"in contains no pictures \(\.png .*It is empty\. --recursive also reads"):
        run(folder)
    picture(folder / "sub" / "a.png")
    with pytest.raises(ValueError, match=r"in contains no pictures .*It contains sub/\. --recursive"):
        run(folder)
    with pytest.raises(FileNotFoundError, match=r"no such picture file or folder: .*none"):
        run(tmp_path / "none")
    before = (folder / "sub" / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"--out .* would overwrite pictures"):
        run(folder / "sub" / "a.png", out=folder / "sub")
    assert (folder / "sub" / "a.png").read_bytes() == before
    picture(folder / "sub" / "a.bmp")
    with pytest.raises(ValueError, match=r"would write the same mask: .*a\.png"):
        run(folder / "sub")
    assert not (tmp_path / "out").exists()


def test_models_and_pictures_of_other_kinds_have_their_own_advice(tmp_path):
    with pytest.raises(ValueError, match=r"for ChangeDetection, .*load_predictor\(model\)\(before, after\) predicts"):
        predict.endings(dz.tasks.ChangeDetection(), False)
    with pytest.raises(ValueError, match=r"for Depth, .*omit --probabilities"):
        predict.endings(dz.tasks.Depth(), True)
    picture(tmp_path / "a.png")
    with (
        as_flags({"model": "--model"}),
        pytest.raises(ValueError, match=r"dropped\. Convert the file, or use a model of"),
    ):
        dz.data.read_image(tmp_path / "a.png", channels=4)
    with pytest.raises(ValueError, match=r"dropped\. Pass channels=1 or None"):
        dz.data.read_image(tmp_path / "a.png", channels=4)


@pytest.fixture
def data(tmp_path):
    """Three pictures with the mask values 7, 11, 26 and 0 for sky, road, car and unlabelled pixels."""
    masks = []
    for index in range(3):
        picture(tmp_path / "data" / "images" / f"{index}.png", index)
        mask = np.random.default_rng(index).choice([7, 11, 26, 0], SIZE).astype(np.uint8)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{index}.png")
        masks.append(mask)
    return tmp_path / "data", masks


def test_evaluation_has_a_table_and_a_confusion_matrix(tmp_path, model, predictor, same_predictor, data, capsys):
    folder, masks = data
    out = tmp_path / "evaluation"
    options = evaluate.Arguments(model=model, data=folder, out=out, labels=("7:0", "11:1", "26:2", "0:255"))
    evaluate.main(options)
    shown = capsys.readouterr().out
    matrix = np.zeros((3, 3), int)
    for index, mask in enumerate(masks):
        guess = predictor(picture(folder / "images" / f"{index}.png", index))
        for row, value in enumerate((7, 11, 26)):
            matrix[row] += np.bincount(guess[mask == value], minlength=3)
    with (out / "confusion.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == ["sky", "road", "car"]
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()
    assert (out / "confusion.png").stat().st_size > 1000
    result = json.loads(shown.splitlines()[-1])
    assert result == json.loads((out / "scores.json").read_text())
    road = result["classes"]["road"]
    right, labelled, predicted = matrix[1, 1], matrix[1].sum(), matrix[:, 1].sum()
    assert road["pixels"] == labelled and result["images"] == 3
    np.testing.assert_allclose(road["recall"], right / labelled, rtol=1e-6)
    np.testing.assert_allclose(road["precision"], right / predicted, rtol=1e-6)
    np.testing.assert_allclose(road["iou"], right / (labelled + predicted - right), rtol=1e-6)
    np.testing.assert_allclose(road["dice"], 2 * right / (labelled + predicted), rtol=1e-6)
    line = next(line for line in shown.splitlines() if line.startswith("road"))
    assert line.split()[1:] == [*(f"{road[name]:.4f}" for name in evaluate.COLUMNS), str(labelled)]

    # The 8-bit pictures use all their bits. Those that used 7 would be half as bright.
    evaluate.main(dataclasses.replace(options, bits=8))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    with pytest.raises(ValueError, match="bits"):
        evaluate.main(dataclasses.replace(options, bits=7))
    evaluate.main(dataclasses.replace(options, limit=1))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 1
    with pytest.raises(ValueError, match=r"masks.*7 .*outside the classes"):
        evaluate.main(dataclasses.replace(options, labels=None))
    # A model file that has the labels needs no option, and an option comes first.
    known = dataclasses.replace(predictor.task, labels={7: 0, 11: 1, 26: 2, 0: 255})
    predictor.task, before = known, predictor.task
    try:
        evaluate.main(dataclasses.replace(options, labels=None))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["classes"] == result["classes"]
        evaluate.main(dataclasses.replace(options, labels=("7:1", "11:1", "26:1", "0:1"), limit=1))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["classes"]["road"]["pixels"] == SIZE[0] * SIZE[1]
    finally:
        predictor.task = before
    with pytest.raises(ValueError, match="--limit must be a number of images"):
        evaluate.main(dataclasses.replace(options, limit=0))


def test_several_labels_a_pixel_are_evaluated_and_predicted(tmp_path, data, untrained):
    folder, _ = data
    rng = np.random.default_rng(0)
    for path in (folder / "masks").iterdir():
        Image.fromarray(255 * rng.integers(0, 2, (*SIZE, 3), dtype=np.uint8)).save(path)
    file = tmp_path / "several.safetensors"
    task = Segmentation(3, multilabel=True, class_names=("a/b", "c", "d"))
    dz.save(file, *untrained, task=task, preprocessing=dz.Preprocessing(channels=1))
    out = tmp_path / "evaluation"
    evaluate.main(evaluate.Arguments(model=file, data=folder, out=out, labels=("0:0", "255:1"), limit=1))
    with (out / "counts.csv").open() as file_of_counts:
        rows = list(csv.DictReader(file_of_counts))
    assert [row["class"] for row in rows] == ["a/b", "c", "d"]
    assert {sum(int(row[part]) for part in ("tp", "fp", "fn", "tn")) for row in rows} == {SIZE[0] * SIZE[1]}
    predict.main(predict.Arguments(model=file, images=[folder / "images" / "0.png"], out=tmp_path / "masks"))
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.png")) == ["0_a_b.png", "0_c.png", "0_d.png"]
    with Image.open(tmp_path / "masks" / "0_c.png") as mask:
        assert mask.mode == "L" and set(np.unique(np.asarray(mask))) <= {0, 255}


@pytest.mark.parametrize("multilabel", [False, True])
def test_training_draws_its_predictions(tmp_path, multilabel):
    mask = np.zeros((*SIZE, 3) if multilabel else SIZE, np.int32)
    predictor = unittest.mock.Mock(return_value=mask)
    predictor.task = Segmentation(3, multilabel=multilabel)
    source = [{"image": np.zeros((*SIZE, 1), np.uint8), "mask": mask}]
    train_segmentation.draw_predictions(predictor, source, tmp_path / "predictions.png")
    assert (tmp_path / "predictions.png").stat().st_size > 1000


def test_messages_of_a_script_name_its_options(tmp_path, model, same_predictor, data, monkeypatch, capsys):
    folder, _ = data
    monkeypatch.setattr(
        "sys.argv", ["evaluate.py", "--model", str(model), "--data", str(folder), "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit):
        common.command_line(evaluate.main, evaluate.Arguments)
    said = capsys.readouterr().err
    assert "pass --labels NUMBER:CLASS" in said and "--ignore-index 255" in said and "labels=" not in said


def test_labels_of_the_command_line():
    assert common.parse_labels(None) is None
    assert common.parse_labels(["7:0", "0:255"]) == {7: 0, 0: 255}
    assert common.parse_labels(["0,0,0:0", "128,64,128:1"]) == {(0, 0, 0): 0, (128, 64, 128): 1}
    for wrong in ("7", "7=0", "x:0", "1,2:"):
        with pytest.raises(ValueError, match="expected NUMBER:CLASS"):
            common.parse_labels([wrong])
    with pytest.raises(ValueError, match="7 twice"):
        common.parse_labels(["7:0", "7:1"])


def test_large_pictures_are_computed_by_tiles(tmp_path, capsys):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    path = tmp_path / "model.safetensors"
    dz.save(path, model, variables, task=dz.tasks.Segmentation(3), preprocessing=dz.Preprocessing(channels=1))
    pixels = np.random.default_rng(0).integers(0, 256, (81, 103), dtype=np.uint8)
    place = (33922, "d", 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True)
    tifffile.imwrite(tmp_path / "field.tif", pixels, extratags=[place], tile=(16, 16))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    pictures = [tmp_path / "field.tif", tmp_path / "photo.png"]
    predict.main(predict.Arguments(model=path, images=pictures, out=tmp_path / "out", max_pixels=6500))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"] == 2
    expected = dz.load_predictor(path)(pixels[..., None])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "photo.png")), expected)
    with tifffile.TiffFile(tmp_path / "out" / "field.tif") as mask:
        np.testing.assert_array_equal(mask.asarray(), expected)
        assert mask.pages[0].tags[place[0]].value == place[3]
        np.testing.assert_array_equal(mask.pages[0].colormap[:, :3] >> 8, dz.viz.palette(3).T)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classes.json",
        "field.tif",
        "photo.png",
        "photo_overlay.png",
    ]
