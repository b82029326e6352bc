"""A valid file for every function that reads files of others, and how each is read: pictures and folders of them."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from benchmarks import hostile_changes as changes
from benchmarks import hostile_formats as formats
from densezoo.data import (
    ChangeFolder,
    CocoDetection,
    CocoPanoptic,
    DepthFolder,
    ImageMaskFolder,
    InstanceFolder,
    open_tiff,
    read_image,
)


class Reader(NamedTuple):
    """A valid file, by its path in a folder with what else is needed, and the function that reads it."""

    path: str
    read: Callable[[Path], Any]
    damage: tuple[changes.Change, ...] = (changes.damaged,)
    """What is done to the file, each as often as the others."""
    group: str = ""
    """The row of the table in the documentation."""


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
_PNG = (changes.damaged, formats.png_file, formats.png_file)
_TIFF = (changes.damaged, formats.tiff_file, formats.tiff_file)
_RUNS = [11, 4, 5, 4, 5, 4, 5, 4, 5, 4, 75]
_TEXT = ";450000000V2"
"""The same run lengths as COCO's string."""


def pictures(folder: Path) -> dict[str, Reader]:
    """Files of `read_image` but for TIFF."""
    readers = {}
    grey = PIXELS[..., 0]
    turned = Image.Exif()
    turned[0x0112] = 6
    files: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("palette.png", Image.fromarray(PIXELS).convert("P"), {"transparency": 3}),
        ("bits.png", Image.fromarray(PIXELS).convert("1"), {}),
        ("rgb.png", Image.fromarray(PIXELS), {}),
        ("grey16.png", Image.fromarray(grey.astype(np.uint16) * 257), {}),
        ("grey.jpg", Image.fromarray(grey), {}),
        ("rgb.jpg", Image.fromarray(PIXELS), {"exif": turned}),
        ("progressive.jpg", Image.fromarray(PIXELS), {"progressive": True}),
        ("cmyk.jpg", Image.fromarray(PIXELS).convert("CMYK"), {}),
        ("rgb.bmp", Image.fromarray(PIXELS), {}),
        ("palette.bmp", Image.fromarray(PIXELS).convert("P"), {}),
        ("lossy.webp", Image.fromarray(PIXELS), {}),
        ("lossless.webp", Image.fromarray(PIXELS), {"lossless": True}),
        (
            "animated.webp",
            Image.fromarray(PIXELS),
            {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1].copy())]},
        ),
    ]
    for name, image, options in files:
        image.save(folder / name, **options)
        structure = {"png": formats.png_file, "jpg": formats.jpeg_file, "webp": formats.riff_file}
        change = structure.get(name.split(".")[1])
        readers[name] = Reader(name, read_image, (changes.damaged, *([change, change] if change else [])))
    (folder / "rgb16.png").write_bytes(_png16(PIXELS.astype(np.uint16) * 257))
    readers["rgb16.png"] = Reader("rgb16.png", read_image, _PNG)
    (folder / "runs.bmp").write_bytes(_bmp_of_runs(grey))
    readers["runs.bmp"] = Reader("runs.bmp", read_image)
    return readers


