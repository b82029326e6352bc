"""Writes digit scenes as a folder of images and masks, to try `train_segmentation.py` without your own data.

Usage: python examples/export_scenes.py --out out/scenes
"""

import dataclasses
import json
from pathlib import Path

from common import command_line

from densezoo import viz
from densezoo.data import DigitScenes
from densezoo.data.scenes import Split
from densezoo.messages import as_flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/scenes")
    """Output folder with train and val, each with images and masks (0 is background, 1 to 10 are the digits 0 to 9)."""
    train: int = 64
    """Number of training scenes."""
    val: int = 16
    """Number of validation scenes."""
    size: int = 96
    """Side of the scenes in pixels."""
    seed: int = 0
    """Seed of the scenes."""


def main(arguments: Arguments) -> None:
    counts: dict[Split, int] = {"train": arguments.train, "val": arguments.val}
    for split, count in counts.items():
        with as_flags({"num_scenes": f"--{split}"}):
            scenes = DigitScenes(count, size=(arguments.size, arguments.size), seed=arguments.seed, split=split)
        for index in range(count):
            scene = scenes[index]
            viz.save_image(scene["image"], arguments.out / split / "images" / f"{index:04}.png")
            viz.save_mask(scene["mask"], arguments.out / split / "masks" / f"{index:04}.png")
    print(json.dumps({"out": str(arguments.out), "train": arguments.train, "val": arguments.val}))


if __name__ == "__main__":
    command_line(main, Arguments)
