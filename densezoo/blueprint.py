"""The entry of a family: its summary, and how `create_model` builds it. Each is in the file of its decoder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A family of the zoo: its summary, and how `create_model` builds it.

    Attributes:
        name: as `create_model` takes it.
        description: what it is, in a sentence.
        skip_strategy: how the encoder's detail reaches the output.
        excels_at: what to use it for.
        paper: authors, year, address.
        decoder: its class; its fields are `create_model`'s further arguments.
        encoder: name of the default encoder.
        head: its class or a partial of it, called with the number of classes.
        decoder_fields: (an `Encoder`) -> fields of the decoder that follow from it.
        encoder_fields: fields of an encoder that is given by name, such as a dilated one's `output_stride`.
        misfit: (an `Encoder`) -> why it cannot be combined with this decoder, "" if it can.
        reads: (the encoder's `reductions`) -> the numbers of the maps that the decoder uses; all by default.
        build: (encoder=, decoder=, head=, auxiliary=, frozen=, impl=) -> model; None is `SegmentationModel`.
    """

    name: str
    description: str
    skip_strategy: str
    excels_at: str
    paper: str
    decoder: Callable[..., nn.Module]
    encoder: str
    head: Callable[..., nn.Module]
    decoder_fields: Callable[[Any], dict[str, Any]] = lambda encoder: {}
    encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    misfit: Callable[[Any], str] = lambda encoder: ""
    reads: Callable[[Sequence[int]], Sequence[int]] = lambda reductions: range(len(reductions))
    build: Callable[..., Any] | None = None


MODELS: dict[str, Blueprint] = {}
"""The families by name, in the order of the README's table."""


def register(blueprint: Blueprint) -> Blueprint:
    """Adds a family to those that `create_model` knows; one of the same name is replaced.

    Example:
        >>> import dataclasses
        >>> import densezoo as dz
        >>> unet = next(family for family in dz.blueprints() if family.name == "unet")
        >>> thin = dz.register(dataclasses.replace(unet, name="thin_unet", encoder="resnet18"))
        >>> dz.list_models("*unet")
        ['thin_unet', 'unet']
        >>> del dz.blueprint.MODELS["thin_unet"]
    """
    MODELS[blueprint.name] = blueprint
    return blueprint
