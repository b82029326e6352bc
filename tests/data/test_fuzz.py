"""Files by tifffile, Pillow and GDAL in all their types and layouts read as written, or name the reason why not.

The tests draw a sample; `python tests/data/test_fuzz.py [tifffile] [pillow] [gdal]` runs every combination and prints
counts.
"""

import collections
import itertools
import pathlib
import random
import re
import sys
import tempfile
import warnings
from functools import partial

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import _decode, read_image

REASONS = (
    "its JPEG compression|"
    "pip install imagecodecs|its colours are|pixels are of type|one picture per file|has a palette and"
    "|which no array type|a mask of \\d+ channels|a mask of type|too large"
)


def noise(shape, dtype, bits=None):
    """Noise over the type's whole range, or over the given number of bits."""
    rng, dtype = np.random.default_rng(sum(shape)), np.dtype(dtype)
    if dtype.kind in "fc":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind == "b" or bits == 1:
        return rng.integers(2, size=shape).astype(dtype)
    low, high = (0, 2**bits - 1) if bits else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return rng.integers(low, high, size=shape, dtype=dtype, endpoint=True)


def picture(stored, bits=None, white_is_zero=False):
    """The expected result of read_image for (h, w, c) numbers in a file."""
    if stored.dtype == bool:
        stored, bits = stored.astype(np.uint8), 1
    if white_is_zero and stored.dtype == np.uint8:
        stored = stored.copy()
        stored[:, :, :1] = 2 ** (bits or 8) - 1 - stored[:, :, :1]
    if bits and bits < 8:
        stored = np.rint(stored * 255.0 / (2**bits - 1)).astype(np.uint8)
    return stored.astype(np.float32) if stored.dtype.kind == "f" else stored


def by_tifffile():
    layouts = {
        "grey": {"shape": (21, 34), "photometric": "minisblack"},
        "white": {"shape": (21, 34), "photometric": "miniswhite"},
        "2": {"shape": (21, 34, 2), "photometric": "minisblack", "planarconfig": "contig"},
        "rgb": {"shape": (21, 34, 3), "photometric": "rgb"},
        "rgba": {"shape": (21, 34, 4), "photometric": "rgb", "extrasamples": ["unassalpha"]},
        "rgb planes": {"shape": (3, 21, 34), "photometric": "rgb", "planarconfig": "separate"},
        "5": {"shape": (21, 34, 5), "photometric": "minisblack", "planarconfig": "contig"},
        "5 planes": {"shape": (5, 21, 34), "photometric": "minisblack", "planarconfig": "separate"},
        "5 pages": {"shape": (5, 21, 34), "photometric": "minisblack", "metadata": None},
        "40 pages": {"shape": (40, 21, 34), "photometric": "minisblack", "metadata": None},
        "imagej": {"shape": (5, 21, 34), "photometric": "minisblack", "imagej": True},
        "ome": {"shape": (5, 21, 34), "photometric": "minisblack", "ome": True},
        "palette": {"shape": (21, 34), "photometric": "palette"},
        "cmyk": {"shape": (21, 34, 4), "photometric": "separated"},
        "lab": {"shape": (21, 34, 3), "photometric": "cielab"},
        "stack": {"shape": (2, 21, 34, 3), "photometric": "rgb"},
        "row": {"shape": (1, 34), "photometric": "minisblack"},
        "column": {"shape": (21, 1, 3), "photometric": "rgb"},
    }
    dtypes = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8", "c8"]
    compressions = [
        None,
        "lzw",
        "deflate",
        "zlib",
        "packbits",
        "lzma",
        "zstd",
        "jpeg2000",
        "png",
        "webp",
        "jpegxl",
        "lerc",
    ]
    storage = [{}, {"rowsperstrip": 4}, {"tile": (16, 16)}, {"byteorder": ">"}, {"bigtiff": True, "rowsperstrip": 8}]
    for (name, layout), dtype, compression, predictor, stored in itertools.product(
        layouts.items(), dtypes, compressions, (False, True), storage
    ):
        options = dict(layout) | stored | {"compression": compression}
        data = noise(options.pop("shape"), dtype)
        if (
            (dtype == "bool" and data.shape[-1] != 34)
            or (compression == "jpeg2000" and (dtype not in ("u1", "u2") or name == "5"))
            or (compression == "lerc" and predictor)
        ):
            continue  # tifffile writes these with loss: GDAL and tifffile itself read other numbers
        if predictor:
            options["predictor"] = True
        if compression in ("webp", "jpegxl", "lerc"):
            options["compressionargs"] = {"level": 0} if compression == "lerc" else {"lossless": True}
        if name == "palette":
            if dtype not in ("u1", "u2"):
                continue
            options["colormap"] = noise((3, 256**data.itemsize), np.uint16)
            expected = (options["colormap"].T >> 8).astype(np.uint8)[data]
        else:
            stored_as = (
                data[:, :, None] if data.ndim == 2 else np.moveaxis(data, 0, 2) if data.shape[-1] == 34 else data
            )
            expected = picture(stored_as, white_is_zero=name == "white")
        mask = data if data.ndim == 2 else None
        if mask is not None and dtype == "bool" and name == "white":
            mask = ~mask
        write = partial(tifffile.imwrite, data=data, **options)
        yield f"tifffile {name} {dtype} {compression} {predictor} {stored}", ".tif", write, expected, mask, 0


