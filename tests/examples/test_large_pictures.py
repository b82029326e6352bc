"""`predict.py` and `evaluate.py` with pictures that are computed by tiles."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

import densezoo as dz

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import common
import evaluate
import predict

SIZE = (81, 103)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    dz.save(path, network, variables, task=dz.tasks.Segmentation(3), preprocessing=dz.Preprocessing())
    return path


@pytest.fixture
def data(tmp_path):
    """A large GeoTIFF with an alpha channel and its mask, and a small picture."""
    random, root = np.random.default_rng(0), tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    pixels = random.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    tifffile.imwrite(root / "images" / "large.tif", pixels, photometric="rgb", tile=(16, 16), compression="zlib")
    mask = random.choice([7, 11, 26, 0], SIZE).astype(np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(root / "masks" / "large.tif", mask, photometric="palette", colormap=colours, tile=(16, 16))
    Image.fromarray(pixels[:20, :30, :3]).save(root / "images" / "small.png")
    Image.fromarray(mask[:20, :30]).save(root / "masks" / "small.png")
    return root


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_scores_by_tiles_equal_those_of_one_pass(tmp_path, model, data, capsys, monkeypatch):
    options = evaluate.Arguments(
        model=model, data=data, out=tmp_path / "whole", labels=("7:0", "11:1", "26:2", "0:255")
    )
    evaluate.main(options)
    expected = last_line(capsys)
    assert expected["images"] == 2
    # A limit for decoded pictures that the large one exceeds: it is only read by windows.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"large\.tif: .* exceeds limit"):
        evaluate.main(options)
    tiled = dataclasses.replace(options, max_pixels=6500, out=tmp_path / "tiled")
    evaluate.main(tiled)
    assert last_line(capsys) == expected | {"out": str(tiled.out)}
    assert (tiled.out / "confusion.csv").read_text() == (options.out / "confusion.csv").read_text()
    with pytest.raises(ValueError, match=r"large\.tif: mask value 26 .*not in labels"):
        evaluate.main(dataclasses.replace(tiled, labels=("7:0", "11:1", "0:255")))


def test_windows_of_a_folder_have_classes_and_checked_values(data):
    options = {"labels": {7: 0, 11: 1, 26: 2, 0: 255}, "num_classes": 3, "ignore_index": 255, "channels": 3}
    whole = dz.data.ImageMaskFolder(data, **options)
    source = dz.data.ImageMaskFolder(data, window_pixels=6500, **options)
    source.check(progress=False)
    for index in range(2):
        item, expected = source[index], whole[index]
        np.testing.assert_array_equal(item["image"][:, :], expected["image"])
        np.testing.assert_array_equal(item["mask"][:, :], expected["mask"])
        for part in (item["image"], item["mask"]):
            if not isinstance(part, np.ndarray):
                part.close()
    with pytest.raises(ValueError, match="window_pixels"):
        dz.data.ImageMaskFolder(data, window_pixels=0)


def test_colours_are_classes_in_windows_too(data):
    colours = np.array([[0, 0, 0], [128, 64, 128]], np.uint8)
    for name in ("large.tif", "small.png"):
        path = data / "masks" / name
        shape = SIZE if name == "large.tif" else (20, 30)
        mask = colours[np.random.default_rng(0).integers(0, 2, shape)]
        if path.suffix == ".tif":
            tifffile.imwrite(path, mask, photometric="rgb", tile=(16, 16))
        else:
            Image.fromarray(mask).save(path)
    labels = {(0, 0, 0): 0, (128, 64, 128): 1}
    whole, source = (dz.data.ImageMaskFolder(data, labels=labels, window_pixels=n) for n in (None, 6500))
    item = source[0]
    assert not isinstance(item["mask"], np.ndarray)
    np.testing.assert_array_equal(item["mask"][5:70, 8:], whole[0]["mask"][5:70, 8:])
    item["mask"].close()
    item["image"].close()


def test_progress_within_a_picture_is_shown(tmp_path, model, data, capsys):
    predict.main(
        predict.Arguments(model=model, images=[data / "images" / "large.tif"], out=tmp_path / "out", max_pixels=6500)
    )
    shown = capsys.readouterr()
    assert "% of a large picture" in shown.err and "Predicting" in shown.err
    with tifffile.TiffFile(tmp_path / "out" / "large.tif") as mask:
        whole = dz.data.read_image(data / "images" / "large.tif", channels=3)
        np.testing.assert_array_equal(mask.asarray(), dz.load_predictor(model)(whole))


def test_a_picture_that_is_resized_is_computed_in_one_pass(tmp_path, model, data):
    network, variables = dz.load(model)
    path = tmp_path / "resizing.safetensors"
    dz.save(path, network, variables, task=dz.tasks.Segmentation(3), preprocessing=dz.Preprocessing(shortest=32))
    predict.main(
        predict.Arguments(model=path, images=[data / "images" / "large.tif"], out=tmp_path / "out", max_pixels=2000)
    )
    with Image.open(tmp_path / "out" / "large.png") as mask:
        assert mask.size == SIZE[::-1]


def test_an_error_in_the_middle_leaves_no_file(tmp_path, model, data):
    path = data / "images" / "large.tif"
    content = path.read_bytes()
    path.write_bytes(content[: 3 * len(content) // 4])
    with pytest.raises(ValueError, match=r"large\.tif: cannot be (read|decoded)"):
        predict.main(predict.Arguments(model=model, images=[path], out=tmp_path / "out", max_pixels=6500))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["classes.json"]


def test_progress_of_items():
    items = common.Progress([1, 2, 3], "Counting")
    assert list(items) == [1, 2, 3]
