"""The registry entry of a family: its summary, and how `create_model` builds it. Decoder files define the entries."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A family of the zoo: its summary, and how `create_model` builds it.

    Either `decoder` and `head` form a `SegmentationModel` or another `model`, or `make` builds one from other parts.

    Attributes:
        name: the name for `create_model`.
        description: a description in one sentence.
        skip_strategy: how the encoder's detail reaches the output.
        excels_at: what to use it for.
        paper: authors, year and address.
        encoder: name of the default encoder; empty for a family without an encoder, whose `make` gets None.
        decoder: class of the decoder. `create_model` accepts its fields as further arguments.
        head: class of the head, or a partial of it, called with the number of classes.
        make: replaces `decoder` and `head` for a model of other parts: (encoder, num_classes, *, impl=, dtype=,
            param_dtype=) -> model. `create_model` accepts its other keyword arguments.
        model: class of the model, or a partial of it, called with its encoder, decoder, head, auxiliary heads and impl.
            `create_model` accepts its other fields as further arguments. None for `SegmentationModel`.
        task: the task of its models: "segmentation", "detection", "change", "diffusion" or "autoencoding".
        num_classes: default number of classes.
        decoder_fields: (an `Encoder`) -> fields of the decoder that depend on the encoder.
        encoder_fields: fields for an encoder that is given by name, such as `output_stride` for dilation.
        misfit: (an `Encoder`) -> the reason why it does not work with this decoder, "" if it does.
        reads: (the encoder's `reductions`) -> indices of the maps that the decoder uses; all by default.
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
    model: Callable[..., nn.Module] | None = None
    task: str = "segmentation"
    num_classes: int = 1
    decoder_fields: Callable[[Any], dict[str, Any]] = lambda encoder: {}
    encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    misfit: Callable[[Any], str] = lambda encoder: ""
    reads: Callable[[Sequence[int]], Sequence[int]] = lambda reductions: range(len(reductions))


MODELS: dict[str, Blueprint] = {}
"""The families by name, in the order of the README's table."""


def register(blueprint: Blueprint) -> Blueprint:
    """Registers a family for `create_model`. Replaces a family of the same name.

    Raises:
        TypeError: if it is not a `Blueprint`.
        ValueError: if it has neither `make` nor both `decoder` and `head`.

    Example:
        >>> import dataclasses
        >>> import densezoo as dz
        >>> unet = next(family for family in dz.blueprints() if family.name == "unet")
        >>> thin = dz.register(dataclasses.replace(unet, name="thin_unet", encoder="resnet18"))
        >>> dz.list_models("thin_*")
        ['thin_unet']
        >>> _ = dz.blueprint.MODELS.pop("thin_unet", None)
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
