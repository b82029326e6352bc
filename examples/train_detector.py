"""Trains any detector of the zoo on a folder of pictures with objects.

Usage: python examples/train_detector.py --data DIR --model mask_rcnn --encoder resnet18 --num-classes 2 --out out/run

DIR/train and DIR/val each have images/ and either instances/, maps with the number of the object at every pixel, or
annotations.json in COCO's format; for --model panoptic_fpn, panoptic/ and panoptic.json in COCO's panoptic format.
Without --data, the script trains on scenes of handwritten digits. It writes
checkpoints, the log, the curves, pictures of detections and the best model, model.safetensors, to --out;
`detect.py --model` reads it.
The last line on standard output is a JSON object with the average precision of the final state on whole validation
pictures.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, mesh_of, spread
from resuming import check_out, options_of_run, write_options

import densezoo as dz
from densezoo import viz, weights
from densezoo.data import CocoDetection, CocoPanoptic, DigitScenes, InstanceFolder, ScaleJitter, Subset
from densezoo.messages import as_flags
from densezoo.tasks import Detection, PanopticSegmentation
from densezoo.train import Recipe, load_variables, to_tensorboard, train


@dataclasses.dataclass(frozen=True)
class Arguments(Recipe):
    """Options of the script; those of the recipe come first."""

    data: Path | None = None
    """Folder with train and val; by default scenes of digits."""
    num_classes: int | None = None
    """Number of classes including the background, which is class 0; by default that of the data."""
    model: str = "mask_rcnn"
    """One of densezoo.list_models(task="detection")."""
    encoder: str | None = None
    """One of densezoo.list_encoders(); by default the model's own."""
    masks: bool | None = None
    """True or False: whether to train masks too. If not given, they are trained if the model and the data have them."""
    shortest: int | None = None
    """Resize the shortest side of pictures to this length."""
    longest: int | None = None
    """Upper limit for the longest side after resizing."""
    scale_jitter: tuple[float, float] | None = None
    """Large-scale jitter: fit training pictures into the crop times a random factor of this range, such as 0.1 2.0."""
    weights: Path | None = None
    """Trained detector to start from: model.safetensors of a run, or a PyTorch checkpoint."""
    encoder_weights: Path | None = None
    """File to load the encoder from: model.safetensors of a run, or a PyTorch checkpoint (.pth, .safetensors)."""
    freeze_encoder: bool = False
    """Freeze the encoder's weights and batch statistics."""
    trainable_layers: int | None = None
    """Train only the last so many stages of the encoder; a ResNet has 5, with the stem. If not given, 3 with
    --encoder-weights or --weights, as in torchvision, and otherwise all."""
    frozen_norms: bool | None = None
    """True or False: whether statistics, scales and biases of the encoder's batch norms stay constant. If not given,
    they do with --encoder-weights or --weights, as in torchvision, but not in its second versions (_v2)."""
    stuff_area: int | None = None
    """For panoptic_fpn: leave out stuff with fewer pixels; 4096 if not given, and 200 for scenes of digits."""
    bfloat16: bool = False
    """Compute in bfloat16 with float32 weights, for accelerators."""
    limit_val: int | None = None
    """Only validate on this many pictures."""
    out: Path = Path("out/detection")
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
    sources = [source_of(arguments, part) for part in ("train", "val")]
    train_source, val_source = sources
    names = ("background", *names_of(train_source))
    if arguments.num_classes not in (None, len(names)):
        raise ValueError(
            f"--num-classes {arguments.num_classes}: the data have {len(names)} classes with the background:"
            f" {', '.join(names)}"
        )
    if names_of(val_source) != names[1:]:
        raise ValueError(f"the classes of train, {names[1:]}, are not those of val, {names_of(val_source)}")
    panoptic = arguments.model == "panoptic_fpn"
    stuff, stuff_names = stuff_of(train_source) if panoptic else ((), ())
    if panoptic and stuff_of(val_source) != (stuff, stuff_names):
        raise ValueError(f"the stuff classes of train, {stuff_names}, are not those of val")
    options: dict[str, Any] = {"stuff_classes": len(stuff), "stuff_area": stuff_area(arguments)} if panoptic else {}
    model = dz.create_model(
        arguments.model,
        encoder_of(arguments),
        len(names),
        frozen=("encoder",) if arguments.freeze_encoder else (),
        trainable_layers=trainable_layers(arguments),
        dtype=jnp.bfloat16 if arguments.bfloat16 else None,
        **options,
    )
    if panoptic and arguments.masks is False:
        raise ValueError("panoptic_fpn needs masks: omit --masks False")
    if not panoptic and arguments.stuff_area is not None:
        raise ValueError(f"--stuff-area is for panoptic_fpn, not {arguments.model}: omit it")
    if arguments.masks and not has_masks(model):
        raise ValueError(f"{arguments.model} has no masks: omit --masks")
    task: Detection | PanopticSegmentation
    if panoptic:
        task = PanopticSegmentation(len(names), class_names=names, stuff=stuff, stuff_names=stuff_names)
    else:
        masks = has_masks(model) and "instances" in train_source[0] if arguments.masks is None else arguments.masks
        task = Detection(len(names), masks=masks, class_names=names, first_label=1)
    check_out(arguments)
    on_record = to_tensorboard(arguments.out / "tensorboard") if arguments.tensorboard else None
    variables = start(arguments, model)
    for source in sources:
        if isinstance(source, CocoDetection | CocoPanoptic):
            source.check()
    write_options(arguments.out / "options.json", arguments)
    preprocessing = dz.Preprocessing(shortest=arguments.shortest, longest=arguments.longest)
    if arguments.limit_val is not None:
        val_source = Subset(val_source, range(min(arguments.limit_val, len(val_source))))

    state, history = train(
        task,
        model,
        train_source,
        val_source,
        arguments,
        preprocessing=preprocessing,
        variables=variables,
        resize=jitter_of(arguments),
        on_record=on_record,
        directory=arguments.out,
        resume=arguments.resume,
        mesh=mesh,
    )

    trained = load_variables(arguments.out, "last")  # on one device
    if jax.process_index() != 0:  # The first process writes the results.
        return
    viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png")
    predict = dz.Predictor(task, model, trained, preprocessing)
    samples = spread(val_source, 4)
    images = [sample["image"] for sample in samples]
    found = [predict(image) for image in images]
    if isinstance(task, PanopticSegmentation):
        viz.save(viz.panoptic(images, found, class_names=task.segment_names), arguments.out / "panoptic.png")
        found = [each.detections for each in found]
    figure = viz.detections(
        images,
        found,
        class_names=names,
        truths=[(sample["boxes"], np.where(sample["labels"] < 0, -1, sample["labels"] + 1)) for sample in samples],
    )
    viz.save(figure, arguments.out / "detections.png")

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    result: dict[str, Any] = {"model": arguments.model, "encoder": arguments.encoder}
    shown = [name for name in scores if name in RESULTS or name.removeprefix("mask_") in CLASSLESS]
    result |= {name: scores[name] for name in shown}  # None for a score that is undefined
    result |= {"steps": int(state.step), "seconds": round(time.perf_counter() - started, 1), "out": str(arguments.out)}
    print(json.dumps(result))


