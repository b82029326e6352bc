"""Trains any model of the zoo on a folder of images and masks.

Usage: python examples/train_segmentation.py --data DIR --num-classes 2 --model unet --encoder resnet34 --out out/run

DIR has train/images, train/masks, val/images and val/masks, paired by file name. Writes checkpoints, the log, the
curves, pictures of predictions and the best model, model.safetensors, to --out; `predict.py --model` reads this file.
The last line on standard output is a JSON object with the scores of the final state on whole validation images.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import command_line, mesh_of, parse_labels, spread
from resuming import check_out, options_of_run, write_options

import densezoo as dz
from densezoo import viz, weights
from densezoo.data import ImageMaskFolder, Source, Subset
from densezoo.tasks import Segmentation
from densezoo.train import Recipe, load_variables, to_tensorboard, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Recipe):
    """Options of the script; those of the recipe come first."""

    data: Path
    """Folder with train and val, each with images and masks."""
    num_classes: int
    """Number of classes in the masks, 0 to num_classes - 1; 1 for a binary mask of 0 and 1 with a single logit."""
    model: str = "unet"
    """One of densezoo.list_models()."""
    encoder: str | None = None
    """One of densezoo.list_encoders(); by default the model's own."""
    upsample: str | None = None
    """Upsampler of the decoder, such as bilinear, transposed_conv or dysample; by default the model's own."""
    skip: str | None = None
    """Skip of a U-Net: concat, add or attention."""
    norm: str | None = None
    """Normalisation of the decoder: batch, group, layer or none; by default the model's own."""
    act: str | None = None
    """Activation of the decoder, such as relu, silu or gelu; by default the model's own."""
    attention: str | None = None
    """Attention in the blocks of a U-Net: scse or none."""
    loss: str = "cross_entropy"
    """Losses by name, with weights: cross_entropy+dice, 0.5*focal+tversky(alpha=0.3,beta=0.7), lovasz ..."""
    class_weights: tuple[float, ...] | None = None
    """A weight for each class in the loss."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    multilabel: bool = False
    """Masks have a channel for each class, and a pixel may have several labels."""
    ignore_index: int | None = 255
    """Mask value of unlabelled pixels, None if there are none."""
    labels: tuple[str, ...] | None = None
    """Map mask numbers or colours to classes: 7:0 11:1 0:255, or 0,0,0:0 128,64,128:1. By default, the numbers are the
    classes."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, for scores, pictures and predictions."""
    weights: Path | None = None
    """Trained model to start from, with any number of classes: model.safetensors of a run, or a PyTorch checkpoint."""
    encoder_weights: Path | None = None
    """File to load the encoder from: model.safetensors of a run, or a PyTorch checkpoint (.pth, .safetensors)."""
    freeze_encoder: bool = False
    """Freeze the encoder's weights and batch statistics."""
    channels: int | None = None
    """Convert images to this many channels; by default they keep those of the files."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, for images in 0..1; by default ImageNet's for three channels, else 0.5."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel; by default ImageNet's for three channels, else 0.25."""
    value_range: tuple[float, float] | None = None
    """Values in the files that are mapped to 0 and 1, such as 0 4095; by default the range of their integer type."""
    bits: int | None = None
    """Number of used bits per pixel, such as 12 in 16-bit files, which is the same as --value-range 0 4095."""
    bfloat16: bool = False
    """Compute in bfloat16 with float32 weights, for accelerators."""
    limit_val: int | None = None
    """Only validate on this many images."""
    out: Path = Path("out/segmentation")
    """Output folder for checkpoints, log, model and pictures."""
    tensorboard: bool = False
    """Also write the log for TensorBoard, to the folder tensorboard in --out."""
    mesh: tuple[str, ...] = ()
    """Devices to train on: axes (data, fsdp, rows, columns) with their numbers of devices, such as data=2 fsdp=4."""
    distributed: bool = False
    """Train together with the other processes of this Slurm, Kubernetes or TPU job, on the devices of --mesh."""
    resume: bool = False
    """Continue the run in --out exactly, from its last checkpoint. Options that are not given are those of the run."""


def main(arguments: Arguments) -> None:
    started, mesh = time.perf_counter(), mesh_of(arguments)
    # Find all errors before spending time on training.
    labels = parse_labels(arguments.labels)
    task = Segmentation(
        num_classes=arguments.num_classes,
        criterion=arguments.loss,
        class_weights=arguments.class_weights,
        label_smoothing=arguments.label_smoothing,
        multilabel=arguments.multilabel,
        ignore_index=arguments.ignore_index,
        class_names=arguments.class_names,
        labels=labels or (),
    )
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
        mesh=mesh,
        on_record=on_record,
    )

    trained = load_variables(arguments.out, "last")  # on one device
    if jax.process_index() != 0:  # The first process writes the results.
        return
    viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png")
    predict = dz.Predictor(task, model, trained, preprocessing)
    draw_predictions(predict, val_source, arguments.out / "predictions.png")

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


def draw_predictions(predict: dz.Predictor, source: Source, path: Path) -> None:
    """Draws samples that are spread evenly over the set, with several labels per pixel as a panel for each class."""
    samples = spread(source, 4)
    figure = viz.predictions(
        [sample["image"] for sample in samples],
        [sample["mask"] for sample in samples],
        [predict(sample["image"]) for sample in samples],
        class_names=predict.task.class_names or None,
        ignore_index=predict.task.ignore_index,
    )
    viz.save(figure, path)


def build(arguments: Arguments) -> dz.SegmentationModel:
    """Creates the model that the options specify."""
    given = {name: getattr(arguments, name) for name in ("upsample", "skip", "norm", "act", "attention")}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    frozen = ("encoder",) if arguments.freeze_encoder else ()
    dtype = jnp.bfloat16 if arguments.bfloat16 else None
    return dz.create_model(
        arguments.model, arguments.encoder, arguments.num_classes, frozen=frozen, dtype=dtype, **fields
    )


def values_of(arguments: Arguments) -> tuple[float, float] | None:
    """The values in the files that are mapped to 0 and 1."""
    if arguments.bits is None:
        return arguments.value_range
    if arguments.value_range is not None:
        raise ValueError("--bits and --value-range set the same option: pass only one of them")
    if not 1 <= arguments.bits <= 32:
        raise ValueError(f"--bits must be 1 to 32, got {arguments.bits}")
    return 0, 2**arguments.bits - 1


def start(arguments: Arguments, model: dz.SegmentationModel, channels: int) -> Any:
    """The variables to start from, or None for random ones."""
    if arguments.weights and arguments.encoder_weights:
        raise ValueError("--weights includes the encoder: omit --encoder-weights")
    if arguments.weights:
        return weights.start_from(model, arguments.weights, in_channels=channels)
    if arguments.encoder_weights:
        return weights.start_from(model, arguments.encoder_weights, part="encoder", in_channels=channels)
    if arguments.freeze_encoder and not arguments.resume:
        raise ValueError("--freeze-encoder would freeze a random encoder: also pass --encoder-weights or --weights")
    return None


if __name__ == "__main__":
    command_line(main, Arguments, options_of_run)
