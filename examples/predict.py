"""Predicts masks for pictures with a model that `train_segmentation.py` trained, or that `dz.save` wrote.

Usage: python examples/predict.py --model out/run/model.safetensors --images PICTURE_OR_FOLDER... --out out/masks

For every picture, writes NAME.png, a palette picture whose values are the classes, and NAME_overlay.png for viewing;
for a model with several labels per pixel, NAME_CLASS.png with 0 or 255; for a model of depth or normals, NAME.npy, in
the unit of the training data, and NAME_view.png. Pictures of more than --max-pixels pixels are computed by tiles, with
the same result. For a TIFF file of that size, windows are read and written: instead of the two pictures, NAME.tif has
the classes, in the same colours, with the georeference of the picture, if there is any. With --probabilities, also
NAME_probabilities.npz. classes.json has the names and colours of the classes. --recursive also reads subfolders, and
recreates them in --out. The last line on standard output is a JSON object.
"""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Progress, command_line, tile_options, tiled

import densezoo as dz
from densezoo import viz
from densezoo.data import IMAGE_SUFFIXES, TiffWindows, open_tiff, read_image
from densezoo.files import replace
from densezoo.messages import indented, shortened
from densezoo.tasks import Depth, Normals, Segmentation

MANY_SIZES = 8
"""Number of compiled picture sizes after which a message suggests --max-programs."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    images: list[Path]
    """Pictures of any size, or folders of them."""
    model: Path | None = None
    """A model file, such as model.safetensors of a run; or the --out folder of a run."""
    checkpoint: Path | None = None
    """Deprecated name of --model."""
    out: Path = Path("out/masks")
    """Output folder for the masks."""
    recursive: bool = False
    """Also read subfolders."""
    probabilities: bool = False
    """Also write the probability of each class: a float32 array (h, w, classes), and the class names."""
    bits: int | None = None
    """Number of used bits per pixel, such as 12 in 16-bit files, for a model of pictures that use all bits."""
    pad_to: int | None = None
    """Pad sides to multiples of this many pixels: compiles fewer sizes, and changes masks slightly at the borders."""
    max_programs: int | None = None
    """Compile at most this many programs, which pictures of all sizes share without any change of the masks."""
    max_pixels: int = 1 << 23
    """Most pixels to compute at once. Larger pictures are computed by tiles."""
    blend: bool = False
    """Blend overlapping tiles of larger pictures, for networks that read the whole picture: an approximation."""


def main(arguments: Arguments) -> None:
    model = arguments.model or arguments.checkpoint
    if model is None:
        raise ValueError("--model must be a model file, such as out/run/model.safetensors")
    predict = dz.load_predictor(model, pad_to=arguments.pad_to, max_programs=arguments.max_programs)
    pictures = find_pictures(arguments)
    suffixes = endings(predict.task, arguments.probabilities)
    check_outputs(pictures, suffixes, arguments.out, pictures)
    if isinstance(predict.task, Segmentation):
        write_classes(arguments.out / "classes.json", predict.task)

    failed: dict[str, str] = {}
    sizes: set[tuple[int, int]] = set()
    progress = Progress(list(pictures.items()), "Predicting")
    for path, name in progress:
        try:
            if (windows := large_tiff(predict, path, arguments)) is not None:
                target = arguments.out / f"{name}.tif"
                check_outputs({path: name}, [".tif"], arguments.out, set(pictures))
                write_by_windows(predict, windows, target, arguments, progress)
                continue
            picture = read_image(path, channels=predict.preprocessing.channels, bits=arguments.bits)
            known = len(sizes)
            sizes.add(picture.shape[:2])
            if known == MANY_SIZES < len(sizes) and arguments.pad_to is arguments.max_programs is None:
                print("each picture size is compiled once: --max-programs 8 shares programs", file=sys.stderr)
            targets = [arguments.out / f"{name}{suffix}" for suffix in suffixes]
            write(predict, picture, targets, partial(compute, predict, picture, arguments, progress))
        except (ValueError, OSError) as error:
            if len(pictures) == 1:
                raise
            failed[str(path)] = str(error)
    done = len(pictures) - len(failed)
    names = getattr(predict.task, "names", ())
    result = {"pictures": done, "failed": list(failed), "classes": names, "out": str(arguments.out)}
    print(json.dumps(result))
    if failed:
        raise ValueError(f"{len(failed)} of {len(pictures)} pictures failed:\n{indented(list(failed.values()), 20)}")


def find_pictures(arguments: Arguments) -> dict[Path, str]:
    """Every picture's path, and the name of its mask, which includes the subfolder."""
    if missing := [str(path) for path in arguments.images if not path.exists()]:
        raise FileNotFoundError(f"no such picture file or folder: {shortened(missing, ', ')}")
    found: dict[Path, str] = {}
    for path in arguments.images:
        if not path.is_dir():
            found[path] = path.stem
            continue
        pictures, others = in_folder(path, arguments.recursive, arguments.out)
        if not pictures:
            seen = f" It contains {shortened(others, ', ')}." if others else " It is empty."
            hint = "" if arguments.recursive else " --recursive also reads its subfolders."
            raise ValueError(f"{path} contains no pictures ({' '.join(IMAGE_SUFFIXES)}).{seen}{hint}")
        if others:
            print(f"{path}: not read: {shortened(others, ', ')}", file=sys.stderr)
        found |= {picture: str(picture.relative_to(path).with_suffix("")) for picture in pictures}
    return found