def by_pillow():
    compressions = [None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd", "jpeg"]
    compressions += ["group3", "group4", "tiff_ccitt"]
    for mode, compression, strips in itertools.product(
        ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"],
        compressions,
        [{}, {"tiffinfo": {278: 4}}, {"big_tiff": True}, {"tiffinfo": {274: 6}}],
    ):
        image, numbers = pillow_image(mode, smooth=compression == "jpeg")
        # Decoders of JPEG turn YCbCr into RGB; with other compressions it is refused.
        expected = np.asarray(image.convert("RGB") if mode in ("P", "YCbCr") else image)
        expected = picture(expected if expected.ndim == 3 else expected[:, :, None])
        if strips.get("tiffinfo") == {274: 6}:  # stored turned by 90 degrees to the left
            expected, numbers = np.rot90(expected, -1), numbers if numbers is None else np.rot90(numbers, -1)
        tolerance = 12 if compression == "jpeg" else 0
        write = partial(image.save, compression=compression, **strips)
        yield (
            f"pillow {mode} {compression} {strips}",
            ".tif",
            write,
            expected,
            None if tolerance else numbers,
            tolerance,
        )
    for mode, suffix in itertools.product(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], [".png", ".bmp", ".webp"]):
        if (suffix == ".webp" and mode not in ("RGB", "RGBA")) or (suffix == ".bmp" and mode == "RGBA"):
            continue  # WebP only stores colours, and no reader treats the fourth byte of a BMP as alpha
        image, numbers = pillow_image(mode)
        expected = picture(np.asarray(image.convert("RGB") if mode == "P" else image))
        expected = expected if expected.ndim == 3 else expected[:, :, None]
        write = partial(image.save, lossless=True, exact=True) if suffix == ".webp" else image.save
        yield f"pillow {mode} {suffix}", suffix, write, expected, numbers if suffix != ".webp" else None, 0
    for bits in (1, 2, 4):
        image, numbers = pillow_image("P", colours=2**bits)
        write = partial(image.save, bits=bits)
        yield f"pillow P bits {bits}", ".png", write, np.asarray(image.convert("RGB")), numbers, 0
    for mode, compression in itertools.product(["L", "I;16", "RGB", "P"], compressions[:6]):
        image, numbers = pillow_image(mode)
        expected = np.repeat(numbers[:, :, None], 3, 2) if numbers is not None and mode != "P" else np.asarray(image)
        write = partial(image.save, compression=compression, save_all=True, append_images=[image, image])
        yield f"pillow {mode} {compression} pages", ".tif", write, expected, None, 0