def _png16(pixels: np.ndarray) -> bytes:
    """16 bits per channel, which Pillow does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _bmp_of_runs(grey: np.ndarray) -> bytes:
    """A run-length encoded BMP, which Pillow does not write."""
    height, width = grey.shape
    rows = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in grey[::-1].tolist()) + b"\0\1"
    colours = b"".join(bytes([n, n, n, 0]) for n in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + info + colours + rows


def tiffs(folder: Path) -> dict[str, Reader]:
    """TIFF files with every compression, whole and by windows."""
    readers = {}
    wide, grey = PIXELS.astype(np.uint16) * 257, PIXELS[..., 0]
    large = np.tile(PIXELS, (3, 2, 1))
    rgb = {"photometric": "rgb", "metadata": None}
    files: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (wide, {}),
        "float": (grey.astype(np.float32), {"metadata": None}),
        "deflate": (wide, {"compression": "zlib", "predictor": True}),
        "tiles": (large, {"tile": (16, 16), **rgb}),
        "planes": (np.moveaxis(large, 2, 0), {"planarconfig": "separate", "rowsperstrip": 4, **rgb}),
        "big": (wide, {"bigtiff": True, "byteorder": ">", "rowsperstrip": 4, "compression": "lzw", **rgb}),
        "palette": (grey, {"photometric": "palette", "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256)}),
        "ome": (np.moveaxis(wide, 2, 0), {"ome": True}),
        "imagej": (np.moveaxis(wide, 2, 0), {"imagej": True}),
        "pages": (np.moveaxis(wide, 2, 0), {"photometric": "minisblack", "metadata": None}),
    }
    for name in ("lzw", "packbits", "lzma", "zstd", "jpeg", "jpeg2000", "png", "webp", "jpegxl", "lerc", "jpegxr"):
        files[name] = PIXELS, {"compression": name, **rgb}
    files["jpeg tiles"] = large, {"compression": "jpeg", "tile": (16, 16), **rgb}
    files["floating predictor"] = grey.astype(np.float32), {"compression": "zstd", "predictor": 3, "metadata": None}
    for name, (array, options) in files.items():
        tifffile.imwrite(folder / f"{name}.tif", array, **options)
        readers[f"{name}.tif"] = Reader(f"{name}.tif", read_image, _TIFF)
        if name not in ("palette", "ome", "imagej", "pages", "float", "plain", "big"):
            readers[f"{name}.tif by windows"] = Reader(f"{name}.tif", by_windows, _TIFF)
    for compression in ("group3", "group4", "tiff_ccitt"):
        name = f"{compression}.tif"
        Image.fromarray(grey > 100).save(folder / name, compression=compression)
        readers[name] = Reader(name, read_image, _TIFF)
    tifffile.imwrite(folder / "float.tif", grey.astype(np.float32), metadata=None)
    for name in ("float.tif", "big.tif"):
        readers[f"{name} by windows"] = Reader(name, by_windows, _TIFF)
    return readers


def by_windows(path: Path) -> None:
    """Reads two windows of a TIFF file, at the start and at the end."""
    with open_tiff(path) as picture:
        picture[:12, :12]
        picture[-12:, -12:] if min(picture.shape) > 12 else picture[-1:, -1:]


def folders(root: Path) -> dict[str, Reader]:
    """Folders of pictures with targets, of which one file is damaged."""
    grey = PIXELS[..., 0]
    small = grey % 3
    root.mkdir(exist_ok=True)

    def write(folder: str, part: str, array: np.ndarray, suffix: str = "png") -> str:
        path = root / folder / part / f"a.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "tif":
            tifffile.imwrite(path, array, metadata=None)
        else:
            Image.fromarray(array).save(path)
        return str(path.relative_to(root.parent))

    for name in ("masks", "colours", "labels", "windows", "instances", "depth", "numbers", "normals"):
        write(name, "images", PIXELS, "tif" if name == "windows" else "png")
    for part in ("A", "B"):
        write("change", part, PIXELS)
    write("normals", "depth", grey.astype(np.float32) + 1, "npy")
    colours = {(0, 0, 0): 0, (100, 0, 0): 1, (200, 0, 0): 2}
    several = small[..., None] == np.arange(3, dtype=np.uint8)
    files: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "mask": (
            write("masks", "masks", small),
            lambda path: ImageMaskFolder(root / "masks", num_classes=3).check(progress=False),
        ),
        "mask of colours": (
            write("colours", "masks", small[..., None] * np.array([100, 0, 0], np.uint8)),
            lambda path: ImageMaskFolder(root / "colours", labels=colours).check(progress=False),
        ),
        "mask of labels": (
            write("labels", "masks", several.astype(np.uint8), "tif"),
            lambda path: ImageMaskFolder(root / "labels", num_classes=3, multilabel=True).check(progress=False),
        ),
        "mask by windows": (write("windows", "masks", small, "tif"), lambda path: _by_windows(root / "windows")),
        "instances": (write("instances", "instances", small), lambda path: InstanceFolder(root / "instances")[0]),
        "change": (write("change", "label", small % 2 * np.uint8(255)), lambda path: ChangeFolder(root / "change")[0]),
        "depth.npy": (
            write("depth", "depth", grey.astype(np.float32), "npy"),
            lambda path: DepthFolder(root / "depth").check(progress=False),
        ),
        "depth.png": (
            write("numbers", "depth", grey.astype(np.uint16)),
            lambda path: DepthFolder(root / "numbers", depth_scale=0.001).check(progress=False),
        ),
        "normals.npy": (
            write("normals", "normals", PIXELS.astype(np.float32) / 127 - 1, "npy"),
            lambda path: DepthFolder(root / "normals").check(progress=False),
        ),
    }
    structure = {"npy": changes.npy_file, "tif": formats.tiff_file, "png": formats.png_file}
    return {
        name: Reader(path, read, (changes.damaged, *[structure[path.rsplit(".")[-1]]] * 2))
        for name, (path, read) in files.items()
    }


def _by_windows(root: Path) -> None:
    item = ImageMaskFolder(root, num_classes=3, window_pixels=1)[0]
    for field in ("image", "mask"):
        item[field][:5, :5]
        getattr(item[field], "close", lambda: None)()  # what cannot be read by windows is read whole


def annotations(root: Path) -> dict[str, Reader]:
    """COCO's annotation files, and the map of a panoptic one."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 4], "area": 20, "iscrowd": 0}
    outlines: list[Any] = [{"size": [9, 14], "counts": counts} for counts in (_RUNS, _TEXT)]
    outlines.append([[1, 2, 6, 2, 6, 6, 1, 6]])
    data: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 14}],
        "categories": [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "stuff", "isthing": 0}],
        "annotations": [box | {"id": n, "segmentation": outline} for n, outline in enumerate(outlines, 1)],
    }
    numbers = 1 + PIXELS[..., :1] % 2
    for part, array in (("images", PIXELS), ("panoptic", np.array([1, 0, 0], np.uint8) * numbers)):
        (root / part).mkdir(parents=True)
        Image.fromarray(array).save(root / part / "a.png")
    (root / "annotations.json").write_text(json.dumps(data))
    parts = [
        {"id": n, "category_id": n, "area": int((numbers == n).sum()), "bbox": [0, 0, 14, 9], "iscrowd": 0}
        for n in (1, 2)
    ]
    data["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": parts}]
    (root / "panoptic.json").write_text(json.dumps(data))
    texts = (changes.damaged, *[changes.json_file] * 3)
    return {
        "coco": Reader(f"{root.name}/annotations.json", lambda path: _all(CocoDetection(root)), texts),
        "panoptic": Reader(f"{root.name}/panoptic.json", lambda path: _all(CocoPanoptic(root)), texts),
        "panoptic map": Reader(f"{root.name}/panoptic/a.png", lambda path: _all(CocoPanoptic(root)), _PNG),
    }


def _all(source: Any) -> None:
    source.check()
    for index in range(len(source)):
        source[index]
