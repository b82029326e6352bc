"""Counts the collectives of every family under data parallelism on two devices.

Usage: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 python -m benchmarks.sharding [--models unet "unet, ResNeXt"] [--report]

Each model is tiny, and compiled for two devices that share the batch and have all parameters: inference, and a train
step. In training, devices add up the gradients of the parameters, the sums of batch norms, the loss and the numbers of
objects that it is divided by, and nothing else may move. Inference of a detector is `dz.detect`, and of a panoptic
model its `panoptic`, with pictures of different sizes. Each finished model is a line of --out and not compiled again.
`--report` writes the table of --docs from --out.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import densezoo as dz
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from densezoo.tasks import Detection, Segmentation

IMAGES = (22, 64, 64, 3)
"""11 for each device: arrays with a batch axis have a multiple of 11 numbers, and parameters here do not."""
KINDS = {"Auto": AxisType.Auto, "Explicit": AxisType.Explicit}

COLLECTIVE = re.compile(
    r"= (?P<results>.+?) (?P<kind>all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast"
    r"|reduce-scatter|ragged-all-to-all)(-start)?\("
)

_plain = dz.PlainEncoder((4, 8, 8))
_unet = partial(dz.create_model, "unet")
_mit = dz.MixTransformer((1, 1, 1, 1), (8, 8, 16, 16), (1, 2, 2, 2), (2, 2, 1, 1))
_vit = dz.ViT(embed_dim=16, depth=4, num_heads=2, grid=2)
_resnet = dz.ResNet((1, 1), dz.BasicBlock, width=8, coarsest=8)
_hrnet = dz.HRNet(width=4, layer1_size=1, layer1_features=8, depths=(1, 1), branch_size=1, incre=False)

# What a family needs instead of the plain encoder, with fewer channels if it has many.
_FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpt": (_vit, {"features": 8, "intermediate_features": (8, 8, 8, 8)}),
    "hrnet": (_hrnet, {}),
    "segformer": (_mit, {"features": 8}),
    "fpn": (_plain, {"features": 8}),
    "upernet": (_plain, {"features": 8}),
    "deeplabv3": (_plain, {"features": 8}),
    "deeplabv3plus": (_plain, {"features": 8}),
}
_ENCODERS: dict[str, Any] = {
    "ResNeXt": dz.ResNet((1, 1), partial(dz.Bottleneck, groups=4, group_width=16), width=16, coarsest=8),
    "SE-ResNet": dz.ResNet((1, 1), dz.BasicBlock, width=8, squeeze_excite=True, coarsest=8),
    "DenseNet": dz.DenseNet((1, 1), width=8, growth=8, coarsest=8),
    "VGG": dz.VGG((1, 1, 1), (4, 8, 8), coarsest=8),
    "EfficientNet": dz.EfficientNet(width=0.25, depth=0.1, coarsest=8),
    "MobileNetV3": dz.MobileNetV3(coarsest=4),
    "ConvNeXt": dz.ConvNeXt((1, 1), (8, 8), coarsest=8),
    "Swin": dz.Swin((2, 2), 8, (1, 2), window_size=2, coarsest=8),
}
_UPSAMPLERS = (dz.Bilinear, dz.Bicubic, dz.TransposedConv, dz.ResizeConv, dz.PixelShuffle, dz.CARAFE, dz.DySample)


def _detector(name: str) -> Any:
    two_stages: dict[str, Any] = {"hidden": (16,)} if "rcnn" in name or "panoptic" in name else {}
    two_stages |= {"semantic_features": 8} if "panoptic" in name else {}
    return dz.create_model(name, _resnet, 3, features=8, **two_stages)


def _family(name: str) -> Any:
    encoder, fields = _FAMILIES.get(name, (_plain, {}))
    return dz.create_model(name, encoder, **fields)


CASES: dict[str, Callable[[], Any]] = {
    **{name: partial(_family, name) for name in dz.list_models(task="segmentation")},
    **{f"unet, {name}": partial(_unet, encoder) for name, encoder in _ENCODERS.items()},
    **{f"unet, {upsample.__name__}": partial(_unet, _plain, upsample=upsample) for upsample in _UPSAMPLERS},
    "unet, GroupNorm": partial(_unet, _plain, norm=partial(dz.GroupNorm, num_groups=2)),
    **{name: partial(_detector, name) for name in dz.list_models(task="detection")},
}
"""Functions that build the models, by name: every family, every kind of encoder, every upsampler."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Counts collectives."""

    models: tuple[str, ...] = tuple(CASES)
    """Names of cases."""
    out: Path = Path("benchmarks/results/sharding.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/zoo.md")
    """The document that contains the table."""
    report: bool = False
    """Only write the document's table, without compiling."""