def pillow_image(mode, *, smooth=False, colours=256):
    """An image, and its numbers if it can be a mask."""
    if mode in ("1", "L", "P", "I;16", "I;16B", "I", "F"):
        dtype = {"1": "bool", "L": "u1", "P": "u1", "I": "i4", "F": "f4"}.get(mode, "<u2")
        numbers = noise((21, 34), dtype) if mode != "P" else noise((21, 34), "u1").astype(int) % colours
        if smooth:
            numbers = np.add.outer(np.arange(21), np.arange(34)).astype(dtype)
        if mode == "P":
            image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
            image.putpalette(noise((colours, 3), "u1").tobytes())
        elif mode == "I;16B":
            image = Image.frombytes(mode, (34, 21), numbers.astype(">u2").tobytes())
        else:
            image = Image.fromarray(numbers)
        return image, numbers
    channels = Image.new(mode, (1, 1)).getbands()
    pixels = noise((21, 34, len(channels)), "u1")
    if smooth:
        pixels = np.repeat(np.add.outer(2 * np.arange(21), np.arange(34))[:, :, None], len(channels), 2).astype(
            np.uint8
        )
    return Image.frombytes(mode, (34, 21), pixels.tobytes()), None


def by_gdal():
    try:
        import rasterio
    except ImportError:
        return

    def write(path, driver, data, colormap=None, **options):
        count, height, width = data.shape
        with rasterio.open(
            path, "w", driver=driver, height=height, width=width, count=count, dtype=data.dtype, **options
        ) as file:
            if colormap:
                file.write_colormap(1, colormap)
            file.write(data)
        with rasterio.open(path) as file:
            if "jpeg_quality" not in options and not np.array_equal(file.read(), data, equal_nan=True):
                raise ValueError("GDAL itself does not read what it wrote")

    kinds = [(dtype, None) for dtype in ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8", "c8")]
    kinds += [("u1", bits) for bits in range(1, 8)] + [("u2", bits) for bits in range(9, 16)] + [("u4", 20), ("f4", 16)]
    compressions = [
        {},
        *({"compress": name} for name in ("lzw", "deflate", "packbits", "zstd", "lzma", "lerc", "lerc_zstd")),
    ]
    compressions += [{"compress": name, "predictor": 2} for name in ("lzw", "deflate", "zstd")]
    compressions += [{"compress": name, "predictor": 3} for name in ("lzw", "deflate")]
    compressions += [{"compress": name} for name in ("ccittrle", "ccittfax3", "ccittfax4")]
    compressions += [{"compress": "webp", "webp_lossless": True}, {"compress": "jxl", "jxl_lossless": True}]
    storage = [
        {},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"blockysize": 4},
        {"endianness": "BIG", "bigtiff": "YES"},
    ]
    layouts = [(1, "minisblack"), (1, "miniswhite"), (2, "minisblack"), (3, "rgb"), (4, "rgb"), (5, "minisblack")]
    layouts += [(4, "cmyk"), (3, "cielab"), (3, "ycbcr")]
    for (dtype, bits), compression, stored, interleave, (count, photometric) in itertools.product(
        kinds, compressions, storage, ("pixel", "band"), layouts
    ):
        data = noise((count, 21, 34), dtype, None if dtype[0] in "fc" else bits)
        options = compression | stored | {"interleave": interleave, "photometric": photometric}
        if bits:
            options["nbits"] = bits
        if (dtype, bits) == ("f4", 16):
            data = data.astype(np.float16).astype(np.float32)
        expected = picture(np.moveaxis(data, 0, 2), bits, photometric == "miniswhite")
        mask = data[0] if count == 1 else None
        if mask is not None and bits == 1 and photometric == "miniswhite":
            mask = 1 - mask
        title = f"gdal {dtype} {bits} {options}"
        yield title, ".tif", partial(write, driver="GTiff", data=data, **options), expected, mask, 0
    for bits, compression in itertools.product((1, 2, 4, 8), ({}, {"compress": "lzw"}, {"compress": "deflate"})):
        data, colours = noise((1, 21, 34), "u1", bits), noise((2**bits, 3), "u1")
        colormap = {index: (*colour.tolist(), 255) for index, colour in enumerate(colours)}
        options = compression if bits == 8 else compression | {"nbits": bits}
        partial_write = partial(write, driver="GTiff", data=data, colormap=colormap, **options)
        yield f"gdal palette {bits} {compression}", ".tif", partial_write, colours[data[0]], data[0], 0
    for (dtype, bits), count in itertools.product(
        [("u1", 1), ("u1", 2), ("u1", 4), ("u1", None), ("u2", None)], range(1, 5)
    ):
        data = noise((count, 21, 34), dtype, bits)
        expected = picture(np.moveaxis(data, 0, 2), bits)
        options = {"nbits": bits} if bits else {}
        mask = data[0] if count == 1 else None
        yield (
            f"gdal png {dtype} {bits} {count}",
            ".png",
            partial(write, driver="PNG", data=data, **options),
            expected,
            mask,
            0,
        )
    ramp = np.broadcast_to(np.add.outer(2 * np.arange(21), np.arange(34)), (3, 21, 34)).astype(np.uint8)
    for photometric, interleave, count in itertools.product(("ycbcr", "rgb", "minisblack"), ("pixel", "band"), (1, 3)):
        options = {"compress": "jpeg", "jpeg_quality": 95, "photometric": photometric, "interleave": interleave}
        partial_write = partial(write, driver="GTiff", data=ramp[:count], **options)
        yield (
            f"gdal jpeg {photometric} {interleave} {count}",
            ".tif",
            partial_write,
            np.moveaxis(ramp[:count], 0, 2),
            None,
            12,
        )


