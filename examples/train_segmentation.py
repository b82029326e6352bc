"""Trains any model of the zoo on a folder of images and masks.

Usage: python examples/train_segmentation.py --data DIR --num-classes 2 --model unet --encoder resnet34 --out out/run

DIR has train/images, train/masks, val/images and val/masks, paired by file name. Checkpoints, the log, the curves,
pictures of predictions and model.safetensors, the best model, go to --out; `predict.py --model` takes that file. The
last line on standard output is a JSON object with the scores of the final state on whole validation images.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from common import command_line, parse_labels, spread

import densezoo as dz
from densezoo import viz, weights
from densezoo.data import ImageMaskFolder, Subset
from densezoo.files import replace
from densezoo.tasks import Segmentation
from densezoo.train import Recipe, to_tensorboard, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Recipe):
    """Options of the script; those of the recipe come first."""

    data: Path
    """Folder with train and val, each with images and masks."""
    num_classes: int
    """Classes in the masks, 0 to num_classes - 1; 1 for a binary mask of 0 and 1, learned by a single logit."""
    model: str = "unet"
    """One of densezoo.list_models()."""
    encoder: str | None = None
    """One of densezoo.list_encoders(); the model's usual one if not given."""
    upsample: str | None = None
    """Of the decoder, such as bilinear, transposed_conv or dysample; the model's own if not given."""
    skip: str | None = None
    """concat, add or attention, for a U-Net."""
    norm: str | None = None
    """Of the decoder: batch, group, layer or none; the model's own if not given."""
    act: str | None = None
    """Activation of the decoder, such as relu, silu or gelu; the model's own if not given."""
    attention: str | None = None
    """scse or none, for a U-Net."""
    loss: str = "cross_entropy"
    """Losses by name, with weights: cross_entropy+dice, 0.5*focal+tversky(alpha=0.3,beta=0.7), lovasz ..."""
    class_weights: tuple[float, ...] | None = None
    """A weight for each class in the loss."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    multilabel: bool = False
    """Masks have a channel for each class, and a pixel may have several."""
    ignore_index: int | None = 255
    """Mask value of pixels without a label, None if there are none."""
    labels: tuple[str, ...] | None = None
    """Classes by mask number or colour: 7:0 11:1 0:255, or 0,0,0:0 128,64,128:1; the numbers are the classes if not
    given."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, for the scores, pictures and predictions."""
    weights: Path | None = None
    """File of a trained model to start from, of any number of classes: model.safetensors of a run, or a PyTorch one."""
    encoder_weights: Path | None = None
    """File to take the encoder from: model.safetensors of a run, or a PyTorch checkpoint (.pth, .safetensors)."""
    freeze_encoder: bool = False
    """Leave the encoder's weights and batch statistics as they are."""
    channels: int | None = None
    """Convert images to this many channels; as they are in the files if not given."""
    mean: tuple[float, ...] = ()
    """Subtracted from images in 0..1, a number for each channel; ImageNet's for three channels, else 0.5."""
    std: tuple[float, ...] = ()
    """By which they are then divided; ImageNet's for three channels, else 0.25."""
    value_range: tuple[float, float] | None = None
    """Values in the files that become 0 and 1, such as 0 4095; the range of their integer type if not given."""
    bits: int | None = None
    """Bits of a pixel that are used, such as 12 in 16-bit files: the same as --value-range 0 4095."""
    bfloat16: bool = False
    """Compute in bfloat16, with float32 weights: for accelerators."""
    limit_val: int | None = None
    """Validate on the first so many images only."""
    out: Path = Path("out/segmentation")
    """Where checkpoints, log, model and pictures go."""
    tensorboard: bool = False
    """Also write the log for TensorBoard, to the folder tensorboard in --out."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, exactly."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    # Whatever can be wrong is found before any time is spent on training.
    task = Segmentation(
        num_classes=arguments.num_classes,
        criterion=arguments.loss,
        class_weights=arguments.class_weights,
        label_smoothing=arguments.label_smoothing,
        multilabel=arguments.multilabel,
        ignore_index=arguments.ignore_index,
        class_names=arguments.class_names,
    )
    labels = parse_labels(arguments.labels)
    train_source, val_source = (
        ImageMaskFolder(
            arguments.data / part,
            num_classes=task.classes,
            ignore_index=arguments.ignore_index,
            channels=arguments.channels,
            labels=labels,
            multilabel=arguments.multilabel,
        )
        for part in ("train", "val")
    )
    channels, of_val = (source[0]["image"].shape[-1] for source in (train_source, val_source))
    if channels != of_val:
        raise ValueError(
            f"training images have {channels} channels, validation images {of_val}: --channels converts them"
        )
    value_range = values_of(arguments)
    preprocessing = dz.Preprocessing(channels, arguments.mean, arguments.std, value_range)
    model = build(arguments)
    check_out(arguments)
    on_record = to_tensorboard(arguments.out / "tensorboard") if arguments.tensorboard else None
    variables = start(arguments, model, channels)
    train_source.check(value_range=value_range)
    val_source.check(value_range=value_range)
    write_options(arguments.out / "options.json", arguments)

    state, history = train(
        task,
        model,
        train_source,
        val_source
        if arguments.limit_val is None
        else Subset(val_source, range(min(arguments.limit_val, len(val_source)))),
        arguments,
        preprocessing=preprocessing,
        variables=variables,
        directory=arguments.out,
        resume=arguments.resume,
        on_record=on_record,
    )

    viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png")
    if not task.multilabel:
        predict = dz.Predictor(task, model, state.ema_variables, preprocessing)
        samples = spread(val_source, 4)
        figure = viz.predictions(
            [sample["image"] for sample in samples],
            [sample["mask"] for sample in samples],
            [predict(sample["image"]) for sample in samples],
            class_names=task.class_names or None,
            ignore_index=arguments.ignore_index,
        )
        viz.save(figure, arguments.out / "predictions.png")

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    last = next((record for record in reversed(history) if "input_wait" in record), {})
    result = {
        "model": arguments.model,
        "encoder": arguments.encoder,
        "mean_iou": scores["mean_iou"],
        "mean_dice": scores["mean_dice"],
        "classes": task.names,
        "per_class_iou": [scores[f"iou_{name}"] for name in task.names],
        "pixel_accuracy": scores["pixel_accuracy"],
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - started, 1),
        "input_wait": last.get("input_wait"),
        "recompilations": last.get("recompilations"),
        "out": str(arguments.out),
    }
    print(json.dumps(result))


def build(arguments: Arguments) -> dz.SegmentationModel:
    """The model that the options name."""
    given = {name: getattr(arguments, name) for name in ("upsample", "skip", "norm", "act", "attention")}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    frozen = ("encoder",) if arguments.freeze_encoder else ()
    dtype = jnp.bfloat16 if arguments.bfloat16 else None
    return dz.create_model(
        arguments.model, arguments.encoder, arguments.num_classes, frozen=frozen, dtype=dtype, **fields
    )


def values_of(arguments: Arguments) -> tuple[float, float] | None:
    """The values in the files that become 0 and 1."""
    if arguments.bits is None:
        return arguments.value_range
    if arguments.value_range is not None:
        raise ValueError("--bits and --value-range say the same: give one of them")
    if not 1 <= arguments.bits <= 32:
        raise ValueError(f"--bits is 1 to 32, got {arguments.bits}")
    return 0, 2**arguments.bits - 1


def start(arguments: Arguments, model: dz.SegmentationModel, channels: int) -> Any:
    """The variables to start from, None for random ones."""
    if arguments.weights and arguments.encoder_weights:
        raise ValueError("--weights takes the encoder too: leave --encoder-weights out")
    if arguments.weights:
        return weights.start_from(model, arguments.weights, in_channels=channels)
    if arguments.encoder_weights:
        return weights.start_from(model, arguments.encoder_weights, part="encoder", in_channels=channels)
    if arguments.freeze_encoder and not arguments.resume:
        raise ValueError(
            "--freeze-encoder would keep a random encoder as it is: give it --encoder-weights or --weights"
        )
    return None


# What may change when a run goes on: more steps, with the schedule stretched to them, are a choice that one may make
# later, and the rest does not change what is trained.
FREE = (
    "steps",
    "evaluate_every",
    "eval_batch_size",
    "checkpoint_every",
    "out",
    "resume",
    "data",
    "limit_val",
    "tensorboard",
)


def options_of(arguments: Arguments) -> dict[str, Any]:
    """All options, as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(arguments), default=str))