def in_folder(folder: Path, recursive: bool, out: Path) -> tuple[list[Path], list[str]]:
    """The pictures in a folder in order, and the names of other files, without hidden files and `out`."""
    pictures, others = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == out.resolve():
            continue
        if path.is_dir() and recursive:
            more = in_folder(path, recursive, out)
            pictures, others = pictures + more[0], others + [f"{path.name}/{name}" for name in more[1]]
        elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            pictures.append(path)
        else:
            others.append(f"{path.name}/" if path.is_dir() else path.name)
    return pictures, others


def endings(task: Any, probabilities: bool) -> list[str]:
    """The suffixes of a picture's output files."""
    if isinstance(task, Depth | Normals) and not probabilities:
        return [".npy", "_view.png"]
    if not isinstance(task, Segmentation) or len(task.inputs) > 1:
        if isinstance(task, Depth | Normals):
            advice = "omit --probabilities"
        elif len(task.inputs) > 1:
            advice = "in Python, dz.load_predictor(model)(before, after) predicts from two pictures"
        else:
            advice = "use detect.py for detectors"
        raise ValueError(f"this model is for {type(task).__name__}, and --model must be one of segmentation: {advice}")
    masks = [f"_{name.replace('/', '_')}.png" for name in task.names] if task.multilabel else [".png", "_overlay.png"]
    return [*masks, *(["_probabilities.npz"] if probabilities else [])]


def check_outputs(pictures: dict[Path, str], suffixes: Sequence[str], out: Path, originals: Collection[Path]) -> None:
    """Checks that no file would be written twice, and that no picture would be overwritten."""
    targets = Counter(out / f"{name}{suffix}" for name in pictures.values() for suffix in suffixes)
    if repeated := [str(target) for target, count in targets.items() if count > 1]:
        raise ValueError(f"several pictures would write the same mask: {shortened(repeated, ', ')}")
    found = {path.resolve() for path in originals}
    if lost := [str(target) for target in targets if target.resolve() in found]:
        raise ValueError(f"--out {out} would overwrite pictures: {shortened(lost, ', ')}; choose another folder")


def large_tiff(predict: dz.Predictor, path: Path, arguments: Arguments) -> TiffWindows | None:
    """A TIFF file to be read by windows; None for any other picture."""
    labels = isinstance(predict.task, Segmentation) and not predict.task.multilabel and not arguments.probabilities
    if path.suffix.lower() not in (".tif", ".tiff") or not labels:
        return None
    try:
        windows = open_tiff(path, channels=predict.preprocessing.channels, bits=arguments.bits)
    except ValueError:
        return None  # read whole, or refused with the reason
    if not tiled(predict, windows, arguments.max_pixels):
        windows.close()
        return None
    return windows


def write_by_windows(
    predict: dz.Predictor, picture: TiffWindows, target: Path, arguments: Arguments, progress: Progress
) -> None:
    """Writes the mask of a TIFF file tile by tile."""
    narrow = predict.task.classes <= 256
    dtype, palette = (np.uint8, viz.palette(predict.task.classes)) if narrow else (np.uint16, None)

    def fill(temporary: Path) -> None:
        mask = picture.create_like(temporary, dtype, palette=palette)
        predict.tiled(picture, out=mask, **tile_options(arguments, progress))
        mask.flush()  # pyright: ignore[reportAttributeAccessIssue]

    try:
        replace(target, fill)
    finally:
        picture.close()


def compute(
    predict: dz.Predictor,
    picture: np.ndarray,
    arguments: Arguments,
    progress: Progress,
    *,
    probabilities: bool = False,
) -> Any:
    """The prediction or the probabilities, by tiles for a large picture."""
    if tiled(predict, picture, arguments.max_pixels):
        return predict.tiled(picture, probabilities=probabilities, **tile_options(arguments, progress))
    return predict.probabilities(picture) if probabilities else predict(picture)


def write(predict: dz.Predictor, picture: np.ndarray, targets: Sequence[Path], compute: Callable[..., Any]) -> None:
    """Writes the files that `endings` lists; `compute` returns the prediction, or the probabilities."""
    if isinstance(predict.task, Depth | Normals):
        found = compute()
        replace(targets[0], lambda temporary: write_npy(temporary, found))
        options = {}
        if isinstance(predict.task, Depth):
            options["unit"] = "inverse depth, up to scale and shift" if predict.task.relative else predict.task.unit
        draw = viz.depth_maps if isinstance(predict.task, Depth) else viz.normal_maps
        viz.save(draw([picture], None, [found], **options), targets[1])
        return
    mask, palette = compute(), viz.palette(predict.task.classes)
    if predict.task.multilabel:
        for index in range(predict.task.classes):
            viz.save_image(np.uint8(255) * mask[..., index].astype(np.uint8), targets[index])
    else:
        viz.save_mask(mask, targets[0], palette=palette)
        viz.save_image(viz.overlay(picture, mask, palette=palette), targets[1])
    if targets[-1].suffix == ".npz":
        probabilities = compute(probabilities=True)
        found = {"probabilities": probabilities, "classes": np.array(predict.task.names)}
        replace(targets[-1], lambda temporary: write_npz(temporary, found))


def write_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add .npz to it
        np.savez_compressed(file, **arrays)


def write_classes(path: Path, task: Any) -> None:
    """Writes the class of each number and colour of the masks."""
    colours = viz.palette(task.classes).tolist()
    classes = [{"number": n, "name": name, "colour": colours[n]} for n, name in enumerate(task.names)]
    replace(path, lambda temporary: temporary.write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    command_line(main, Arguments)
