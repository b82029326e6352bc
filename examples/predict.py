"""Predicts masks for pictures with a model that `train_segmentation.py` trained, or that `dz.save` wrote.

Usage: python examples/predict.py --model out/run/model.safetensors --images PICTURE... --out out/masks

For every picture writes NAME.png, a palette picture whose values are the classes, and NAME_overlay.png, to look at; for
a model with several labels a pixel NAME_CLASS.png, 0 or 255. With --probabilities also NAME_probabilities.npz.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import user_errors

import densezoo as dz
from densezoo import viz
from densezoo.data import read_image
from densezoo.files import replace


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    images: list[Path]
    """Pictures of any size."""
    model: Path | None = None
    """A model file, such as model.safetensors of a run; or the --out folder of a run."""
    checkpoint: Path | None = None
    """Deprecated: the same as --model."""
    out: Path = Path("out/masks")
    """Where the masks go."""
    probabilities: bool = False
    """Also write the probability of each class: the array (h, w, classes), float32, and their names."""


def main(arguments: Arguments) -> None:
    if repeated := {path.stem for path in arguments.images if [p.stem for p in arguments.images].count(path.stem) > 1}:
        raise ValueError(f"several pictures would write the same mask: {', '.join(sorted(repeated))}")
    model = arguments.model or arguments.checkpoint
    if model is None:
        raise ValueError("--model is the file of a model, such as out/run/model.safetensors")
    predict = dz.load_predictor(model)
    if missing := [str(path) for path in arguments.images if not path.is_file()]:
        raise FileNotFoundError(f"no such picture file: {', '.join(missing)}")

    for path in arguments.images:
        picture = read_image(path, channels=predict.preprocessing.channels)
        write_masks(predict, picture, arguments.out, path.stem)
        if arguments.probabilities:
            found = {"probabilities": predict.probabilities(picture), "classes": np.array(predict.task.names)}
            target = arguments.out / f"{path.stem}_probabilities.npz"
            replace(target, lambda temporary, found=found: write_npz(temporary, found))
    print(json.dumps({"pictures": len(arguments.images), "out": str(arguments.out)}))


def write_masks(predict: dz.Predictor, picture: np.ndarray, out: Path, name: str) -> None:
    mask, palette = predict(picture), viz.palette(predict.task.classes)
    if predict.task.multilabel:
        for index, label in enumerate(predict.task.names):
            viz.save_image(np.uint8(255) * mask[..., index, None].astype(np.uint8), out / f"{name}_{label}.png")
        return
    viz.save_mask(mask, out / f"{name}.png", palette=palette)
    viz.save_image(viz.overlay(picture, mask, palette=palette), out / f"{name}_overlay.png")


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add .npz to it
        np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Arguments))
