"""The entry of a family: its summary, and how `create_model` builds it. Each is in the file of its decoder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A family of the zoo: its summary, and how `create_model` builds it.

    Either `decoder` and `head` make a `SegmentationModel`, or `make` a model of other parts.

    Attributes:
        name: as `create_model` takes it.
        description: what it is, in a sentence.
        skip_strategy: how the encoder's detail reaches the output.
        excels_at: what to use it for.
        paper: authors, year, address.
        encoder: name of the default encoder.
        decoder: its class; its fields are `create_model`'s further arguments.
        head: its class or a partial of it, called with the number of classes.
        make: in place of decoder and head, for a model of other parts: (encoder, num_classes, *, impl=, dtype=,
            param_dtype=) -> model. Its further keyword arguments are those of `create_model`.
        task: what its models are for, "segmentation" or "detection".
        num_classes: how many classes they have if nothing else is said.
        decoder_fields: (an `Encoder`) -> fields of the decoder that follow from it.
        encoder_fields: fields of an encoder that is given by name, such as a dilated one's `output_stride`.
        misfit: (an `Encoder`) -> why it cannot be combined with this decoder, "" if it can.
        reads: (the encoder's `reductions`) -> the numbers of the maps that the decoder uses; all by default.
    """

    name: str
    description: str
    skip_strategy: str
    excels_at: str
    paper: str
    encoder: str
    decoder: Callable[..., nn.Module] | None = None
    head: Callable[..., nn.Module] | None = None
    make: Callable[..., nn.Module] | None = None
    task: str = "segmentation"
    num_classes: int = 1
    decoder_fields: Callable[[Any], dict[str, Any]] = lambda encoder: {}
    encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    misfit: Callable[[Any], str] = lambda encoder: ""
    reads: Callable[[Sequence[int]], Sequence[int]] = lambda reductions: range(len(reductions))


MODELS: dict[str, Blueprint] = {}
"""The families by name, in the order of the README's table."""


def register(blueprint: Blueprint) -> Blueprint:
    """Adds a family to those that `create_model` knows; one of the same name is replaced.

    Raises:
        TypeError: not a `Blueprint`.
        ValueError: one that has neither `make` nor both `decoder` and `head`.

    Example:
        >>> import dataclasses
        >>> import densezoo as dz
        >>> unet = next(family for family in dz.blueprints() if family.name == "unet")
        >>> thin = dz.register(dataclasses.replace(unet, name="thin_unet", encoder="resnet18"))
        >>> dz.list_models("*unet")
        ['thin_unet', 'unet']
        >>> del dz.blueprint.MODELS["thin_unet"]
    """
    if not isinstance(blueprint, Blueprint):
        what = blueprint.__name__ if isinstance(blueprint, type) else repr(blueprint)
        raise TypeError(
            f"register takes a dz.Blueprint, got {what}: write"
            " dz.register(dz.Blueprint(name=..., decoder=..., head=..., encoder=..., ...))"
        )
    if blueprint.make is None and (blueprint.decoder is None or blueprint.head is None):
        lacking = " and ".join(part for part in ("decoder", "head") if getattr(blueprint, part) is None)
        raise ValueError(
            f"the blueprint {blueprint.name!r} lacks {lacking}: give it a decoder and a head, or a make function that"
            " returns the model"
        )
    MODELS[blueprint.name] = blueprint
    return blueprint