def write_options(path: Path, arguments: Arguments) -> None:
    replace(path, lambda temporary: temporary.write_text(json.dumps(options_of(arguments), indent=2) + "\n"))


def read_options(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # which JSON's and Unicode's errors are
        raise ValueError(f"{path} does not hold the options of a run, which a resume needs: {error}") from error
    if not isinstance(options, dict) or "steps" not in options:
        raise ValueError(f"{path} does not hold the options of a run, which a resume needs")
    return options


def check_out(arguments: Arguments) -> None:
    """Makes sure that no other run is in --out, and that what is resumed is the same training of the same model."""
    out = arguments.out
    if not (out / "log.jsonl").exists() and not (out / "last").exists():
        return
    if not arguments.resume:
        raise FileExistsError(f"{out} holds a run: continue it with --resume, or choose another --out")
    if not (out / "options.json").is_file():
        raise ValueError(f"{out} holds a run of an older densezoo, which cannot go on here: choose another --out")
    options, before = options_of(arguments), read_options(out / "options.json")
    if options["steps"] != before["steps"]:
        print(f"the schedule now spans {options['steps']} steps, before {before['steps']}", file=sys.stderr)
    changed = {name: value for name, value in options.items() if name not in FREE}
    if text := differences(before, changed):
        raise ValueError(f"{out} holds a run with other options, so it would not go on exactly: {text}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name))


if __name__ == "__main__":
    command_line(main, Arguments)
