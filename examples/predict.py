"""Predicts masks for pictures with a model that `train_segmentation.py` trained.

Usage: python examples/predict.py --checkpoint out/run --images PICTURE... --out out/masks

Writes NAME.png, a palette picture whose values are the classes, and NAME_overlay.png, to look at, for every picture.
"""

import dataclasses
import json
from pathlib import Path

import tyro
from common import user_errors

from densezoo import viz
from densezoo.config import ModelConfig
from densezoo.data import read_image
from densezoo.train import load_variables, predictor


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    checkpoint: Path
    """The --out folder of train_segmentation.py."""
    images: list[Path]
    """Pictures of any size."""
    out: Path = Path("out/masks")
    """Where the masks go."""
    which: str = "best"
    """best or last checkpoint."""


def main(arguments: Arguments) -> None:
    if repeated := {path.stem for path in arguments.images if [p.stem for p in arguments.images].count(path.stem) > 1}:
        raise ValueError(f"several pictures would write the same mask: {', '.join(sorted(repeated))}")
    config = ModelConfig.load(arguments.checkpoint / "model.json")
    variables = load_variables(arguments.checkpoint, arguments.which)
    if missing := [str(path) for path in arguments.images if not path.is_file()]:
        raise FileNotFoundError(f"no such picture file: {', '.join(missing)}")

    predict = predictor(config.build(), variables, mean=config.mean, std=config.std)
    palette = viz.palette(max(config.num_classes, 2))
    for path in arguments.images:
        picture = read_image(path, channels=config.channels)
        mask = predict(picture)
        viz.save_mask(mask, arguments.out / f"{path.stem}.png", palette=palette)
        viz.save_image(viz.overlay(picture, mask, palette=palette), arguments.out / f"{path.stem}_overlay.png")
    print(json.dumps({"pictures": len(arguments.images), "out": str(arguments.out)}))


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Arguments))
