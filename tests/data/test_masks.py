"""Masks from every kind of file: class numbers, other numbers, colours, and several labels per pixel."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import ImageMaskFolder, read_image

pictures = runpy.run_path(str(Path(__file__).with_name("pictures.py")))
noise, save = pictures["noise"], pictures["save"]


def test_kinds_of_masks(tmp_path):
    numbers = noise(6, 8) % 5
    palette = Image.fromarray(numbers).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    save(tmp_path / "masks" / "palette.png", palette)
    save(tmp_path / "masks" / "bits.png", numbers > 2)
    save(tmp_path / "masks" / "bits_tiff.tif", numbers > 2)
    save(tmp_path / "masks" / "wide.png", numbers.astype(np.uint16) * 1000)
    tifffile.imwrite(tmp_path / "masks" / "float.tif", numbers.astype(np.float32))
    tifffile.imwrite(tmp_path / "masks" / "last.tif", numbers[:, :, None].astype(np.int32))
    expected = {"palette": numbers, "float": numbers, "last": numbers, "wide": 1000 * numbers.astype(int)}
    expected |= {"bits": numbers > 2, "bits_tiff": numbers > 2}
    for name in expected:
        save(tmp_path / "images" / f"{name}.png", noise(6, 8))
    for item in ImageMaskFolder(tmp_path):
        np.testing.assert_array_equal(item["mask"], expected[item["name"]])
        assert item["mask"].dtype == np.int32


@pytest.mark.parametrize("compression", [None, "tiff_deflate", "tiff_lzw"])
def test_class_numbers_do_not_turn_with_white(tmp_path, compression):
    if compression == "tiff_lzw":
        pytest.importorskip("imagecodecs")
    numbers = noise(6, 8) % 5
    save(tmp_path / "images" / "a.png", noise(6, 8))
    # Pillow inverts values when it writes with white as 0.
    inverted = Image.fromarray(255 - numbers)
    path = save(tmp_path / "masks" / "a.tif", inverted, compression=compression, tiffinfo={262: 0})
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].tags[262].value == 0
    np.testing.assert_array_equal(ImageMaskFolder(tmp_path, num_classes=5)[0]["mask"], numbers)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], 255 - numbers)


def test_masks_that_hold_no_numbers(folder):
    save(folder / "masks" / "a.png", noise(6, 8, 3))
    with pytest.raises(ValueError, match=r"a\.png: a mask of 3 channels"):
        ImageMaskFolder(folder)[0]
    (folder / "masks" / "a.png").unlink()
    tifffile.imwrite(folder / "masks" / "a.tif", noise(6, 8, dtype=np.float32))
    with pytest.raises(ValueError, match="not 32-bit whole numbers"):
        ImageMaskFolder(folder)[0]


def test_mask_values_outside_the_classes(folder):
    mask = noise(6, 8) % 2
    mask[0, :3] = 255
    save(folder / "masks" / "b.png", mask)
    source = ImageMaskFolder(folder, num_classes=2)
    assert source[0]["name"] == "a"
    with pytest.raises(ValueError, match=r"b\.png: mask value 255 \(3 pixels\).*pass ignore_index=255"):
        source[1]
    assert ImageMaskFolder(folder, num_classes=2, ignore_index=255)[1]["mask"][0, 0] == 255
    with pytest.raises(ValueError, match=r"0\.\.1 and ignore_index=7"):
        ImageMaskFolder(folder, num_classes=2, ignore_index=7)[1]
    assert ImageMaskFolder(folder)[1]["mask"][0, 0] == 255


def test_mask_numbers_with_gaps_become_classes(folder):
    stored = np.array([0, 7, 11, 26], np.uint8)[noise(6, 8) % 4]
    save(folder / "masks" / "a.png", stored)
    labels = {26: 2, 0: 255, 7: 0, 11: 1, 1: 0}
    source = ImageMaskFolder(folder, labels=labels, ignore_index=255, class_names=("road", "wall", "car"))
    assert source.num_classes == 3 and source.class_names == ("road", "wall", "car")
    np.testing.assert_array_equal(source[0]["mask"], np.vectorize(labels.get)(stored))
    assert source[0]["mask"].dtype == np.int32
    source.check(progress=False)
    assert ImageMaskFolder(folder, labels=labels, ignore_index=255).num_classes == 3
    stored[0, :2], stored[1, 0], stored[2, 0] = 9, 200, 255  # ignore_index itself needs no entry
    save(folder / "masks" / "a.png", stored)
    for read in (lambda: source[0], lambda: source.check(progress=False)):
        with pytest.raises(ValueError, match=r"a\.png: mask values 9 \(2 pixels\), 200 \(1 pixels\) not in labels"):
            read()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_classes(folder, mode):
    colours = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 1]], np.uint8)
    numbers = noise(6, 8) % 3
    for name in "ab":
        picture = Image.fromarray(colours[numbers])
        picture = picture.quantize(3) if mode == "P" else picture.convert(mode)
        save(folder / "masks" / f"{name}.png", picture)
    labels = {(0, 0, 0): 1, (0, 0, 1): 255, (128, 64, 128): 0}
    source = ImageMaskFolder(folder, labels=labels, ignore_index=255)
    assert source.num_classes == 2
    np.testing.assert_array_equal(source[0]["mask"], np.array([1, 0, 255])[numbers])
    pixels = colours[numbers]
    pixels[0, :3] = 5, 6, 7
    save(folder / "masks" / "b.png", pixels)
    with pytest.raises(ValueError, match=r"b\.png: colour \(5, 6, 7\) \(3 pixels\) not in labels"):
        source[1]
    with pytest.raises(ValueError, match=r"b\.png: colour \(5, 6, 7\) \(3 pixels\) not in labels\n.*saving with loss"):
        source.check(progress=False)


def test_masks_with_several_labels_a_pixel(folder):
    mask = noise(6, 8, 3) % 2
    save(folder / "masks" / "a.png", 255 * mask)
    save(folder / "masks" / "b.png", mask)
    source = ImageMaskFolder(folder, multilabel=True, num_classes=3, labels={0: 0, 255: 1, 1: 1})
    for item in source:
        np.testing.assert_array_equal(item["mask"], mask)
    source.check(progress=False)
    plain = ImageMaskFolder(folder, multilabel=True, class_names=("a", "b", "c"))
    np.testing.assert_array_equal(plain[1]["mask"], mask)
    with pytest.raises(ValueError, match=r"a\.png: mask value 255 .*pass labels=\{0: 0, 255: 1\}"):
        plain[0]
    with pytest.raises(ValueError, match=r"a\.png: a mask of 3 channels; expected 2, one for each class"):
        ImageMaskFolder(folder, multilabel=True, num_classes=2)[0]
    save(folder / "masks" / "a.png", mask[:, :, 0])
    assert ImageMaskFolder(folder, multilabel=True)[0]["mask"].shape == (6, 8, 1)


@pytest.mark.parametrize(
    ("multilabel", "message"),
    [
        (False, "there is nothing to tell apart. If 255 is a class, map it to its number, such as 1, by labels"),
        (True, "no pixel has a label. If 255 marks a label, map it to 1, by labels"),
    ],
)
def test_masks_of_zero_and_the_ignored_value_alone(folder, multilabel, message):
    mask = noise(6, 8, 3) % 2 if multilabel else noise(6, 8) % 2
    for name in ("a", "b"):
        save(folder / "masks" / f"{name}.png", 255 * mask)
    source = ImageMaskFolder(folder, num_classes=3, ignore_index=255, multilabel=multilabel)
    with pytest.raises(ValueError, match=message):
        source.check(progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": {}}, "expected file values, or colours"),
        ({"labels": {0: 0, (1, 2, 3): 1}}, "expected file values, or colours .* not both"),
        ({"labels": {(1, 2): 0}}, r"colour \(1, 2\)"),
        ({"labels": {(1, 2, 256): 0}}, r"colour \(1, 2, 256\)"),
        ({"labels": {0: 0, 1: 5}, "num_classes": 3}, r"1: 5; expected a class: 0\.\.2"),
        ({"labels": {0: 0, 1: -1}}, r"1: -1; expected a class"),
        ({"labels": {(0, 0, 0): 0}, "multilabel": True}, "exclude each other"),
        ({"labels": {0: 0, 255: 2}, "multilabel": True}, r"255: 2; expected a class: 0\.\.1"),
        ({"class_names": ("a", "b"), "num_classes": 3}, "a name of its own for each class"),
        ({"class_names": ("a", "a")}, "a name of its own for each class"),
        ({"class_names": "ab"}, "a name of its own for each class"),
    ],
)
def test_labels_and_names_that_do_not_fit(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageMaskFolder(folder, **arguments)
