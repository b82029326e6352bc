"""Receptive fields: which pixels can a layer see, and which does it use?

Usage: python examples/receptive_field.py --encoder resnet34 --out out/receptive_field

Prints the theoretical receptive field of each map of an encoder (from its strides, kernels and dilations) beside the
effective one: the side of the smallest centred square that holds 95 % of the gradient of the map's middle. Draws both
over a picture. The weights are random, unless --weights names a trained model. --model adds the decoder and its output.
The last line on standard output is a JSON object with all numbers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import PREPROCESSING, command_line, digit_scenes, keep_compiled
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import viz
from densezoo.data import to_float
from densezoo.inspect import effective_receptive_field, receptive_fields
from densezoo.inspect.receptive import NOTE, extent
from densezoo.viz.receptive import layer_name


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    encoder: str = "resnet34"
    """An encoder of `dz.list_encoders()`."""
    model: str | None = None
    """A segmentation model of `dz.list_models()` over the encoder, whose output is drawn too."""
    weights: Path | None = None
    """A model file of `dz.save`, such as model.safetensors of a training run. Overrides --encoder and --model."""
    size: int = 384
    """Height and width of the pictures."""
    images: int = 4
    """Number of pictures over which gradients are averaged."""
    share: float = 0.95
    """Share of the gradient in the square of the effective receptive field."""
    out: Path = Path("out/receptive_field")
    """Output folder for the picture."""
    quick: bool = False
    """Check that the script works: small pictures and a small network."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, encoder="resnet18", size=64, images=1)
    if not 0 < arguments.share <= 1:
        raise ValueError(f"--share must be above 0 and at most 1, got {arguments.share}")
    if arguments.size < 32 or arguments.images < 1:
        raise ValueError(
            f"--size must be at least 32 and --images at least 1; got {arguments.size}, {arguments.images}"
        )
    scenes = digit_scenes(arguments.images, "val", size=arguments.size, digits=(20, 30))
    pictures = np.stack([scenes[index]["image"] for index in range(arguments.images)])
    images = PREPROCESSING.normalize()(jax.random.key(0), {"image": jnp.asarray(to_float(pictures))})["image"]
    model, variables = network(arguments, images)
    fields = receptive_fields(model, images.shape, depth=1)
    names = [layer.name for layer in fields.layers if layer.path and layer.path[-1].isdigit()]
    if not isinstance(model, dz.Encoder):
        names.append("")
    effective = [effective_receptive_field(model, variables, images, name) for name in names]
    squares = [square_of(map_, arguments.share) for map_ in effective]
    rows = [
        {
            "layer": name or "output",
            "stride": round(images.shape[1] / fields[name].shape[1]),
            "theory": fields[name].size,
            "whole": fields[name].whole,
            "effective": side,
        }
        for name, (*_, side) in zip(names, squares, strict=True)
    ]
    source = "random weights" if arguments.weights is None else f"weights of {arguments.weights}"
    shown = [fields[name] for name in names]
    count = "1 picture" if arguments.images == 1 else f"{arguments.images} pictures"
    caption = (
        f"{source}, {arguments.size}x{arguments.size} pixels; effective: side of the square around the middle that"
        f" holds {arguments.share:.0%} of the gradient, averaged over {count}. {NOTE}"
    )
    show(rows, shown, caption, arguments)
    figure = viz.receptive_fields(pictures[0], shown, effective, squares=squares)
    note = f"dashed: the square around the middle with {arguments.share:.0%} of the gradient, averaged over {count}"
    figure.suptitle(f"{source}, {arguments.size}x{arguments.size} pixels\n{figure.get_suptitle()}\n{note}", fontsize=9)
    picture = viz.save(figure, arguments.out / "receptive_field.png")
    print(json.dumps({"layers": rows, "picture": str(picture)}))


def network(arguments: Arguments, images: jax.Array) -> tuple[Any, Any]:
    """The model and its variables: those of a file, or random ones."""
    if arguments.weights is not None:
        return dz.load(arguments.weights)
    encoder = dz.create_encoder(arguments.encoder)
    model = encoder if arguments.model is None else dz.create_model(arguments.model, encoder)
    return model, jax.jit(model.init)(jax.random.key(0), images)


def square_of(field: np.ndarray, share: float) -> tuple[int, int, int]:
    """Row and column of the centre of gravity, and the side of the smallest square around it with this share."""
    row, column = (round(float(field.sum(1 - axis) @ np.arange(field.shape[axis]))) for axis in (0, 1))
    for half in range(max(field.shape)):
        window = tuple(slice(max(at - half, 0), at + half + 1) for at in (row, column))
        if field[window].sum() >= share * field.sum():
            return row, column, 2 * half + 1
    return row, column, max(field.shape)


def show(rows: list[dict[str, Any]], fields: list[Any], caption: str, arguments: Arguments) -> None:
    table = Table("layer", "stride", "receptive field", "effective", caption=caption)
    for row, field in zip(rows, fields, strict=True):
        seen = extent(field, (arguments.size, arguments.size))
        table.add_row(layer_name(field), str(row["stride"]), seen, str(row["effective"]))
    Console().print(table)


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
