"""Exercise 1: a tiny U-Net on scenes of digits, and what its encoder and decoder see. This is `make demo`.

Usage: python examples/tiny_unet.py --out out/tiny_unet

Needs no data: the scenes are real handwritten digits on real textures, put together from a seed. Writes predictions,
the feature maps of encoder and decoder at every scale, and the training curves; the last line on standard output is a
JSON object with the mean IoU on scenes of digits and textures that were not trained on.
"""

import dataclasses
import json
import time
from pathlib import Path

import tyro
from common import user_errors

import densezoo as dz
from densezoo import viz
from densezoo.data import DigitScenes, to_float
from densezoo.train import SegmentationRecipe, predictor, train_segmentation

CLASSES = ["background", *"0123456789"]
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/tiny_unet")
    """Where the pictures, the checkpoints and the log go."""
    steps: int = 600
    """Training steps of 16 scenes each."""
    size: int = 96
    """Side of the scenes in pixels."""
    seed: int = 0
    """Of scenes and training."""
    resume: bool = False
    """Continue the run in --out."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    size = (arguments.size, arguments.size)
    train = DigitScenes(5000, size=size, seed=arguments.seed, split="train")
    val = DigitScenes(200, size=size, seed=arguments.seed, split="val")
    model = dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=(16, 32, 64, 128)),
        decoder=dz.UNetDecoder(features=(64, 32, 16)),
        head=dz.SegmentationHead(len(CLASSES)),
    )
    recipe = SegmentationRecipe(
        ignore_index=None,
        crop_size=arguments.size,
        batch_size=16,
        steps=arguments.steps,
        learning_rate=4e-3,
        flip_horizontal=False,  # a mirrored digit is no digit
        seed=arguments.seed,
        evaluate_every=max(1, arguments.steps // 3),
    )
    state, history = train_segmentation(
        model,
        train,
        val,
        recipe,
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        directory=arguments.out,
        resume=arguments.resume,
    )

    predict = predictor(model, state.variables, mean=MEAN, std=STD)
    samples = [val[index] for index in range(4)]
    images = [sample["image"] for sample in samples]
    figure = viz.predictions(
        images,
        [sample["mask"] for sample in samples],
        [predict(image) for image in images],
        class_names=CLASSES,
    )
    pictures = [viz.save(figure, arguments.out / "predictions.png")]
    figure = viz.feature_maps(model, state.variables, (to_float(images[0]) - MEAN[0]) / STD[0])
    pictures.append(viz.save(figure, arguments.out / "feature_maps.png"))
    pictures.append(viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png"))

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    result = {
        "mean_iou": scores["mean_iou"],
        "per_class_iou": {name: scores[f"iou_{index}"] for index, name in enumerate(CLASSES)},
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": [str(picture) for picture in pictures],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Arguments))