def main(arguments: Arguments) -> int:
    """Counts or reports; returns the exit code, 1 if image data is moved."""
    rows = read_lines(arguments.out)
    if arguments.report:
        insert(arguments.docs, {"sharding": table(rows)})
        return 0
    if unknown := [name for name in arguments.models if name not in CASES]:
        raise ValueError(f"unknown models {unknown}; expected some of {', '.join(CASES)}")
    if jax.device_count() < 2:
        raise ValueError("expected two devices: on a CPU, start with JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["model"] for row in rows}
    for name in arguments.models:
        if name in done:
            continue
        row = {"model": name} | count(CASES[name]()) | {"jax": jax.__version__}
        rows.append(row)
        append_line(arguments.out, row)
    return int(any(row[job][kind]["moved"] for row in rows for job, kind in _columns(row)))


def _columns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(job, kind) for job in ("inference", "train_step") for kind in KINDS if kind in row.get(job, {})]


def count(model: Any, kinds: tuple[str, ...] = tuple(KINDS), *, train: bool = True) -> dict[str, Any]:
    """The collectives for each job and kind of mesh: those that move image data, and how many numbers are all-reduced.

    Without `train`, only inference.
    """
    images = jax.ShapeDtypeStruct(IMAGES, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    result: dict[str, Any] = {"parameters": sum(x.size for x in jax.tree.leaves(variables["params"]))}
    result |= {"inference": {}} | ({"train_step": {}} if train else {})
    for kind in kinds:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(KINDS[kind],), devices=jax.devices()[:2])
        shared = partial(_placed, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = partial(_placed, NamedSharding(mesh, PartitionSpec()))
        batch, task, infer = _job(model, images)
        program = jax.jit(infer).lower(everywhere(variables), shared(batch)).compile().as_text()
        result["inference"][kind] = summed_up(program or "")
        if not train:
            continue
        state = jax.eval_shape(
            lambda key: dz.train.create_state(model, optax.sgd(0.1), key, jnp.zeros(IMAGES)), jax.random.key(0)
        )
        step = dz.train.make_train_step(task.loss)
        program = step.lower(everywhere(state), shared(batch)).compile().as_text()  # pyright: ignore
        result["train_step"][kind] = summed_up(program or "")
    return result


def _job(model: Any, images: jax.ShapeDtypeStruct) -> tuple[dict[str, Any], Any, Callable[..., Any]]:
    """A batch for the model, its task, and its inference: `infer(variables, batch)`."""
    count, *size, _ = images.shape
    if not hasattr(model, "detect"):
        batch = {"image": images, "mask": jax.ShapeDtypeStruct((count, *size), jnp.int32)}
        infer = lambda variables, batch: model.apply(variables, batch["image"])  # noqa: E731
        return batch, Segmentation(1, ignore_index=None), infer
    shapes = {"labels": (count, 3), "size": (count, 2), "instances": (count, *size)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    batch |= {"image": images, "boxes": jax.ShapeDtypeStruct((count, 3, 4), jnp.float32)}
    method = "panoptic" if hasattr(model, "panoptic") else "detect"
    infer = lambda variables, batch: model.apply(variables, batch["image"], batch["size"], method=method)  # noqa: E731
    return batch, Detection(3, masks=getattr(model, "mask_head", None) is not None), infer


def _placed(sharding: NamedSharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def summed_up(program: str) -> dict[str, Any]:
    """Finds the collectives in a compiled program that move image data, and counts the numbers that others reduce.

    Example:
        >>> summed_up("%a = f32[3,4]{1,0} all-reduce(%b)")
        {'moved': [], 'added': 12}
        >>> summed_up("%a = (f32[8]{0}, f32[11,4]{1,0}) all-reduce(%b, %c)")
        {'moved': ['all-reduce f32[11,4]'], 'added': 8}
        >>> summed_up("%a = f32[8]{0} all-gather(%b)")
        {'moved': ['all-gather f32[8]'], 'added': 0}
    """
    moved, added = [], 0
    for found in COLLECTIVE.finditer(program):
        for array in re.findall(r"\w+\[[\d,]*\]", found["results"]):
            size = int(np.prod([int(side) for side in re.findall(r"\d+", array[array.index("[") :])]))
            if found["kind"] == "all-reduce" and size % (IMAGES[0] // 2):
                added += size
            else:
                moved.append(f"{found['kind']} {array}")
    return {"moved": moved, "added": added}


def table(rows: list[dict[str, Any]]) -> str:
    """The document's table: collectives that move image data, and numbers that a train step reduces."""
    header = ["model", *(f"{job}, {kind}" for job in ("inference", "train step") for kind in KINDS)]
    lines = []
    for row in rows:
        counts = [str(len(row[job][kind]["moved"])) for job, kind in _columns(row)]
        lines.append((row["model"], *counts, str(row["train_step"]["Auto"]["added"]), str(row["parameters"])))
    return markdown_table((*header, "numbers added up", "parameters"), lines)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
