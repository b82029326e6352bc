import os
import pathlib
import pickle
import re
import runpy
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import ImageMaskFolder, read_image, to_float

pictures = runpy.run_path(str(pathlib.Path(__file__).with_name("pictures.py")))
noise, save = pictures["noise"], pictures["save"]


def write_png16(path, pixels, *, sub_filter=True):
    """A 16-bit PNG of any number of channels, which Pillow cannot write; with the Sub filter or unfiltered."""
    height, width, channels = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    if sub_filter:
        step = 2 * channels
        rows = np.concatenate([rows[:, :step], rows[:, step:] - rows[:, :-step]], axis=1)
    data = b"".join(bytes([int(sub_filter)]) + row.tobytes() for row in rows)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


# --- pixels ---


def test_to_float_scales_integers_by_their_type():
    np.testing.assert_allclose(to_float(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
    np.testing.assert_allclose(to_float(np.array([0, 13107, 65535], np.uint16)), [0, 0.2, 1])
    np.testing.assert_allclose(to_float(np.array([-32767, 32767], np.int16)), [-1, 1])
    np.testing.assert_array_equal(to_float(np.array([-3.0, 7.5])), [-3, 7.5])
    for dtype in (np.uint8, np.uint16, np.uint32, np.float16, np.float32, np.float64):
        assert to_float(np.zeros(2, dtype)).dtype == np.float32
    with pytest.raises(TypeError, match="bool"):
        to_float(np.zeros(2, bool))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_8_bit_pixels_come_back_as_they_were(tmp_path, channels, suffix):
    pixels = noise(5, 7, channels)
    path = save(tmp_path / f"a.{suffix}", pixels[:, :, 0] if channels == 1 else pixels)
    np.testing.assert_array_equal(read_image(path), pixels)
    assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("sub_filter", [False, True])
def test_16_bit_png_loses_nothing(tmp_path, channels, sub_filter):
    pixels = noise(5, 7, channels, dtype=np.uint16)
    write_png16(tmp_path / "a.png", pixels, sub_filter=sub_filter)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize("options", [{"suffix": "bmp"}, {"suffix": "webp", "lossless": True}])
def test_other_formats(tmp_path, options):
    suffix = options.pop("suffix")
    path = save(tmp_path / f"a.{suffix}", noise(5, 7, 3), **options)
    np.testing.assert_array_equal(read_image(path), noise(5, 7, 3))


def test_jpeg_is_close(tmp_path):
    smooth = np.linspace(0, 255, 24 * 16 * 3).reshape(24, 16, 3).astype(np.uint8)
    path = save(tmp_path / "a.JPG", smooth, quality=95)
    assert np.abs(read_image(path).astype(int) - smooth).max() < 12


def test_cmyk_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (4, 3), (0, 0, 0, 0)))
    np.testing.assert_array_equal(read_image(path), np.full((3, 4, 3), 255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_palettes_and_bits(tmp_path, suffix):
    indices = noise(5, 7) % 3
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = save(tmp_path / f"p.{suffix}", palette)
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    np.testing.assert_array_equal(read_image(path), colours[indices])
    bits = indices > 0
    np.testing.assert_array_equal(read_image(save(tmp_path / f"b.{suffix}", bits)), 255 * bits[:, :, None])


@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 7, 5), (3, 6, 7), (6, 7, 3), (6, 7, 2), (6, 7)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_with_channels_first_or_last(tmp_path, shape, dtype):
    pixels = noise(*shape, dtype=dtype)
    photometric = "rgb" if 3 in shape else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric)
    image = read_image(tmp_path / "a.tif")
    assert image.shape[:2] == (6, 7) and image.dtype == dtype
    expected = pixels[:, :, None] if pixels.ndim == 2 else pixels if shape[:2] == (6, 7) else np.moveaxis(pixels, 0, 2)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff(tmp_path, compression):
    if compression == "tiff_lzw":
        pytest.importorskip("imagecodecs")
    path = save(tmp_path / "a.tif", noise(6, 7, 3), compression=compression)
    np.testing.assert_array_equal(read_image(path), noise(6, 7, 3))
    path = save(tmp_path / "b.tif", noise(6, 7, dtype=np.uint16), compression=compression)
    np.testing.assert_array_equal(read_image(path), noise(6, 7, 1, dtype=np.uint16))


