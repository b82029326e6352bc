import functools
import importlib
import importlib.util
import os
import signal
import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import ImageMaskFolder, _decode, read_image, to_float

needs_imagecodecs = pytest.mark.skipif(not importlib.util.find_spec("imagecodecs"), reason="imagecodecs is missing")


def noise(*shape, dtype=np.uint8, stop=None):
    return np.random.default_rng(0).integers(stop or np.iinfo(dtype).max + 1, size=shape, dtype=dtype)


def lzw(data):
    """LZW with literals only; the table is cleared before codes exceed 9 bits."""
    codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes) + "0" * 7
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits) - 7, 8))


def write_tiff(path, *strips, **tags):
    """A TIFF of one strip per band with any tags (`t256=[50]`), including those that no library writes."""
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {f"t{code}": [value] for code, value in {258: 8, 259: 1, 262: 1, 277: 1}.items()} | tags
    tags |= {"t273": starts[:-1], "t278": tags["t257"], "t279": [len(strip) for strip in strips]}
    data, entries, more = b"".join(strips), b"", b""
    for name, values in sorted(tags.items()):
        field = struct.pack(f"<{len(values)}H", *values).ljust(4, b"\0")
        if len(field) > 4:  # is stored after the page
            more, field = more + field, struct.pack("<I", 8 + len(data) + 2 + 12 * len(tags) + 4 + len(more))
        entries += struct.pack("<HHI", int(name[1:]), 3, len(values)) + field
    page = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + page + more)
    return path


def write_png(path, width, bits, rows, colour_type=0):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def no_imagecodecs(monkeypatch):
    if importlib.util.find_spec("imagecodecs"):
        fallback = importlib.import_module("tifffile._imagecodecs")
        monkeypatch.setattr(tifffile.tifffile, "imagecodecs", fallback)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        for name in ("DECOMPRESSORS", "UNPREDICTORS"):
            monkeypatch.setattr(getattr(tifffile.TIFF, name), "_codecs", {1: lambda data, **_: data})


# --- nothing is lost ---


@needs_imagecodecs
def test_lzw_keeps_every_band(tmp_path):
    bands = noise(2, 40, 50)
    tags = {"t256": [50], "t257": [40], "t258": [8, 8], "t277": [2], "t284": [2], "t338": [0]}
    path = write_tiff(tmp_path / "a.tif", *(lzw(band.tobytes()) for band in bands), t259=[5], **tags)
    np.testing.assert_array_equal(read_image(path), np.moveaxis(bands, 0, 2))


@pytest.mark.parametrize("compression", [None, "tiff_deflate", pytest.param("tiff_lzw", marks=needs_imagecodecs)])
@pytest.mark.parametrize("count", [3, 60])
def test_pages_are_channels(tmp_path, compression, count):
    pages = [Image.fromarray(page) for page in noise(count, 40, 50)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(noise(count, 40, 50), 0, 2))


@pytest.mark.parametrize("compression", [1, pytest.param(5, marks=needs_imagecodecs)])
def test_masks_keep_their_numbers_where_white_is_zero(tmp_path, compression):
    numbers = bytes([0, 1, 2, 3])
    strip = lzw(numbers) if compression == 5 else numbers
    path = write_tiff(tmp_path / "a.tif", strip, t256=[4], t257=[1], t259=[compression], t262=[0])
    np.testing.assert_array_equal(_decode.decode_mask(path), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [255, 254, 253, 252])


def test_alpha_stays_where_white_is_zero(tmp_path):
    tags = {"t258": [8, 8], "t277": [2], "t338": [2]}
    path = write_tiff(tmp_path / "a.tif", bytes([0, 9, 255, 8]), t256=[2], t257=[1], t262=[0], **tags)
    np.testing.assert_array_equal(read_image(path), [[[255, 9], [0, 8]]])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("suffix", ["png", pytest.param("tif", marks=needs_imagecodecs)])
