"""Evaluates a trained model on a folder of images and masks: scores of each class and the confusion matrix.

Usage: python examples/evaluate.py --model out/run/model.safetensors --data DIR/val --out out/evaluation

DIR/val has images and masks, paired by file name. Prints IoU, Dice, precision, recall and the number of labelled
pixels of each class. Writes confusion.csv (pixels, with a row for each true class), confusion.png and scores.json to
--out. For a model with several labels per pixel, writes counts.csv instead of the matrix. For a model of depth or
normals, DIR/val has images and depth, or normals, and only scores.json is written. Pictures of more than --max-pixels
pixels are computed by tiles, with the same result; of such TIFF files, images and masks are read by windows. The last
line on standard output is a JSON object.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import Progress, command_line, parse_labels, tile_options, tiled

import densezoo as dz
from densezoo import metrics, viz
from densezoo.data import DepthFolder, ImageMaskFolder
from densezoo.files import replace

COLUMNS = {"iou": metrics.iou, "dice": metrics.dice, "precision": metrics.precision, "recall": metrics.recall}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Options of the script."""

    model: Path
    """A model file, such as model.safetensors of a run; or the --out folder of a run."""
    data: Path
    """Folder with images and masks."""
    out: Path = Path("out/evaluation")
    """Folder for the confusion matrix and the scores."""
    labels: tuple[str, ...] | None = None
    """Map mask numbers or colours to classes: 7:0 11:1 0:255, or 0,0,0:0 128,64,128:1; by default as in training."""
    ignore_index: int | None = None
    """Mask value of unlabelled pixels; by default the one used in training."""
    depth_scale: float | None = None
    """For depth: factor from the numbers in the files to the unit of training; needed for whole numbers."""
    bits: int | None = None
    """Number of used bits per pixel, such as 12 in 16-bit files, for a model of pictures that use all bits."""
    axes: Literal["opencv", "opengl"] = "opencv"
    """For normals: their axes in the files: y down and z forward, or y up and z backward."""
    limit: int | None = None
    """Only evaluate this many images."""
    pad_to: int | None = None
    """Pad sides to multiples of this many pixels: compiles fewer sizes, and changes scores slightly."""
    max_pixels: int = 1 << 23
    """Most pixels to compute at once. Larger pictures are computed by tiles, and TIFF files also read by them."""
    blend: bool = False
    """Blend overlapping tiles of larger pictures, for networks that read the whole picture: an approximation."""


def main(arguments: Arguments) -> None:
    predict = dz.load_predictor(arguments.model, pad_to=arguments.pad_to)
    task = predict.task
    if isinstance(task, dz.tasks.Depth | dz.tasks.Normals):
        evaluate_maps(arguments, predict)
        return
    if not isinstance(task, dz.tasks.Segmentation):
        raise ValueError(f"{arguments.model} is for {type(task).__name__}; this script scores segmentation")
    if len(task.inputs) > 1:
        raise ValueError(
            f"{arguments.model} is for {type(task).__name__}, which takes {len(task.inputs)} images; this script scores"
            " models of one image"
        )
    ignore_index = task.ignore_index if arguments.ignore_index is None else arguments.ignore_index
    labels: Any = parse_labels(arguments.labels) or dict(task.labels) or None
    source = ImageMaskFolder(
        arguments.data,
        num_classes=task.classes,
        ignore_index=ignore_index,
        channels=predict.preprocessing.channels,
        bits=arguments.bits,
        labels=labels,
        multilabel=task.multilabel,
        window_pixels=None if task.multilabel or predict.preprocessing.resizes else arguments.max_pixels,
    )
    # Raises an error for masks with invalid values, which would be ignored.
    source.check(value_range=predict.preprocessing.value_range)
    count = number_of(arguments, source)

    counts, matrix = metrics.Counts.zeros(task.classes), None
    progress = Progress(range(count), "Evaluating")
    for index in progress:
        counted, confused = measured(predict, source[index], arguments, ignore_index, progress)
        counts += counted
        matrix = confused if matrix is None else matrix + confused

    scores = class_scores(counts, task.names)
    print(table(scores))
    if matrix is None:
        parts = {name: np.asarray(getattr(counts, name)).tolist() for name in ("tp", "fp", "fn", "tn")}
        write_csv(arguments.out / "counts.csv", [["class", *parts], *zip(task.names, *parts.values(), strict=True)])
    else:
        pixels = np.asarray(matrix)
        rows = [[name, *row] for name, row in zip(task.names, pixels.tolist(), strict=True)]
        write_csv(arguments.out / "confusion.csv", [["true \\ predicted", *task.names], *rows])
        viz.save(viz.confusion_matrix(pixels, task.names), arguments.out / "confusion.png")
    means = {name: value for name, value in task.scores(counts).items() if not name.startswith("iou_")}
    finish(arguments, {**means, "images": count, "classes": scores})


