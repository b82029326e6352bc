"""Exercise 5: a Siamese U-Net that finds what has changed between two pictures.

Usage: python examples/change_detection.py --out out/change

Trains on pairs of scenes of digits, generated from a seed: some digits appear or vanish, while light, colours and
alignment also differ. With --data DIR, trains on DIR/train and DIR/val, each with A, B and label as in LEVIR-CD;
--folders sets other names. Writes the model, model.safetensors, its training curves, and changes.png: pairs with the
truth and the predicted probability. The last line on standard output is a JSON object with the scores of change on the
validation pairs.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

from common import command_line, parse_labels, spread
from resuming import check_out, options_of_run, write_options

import densezoo as dz
from densezoo import viz
from densezoo.data import ChangeFolder, ChangeScenes, Source
from densezoo.tasks import ChangeDetection
from densezoo.train import Recipe, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Recipe):
    """Options of the script; those of the recipe come first."""

    crop_size: int | tuple[int, int] = 64
    batch_size: int = 16
    steps: int = 600
    learning_rate: float = 3e-3
    flip_vertical: bool = True
    rotate: bool = True
    data: Path | None = None
    """Folder with train and val; by default scenes of digits."""
    folders: tuple[str, str, str] = ("A", "B", "label")
    """Names of the folders in train and val: pictures before, pictures after, labels."""
    labels: tuple[str, ...] | None = None
    """Map label numbers to classes, such as 1:0 2:1; by default 0 is unchanged, and 1 and 255 are changed."""
    channels: int | None = None
    """Convert pictures to this many channels; by default they keep those of the files."""
    bits: int | None = None
    """Number of used bits per pixel, such as 14 in 16-bit files; by default all bits of the type."""
    model: str = "siamese_unet"
    """One of densezoo.list_models(task="change")."""
    encoder: str | None = None
    """One of densezoo.list_encoders(); for siamese_unet by default fc_siam, the small one of its paper."""
    decoder: str | None = None
    """Decoder of siamese_unet: that of any family, such as fpn or unetplusplus."""
    fusion: str | None = None
    """How siamese_unet joins the pictures: early, concat or difference, the default."""
    loss: str = "cross_entropy+dice"
    """Losses by name, with weights, as in train_segmentation.py."""
    out: Path = Path("out/change")
    """Output folder for checkpoints, log, model and pictures."""
    resume: bool = False
    """Continue the run in --out exactly, from its last checkpoint. Options that are not given are those of the run."""
    quick: bool = False
    """Check that the script works, with two steps on few pairs. Overrides --steps and --batch-size."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    if arguments.quick:
        arguments = dataclasses.replace(arguments, steps=2, batch_size=2)
    task = ChangeDetection(criterion=arguments.loss)
    model = build(arguments)
    train_source, val_source = sources_of(arguments)
    preprocessing = preprocessing_of(arguments, train_source)
    check_out(arguments)
    for source in (train_source, val_source):
        if isinstance(source, ChangeFolder):
            source.check()
    write_options(arguments.out / "options.json", arguments)

    state, history = train(
        task,
        model,
        train_source,
        val_source,
        arguments,
        preprocessing=preprocessing,
        directory=arguments.out,
        resume=arguments.resume,
    )

    viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png")
    predict = dz.load_predictor(arguments.out / "model.safetensors")
    samples = spread(val_source, 4)
    before, after = ([sample[name] for sample in samples] for name in task.inputs)
    found = [predict.probabilities(*pair)[..., 1:].sum(-1) for pair in zip(before, after, strict=True)]
    figure = viz.changes(before, after, [sample["change"] for sample in samples], found)
    picture = viz.save(figure, arguments.out / "changes.png")

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    # A score is None if it is undefined, because no pixel has changed.
    defined = {
        name: None if math.isnan(scores[name]) else scores[name] for name in ("f1", "iou", "precision", "recall")
    }
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps(defined | {"steps": int(state.step), "seconds": seconds, "picture": str(picture)}))


def build(arguments: Arguments) -> dz.SiameseModel:
    """Creates the model that the options specify."""
    siamese = arguments.model == "siamese_unet"
    given: dict[str, Any] = {"encoder": arguments.encoder or ("fc_siam" if siamese else None)}
    given |= {name: getattr(arguments, name) for name in ("decoder", "fusion") if getattr(arguments, name) is not None}
    model = dz.create_model(arguments.model, **given)
    if not isinstance(model, dz.SiameseModel):
        raise ValueError(f"--model must be one of {', '.join(dz.list_models(task='change'))}, got {arguments.model}")
    return model


def sources_of(arguments: Arguments) -> tuple[Source, Source]:
    """The training and validation pairs."""
    if arguments.data is None:
        counts = (8, 2) if arguments.quick else (20_000, 100)
        splits = zip(("train", "val"), counts, strict=True)
        train_source, val_source = (
            ChangeScenes(count, size=(64, 64), split=split, seed=arguments.seed) for split, count in splits
        )
        return train_source, val_source
    labels = parse_labels(arguments.labels)
    train_source, val_source = (
        ChangeFolder(arguments.data / part, folders=arguments.folders, labels=labels, channels=arguments.channels)
        for part in ("train", "val")
    )
    bands = [source[0]["image_before"].shape[-1] for source in (train_source, val_source)]
    if bands[0] != bands[1]:
        raise ValueError(f"training pictures have {bands[0]} channels, validation pictures {bands[1]}")
    return train_source, val_source


def preprocessing_of(arguments: Arguments, source: Source) -> dz.Preprocessing | None:
    """The range of the pixels, if they use fewer bits than their type has."""
    if arguments.bits is None:
        return None
    if arguments.data is None or not 1 <= arguments.bits <= 32:
        raise ValueError(f"--bits must be 1 to 32, and needs --data; got {arguments.bits}")
    return dz.Preprocessing(source[0]["image_before"].shape[-1], value_range=(0, 2**arguments.bits - 1))


if __name__ == "__main__":
    command_line(main, Arguments, options_of_run)
