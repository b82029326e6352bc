"""Trains any model of the zoo on a folder of images and masks.

Usage: python examples/train_segmentation.py --data DIR --num-classes 2 --model unet --encoder resnet34 --out out/run

DIR has train/images, train/masks, val/images and val/masks, paired by file name. Checkpoints, the log, the curves and
pictures of predictions go to --out, and `predict.py --checkpoint` takes that folder. The last line on standard output
is a JSON object with the scores of the final state on whole validation images.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from common import user_errors

from densezoo import viz, weights
from densezoo.config import ModelConfig
from densezoo.data import ImageMaskFolder, Subset
from densezoo.files import replace
from densezoo.train import SegmentationRecipe, predictor, train_segmentation


@dataclasses.dataclass(frozen=True)
class Arguments(SegmentationRecipe):
    """Options of the script; those of the recipe come first."""

    data: Path = tyro.MISSING
    """Folder with train and val, each with images and masks."""
    num_classes: int = tyro.MISSING
    """Classes in the masks, 0 to num_classes - 1; 1 for a binary mask of 0 and 1, learned by a single logit."""
    model: str = "unet"
    """One of densezoo.list_models()."""
    encoder: str | None = None
    """One of densezoo.list_encoders(); the model's usual one if not given."""
    upsample: str | None = None
    """One of densezoo.zoo.UPSAMPLERS, such as bilinear or transposed_conv; the model's own if not given."""
    skip: str | None = None
    """concat or add, for a U-Net."""
    encoder_weights: Path | None = None
    """PyTorch checkpoint (.pth, .safetensors) of the encoder to start from."""
    freeze_encoder: bool = False
    """Leave the encoder's weights and batch statistics as they are."""
    channels: int | None = None
    """Convert images to this many channels; as they are in the files if not given."""
    mean: tuple[float, ...] = ()
    """Subtracted from images in 0..1, a number for each channel; ImageNet's for three channels, else 0.5."""
    std: tuple[float, ...] = ()
    """By which they are then divided; ImageNet's for three channels, else 0.25."""
    bfloat16: bool = False
    """Compute in bfloat16, with float32 weights: for accelerators."""
    limit_val: int | None = None
    """Validate on the first so many images only."""
    out: Path = Path("out/segmentation")
    """Where checkpoints, log and pictures go."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, exactly."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    # Whatever can be wrong is found before any time is spent on training.
    train, val = (
        ImageMaskFolder(
            arguments.data / part,
            num_classes=max(arguments.num_classes, 2),
            ignore_index=arguments.ignore_index,
            channels=arguments.channels,
        )
        for part in ("train", "val")
    )
    config = ModelConfig(
        model=arguments.model,
        encoder=arguments.encoder,
        num_classes=arguments.num_classes,
        channels=train[0]["image"].shape[-1],
        upsample=arguments.upsample,
        skip=arguments.skip,
        mean=arguments.mean,
        std=arguments.std,
    )
    if (channels := val[0]["image"].shape[-1]) != config.channels:
        raise ValueError(
            f"training images have {config.channels} channels, validation images {channels}: --channels converts them"
        )
    if arguments.freeze_encoder and not arguments.encoder_weights and not arguments.resume:
        raise ValueError("--freeze-encoder would keep a random encoder as it is: give it --encoder-weights")
    model = config.build(bfloat16=arguments.bfloat16, frozen=("encoder",) if arguments.freeze_encoder else ())
    check_out(arguments, config)
    variables = None
    if arguments.encoder_weights:
        encoder = weights.from_torch(model.encoder, arguments.encoder_weights, in_channels=config.channels)
        images = jnp.zeros((1, 32, 32, config.channels))
        variables = jax.jit(model.init)(jax.random.key(arguments.seed), images)
        # An encoder without norms has no batch statistics.
        variables = {
            kind: tree | ({"encoder": encoder[kind]} if kind in encoder else {}) for kind, tree in variables.items()
        }
    train.check()
    val.check()
    config.save(arguments.out / "model.json")
    write_recipe(arguments.out / "recipe.json", arguments)

    state, history = train_segmentation(
        model,
        train,
        val if arguments.limit_val is None else Subset(val, range(min(arguments.limit_val, len(val)))),
        arguments,
        num_classes=arguments.num_classes,
        mean=config.mean,
        std=config.std,
        variables=variables,
        directory=arguments.out,
        resume=arguments.resume,
    )

    viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png")
    predict = predictor(model, state.ema_variables, mean=config.mean, std=config.std)
    samples = [val[index] for index in range(min(4, len(val)))]
    figure = viz.predictions(
        [sample["image"] for sample in samples],
        [sample["mask"] for sample in samples],
        [predict(sample["image"]) for sample in samples],
        ignore_index=arguments.ignore_index,
    )
    viz.save(figure, arguments.out / "predictions.png")

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    last = next((record for record in reversed(history) if "input_wait" in record), {})
    result = {
        "model": config.model,
        "encoder": config.encoder,
        "mean_iou": scores["mean_iou"],
        "per_class_iou": [scores[f"iou_{index}"] for index in range(max(arguments.num_classes, 2))],
        "pixel_accuracy": scores["pixel_accuracy"],
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - started, 1),
        "input_wait": last.get("input_wait"),
        "recompilations": last.get("recompilations"),
        "out": str(arguments.out),
    }
    print(json.dumps(result))


def recipe_of(arguments: Arguments) -> dict[str, Any]:
    """What must stay the same for a resumed run to go on exactly, as JSON holds it."""
    recipe = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(SegmentationRecipe)}
    return json.loads(json.dumps(recipe))


def write_recipe(path: Path, arguments: Arguments) -> None:
    replace(path, lambda temporary: temporary.write_text(json.dumps(recipe_of(arguments), indent=2) + "\n"))


def check_out(arguments: Arguments, config: ModelConfig) -> None:
    """Makes sure that no other run is in --out, and that what is resumed is the same training of the same model."""
    out = arguments.out
    if not (out / "log.jsonl").exists() and not (out / "last").exists():
        return
    if not arguments.resume:
        raise FileExistsError(f"{out} holds a run: continue it with --resume, or choose another --out")
    model, model_before = (dataclasses.asdict(each) for each in (config, ModelConfig.load(out / "model.json")))
    if model != model_before:
        raise ValueError(f"{out} holds the run of another model: {differences(model_before, model)}")
    recipe, before = recipe_of(arguments), json.loads((out / "recipe.json").read_text())
    if recipe["steps"] != before["steps"]:
        print(f"the schedule now spans {recipe['steps']} steps, before {before['steps']}", file=sys.stderr)
    # More steps, with the schedule stretched to them, are a choice that one may make later.
    for free in ("steps", "evaluate_every", "checkpoint_every"):
        before[free] = recipe[free]
    if recipe != before:
        changed = differences(before, recipe)
        raise ValueError(f"{out} holds a run with other options, so it would not go on exactly: {changed}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name))


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Arguments))