def test_tiff_that_stores_white_as_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 7), photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), 255 - noise(6, 7, 1))
    # With 16 bits or more, tifffile, Pillow and GDAL return the stored numbers.
    for dtype in (np.uint16, np.uint32):
        tifffile.imwrite(tmp_path / "b.tif", noise(6, 7, dtype=dtype), photometric="miniswhite")
        np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), noise(6, 7, 1, dtype=dtype))


def test_stack_of_pictures_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(2, 3, 6, 7), photometric="minisblack")
    with pytest.raises(ValueError, match=r"one picture per file"):
        read_image(tmp_path / "a.tif")


# The stored position, among h rows and w columns, of the displayed pixel (y, x).
STORED = {
    1: lambda y, x, h, w: (y, x),
    2: lambda y, x, h, w: (y, w - 1 - x),
    3: lambda y, x, h, w: (h - 1 - y, w - 1 - x),
    4: lambda y, x, h, w: (h - 1 - y, x),
    5: lambda y, x, h, w: (x, y),
    6: lambda y, x, h, w: (h - 1 - x, y),
    7: lambda y, x, h, w: (h - 1 - x, w - 1 - y),
    8: lambda y, x, h, w: (x, w - 1 - y),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(4, 6)
    save(tmp_path / "images" / f"a.{suffix}", stored, exif=exif)
    seen = np.empty((6, 4) if orientation > 4 else (4, 6), np.uint8)
    for y, x in np.ndindex(seen.shape):
        seen[y, x] = stored[STORED[orientation](y, x, 4, 6)]
    np.testing.assert_array_equal(read_image(tmp_path / "images" / f"a.{suffix}")[:, :, 0], seen)
    save(tmp_path / "masks" / "a.png", seen)
    source = ImageMaskFolder(tmp_path)
    assert source.sizes == (seen.shape,)
    np.testing.assert_array_equal(source[0]["mask"], seen)


def test_channels_are_converted(tmp_path):
    grey, grey_alpha = save(tmp_path / "g.png", noise(4, 5)), save(tmp_path / "ga.png", noise(4, 5, 2))
    colour, colour_alpha = save(tmp_path / "c.png", noise(4, 5, 3)), save(tmp_path / "ca.png", noise(4, 5, 4))
    np.testing.assert_array_equal(read_image(grey, 3), np.repeat(noise(4, 5, 1), 3, 2))
    np.testing.assert_array_equal(read_image(grey_alpha, 3), np.repeat(noise(4, 5, 2)[:, :, :1], 3, 2))
    np.testing.assert_array_equal(read_image(grey_alpha, 1), noise(4, 5, 2)[:, :, :1])
    np.testing.assert_array_equal(read_image(colour_alpha, 3), noise(4, 5, 4)[:, :, :3])
    luminance = np.asarray(Image.fromarray(noise(4, 5, 3)).convert("L")).astype(int)
    assert np.abs(read_image(colour, 1)[:, :, 0] - luminance).max() <= 1
    assert read_image(colour, 1).dtype == np.uint8
    for path, channels in ((grey, 2), (colour, 4), (colour, 5)):
        with pytest.raises(ValueError, match=rf"{path.name}: \d channels cannot become {channels}"):
            read_image(path, channels)
    with pytest.raises(ValueError, match="channels=0"):
        read_image(grey, 0)


# --- damaged and dangerous files ---


def test_missing_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_file_is_named(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", noise(32, 32, 3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"II*\0broken", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_decompression_bomb_is_an_error(tmp_path, monkeypatch, suffix):
    save(tmp_path / "images" / f"a.{suffix}", noise(8, 8))
    save(tmp_path / "masks" / "a.png", noise(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"exceeds limit of 20 pixels.*Cut the picture into tiles"):
        read_image(tmp_path / "images" / f"a.{suffix}")
    with pytest.raises(ValueError, match=r"exceeds limit"):
        ImageMaskFolder(tmp_path)


# --- folders ---


def test_items_are_sorted_pairs(folder):
    source = ImageMaskFolder(folder, num_classes=2)
    assert len(source) == 2 and source.names == ("a", "b") and source.sizes == ((6, 8), (6, 8))
    item = source[0]
    assert item["name"] == "a" and item["image"].shape == (6, 8, 1) and item["image"].dtype == np.uint8
    assert item["mask"].dtype == np.int32
    np.testing.assert_array_equal(item["mask"], noise(6, 8) % 2)
    assert source[-1]["name"] == source[np.int64(1)]["name"] == "b"
    assert [item["name"] for item in source] == ["a", "b"]
    with pytest.raises(IndexError):
        source[2]
    assert pickle.loads(pickle.dumps(source))[1]["name"] == "b"
    assert repr(source) == repr(ImageMaskFolder(folder, num_classes=2))
    source.check(progress=False)


def test_formats_may_differ_within_a_pair(tmp_path):
    save(tmp_path / "images" / "scan.v2.jpg", noise(6, 8, 3))
    save(tmp_path / "masks" / "scan.v2.TIF", noise(6, 8), format="TIFF")
    item = ImageMaskFolder(tmp_path, channels=1)[0]
    assert item["name"] == "scan.v2" and item["image"].shape == (6, 8, 1)
    np.testing.assert_array_equal(item["mask"], noise(6, 8))


@pytest.mark.parametrize("compression", ["tiff_lzw", None])
def test_pages_are_read_or_refused(tmp_path, compression):
    pages = [Image.fromarray(page) for page in noise(3, 40, 50)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
    try:
        image = read_image(tmp_path / "a.tif")
    except ValueError as error:
        assert compression and "pip install imagecodecs" in str(error)
    else:
        np.testing.assert_array_equal(image, np.moveaxis(noise(3, 40, 50), 0, 2))


def test_hidden_files_are_skipped_and_links_followed(folder, tmp_path_factory):
    for name in (".hidden.png", "Thumbs.db"):
        (folder / "images" / name).write_bytes(b"?")
    elsewhere = save(tmp_path_factory.mktemp("elsewhere") / "x.png", noise(6, 8) % 2)
    os.symlink(elsewhere, folder / "images" / "c.png")
    os.symlink(elsewhere, folder / "masks" / "c.png")
    source = ImageMaskFolder(folder)
    assert source.names == ("a", "b", "c")
    np.testing.assert_array_equal(source[2]["mask"], noise(6, 8) % 2)


def test_what_is_not_read_is_named(folder):
    (folder / "images" / "c.gif").write_bytes(b"?")
    save(folder / "masks" / "more" / "d.png", noise(6, 8))
    with pytest.warns(UserWarning, match=r"images: .*c\.gif\n.*masks: .*more/"):
        assert ImageMaskFolder(folder).names == ("a", "b")


def test_names_pair_in_either_normal_form(tmp_path):
    save(tmp_path / "images" / f"{unicodedata.normalize('NFC', 'é')}.png", noise(6, 8))
    save(tmp_path / "masks" / f"{unicodedata.normalize('NFD', 'é')}.png", noise(6, 8))
    assert len(ImageMaskFolder(tmp_path)) == 1


def test_missing_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder.*\n.*images/NAME"):
        ImageMaskFolder(tmp_path / "nowhere")
    for path in (folder / "images").iterdir():
        path.unlink()
    (folder / "images" / "a.heic").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"images: the folder contains no images \(found: a\.heic\)"):
        ImageMaskFolder(folder)


def test_the_folder_above_is_recognised(tmp_path):
    save(tmp_path / "train" / "images" / "a.png", noise(2, 2))
    with pytest.raises(FileNotFoundError) as error:
        ImageMaskFolder(tmp_path)
    message = str(error.value)
    assert f"Did you mean {tmp_path / 'train'}?" in message and str(tmp_path / "masks") in message


def test_all_problems_are_reported_at_once(folder):
    save(folder / "images" / "a.jpg", noise(6, 8))
    save(folder / "images" / "lonely.png", noise(6, 8))
    save(folder / "masks" / "orphan.png", noise(6, 8))
    save(folder / "masks" / "lossy.jpg", noise(6, 8))
    save(folder / "masks" / "b.png", noise(8, 6))
    save(folder / "images" / "c.png", noise(6, 8)).write_bytes(b"nothing")
    save(folder / "masks" / "c.png", noise(6, 8))
    with pytest.raises(ValueError) as error:
        ImageMaskFolder(folder)
    message = str(error.value)
    assert "2 files named a: a.jpg, a.png" in message
    assert "1 image without a mask: lonely.png" in message
    assert "1 mask without an image: orphan.png" in message
    assert "lossy.jpg" in message
    assert re.search(
        r"b\.png is 6x8 .*, but its mask .*b\.png is 8x6, turned: has the image an EXIF orientation", message
    )
    assert re.search(r"c\.png: cannot be decoded", message)


def test_an_ending_of_all_masks_is_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.png", noise(6, 8))
        save(tmp_path / "masks" / f"{name}_L.png", noise(6, 8))
    with pytest.raises(ValueError, match="the names in masks end with '_L': rename them to those of the images"):
        ImageMaskFolder(tmp_path)
    save(tmp_path / "masks" / "c.png", noise(6, 8))
    with pytest.raises(ValueError) as error:
        ImageMaskFolder(tmp_path)
    assert "end with" not in str(error.value)


def test_long_lists_are_cut(folder):
    for number in range(25):
        save(folder / "images" / f"x{number:02}.png", noise(2, 2))
    with pytest.raises(ValueError, match=r"25 images without a mask: x00\.png, .*x09\.png, and 15 more"):
        ImageMaskFolder(folder)


def test_check_names_every_bad_file(tmp_path, capfd):
    for name in "abcdef":
        save(tmp_path / "images" / f"{name}.png", noise(32, 32))
        save(tmp_path / "masks" / f"{name}.png", noise(32, 32) % 2)
    for path in (tmp_path / "images" / "b.png", tmp_path / "masks" / "c.png"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    mask = noise(32, 32) % 2
    mask[0, 0], mask[1, :5] = 9, 3
    save(tmp_path / "masks" / "d.png", mask)
    save(tmp_path / "images" / "e.png", noise(32, 32, 3))
    source = ImageMaskFolder(tmp_path, num_classes=2)
    with pytest.raises(ValueError) as error:
        source.check(progress=True, num_threads=2)
    message = str(error.value)
    assert re.search(r"images/b\.png: cannot be decoded \(.*truncated", message)
    assert re.search(r"masks/c\.png: cannot be decoded", message)
    assert re.search(r"masks/d\.png: mask values 3 \(5 pixels\), 9 \(1 pixels\) outside the classes", message)
    assert "1: a.png, c.png, d.png, f.png" in message and "3: e.png" in message and "channels=" in message
    assert "num_classes is too small" in message
    captured = capfd.readouterr()
    assert "Checking" in captured.err and not captured.out
    with pytest.raises(ValueError, match="cannot be decoded"):
        source.check(progress=False)
    assert not capfd.readouterr().err


def test_check_finds_pixels_that_are_no_numbers(folder):
    image = noise(6, 8, 3, dtype=np.float32)
    image[0], image[1, 0, 0] = np.nan, np.inf
    (folder / "images" / "a.png").unlink()
    tifffile.imwrite(folder / "images" / "a.tif", image, photometric="rgb")
    with pytest.raises(ValueError, match=r"a\.tif: 25 values are NaN or infinite"):
        ImageMaskFolder(folder, channels=3).check(progress=False)


def test_check_notices_files_that_change(folder):
    source = ImageMaskFolder(folder)
    save(folder / "masks" / "a.png", noise(3, 3))
    with pytest.raises(ValueError, match=r"a\.png is 6x8 .* is 3x3"):
        source.check(progress=False)
    with pytest.raises(ValueError, match=r"a\.png is 6x8 .* is 3x3"):
        source[0]
    pathlib.Path(folder / "masks" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png"):
        source.check(progress=False)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"channels": 0}])
def test_arguments_out_of_range(folder, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ImageMaskFolder(folder, **arguments)


def test_an_ignore_index_that_is_a_class(folder):
    for classes, ignored in ((300, 255), (2, 0)):
        with pytest.raises(ValueError, match=f"ignore_index={ignored} is one of the classes"):
            ImageMaskFolder(folder, num_classes=classes, ignore_index=ignored)