def outcome(read, path, expected, tolerance):
    """Compares the result with the written numbers."""
    try:
        found = read(path)
    except ValueError as error:
        message = str(error)
        return f"refused: {reason[0]}" if (reason := re.search(REASONS, message)) else f"FAILED: {message}"
    except Exception as error:
        return f"FAILED: {error!r}"
    if found.shape != expected.shape:
        return f"FAILED: {found.shape} instead of {expected.shape}"
    if read is read_image and found.dtype != expected.dtype.newbyteorder("="):
        return f"FAILED: {found.dtype} instead of {expected.dtype}"
    if tolerance:
        same = np.abs(found.astype(int) - expected).max() <= tolerance
    else:
        same = np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
    return "same" if same else "FAILED: other numbers"


def fuzz(cases, folder):
    """Returns the counts of each outcome by writer, and the failures."""
    counts, failures = collections.defaultdict(collections.Counter), []
    for number, (title, suffix, write, image, mask, tolerance) in enumerate(cases):
        path, writer = pathlib.Path(folder, f"{number}{suffix}"), title.split()[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                write(path)
            except Exception:  # no such combination
                counts[writer]["not written"] += 1
                path.unlink(missing_ok=True)
                continue
        for kind, read, expected in (("image", read_image, image), ("mask", _decode.decode_mask, mask)):
            if kind == "mask" and (mask is None or mask.dtype.kind == "c"):
                continue
            found = outcome(read, path, expected, tolerance)
            counts[f"{writer} {kind}"][found] += 1
            if found.startswith("FAILED"):
                failures.append(f"{title}, {kind}: {found}")
        path.unlink()
    return counts, failures


@pytest.mark.parametrize("writer", [by_tifffile, by_pillow, by_gdal])
def test_files_read_as_written(writer, tmp_path):
    if writer is by_gdal:
        pytest.importorskip("rasterio")
    cases = list(writer())
    counts, failures = fuzz(random.Random(0).sample(cases, min(300, len(cases))), tmp_path)
    assert not failures
    assert sum(count["same"] for count in counts.values()) > 40


if __name__ == "__main__":
    writers = [by_tifffile, by_pillow, by_gdal]
    chosen = [writer for writer in writers if writer.__name__[3:] in sys.argv[1:]] or writers
    with tempfile.TemporaryDirectory() as root:
        counts, failures = fuzz(itertools.chain(*(writer() for writer in chosen)), root)
    for kind, outcomes in counts.items():
        print(kind, dict(outcomes.most_common(20)))
    print(*failures[:100], sep="\n")
    sys.exit(bool(failures))