CLASSLESS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RESULTS = (*(f"box_{name}" for name in CLASSLESS), "pq", "sq", "rq", "pq_things", "pq_stuff")


def source_of(arguments: Arguments, part: str) -> Any:
    """Reads train or val of the data."""
    if arguments.data is None:
        split: Any = part
        return DigitScenes(2000 if part == "train" else 100, size=(128, 128), scales=(1.5, 5.0), split=split)
    if arguments.model == "panoptic_fpn":
        return CocoPanoptic(arguments.data / part)
    return source_at(arguments.data / part, arguments.masks)


def stuff_of(source: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers of the stuff classes in the masks of a source, and their names."""
    return ((0,), ("photograph",)) if isinstance(source, DigitScenes) else (source.stuff, source.stuff_names)


def stuff_area(arguments: Arguments) -> int:
    """The fewest pixels of stuff."""
    if arguments.stuff_area is not None:
        return arguments.stuff_area
    return 200 if arguments.data is None else 4096


def trainable_layers(arguments: Arguments) -> int | None:
    """The number of the encoder's stages to train, None for all; torchvision's 3 for its encoders with weights."""
    if arguments.freeze_encoder and arguments.trainable_layers is not None:
        raise ValueError("--freeze-encoder trains no stage of the encoder: leave --trainable-layers out")
    if arguments.freeze_encoder or arguments.trainable_layers is not None:
        return arguments.trainable_layers
    return 3 if starts_as_torchvision(arguments) else None


def starts_as_torchvision(arguments: Arguments) -> bool:
    """Whether the encoder is one of torchvision's detectors and starts with weights."""
    of_torchvision = arguments.encoder is None or arguments.encoder.startswith(("res", "wide_res", "mobilenet"))
    return of_torchvision and bool(arguments.encoder_weights or arguments.weights)


def encoder_of(arguments: Arguments) -> Any:
    """The encoder: its name, or with frozen norms a module."""
    as_torchvision = starts_as_torchvision(arguments) and not arguments.model.endswith("_v2")
    if not (as_torchvision if arguments.frozen_norms is None else arguments.frozen_norms):
        return arguments.encoder
    name = arguments.encoder or next(b.encoder for b in dz.blueprints() if b.name == arguments.model)
    dtype = jnp.bfloat16 if arguments.bfloat16 else None
    return dz.create_encoder(name, norm=dz.FrozenBatchNorm, dtype=dtype)


def source_at(root: Path, masks: bool | None) -> Any:
    """The pictures of a folder. With masks=None, it includes masks if the folder has them."""
    if (root / "annotations.json").is_file():
        try:
            return CocoDetection(root, masks=masks is not False)
        except ValueError as error:
            if masks is None and "pass masks=False" in str(error):
                return CocoDetection(root, masks=False)
            raise
    if (root / "instances").is_dir():
        return InstanceFolder(root)
    if (root / "panoptic.json").is_file():
        return CocoPanoptic(root)
    raise FileNotFoundError(
        f"{root} has neither annotations.json nor panoptic.json, in COCO's formats, nor instances/, maps of the numbers"
        " of objects"
    )


def jitter_of(arguments: Arguments) -> ScaleJitter | None:
    """The random sizes of training pictures, or None."""
    if arguments.scale_jitter is None:
        return None
    with as_flags({"size": "--crop-size", "scales": "--scale-jitter"}):
        return ScaleJitter(arguments.crop, arguments.scale_jitter)


def names_of(source: Any) -> tuple[str, ...]:
    """Class names of a source's objects."""
    return tuple("0123456789") if isinstance(source, DigitScenes) else source.class_names


def has_masks(model: Any) -> bool:
    """Whether a detector predicts masks."""
    return getattr(model, "mask_head", None) is not None


def start(arguments: Arguments, model: Any) -> Any:
    """The variables to start from, or None for random ones."""
    if arguments.weights and arguments.encoder_weights:
        raise ValueError("--weights includes the encoder: omit --encoder-weights")
    if arguments.weights:
        return weights.start_from(model, arguments.weights)
    if arguments.encoder_weights:
        return weights.start_from(model, arguments.encoder_weights, part="encoder")
    if model.frozen and not arguments.resume:
        option = "--freeze-encoder" if arguments.freeze_encoder else "--trainable-layers"
        raise ValueError(f"{option} would freeze a random encoder: also pass --encoder-weights or --weights")
    return None


if __name__ == "__main__":
    command_line(main, Arguments, options_of_run)
