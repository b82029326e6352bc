"""Finds objects in pictures with a detector that `train_detector.py` trained, or that `dz.save` wrote.

Usage: python examples/detect.py --model out/run/model.safetensors --images PICTURE_OR_FOLDER... --out out/found

For every picture writes NAME.png with boxes, masks, classes and scores drawn, and for a panoptic model
NAME_panoptic.png with the segments of things and stuff. detections.json has all detections in
COCO's result format, with the pictures' places in the list as image_id, from 1 on. With --data DIR, a folder with
images/ and instances/ or annotations.json, the pictures are those of the folder, image_id is that of its annotations,
and the detections are scored. The last line on standard output is a JSON object.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from common import Progress, command_line
from predict import Arguments as Pictures
from predict import find_pictures
from train_detector import source_at

import densezoo as dz
from densezoo import metrics, ops, viz
from densezoo.data import read_image
from densezoo.files import replace
from densezoo.tasks import PanopticSegmentation

SECONDS_BETWEEN_WRITES = 10  # of detections.json, so that a run that is stopped keeps what it found


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    model: Path
    """A model file, such as model.safetensors of a run; or the --out folder of a run."""
    images: list[Path] = dataclasses.field(default_factory=list)
    """Pictures of any size, or folders of them."""
    data: Path | None = None
    """A folder with images/ and instances/ or annotations.json, instead of --images."""
    out: Path = Path("out/found")
    """Output folder for the pictures and detections.json."""
    score_threshold: float = 0.5
    """Detections with a lower score are not drawn, but are in detections.json."""
    draw: int | None = None
    """Draw at most this many pictures; all by default. Objects are found in all pictures."""
    pad_to: int = 128
    """Pads sides to multiples of this many pixels, so that pictures of similar sizes share one compilation. Detectors
    ignore the padding. 1 compiles every size."""


def main(arguments: Arguments) -> None:
    if bool(arguments.images) == (arguments.data is not None):
        raise ValueError("pass either --images or --data")
    predict = dz.load_predictor(arguments.model, pad_to=arguments.pad_to)
    task = predict.task
    if not isinstance(task, dz.tasks.Detection):
        raise ValueError(f"{arguments.model} is a model for {type(task).__name__}: use predict.py")
    source = None
    if arguments.data is not None:
        source = source_at(arguments.data, masks=None if task.masks else False)
        names = [str(Path(name).with_suffix("")) for name in source.names]
    else:
        pictures = find_pictures(Pictures(arguments.images, out=arguments.out))
        paths, names = list(pictures), list(pictures.values())
    known = getattr(source, "category_ids", None)
    if known is not None and len(known) + task.first_label != task.num_classes:
        raise ValueError(f"the data have {len(known)} classes, but the model has {task.num_classes - task.first_label}")

    path = arguments.out / "detections.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    written = time.monotonic()
    for index, name in enumerate(Progress(names, "Detecting")):
        sample = None if source is None else source[index]
        image = read_image(paths[index], predict.preprocessing.channels) if sample is None else sample["image"]
        merged = predict(image)
        found = merged.detections if isinstance(task, PanopticSegmentation) else merged
        number = index + 1 if sample is None else int(sample.get("image_id", index + 1))
        results += in_coco_format(found, number, image.shape[:2], task, known)
        if arguments.draw is None or index < arguments.draw:
            truth = None
            if sample is not None:
                labels = sample["labels"]
                truth = [(sample["boxes"], np.where(labels < 0, -1, labels + task.first_label))]
            options = {"class_names": task.names, "score_threshold": arguments.score_threshold, "truths": truth}
            viz.save(viz.detections([image], [found], **options), arguments.out / f"{name}.png")
            if isinstance(task, PanopticSegmentation):
                figure = viz.panoptic([image], [merged], class_names=task.segment_names)
                viz.save(figure, arguments.out / f"{name}_panoptic.png")
        if index + 1 == len(names) or time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            text = json.dumps(results)
            replace(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
            written = time.monotonic()

    last: dict[str, Any] = {"pictures": len(names), "detections": len(results), "out": str(arguments.out)}
    if source is not None:
        dataset = metrics.coco_dataset(source)
        for kind, masks in (("box", False), ("mask", True)) if task.masks else (("box", False),):
            scores = metrics.average_precision(dataset, results, masks=masks, size_limits=task.size_limits)
            last |= {f"{kind}_{score}": None if np.isnan(value) else value for score, value in scores.items()}
    print(json.dumps(last))


def in_coco_format(found: Any, number: int, size: tuple[int, int], task: Any, known: Any) -> list[dict[str, Any]]:
    """Converts the detections of a picture, with their masks."""
    rows = np.flatnonzero(found.valid & (found.labels >= task.first_label))
    masks = None
    if found.masks is not None and task.masks:
        masks = np.asarray(ops.paste_masks(jnp.asarray(found.masks[rows]), jnp.asarray(found.boxes[rows]), size))
    labels = found.labels[rows] - task.first_label
    return metrics.coco_results(number, found.boxes[rows], found.scores[rows], labels, category_ids=known, masks=masks)


if __name__ == "__main__":
    command_line(main, Arguments)