def test_grey_of_few_bits(tmp_path, bits, suffix):
    numbers = np.arange(8) % 2**bits
    row = bytes(np.packbits([number >> bit & 1 for number in numbers for bit in reversed(range(bits))]))
    if suffix == "png":
        path = write_png(tmp_path / "a.png", 8, bits, [row])
    else:
        path = write_tiff(tmp_path / "a.tif", row, t256=[8], t257=[1], t258=[bits])
    np.testing.assert_array_equal(_decode.decode_mask(path), [numbers])
    np.testing.assert_array_equal(read_image(path)[0, :, 0], numbers * 255 // (2**bits - 1))
    if suffix == "tif":
        path = write_tiff(tmp_path / "w.tif", row, t256=[8], t257=[1], t258=[bits], t262=[0])
        np.testing.assert_array_equal(read_image(path)[0, :, 0], 255 - numbers * 255 // (2**bits - 1))


def test_palette_of_one_bit(tmp_path):
    image = Image.fromarray(noise(4, 8, stop=2)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", bits=1)
    colours = np.array([[10, 20, 30], [40, 50, 60]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[noise(4, 8, stop=2)])
    row = bytes([0b01010011])
    colormap = [257 * value for value in (10, 40, 20, 50, 30, 60)]
    path = write_tiff(tmp_path / "a.tif", row, t256=[8], t257=[1], t258=[1], t262=[3], t320=colormap)
    bits = np.unpackbits(np.frombuffer(row, np.uint8))
    np.testing.assert_array_equal(read_image(path)[0], colours[bits])
    np.testing.assert_array_equal(_decode.decode_mask(path)[0], bits)


@pytest.mark.parametrize(("photometric", "planes"), [(1, 1), (2, 2)])
def test_jpegs_whose_colours_are_unclear(tmp_path, photometric, planes):
    tags = {"t258": [8, 8, 8], "t259": [7], "t262": [photometric], "t277": [3], "t284": [planes]}
    path = write_tiff(tmp_path / "a.tif", *[b"?"] * (3 if planes == 2 else 1), t256=[8], t257=[8], **tags)
    with pytest.raises(ValueError, match=r"a\.tif: its JPEG compression of several channels is not supported"):
        read_image(path)


@pytest.mark.parametrize(("photometric", "name"), [(5, "CMYK"), (6, "YCbCr"), (8, r"CIE L\*a\*b\*")])
def test_other_colours_are_named(tmp_path, photometric, name):
    path = write_tiff(tmp_path / "a.tif", noise(9, 10).tobytes(), t256=[10], t257=[9], t262=[photometric])
    with pytest.raises(ValueError, match=rf"a\.tif: its colours are {name}: save it as RGB or grey"):
        read_image(path)


def write_lzw(path, *bands, **tags):
    height, width = bands[0].shape[:2]
    bits = [8 * bands[0].itemsize] * tags.get("t277", [1])[0]
    strips = [lzw(band.tobytes()) for band in bands]
    return write_tiff(path, *strips, **{"t256": [width], "t257": [height], "t258": bits, "t259": [5]} | tags)


def write_pages(path, **options):
    page = Image.fromarray(noise(8, 8))
    page.save(path, save_all=True, append_images=[page], **options)


@pytest.mark.parametrize(
    "write",
    [
        functools.partial(write_pages, compression="tiff_lzw"),
        functools.partial(write_pages, compression="zstd"),
        functools.partial(write_pages, compression="jpeg"),
        lambda path: write_lzw(path, *noise(2, 8, 8), t277=[2], t284=[2]),
        lambda path: write_lzw(path, noise(8, 8, 2, dtype=np.uint16), t277=[2]),
        lambda path: write_lzw(path, noise(8, 8), t262=[0]),
        lambda path: write_tiff(path, bytes(16), t256=[8], t257=[8], t258=[2]),
    ],
    ids=["pages", "zstd", "jpeg", "bands", "16 bits", "white is zero", "2 bits"],
)
def test_imagecodecs_is_asked_for(tmp_path, no_imagecodecs, write):
    write(tmp_path / "a.tif")
    for read in (read_image, _decode.decode_mask):
        with pytest.raises(ValueError, match=r"a\.tif: reading it \(compression .*pip install imagecodecs") as error:
            read(tmp_path / "a.tif")
        assert "damaged" not in str(error.value)


@needs_imagecodecs
def test_damage_is_not_blamed_on_imagecodecs(tmp_path):
    path = write_tiff(tmp_path / "a.tif", b"\xff" * 9, t256=[4], t257=[4], t259=[34712])
    with pytest.raises(ValueError, match=r"cannot be decoded.*damaged"):
        read_image(path)


@needs_imagecodecs
@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate", "zstd"])
def test_cut_strips_are_noticed(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), compression=compression)  # writes the pixels last
    assert read_image(path).shape == (64, 64, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.tif: cannot be decoded \(image file is truncated\)"):
        read_image(path)


def test_tifffile_is_asked_for(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 4))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"a\.tif: .*pip install tifffile imagecodecs"):
        read_image(tmp_path / "a.tif")


# --- the range of pixels ---


def write_pair(root, pixels):
    for kind, array in (("images", pixels), ("masks", np.zeros(pixels.shape[:2], np.uint8))):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(array).save(root / kind / "a.png")


def test_bits_scale_to_the_whole_type(tmp_path):
    pixels = np.array([[0, 1, 2048, 4095]], np.uint16)
    write_pair(tmp_path, pixels)
    path = tmp_path / "images" / "a.png"
    np.testing.assert_array_equal(read_image(path)[:, :, 0], pixels)
    image = read_image(path, bits=12)
    assert image.dtype == np.uint16
    np.testing.assert_allclose(to_float(image)[:, :, 0], pixels / 4095, atol=1e-5)
    np.testing.assert_array_equal(ImageMaskFolder(tmp_path, bits=12)[0]["image"], image)
    assert read_image(path, channels=3, bits=12).shape == (1, 4, 3)
    with pytest.raises(ValueError, match=r"a\.png: the largest pixel is 4095, which needs more than bits=11"):
        read_image(path, bits=11)
    with pytest.raises(ValueError, match=r"bits=17 does not fit pixels of type uint16"):
        read_image(path, bits=17)
    with pytest.raises(ValueError, match=r"bits=0; expected 1 or more"):
        read_image(path, bits=0)
    assert repr(ImageMaskFolder(tmp_path)) != repr(ImageMaskFolder(tmp_path, bits=12))


def test_check_says_what_range_was_seen(tmp_path):
    write_pair(tmp_path, np.array([[0, 3, 3000]], np.uint16))
    with pytest.warns(
        UserWarning, match=r"largest pixel of the uint16 images is 3000.*0 to 0\.046.*4095, pass bits=12"
    ):
        ImageMaskFolder(tmp_path).check(progress=False)
    ImageMaskFolder(tmp_path, bits=12).check(progress=False)
    write_pair(tmp_path, np.array([[0, 3, 40000]], np.uint16))
    ImageMaskFolder(tmp_path).check(progress=False)
    write_pair(tmp_path, np.array([[0, 3, 40]], np.uint8))
    ImageMaskFolder(tmp_path).check(progress=False)


def test_check_with_a_value_range_warns_of_pixels_above_it(tmp_path):
    write_pair(tmp_path, np.array([[0, 3, 3000]], np.uint16))
    with pytest.warns(UserWarning, match=r"largest pixel is 3000, above the 1023 that becomes 1"):
        ImageMaskFolder(tmp_path).check(progress=False, value_range=(0, 1023))
    ImageMaskFolder(tmp_path).check(progress=False, value_range=(0, 4095))  # without a warning, which would fail here


# --- hostile files ---


@pytest.fixture
def alarm():
    """Fails a test that hangs."""

    def stop(*_):
        raise AssertionError("it hangs")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_in_a_loop(tmp_path, alarm, page, order, bigtiff):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=bigtiff) as writer:
        for size in (8, 9):
            writer.write(noise(size, size), metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offsets = [page.offset for page in tiff.pages]
    content = bytearray(path.read_bytes())
    head, entry, link = (8, 20, "Q") if bigtiff else (2, 12, "I")
    (entries,) = struct.unpack_from(order + ("Q" if bigtiff else "H"), content, offsets[page])
    struct.pack_into(order + link, content, offsets[page] + head + entry * entries, offsets[page])
    path.write_bytes(content)
    for read in (read_image, _decode.read_size):
        with pytest.raises(ValueError, match=r"a\.tif: cannot be decoded \(its pages link in a loop\)"):
            read(path)


def test_pages_without_end(tmp_path, alarm):
    offsets = range(8, 8 + 6 * 20_000, 6)  # pages of no tags
    pages = b"".join(struct.pack("<HI", 0, offset + 6) for offset in offsets)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + pages)
    with pytest.raises(ValueError, match="more than 10000 pages: save one picture per file"):
        read_image(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused(tmp_path, alarm):
    write_pair(tmp_path, noise(4, 4))
    os.mkfifo(tmp_path / "images" / "b.png")
    Image.fromarray(noise(4, 4)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: it is a pipe, socket or device: expected a regular file"):
        read_image(tmp_path / "images" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: it is a pipe"):
        ImageMaskFolder(tmp_path)


def test_samples_of_63_bits(tmp_path):
    path = write_tiff(tmp_path / "a.tif", bytes(63), t256=[4], t257=[2], t258=[63])
    with pytest.raises(ValueError, match=r"a\.tif: its samples have 63 bits .*save it with 8, 16 or 32 bits"):
        read_image(path)


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_pictures_without_pixels(tmp_path, size):
    path = write_tiff(tmp_path / "a.tif", bytes(16), t256=[size[0]], t257=[size[1]])
    for read in (read_image, _decode.decode_mask, _decode.read_size):
        with pytest.raises(ValueError, match=r"a\.tif: cannot be decoded"):
            read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decoded_bytes_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 120 bytes
    few, many = noise(2, 3, 20), noise(2, 3, 21)
    for pixels in (few, many):
        tifffile.imwrite(tmp_path / f"{pixels.shape[2]}.tif", pixels, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image(tmp_path / "20.tif"), few)
    write_png(tmp_path / "a.png", 4, 16, noise(4, 4 * 8), colour_type=6)  # RGBA of 16 bits per channel
    for path in (tmp_path / "21.tif", tmp_path / "a.png"):
        for read in (read_image, _decode.read_size):
            with pytest.raises(ValueError, match=r"Decoded size \(12\d bytes\) exceeds limit of 120.*Cut the picture"):
                read(path)
    tile = tmp_path / "tile.tif"
    tifffile.imwrite(tile, noise(2, 2), tile=(16, 16))
    with pytest.raises(ValueError, match=r"Decoded size \(256 bytes\) exceeds"):
        read_image(tile)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(read_image(tmp_path / "21.tif"), many)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_lack_of_memory_is_no_damage(tmp_path, monkeypatch, error):
    write_pair(tmp_path, noise(4, 4))
    source = ImageMaskFolder(tmp_path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError, match=r"a\.png: not enough memory"):
        read_image(tmp_path / "images" / "a.png")
    with pytest.raises(MemoryError, match=r"a\.png: not enough memory"):
        source.check(progress=False)


def test_errors_of_the_system_are_no_damage(tmp_path, monkeypatch):
    write_pair(tmp_path, noise(4, 4))

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_image(tmp_path / "images" / "a.png")


def test_masks_of_floats_that_are_no_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[np.nan, np.inf, 1]], np.float32))
    with pytest.raises(ValueError, match="not 32-bit whole numbers"):
        _decode.decode_mask(tmp_path / "a.tif")


def test_errors_of_bytes_name_no_file():
    with pytest.raises(
        ValueError, match=r"^the picture: cannot be decoded \(cannot identify image file 'the picture'\)"
    ):
        read_image(b"no picture")
