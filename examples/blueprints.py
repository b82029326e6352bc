"""Prints the summaries of the zoo's families and draws their architectures side by side.

    python examples/blueprints.py --models unet fpn segnet --out out/blueprints

The models are traced, not computed, which takes about a second per model on a CPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

from common import command_line
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import viz

QUICK: dict[str, Any] = {"models": ("unet", "fpn", "segnet"), "encoder": "plain", "image_size": 64}


@dataclasses.dataclass
class Arguments:
    """Prints the summaries of the zoo's families and draws their architectures side by side."""

    out: Path = Path("out/blueprints")
    """Folder for the picture."""
    models: tuple[str, ...] = tuple(blueprint.name for blueprint in dz.blueprints())
    """Names of families."""
    encoder: str | None = None
    """Name of an encoder for all of them; by default each family's own."""
    num_classes: int = 21
    """Channels of the logits."""
    image_size: int = 256
    """Side of the input image in pixels."""
    per_line: int = 3
    """Number of models per row of the picture."""
    quick: bool = False
    """Three families on a small encoder and image; replaces --models, --encoder and --image-size."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    known = {blueprint.name: blueprint for blueprint in dz.blueprints()}
    models = {}
    for name in arguments.models:
        # Some families have no encoder. An unknown name is create_model's error.
        usual = known[name].encoder if name in known else None
        encoder = (arguments.encoder or usual) if usual else None
        models[f"{name} · {encoder}" if encoder else name] = dz.create_model(name, encoder, arguments.num_classes)
    size = (arguments.image_size, arguments.image_size)
    figure = viz.diagram(models, image_size=size, per_line=arguments.per_line)

    table = Table("name", "what it is", "skip strategy", "excels at", show_lines=True)
    table.add_column("paper", overflow="fold")  # Addresses in full.
    for name in dict.fromkeys(arguments.models):
        blueprint = known[name]
        table.add_row(name, blueprint.description, blueprint.skip_strategy, blueprint.excels_at, blueprint.paper)
    Console().print(table)
    print(f"wrote {viz.save(figure, arguments.out / 'architectures.png', dpi=160)}")


if __name__ == "__main__":
    command_line(main, Arguments)