def measured(
    predict: dz.Predictor, sample: Any, arguments: Arguments, ignore_index: int | None, progress: Progress
) -> tuple[metrics.Counts, Any]:
    """The counts of one image and its confusion matrix; None instead of it with several labels per pixel."""
    task, image, mask = predict.task, sample["image"], sample["mask"]
    if task.multilabel:
        fill = -1 if ignore_index is None else ignore_index
        prediction = computed(predict, image, arguments, progress)
        return metrics.multilabel_counts(jnp.asarray(prediction), jnp.asarray(mask), ignore_index=fill), None
    result = metrics.TiledCounts(mask, num_classes=task.classes, ignore_index=ignore_index)
    try:
        if tiled(predict, image, arguments.max_pixels):
            computed(predict, image, arguments, progress, out=result)
        else:
            result[:, :] = predict(image)
    finally:
        for part in (image, mask):
            if hasattr(part, "close"):  # windows of a file
                part.close()
    return result.counts, result.matrix


def computed(predict: dz.Predictor, image: Any, arguments: Arguments, progress: Progress, out: Any = None) -> Any:
    """The prediction, by tiles for a large image."""
    if not tiled(predict, image, arguments.max_pixels):
        return predict(image)
    return predict.tiled(image, out=out, **tile_options(arguments, progress))


def evaluate_maps(arguments: Arguments, predict: dz.Predictor) -> None:
    """Scores depth or normals."""
    task, name = predict.task, predict.task.fields[1]
    channels = predict.preprocessing.channels
    source = DepthFolder(
        arguments.data,
        depth_scale=arguments.depth_scale,
        channels=channels,
        bits=arguments.bits,
        axes=arguments.axes,
    )
    if name not in source[0]:
        raise ValueError(f"{arguments.data} has no {name}/, which this model's scores need")
    source.check()
    count, total = jax.jit(task.count), None
    progress = Progress(range(number_of(arguments, source)), "Evaluating")
    for index in progress:
        sample = source[index]
        found = computed(predict, sample["image"], arguments, progress)
        counted = count(found[None], sample[name][None])
        total = counted if total is None else total + counted
    finish(arguments, {**task.scores(total), "images": number_of(arguments, source)})


def number_of(arguments: Arguments, source: Any) -> int:
    """The number of images to evaluate."""
    count = len(source) if arguments.limit is None else min(arguments.limit, len(source))
    if count < 1:
        raise ValueError(f"--limit must be a number of images, at least 1; got {arguments.limit}")
    return count


def finish(arguments: Arguments, scores: dict[str, Any]) -> None:
    """Writes and prints the scores."""
    text = json.dumps(finite({**scores, "out": str(arguments.out)}))
    replace(arguments.out / "scores.json", lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    print(text)


def class_scores(counts: metrics.Counts, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of each class, and its number of labelled pixels."""
    columns = {name: np.asarray(score(counts)).astype(float).tolist() for name, score in COLUMNS.items()}
    columns["pixels"] = (np.asarray(counts.tp) + np.asarray(counts.fn)).tolist()
    return {name: {column: columns[column][index] for column in columns} for index, name in enumerate(names)}


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores as text; "-" where a class occurs neither in the masks nor in the predictions."""
    columns = [*COLUMNS, "pixels"]
    rows = [["class", *columns]]
    for name, values in scores.items():
        numbers = ["-" if math.isnan(values[column]) else f"{values[column]:.4f}" for column in COLUMNS]
        rows.append([name, *numbers, str(values["pixels"])])
    means = [np.array([values[column] for values in scores.values()]) for column in COLUMNS]
    known = ["-" if np.isnan(mean).all() else f"{np.nanmean(mean):.4f}" for mean in means]
    rows.append(["mean", *known, str(sum(values["pixels"] for values in scores.values()))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]
    return "\n".join(lines)


def finite(value: Any) -> Any:
    """Replaces NaN, which JSON does not support, by None."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    def save(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    replace(path, save)


if __name__ == "__main__":
    command_line(main, Arguments)
