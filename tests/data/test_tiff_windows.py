"""Windows of TIFF files are those of the whole picture."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from densezoo.data import open_tiff, read_image
from densezoo.data._decode import decode_mask

GEOREFERENCE = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 100.0, 200.0, 0.0), True),
    (34737, "s", 0, "WGS 84|", True),
]
PIXELS = np.random.default_rng(0).integers(0, 2**16, (70, 53, 3), dtype=np.uint16)


@pytest.mark.parametrize(
    "layout",
    [{"rowsperstrip": 9}, {"tile": (16, 32)}, {"tile": (16, 32), "compression": "zlib", "predictor": True}],
    ids=["strips", "tiles", "compressed"],
)
def test_windows(tmp_path, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=GEOREFERENCE, **layout)
    picture = open_tiff(path)
    assert (picture.shape, picture.dtype) == (PIXELS.shape, PIXELS.dtype)
    for rows, columns in [((0, 70), (0, 53)), ((8, 10), (31, 33)), ((60, 99), (50, 99)), ((5, 5), (0, 9))]:
        window = (slice(*rows), slice(*columns))
        np.testing.assert_array_equal(picture[window], PIXELS[window])
    mask = picture.create_like(tmp_path / "mask.tif", np.uint8)
    mask[8:20, 3:] = 7
    mask.flush()
    picture.close()
    with tifffile.TiffFile(tmp_path / "mask.tif") as written:
        np.testing.assert_array_equal(written.asarray(), 7 * np.pad(np.ones((12, 50)), ((8, 50), (3, 0))))
        for code, _, _, value, _ in GEOREFERENCE:
            assert written.pages[0].tags[code].value == value


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "palette.tif"
    tifffile.imwrite(
        path, PIXELS[..., 0].astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    with pytest.raises(ValueError, match=r"palette\.tif: its colours are PALETTE, neither grey nor RGB"):
        open_tiff(path)
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=9)
    path.write_bytes(path.read_bytes()[: PIXELS.nbytes // 2])
    with open_tiff(path) as picture, pytest.raises(ValueError, match=r"palette\.tif: cannot be read .*truncated"):
        picture[60:70, :]
    path.write_bytes(b"II*\0" + bytes(9))
    with pytest.raises(ValueError, match=r"palette\.tif: cannot be read .* damaged TIFF"):
        open_tiff(path)


WINDOWS = [((0, 70), (0, 53)), ((8, 10), (31, 33)), ((60, 99), (50, 99)), ((69, 70), (52, 53))]


def check(picture, expected):
    assert (picture.shape, picture.dtype) == (expected.shape, expected.dtype)
    for rows, columns in WINDOWS:
        window = (slice(*rows), slice(*columns))
        np.testing.assert_array_equal(picture[window], expected[window])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(
    "layout",
    [{}, {"rowsperstrip": 9}, {"tile": (32, 16)}, {"tile": (48, 16), "compression": "zlib", "predictor": True}],
    ids=["one strip", "strips", "tiles", "compressed"],
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_windows_are_those_of_read_image(tmp_path, planar, layout, dtype, byteorder):
    path = tmp_path / "a.tif"
    pixels = (PIXELS - 2**15).astype(dtype)
    stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    options = {"photometric": "rgb"} if dtype == np.uint8 else {"photometric": "minisblack"}
    tifffile.imwrite(path, stored, planarconfig=planar, byteorder=byteorder, **options, **layout)
    with open_tiff(path) as picture:
        check(picture, read_image(path))


def test_many_bands_grey_and_alpha(tmp_path):
    path = tmp_path / "a.tif"
    bands = np.random.default_rng(0).integers(0, 4096, (70, 53, 11), dtype=np.uint16)
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig", tile=(16, 16))
    with open_tiff(path) as picture:
        check(picture, bands)
    with open_tiff(path, bits=12) as picture:
        check(picture, read_image(path, bits=12))
    with pytest.raises(ValueError, match=r"a\.tif: 11 channels cannot become 3"):
        open_tiff(path, channels=3)
    grey, alpha = bands[..., :1].astype(np.uint8), bands[..., :4].astype(np.uint8)
    for pixels, photometric, channels in ((grey, "minisblack", 3), (alpha, "rgb", 3), (alpha, "rgb", 1)):
        tifffile.imwrite(path, pixels.squeeze(), photometric=photometric, tile=(16, 16))
        with open_tiff(path, channels=channels) as picture:
            check(picture, read_image(path, channels=channels))


def test_photographs_with_jpeg_compression(tmp_path):
    path = tmp_path / "a.tif"
    smooth = np.stack(np.meshgrid(np.arange(53), np.arange(70)), -1).astype(np.uint8)
    pixels = np.concatenate([smooth, smooth[..., :1]], -1)
    tifffile.imwrite(path, pixels, photometric="ycbcr", compression="jpeg", tile=(32, 32))
    with open_tiff(path) as picture:
        check(picture, read_image(path))


def test_blocks_without_data_have_the_nodata_value(tmp_path):
    """GDAL writes none for tiles that hold nodata alone."""
    path = tmp_path / "a.tif"
    for nodata, expected in (("9", 9), ("-9999", 0), (None, 0)):
        tiles = iter([b"", np.full((32, 32), 5, np.uint8).tobytes(), b"", b"", b"", b""])
        extra = [] if nodata is None else [(42113, "s", 0, nodata, True)]
        tifffile.imwrite(
            path, tiles, shape=(70, 53), dtype=np.uint8, tile=(32, 32), photometric="minisblack", extratags=extra
        )
        whole = np.full((70, 53, 1), expected, np.uint8)
        whole[:32, 32:] = 5
        with open_tiff(path) as picture:
            check(picture, whole)


def test_blocks_are_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="zlib", rowsperstrip=70)
    with open_tiff(path) as picture:
        page, decoded = picture._page, []
        decode = page.decode
        monkeypatch.setattr(
            page, "decode", lambda *args, **options: decoded.append(args[1]) or decode(*args, **options)
        )
        check(picture, PIXELS)
        assert decoded == [0]
    # Not more are kept than the limit, but one always is.
    monkeypatch.setattr("densezoo.data._tiff_windows._KEPT", 1000)
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="zlib", rowsperstrip=7)
    with open_tiff(path) as picture:
        check(picture, PIXELS)
        assert len(picture._blocks) == 1


def test_several_threads_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="zlib", tile=(16, 16))
    monkeypatch.setattr("densezoo.data._tiff_windows._KEPT", 0)
    with open_tiff(path) as picture, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: picture[:, :], range(50)):
            np.testing.assert_array_equal(found, PIXELS)


def test_files_of_several_pages_are_refused(tmp_path):
    """Since `read_image` makes channels of them."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS.transpose(2, 0, 1), photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif: its first picture has several pages"):
        open_tiff(path)
    with tifffile.TiffWriter(path) as file:  # overviews are not pages of the picture
        file.write(PIXELS, photometric="rgb", tile=(16, 16), subifds=1)
        file.write(PIXELS[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
    with open_tiff(path) as picture:
        check(picture, PIXELS)


@pytest.mark.parametrize("index", [3, slice(0, 3), (slice(0, 3), 3), (slice(0, 3), slice(0, 3), 0), ...])
def test_other_indices_are_refused(tmp_path, index):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb")
    with open_tiff(path) as picture, pytest.raises(IndexError, match=r"expected two slices, such as picture\["):
        picture[index]


def test_strips_that_are_too_large_to_decode_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    tifffile.imwrite(path, PIXELS, photometric="rgb")  # without compression, it is not decoded
    with open_tiff(path) as picture:
        check(picture, PIXELS)
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression="zlib", rowsperstrip=70)
    with pytest.raises(ValueError, match=r"a\.tif: a strip or tile of it is too large"):
        open_tiff(path)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved")
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_tiff(path) as picture:
        mask = picture.create_like(tmp_path / "mask.tif", np.uint8)
        assert os.stat(tmp_path / "mask.tif").st_blocks * 512 >= mask.nbytes
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            picture.create_like(tmp_path / "mask.tif", np.uint8)


def test_a_mask_with_a_palette_keeps_its_numbers(tmp_path):
    colours = np.array([[0, 0, 0], [230, 159, 0], [86, 180, 255]], np.uint8)
    numbers = np.arange(PIXELS[..., 0].size).reshape(PIXELS.shape[:2]) % 3
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb")
    with open_tiff(tmp_path / "a.tif") as picture:
        mask = picture.create_like(tmp_path / "mask.tif", np.uint8, palette=colours)
        mask[:] = numbers
        mask.flush()
        for dtype, palette in ((np.uint16, colours), (np.uint8, np.zeros((300, 3))), (np.uint8, np.zeros((3, 4)))):
            with pytest.raises(ValueError, match=r"a palette of shape \(\d+, [34]\) for pixels of type uint"):
                picture.create_like(tmp_path / "mask.tif", dtype, palette=palette)
    np.testing.assert_array_equal(decode_mask(tmp_path / "mask.tif"), numbers)
    with open_tiff(tmp_path / "mask.tif", indices=True) as read:
        np.testing.assert_array_equal(read[:, :][..., 0], numbers)
    np.testing.assert_array_equal(read_image(tmp_path / "mask.tif"), colours[numbers])


def test_a_number_of_channels_that_is_not_whole_is_refused(tmp_path):
    tifffile.imwrite(path := tmp_path / "a.tif", np.zeros((8, 8), np.float32), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["SamplesPerPixel"]
    content = bytearray(path.read_bytes())
    content[tag.offset + 2 : tag.offset + 4] = (11).to_bytes(2, "little")  # the type is float
    content[tag.valueoffset : tag.valueoffset + 4] = np.float32(1).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif"):
        open_tiff(path)
