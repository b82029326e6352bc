"""Pairs images with masks, and checks a folder before anything is decoded."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Sequence, Set
from functools import partial

from densezoo.data import _decode, _measured
from densezoo.messages import counted, shortened

_LAYOUT = (
    "Expected:\n"
    "  {root}/images/NAME.jpg   png, jpg, tif, bmp or webp\n"
    "  {root}/{maps}/NAME.png    {types} with numbers\n"
    "with the same NAME for an image and its map."
)
_JUNK = ("thumbs.db", "desktop.ini")


def size_difference(
    image_path: pathlib.Path, image: tuple[int, ...], mask_path: pathlib.Path, mask: tuple[int, ...], name: str = "mask"
) -> str:
    text = f"{image_path} is {image[0]}x{image[1]} (height x width), but its {name} {mask_path} is {mask[0]}x{mask[1]}"
    return (
        f"{text}, turned: has the image an EXIF orientation?" if mask[0] == image[1] and mask[1] == image[0] else text
    )


def list_files(folder: pathlib.Path, suffixes: Sequence[str]) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
    """Lists a folder's pictures by stem, and the names of its other files and folders."""
    by_stem: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            path = folder / entry.name
            if entry.is_dir():
                others.append(f"{entry.name}/")
            elif path.suffix.lower() in suffixes:
                by_stem[unicodedata.normalize("NFC", path.stem)].append(path)  # macOS stores é as e plus an accent
            else:
                others.append(entry.name)
    return by_stem, others


def pair_files(
    root: pathlib.Path, maps: str = "masks", suffixes: Sequence[str] = _decode.MASK_SUFFIXES, *, limited: bool = True
) -> tuple[list[tuple[pathlib.Path, pathlib.Path]], tuple[tuple[int, int], ...]]:
    types = "png, tif or bmp" if ".npy" not in suffixes else "png, tif, bmp or npy"
    layout = _LAYOUT.format(root=root, maps=maps, types=types)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. {layout}")
    missing = [str(root / name) for name in ("images", maps) if not (root / name).is_dir()]
    if missing:
        below = sorted(path.parent.name for path in root.glob("*/images") if path.is_dir())
        hint = f" Did you mean {root / below[0]}?" if below else ""
        raise FileNotFoundError(f"{' and '.join(missing)}: no such folder.{hint} {layout}")
    images, other_images = list_files(root / "images", _decode.IMAGE_SUFFIXES)
    masks, other_masks = list_files(root / maps, suffixes)
    if not images:
        found = f" (found: {shortened(other_images, ', ', 10)})" if other_images else ""
        raise ValueError(f"{root / 'images'}: the folder contains no images{found}. {layout}")

    kind = "mask" if maps == "masks" else "map"
    problems: list[str] = []
    for name, by_stem in (("images", images), (maps, masks)):
        for stem, paths in by_stem.items():
            if len(paths) > 1:
                problems.append(f"{name}: {len(paths)} files named {stem}: {', '.join(path.name for path in paths)}")
    alone = [images[stem][0].name for stem in sorted(images.keys() - masks.keys())]
    if alone:
        problems.append(f"{counted(len(alone), 'image', 'images')} without a {kind}: {shortened(alone, ', ', 10)}")
    alone = [masks[stem][0].name for stem in sorted(masks.keys() - images.keys())]
    if alone:
        nouns = ("mask", "masks") if maps == "masks" else (f"file in {maps}", f"files in {maps}")
        problems.append(f"{counted(len(alone), *nouns)} without an image: {shortened(alone, ', ', 10)}")
    if added := _added(images.keys(), masks.keys()):
        problems.append(f"the names in {maps} end with {added!r}: rename them to those of the images")
    skipped = [
        f"{name}: folders, and files of other types than {' '.join(expected)}, are not read:"
        f" {shortened(others, ', ', 10)}"
        for name, others, expected in (
            ("images", other_images, _decode.IMAGE_SUFFIXES),
            (maps, other_masks, suffixes),
        )
        if others
    ]
    problems += skipped if problems else []

    pairs = [(images[stem][0], masks[stem][0]) for stem in sorted(images.keys() & masks.keys())]
    sizes: list[tuple[int, int]] = []
    unread: list[str] = []
    differing: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hides the latency of network file systems
        for (image_path, mask_path), found in zip(
            pairs, pool.map(partial(_sizes, limited=limited), pairs), strict=True
        ):
            if isinstance(found, str):
                unread.append(found)
                continue
            image, mask = found
            sizes.append(image)
            if image != mask:
                differing.append(size_difference(image_path, image, mask_path, mask, kind))
    for kind in (unread, differing):
        if kind:
            problems.append(shortened(kind, "\n  ", 10))
    if problems:
        raise ValueError("\n  ".join([f"{root}: images and {maps} do not pair up:", *problems]) + f"\n{layout}")
    if skipped:
        warnings.warn("\n  ".join([f"{root}: some files are not read:", *skipped]), stacklevel=3)
    return pairs, tuple(sizes)


def _added(images: Set[str], masks: Set[str]) -> str:
    """What all names of masks have after the name of an image, such as "_L"; "" if they have nothing in common."""
    first = min(masks - images, default="")
    endings = [first[len(image) :] for image in images if first.startswith(image)]
    return next((e for e in endings if e and all(n.endswith(e) and n[: -len(e)] in images for n in masks)), "")


def _sizes(pair: tuple[pathlib.Path, pathlib.Path], limited: bool) -> tuple[tuple[int, int], tuple[int, int]] | str:
    try:
        return _decode.read_size(pair[0], limited), _measured.read_size(pair[1], limited)
    except (ValueError, OSError) as error:
        return str(error)
