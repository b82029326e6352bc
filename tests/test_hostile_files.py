"""Damaged and hostile files: every reader returns a result or raises a ValueError or an OSError, without hanging.

The tests read a sample; `python tests/test_hostile_files.py [--files 10000] [READER ...]` reads more and prints counts.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import resource
import signal
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pycocotools.mask
import pytest
import tifffile
from PIL import Image

import densezoo as dz
from densezoo.data import CocoDetection, CocoPanoptic, DepthFolder, ImageMaskFolder, InstanceFolder, read_image

LIMIT = 20
"""Seconds for one file."""
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b'"a"', b"[]", b"{}", b"true", b"0.5")


class Reader(NamedTuple):
    """A valid file, by its path in a folder with what else the reader needs, and the function that reads it."""

    path: str
    read: Callable[[Path], Any]


def pictures(folder: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 14, 3), np.uint8)
    for part in ("images", "masks", "instances", "depth", "panoptic"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    Image.fromarray(pixels[..., 0] % 3).save(folder / "masks" / "a.png")
    Image.fromarray(pixels[..., 0] % 3).save(folder / "instances" / "a.png")
    np.save(folder / "depth" / "a.npy", pixels[..., 0].astype(np.float32))
    return pixels


def prepare(folder: Path) -> dict[str, Reader]:
    """Writes a valid file of every kind."""
    pixels = pictures(folder)
    readers = {}
    for name, options in {
        "palette.png": {},
        "bits.png": {},
        "grey.jpg": {},
        "a.jpg": {},
        "a.bmp": {},
        "a.webp": {},
        "lossless.webp": {"lossless": True},
    }.items():
        image = Image.fromarray(pixels)
        mode = {"palette": "P", "bits": "1", "grey": "L"}.get(name.split(".")[0], "RGB")
        image.convert(mode).save(folder / name, **options)
        readers[name] = Reader(name, read_image)
    wide = pixels.astype(np.uint16) * 257
    for name, array, options in (
        ("plain.tif", wide, {}),
        ("deflate.tif", wide, {"compression": "zlib", "predictor": True}),
        ("tiles.tif", np.repeat(wide, 3, 0), {"tile": (16, 16)}),
        ("float.tif", pixels[..., 0].astype(np.float32), {}),
    ):
        tifffile.imwrite(folder / name, array, **options)
        readers[name] = Reader(name, read_image)
    readers["image.png"] = Reader("images/a.png", read_image)
    readers["mask"] = Reader("masks/a.png", lambda path: ImageMaskFolder(folder, num_classes=3).check(progress=False))
    readers["instances"] = Reader("instances/a.png", lambda path: InstanceFolder(folder)[0])
    readers["depth.npy"] = Reader("depth/a.npy", lambda path: DepthFolder(folder).check(progress=False))
    return readers | annotations(folder, pixels) | weights(folder)


def annotations(folder: Path, pixels: np.ndarray) -> dict[str, Reader]:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 5, 4], "area": 20, "iscrowd": 0}
    inside = np.zeros((9, 14), np.uint8, order="F")
    inside[2:6, 1:6] = 1
    changes = np.flatnonzero(np.diff(inside.ravel(order="F"), prepend=0, append=0)[:-1])
    lengths = np.diff([0, *changes, inside.size]).tolist()
    compressed = pycocotools.mask.encode(inside)["counts"].decode()
    outlines: list[Any] = [{"size": [9, 14], "counts": counts} for counts in (lengths, compressed)]
    outlines.append([[1, 2, 6, 2, 6, 6, 1, 6]])
    data: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 14}],
        "categories": [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "stuff", "isthing": 0}],
        "annotations": [box | {"id": n, "segmentation": outline} for n, outline in enumerate(outlines, 1)],
    }
    (folder / "annotations.json").write_text(json.dumps(data))
    Image.fromarray(np.uint8([1, 0, 0]) * (1 + pixels[..., :1] % 2)).save(folder / "panoptic" / "a.png")
    parts = [
        {"id": n, "category_id": n, "area": int((1 + pixels[..., 0] % 2 == n).sum()), "bbox": [0, 0, 14, 9]}
        for n in (1, 2)
    ]
    data["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": parts}]
    (folder / "panoptic.json").write_text(json.dumps(data))
    return {
        "coco": Reader("annotations.json", lambda path: read_coco(CocoDetection(folder))),
        "panoptic": Reader("panoptic.json", lambda path: read_coco(CocoPanoptic(folder))),
    }


def read_coco(source: Any) -> None:
    source.check()
    for index in range(len(source)):
        source[index]


def weights(folder: Path) -> dict[str, Reader]:
    model = dz.create_model("unet", dz.PlainEncoder((2, 4)), num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    options = {"task": dz.tasks.Segmentation(2), "preprocessing": dz.Preprocessing()}
    dz.save(folder / "model.safetensors", model, variables, **options)
    (folder / "weights.pth").write_bytes(checkpoint())
    return {
        "model.safetensors": Reader("model.safetensors", dz.load_predictor),
        "weights.pth": Reader("weights.pth", dz.weights.read_checkpoint),
    }


def checkpoint() -> bytes:
    """A file of torch.save, without torch: {"layer.weight": a tensor of 6 numbers (2, 3)}."""
    program = (
        b"\x80\x02}q\x00X\x0c\x00\x00\x00layer.weightq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00"
        b"storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K"
        b"\x02K\x03\x86q\x08K\x03K\x01\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs."
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", program)
        archive.writestr("weights/byteorder", b"little")
        archive.writestr("weights/data/0", np.arange(6, dtype="<f4").tobytes())
        archive.writestr("weights/version", b"3\n")
    return file.getvalue()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0:
                data[start:stop] = rng.randbytes(stop - start)
            case 1:
                data[start:stop] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (stop - start)
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop] * rng.choice((1, 2, 50))
            case 4:
                del data[start:]
            case 5:
                data[start:start] = rng.randbytes(stop - start)
            case 6:
                other = rng.randrange(len(data) + 1)
                data[start:stop] = data[other : other + stop - start]
            case 7:  # in text, a number becomes something else
                digits = [n for n, byte in enumerate(data) if 48 <= byte < 58]
                if digits:
                    first = last = rng.choice(digits)
                    while last < len(data) and 48 <= data[last] < 58:
                        last += 1
                    data[first:last] = rng.choice(NUMBERS)
    return bytes(data)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises an AssertionError, which is no allowed result, if the block takes longer."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(reader: Reader, folder: Path, content: bytes) -> str:
    """Reads the content in place of the valid file."""
    path = folder / reader.path
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(), within(LIMIT):
            warnings.simplefilter("ignore")
            reader.read(path)
    except (ValueError, OSError) as error:
        assert str(error), f"{type(error).__name__} without a message"
        return type(error).__name__
    return "read"


def attack(name: str, reader: Reader, folder: Path, count: int, kept: Path | None = None) -> collections.Counter[str]:
    """The outcomes of damaged files. What an unexpected outcome came from is written to `kept`."""
    path = folder / reader.path
    valid = path.read_bytes()
    reader.read(path)
    rng, outcomes = random.Random(0), collections.Counter()
    try:
        for number in range(count):
            content = damaged(valid, rng)
            try:
                outcomes[outcome(reader, folder, content)] += 1
            except BaseException as error:
                if kept is None or isinstance(error, KeyboardInterrupt):
                    raise AssertionError(f"{name}, file {number}: {error!r}") from error
                outcomes[f"FAULT {error!r:.80}"] += 1
                (kept / f"{name}-{number}").write_bytes(content)
    finally:
        path.write_bytes(valid)
    return outcomes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return folder, prepare(folder)


def test_every_reader_returns_or_says_why(prepared):
    folder, readers = prepared
    for name, reader in readers.items():
        outcomes = attack(name, reader, folder, 4 if "safetensors" in name else 12)
        assert outcomes["read"] < sum(outcomes.values()), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kept", type=Path, default=Path("out/hostile"))
    arguments = parser.parse_args()
    arguments.kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        readers = prepare(Path(name))
        for reader in arguments.readers or readers:
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = attack(reader, readers[reader], Path(name), arguments.files, arguments.kept)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            seconds = time.perf_counter() - started
            print(f"{reader}: {dict(found)}, {seconds:.0f} s, peak memory + {grown} MiB", flush=True)


if __name__ == "__main__":
    main()
