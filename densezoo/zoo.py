"""The registry of the zoo: maps names to constructors, and describes each family."""

import dataclasses
import fnmatch
import inspect
import operator
import warnings
from functools import partial
from typing import Any, SupportsIndex

import flax.linen as nn
import jax.numpy as jnp

from densezoo.blocks import BLOCKS
from densezoo.blueprint import MODELS, Blueprint
from densezoo.encoders import ENCODERS, Encoder
from densezoo.encoders.base import first_stages
from densezoo.heads import AuxiliaryHeads
from densezoo.lookup import check_fields, class_of, fields_of, look_up
from densezoo.messages import option
from densezoo.models import SegmentationModel
from densezoo.ops.implementation import check_implementation
from densezoo.types import Dtype, ModuleDef

UPSAMPLERS: dict[str, ModuleDef] = BLOCKS["upsample"]
"""Names of upsamplers that `create_model(upsample=...)` accepts."""

SKIPS: dict[str, ModuleDef] = BLOCKS["skip"]
"""Names of skips that `create_model(skip=...)` accepts."""


def blueprints() -> tuple[Blueprint, ...]:
    """Returns the blueprints of all families, from the registry that builds the models.

    Example:
        >>> [b.skip_strategy for b in blueprints() if b.name == "segnet"]
        ['unpools with the saved max-pooling indices']
    """
    return tuple(MODELS.values())


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Lists the names that `create_model` accepts.

    Args:
        pattern: a shell pattern that the names must match.
        task: lists only the models for this task, such as "detection". None lists all.

    Example:
        >>> list_models("deeplab*")
        ['deeplabv3', 'deeplabv3plus']
        >>> "retinanet" in list_models(task="detection"), "retinanet" in list_models(task="segmentation")
        (True, False)
    """
    return sorted(name for name in fnmatch.filter(MODELS, pattern) if task in (None, MODELS[name].task))


def list_encoders(pattern: str = "*") -> list[str]:
    """Lists the names that `create_encoder` accepts and that match a shell pattern.

    Example:
        >>> list_encoders("resnet3*")
        ['resnet34', 'resnet34d']
    """
    return sorted(fnmatch.filter(ENCODERS, pattern))


def create_encoder(name: str, **fields: Any) -> Encoder:
    """Creates an encoder by name.

    Args:
        name: one of `list_encoders()`.
        **fields: fields of the encoder's class to override, such as `norm`, `act` or `dtype`. Pass blocks as a factory
            or by name, such as `norm="group"` or `act="silu"`. `blocks.BLOCKS` lists the names.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if a field is unknown.

    Example:
        >>> create_encoder("resnet34").reductions
        (2, 4, 8, 16, 32)
    """
    constructor = look_up(name, ENCODERS, "encoder")
    check_fields(constructor, fields, f"encoder {name!r}")
    return constructor(**_by_name(fields))


def create_model(
    name: str,
    encoder: str | nn.Module | None = None,
    num_classes: int | None = None,
    *,
    decoder: str | nn.Module | None = None,
    auxiliary: int = 0,
    frozen: tuple[str, ...] = (),
    trainable_layers: int | None = None,
    remat: bool = False,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    **fields: Any,
) -> Any:
    """Creates a model of the zoo by name, from an encoder, a decoder or neck, and heads.

    The images passed to `init` determine the number of input channels.

    Args:
        name: one of `list_models()`.
        encoder: one of `list_encoders()`, an `Encoder`, or any module that returns a `Pyramid`. None selects the
            family's default. An encoder given by name gets the fields that the family needs, such as DeepLab's
            dilation. A module is used unchanged.
        num_classes: channels of the logits; 1 for a binary mask. For a detector, the number includes the background,
            as in torchvision: 3 for two kinds of objects, with `tasks.Detection(3, first_label=1)`. RetinaNet and FCOS
            have no background class, and then never learn to predict class 0; 2 with `tasks.Detection(2)` does without
            it. None means 1, or COCO's 91 for a detector.
        decoder: a decoder instead of the family's: that of another family by name, with its head, or a module, which is
            used unchanged. For models that work with any decoder, such as "siamese_unet".
        auxiliary: the number of coarser decoder scales that get their own head during training (deep supervision). See
            `SegmentationModel`.
        frozen: parts that are not trained, such as `("encoder",)` or `("encoder/conv1",)`. In your own training loop,
            `train.freeze(optimizer, model.frozen)` leaves them unchanged.
        trainable_layers: number of the encoder's last stages that are trained, like torchvision's
            `trainable_backbone_layers`: with 3, the stem and the first stage of a ResNet are frozen. None trains all.
        remat: recomputes the maps within each block in the backward pass instead of storing them, which saves memory
            and takes more time. It applies to an encoder given by name and to decoders that support it. On CPU, compile
            your own train step with `dz.compiler_options(training=True)`; otherwise XLA still stores the maps.
        impl: "auto" selects the fastest measured form of each operation, "reference" the plain form.
        dtype: dtype of the computation, such as `jnp.bfloat16`. None uses the dtypes of images and parameters.
        param_dtype: dtype of the parameters. An encoder given by name gets both dtypes too.
        **fields: fields of the decoder's class, such as `upsample`, `skip`, `norm` and `features`; for a detector, the
            arguments of its family, such as `features`, `upsample`, `norm` and `head_norm`; for a model of two images
            also `fusion`. Pass blocks as a factory or
            by name, such as `upsample="dysample"`. `blocks.BLOCKS` lists the names. These fields do not apply to the
            encoder. To change its norm too, pass `encoder=create_encoder(name, norm=...)`, with the family's
            `output_stride` if it has one.

    Raises:
        ValueError: if a name or `impl` is unknown, if the decoder does not support the encoder, or if an encoder given
            as a module has another `dtype`.
        TypeError: if a field is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("unet", encoder="resnet34", num_classes=3, upsample="bilinear")
        >>> images = jnp.zeros((1, 50, 50, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(model.apply, variables, images).shape
        (1, 50, 50, 3)
    """
    blueprint = look_up(name, MODELS, "model")
    if decoder is not None:
        blueprint = _with_decoder(blueprint, decoder)
    check_implementation(impl)
    num_classes = blueprint.num_classes if num_classes is None else num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, SupportsIndex) or operator.index(num_classes) < 1:
        raise ValueError(
            f"{option('num_classes')} must be an integer of at least 1 (1 for a binary mask), got {num_classes!r}"
        )
    num_classes = operator.index(num_classes)
    arguments = inspect.signature(create_model).parameters.keys() - {"name", "fields"}
    of_model = {field: fields.pop(field) for field in _model_fields(blueprint) if field in fields}
    more = {*arguments, *_model_fields(blueprint)}
    check_fields(blueprint.make or blueprint.decoder, fields, f"model {name!r}", more)
    fields = _by_name(fields)
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    _check_dtypes(blueprint)
    if not blueprint.encoder:
        if encoder is not None:
            raise ValueError(f"{name} has no encoder to choose: leave out encoder={encoder!r}")
    elif encoder is None or isinstance(encoder, str):
        encoder = _encoder_for(blueprint, encoder or blueprint.encoder, dtypes, remat)
    if blueprint.encoder and not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be a name or a module, such as dz.PlainEncoder(); got {encoder!r}")
    if isinstance(encoder, Encoder):
        if dtype is not None and (encoder.dtype is None or jnp.dtype(encoder.dtype) != jnp.dtype(dtype)):
            raise ValueError(f"the encoder has dtype={encoder.dtype}: create it with {dtype=}")
        if misfit := blueprint.misfit(encoder):
            raise ValueError(f"{name} does not work with this encoder: {misfit}")
        _warn_of_lost_fields(blueprint, encoder)
    if auxiliary < 0:
        raise ValueError(f"auxiliary, the number of additional heads in training, must be at least 0; got {auxiliary}")
    if auxiliary and not _has_scales(blueprint):
        raise ValueError(f"{name}'s decoder has no coarser scales to supervise: omit auxiliary")
    decoder_remat = remat and blueprint.decoder is not None and "remat" in fields_of(blueprint.decoder)
    if remat and not decoder_remat and not (isinstance(encoder, Encoder) and encoder.remat):
        raise ValueError(f"neither this encoder nor {name}'s decoder can recompute its blocks: omit remat")
    if blueprint.make is not None:
        model = blueprint.make(encoder, num_classes, impl=impl, **dtypes, **fields)
    else:
        assert encoder is not None  # a family without an encoder has `make`
        fields = {"remat": True, **fields} if decoder_remat else fields
        model = _segmentation_model(
            blueprint, encoder, num_classes, auxiliary, fields, {"impl": impl, **of_model}, dtypes
        )
    parts = [part for part, module in vars(model).items() if isinstance(module, nn.Module) and part != "auxiliary"]
    if isinstance(frozen, str) or not {name.split("/")[0] for name in frozen} <= set(parts):
        if not parts:
            raise ValueError(f"{name} has no parts that can be frozen: leave out frozen={frozen!r}")
        *others, last = parts
        raise ValueError(f"frozen must be a tuple of names among {', '.join(others)} and {last}; got {frozen!r}")
    if trainable_layers is not None:
        if encoder is None:
            raise ValueError(f"{name} has no encoder: leave out trainable_layers={trainable_layers}")
        frozen = (*frozen, *(f"encoder/{name}" for name in first_stages(encoder, trainable_layers)))
    return model.clone(frozen=tuple(frozen)) if frozen else model


def _segmentation_model(
    blueprint: Blueprint,
    encoder: nn.Module,
    num_classes: int,
    auxiliary: int,
    fields: dict[str, Any],
    of_model: dict[str, Any],
    dtypes: dict[str, Any],
) -> nn.Module:
    assert blueprint.decoder is not None and blueprint.head is not None
    following = blueprint.decoder_fields(encoder) if isinstance(encoder, Encoder) else {}
    model = blueprint.model or SegmentationModel
    return model(
        encoder=encoder,
        decoder=blueprint.decoder(**(following | fields), **dtypes),
        head=blueprint.head(num_classes, **dtypes),
        auxiliary=AuxiliaryHeads(num_classes, auxiliary, **dtypes) if auxiliary else None,
        **of_model,
    )


def _model_fields(blueprint: Blueprint) -> list[str]:
    """The fields of a family's model that `create_model` passes on: those that `SegmentationModel` lacks."""
    if blueprint.model is None:
        return []
    given = blueprint.model.keywords if isinstance(blueprint.model, partial) else {}
    return [field for field in fields_of(blueprint.model) if field not in (*fields_of(SegmentationModel), *given)]


def _with_decoder(blueprint: Blueprint, decoder: str | nn.Module) -> Blueprint:
    """A blueprint with the decoder of another one, or with a decoder that is a module."""
    if blueprint.decoder is None:
        raise TypeError(f"a {blueprint.name} has no decoder to choose: omit decoder")
    if isinstance(decoder, nn.Module):

        def given(*, dtype: Dtype | None = None, param_dtype: Dtype = jnp.float32) -> nn.Module:
            return decoder

        nothing = {"decoder_fields": lambda encoder: {}, "encoder_fields": {}, "misfit": lambda encoder: ""}
        return dataclasses.replace(blueprint, decoder=given, **nothing)
    choices = [name for name, entry in MODELS.items() if entry.decoder is not None and entry.model is None]
    if not isinstance(decoder, str):
        raise TypeError(f"decoder must be a name or a module, such as dz.UNetDecoder(); got {decoder!r}")
    other = look_up(decoder, {name: MODELS[name] for name in choices}, "decoder")
    parts = ("decoder", "head", "decoder_fields", "encoder_fields", "misfit", "reads")
    return dataclasses.replace(blueprint, **{part: getattr(other, part) for part in parts})


def _has_scales(blueprint: Blueprint) -> bool:
    """Whether a family's decoder can also return its coarser maps."""
    decoder = blueprint.decoder
    return decoder is not None and "all_scales" in inspect.signature(decoder.__call__).parameters


def _encoder_for(blueprint: Blueprint, name: str, dtypes: dict[str, Any], remat: bool) -> Encoder:
    constructor = look_up(name, ENCODERS, "encoder")
    fields = dict(blueprint.encoder_fields)
    if remat and "remat" in fields_of(constructor):
        fields["remat"] = True
    for field, value in fields.items():
        if field not in fields_of(constructor):
            able = [other for other, constructor in ENCODERS.items() if field in fields_of(constructor)]
            raise ValueError(
                f"{blueprint.name} needs an encoder with {field}={value}, which {name} does not support. Encoders that"
                f" do: {', '.join(able)}"
            )
    return create_encoder(name, **fields, **dtypes)


def _check_dtypes(blueprint: Blueprint) -> None:
    """Checks that the decoder and head of a family have the fields that every part of a model needs."""
    for part, constructor in (("decoder", blueprint.decoder), ("head", blueprint.head)):
        if constructor is None:  # the family has `make` instead
            continue
        known = inspect.signature(constructor).parameters
        if lacking := [field for field in ("dtype", "param_dtype") if field not in known]:
            raise TypeError(
                f"{class_of(constructor).__name__}, the {part} of {blueprint.name}, lacks {' and '.join(lacking)}: a"
                f" {part} must be a Flax module with the fields `dtype: Any = None` (of the computation) and"
                " `param_dtype: Any = jnp.float32` (of the parameters)"
            )


def _warn_of_lost_fields(blueprint: Blueprint, encoder: Encoder) -> None:
    """Warns when an encoder instance lacks the family's defaults, which an encoder given by name gets."""
    defaults = {field.name: field.default for field in dataclasses.fields(encoder)}
    for field, value in blueprint.encoder_fields.items():
        # A non-default value is deliberate.
        given = getattr(encoder, field) if field in defaults else value
        if given != value and given == defaults[field]:
            warnings.warn(
                f"{blueprint.name} is designed for an encoder with {field}={value}, and this one has {given}: pass"
                f" {field}={value} when you create it",
                stacklevel=3,
            )


def _by_name(fields: dict[str, Any]) -> dict[str, Any]:
    """Replaces the names of blocks in the fields by the blocks."""
    found = {}
    for field, value in fields.items():
        kind = field.rpartition("_")[2]  # `attention_upsample` takes an upsampler
        found[field] = look_up(value, BLOCKS[kind], field) if isinstance(value, str) and kind in BLOCKS else value
    return found
