"""The zoo's registry: names -> constructors, and for each family what it is and what it is good at."""

import dataclasses
import difflib
import fnmatch
import inspect
import operator
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, SupportsIndex, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from densezoo.blocks import BLOCKS
from densezoo.blueprint import MODELS, Blueprint
from densezoo.deprecation import new_names
from densezoo.encoders import ENCODERS, Encoder
from densezoo.heads import AuxiliaryHeads
from densezoo.models import SegmentationModel
from densezoo.ops.implementation import check_implementation
from densezoo.types import Dtype, ModuleDef

T = TypeVar("T")

UPSAMPLERS: dict[str, ModuleDef] = BLOCKS["upsample"]
"""Names of upsamplers, which `upsample=` of `create_model` takes."""

SKIPS: dict[str, ModuleDef] = BLOCKS["skip"]
"""Names of skips, which `skip=` of `create_model` takes."""


def blueprints() -> tuple[Blueprint, ...]:
    """The families of the zoo with their summaries, from the registry that builds the models.

    Example:
        >>> [b.skip_strategy for b in blueprints() if b.name == "segnet"]
        ['unpools with the saved max-pooling indices']
    """
    return tuple(MODELS.values())


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Names that `create_model` takes, those that match a shell pattern, for one task or for all.

    Example:
        >>> list_models("deeplab*")
        ['deeplabv3', 'deeplabv3plus']
        >>> "retinanet" in list_models(task="detection"), "retinanet" in list_models(task="segmentation")
        (True, False)
    """
    return sorted(name for name in fnmatch.filter(MODELS, pattern) if task in (None, MODELS[name].task))


def list_encoders(pattern: str = "*") -> list[str]:
    """Names that `create_encoder` takes, those that match a shell pattern.

    Example:
        >>> list_encoders("resnet3*")
        ['resnet34', 'resnet34d']
    """
    return sorted(fnmatch.filter(ENCODERS, pattern))


def create_encoder(name: str, **fields: Any) -> Encoder:
    """An encoder by its name, with any of its fields changed.

    Args:
        name: one of `list_encoders()`.
        **fields: fields of the encoder's class, such as `norm`, `act`, `dtype`. Blocks are given as a factory or by
            name, such as `norm="group"` or `act="silu"`; `blocks.BLOCKS` lists the names.

    Raises:
        ValueError: an unknown name.
        TypeError: an unknown field.

    Example:
        >>> create_encoder("resnet34").reductions
        (2, 4, 8, 16, 32)
    """
    constructor = look_up(name, ENCODERS, "encoder")
    _check_fields(constructor, fields, f"encoder {name!r}")
    return constructor(**_by_name(fields))


def create_model(
    name: str,
    encoder: str | nn.Module | None = None,
    num_classes: int | None = None,
    *,
    auxiliary: int = 0,
    frozen: tuple[str, ...] = (),
    remat: bool = False,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    **fields: Any,
) -> Any:
    """A model of the zoo by its name: encoder, decoder or neck, and heads, put together.

    The number of input channels is that of the first images it sees.

    Args:
        name: one of `list_models()`.
        encoder: one of `list_encoders()`, or an encoder; None takes the family's default. One given by name is made
          as the family needs it, such as with DeepLab's dilation; one given as a module is used as it is: an `Encoder`,
          or any module that returns a `Pyramid`.
        num_classes: channels of the logits; 1 for a binary mask. For a detector as many as torchvision counts, with
          the background. None is 1, or COCO's 91 for a detector.
        auxiliary: how many of the decoder's coarser scales get a head of their own in training (deep supervision); see
          `SegmentationModel`.
        frozen: parts that do not train, such as `("encoder",)`.
        remat: recomputes the maps within each block in the backward pass instead of keeping them: less memory, more
          time. It reaches an encoder given by name and the decoders that have it. A train step of one's own takes
          `dz.compiler_options(training=True)`: without it XLA keeps the maps on a CPU all the same.
        impl: "auto" computes with the fastest form of each operation that was measured, "reference" with the plain one.
        dtype: of the computation, such as `jnp.bfloat16`; None computes in the type of images and parameters.
        param_dtype: of the parameters. Both are passed to the encoder too, if it is given by name.
        **fields: fields of the decoder's class, such as `upsample`, `skip`, `norm`, `features`, and for a detector the
            arguments of its family, such as `features`, `upsample`, `norm` and `head_norm`. Blocks are given as a
            factory or by name, such as `upsample="dysample"`; `blocks.BLOCKS` lists the names. They do not reach the
            encoder: for another norm there too, pass `encoder=create_encoder(name, norm=...)`, with the
            `output_stride` that the family has if it has one.

    Raises:
        ValueError: an unknown name or `impl`, an encoder that this decoder cannot take, or a `dtype` that an encoder
          given as a module does not have.
        TypeError: an unknown field.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("unet", encoder="resnet34", num_classes=3, upsample="bilinear")
        >>> images = jnp.zeros((1, 50, 50, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(model.apply, variables, images).shape
        (1, 50, 50, 3)
    """
    blueprint = look_up(name, MODELS, "model")
    check_implementation(impl)
    num_classes = blueprint.num_classes if num_classes is None else num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, SupportsIndex) or operator.index(num_classes) < 1:
        raise ValueError(f"num_classes is a whole number of at least 1 (1 for a binary mask), got {num_classes!r}")
    num_classes = operator.index(num_classes)
    arguments = inspect.signature(create_model).parameters.keys() - {"name", "fields"}
    _check_fields(blueprint.make or blueprint.decoder, fields, f"model {name!r}", arguments)
    fields = _by_name(fields)
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    _check_dtypes(blueprint)
    if encoder is None or isinstance(encoder, str):
        encoder = _encoder_for(blueprint, encoder or blueprint.encoder, dtypes, remat)
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder is a name or an encoder, such as dz.PlainEncoder(); got {encoder!r}")
    if isinstance(encoder, Encoder):
        if dtype is not None and (encoder.dtype is None or jnp.dtype(encoder.dtype) != jnp.dtype(dtype)):
            raise ValueError(f"the encoder given computes in dtype={encoder.dtype}: make it with {dtype=}")
        if misfit := blueprint.misfit(encoder):
            raise ValueError(f"{name} does not go with this encoder: {misfit}")
        _warn_of_lost_fields(blueprint, encoder)
    if auxiliary < 0:
        raise ValueError(f"auxiliary is how many more heads there are in training, 0 for none; got {auxiliary}")
    if auxiliary and not _has_scales(blueprint):
        raise ValueError(f"{name}'s decoder has no coarser scales to supervise: leave auxiliary out")
    decoder_remat = remat and blueprint.decoder is not None and "remat" in _fields(blueprint.decoder)
    if remat and not decoder_remat and not (isinstance(encoder, Encoder) and encoder.remat):
        raise ValueError(f"neither this encoder nor {name}'s decoder can recompute its blocks: leave remat out")
    if blueprint.make is not None:
        model = blueprint.make(encoder, num_classes, impl=impl, **dtypes, **fields)
    else:
        fields = {"remat": True, **fields} if decoder_remat else fields
        model = _segmentation_model(blueprint, encoder, num_classes, auxiliary, fields, impl, dtypes)
    parts = [part for part, module in vars(model).items() if isinstance(module, nn.Module) and part != "auxiliary"]
    if isinstance(frozen, str) or not set(frozen) <= set(parts):
        *others, last = parts
        raise ValueError(f"frozen is a tuple of names among {', '.join(others)} and {last}; got {frozen!r}")
    return model.clone(frozen=tuple(frozen)) if frozen else model


def _segmentation_model(
    blueprint: Blueprint,
    encoder: nn.Module,
    num_classes: int,
    auxiliary: int,
    fields: dict[str, Any],
    impl: str,
    dtypes: dict[str, Any],
) -> SegmentationModel:
    assert blueprint.decoder is not None and blueprint.head is not None
    following = blueprint.decoder_fields(encoder) if isinstance(encoder, Encoder) else {}
    return SegmentationModel(
        encoder=encoder,
        decoder=blueprint.decoder(**(following | fields), **dtypes),
        head=blueprint.head(num_classes, **dtypes),
        auxiliary=AuxiliaryHeads(num_classes, auxiliary, **dtypes) if auxiliary else None,
        impl=impl,
    )


def _has_scales(blueprint: Blueprint) -> bool:
    """Whether a family's decoder can give its coarser maps too."""
    decoder = blueprint.decoder
    return decoder is not None and "all_scales" in inspect.signature(decoder.__call__).parameters


def _encoder_for(blueprint: Blueprint, name: str, dtypes: dict[str, Any], remat: bool) -> Encoder:
    constructor = look_up(name, ENCODERS, "encoder")
    fields = dict(blueprint.encoder_fields)
    if remat and "remat" in _fields(constructor):
        fields["remat"] = True
    for field, value in fields.items():
        if field not in _fields(constructor):
            able = [other for other, constructor in ENCODERS.items() if field in _fields(constructor)]
            raise ValueError(
                f"{blueprint.name} needs an encoder with {field}={value}, which {name} cannot have; there are:"
                f" {', '.join(able)}"
            )
    return create_encoder(name, **fields, **dtypes)


def _check_dtypes(blueprint: Blueprint) -> None:
    """Whether the decoder and head of a family have the fields that every part of a model has."""
    for part, constructor in (("decoder", blueprint.decoder), ("head", blueprint.head)):
        if constructor is None:  # a family with a function of its own
            continue
        known = inspect.signature(constructor).parameters
        if lacking := [field for field in ("dtype", "param_dtype") if field not in known]:
            raise TypeError(
                f"{_class_of(constructor).__name__}, the {part} of {blueprint.name}, lacks {' and '.join(lacking)}: a"
                f" {part} is a Flax module with the fields `dtype: Any = None` (of the computation) and"
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
                f"{blueprint.name} is meant for an encoder with {field}={value}, and this one has {given}: pass"
                f" {field}={value} when you make it",
                stacklevel=3,
            )


def _by_name(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with blocks in place of their names."""
    found = {}
    for field, value in fields.items():
        kind = field.rpartition("_")[2]  # `attention_upsample` is an upsampler
        found[field] = look_up(value, BLOCKS[kind], field) if isinstance(value, str) and kind in BLOCKS else value
    return found


def look_up(name: str, table: dict[str, T], kind: str) -> T:
    """The entry of a registry, or an error that names the nearest choices."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; {_nearest(name, table)}")
    return table[name]


# What segmentation_models_pytorch's users would write: the argument here, if there must be one, and what to say.
_ELSEWHERE = {
    "encoder_name": ("encoder", "it is encoder here, the second argument"),
    "classes": ("num_classes", "it is num_classes here"),
    "in_channels": ("", "a model takes the channels of the first images that it sees"),
    "encoder_weights": ("", 'dz.weights.from_torch(model, checkpoint, part="encoder") loads them'),
    "encoder_depth": ("", "dz.create_encoder(name, coarsest=...) leaves coarser features out"),
    "decoder_channels": ("features", "it is features here"),
    "decoder_attention_type": ("attention", "it is attention here, such as attention=dz.SCSE"),
    "decoder_use_norm": ("norm", "it is norm here, such as norm=dz.BatchNorm or norm=None"),
    "activation": ("", "a model gives logits: apply jax.nn.softmax or jax.nn.sigmoid to them"),
    "aux_params": ("auxiliary", "it is auxiliary here, for deep supervision"),
}


def _check_fields(constructor: Any, fields: dict[str, Any], what: str, more: Iterable[str] = ()) -> None:
    """Whether there are such fields; `more` are arguments that the caller has beside them."""
    known = _fields(constructor)
    for field in fields:
        if field not in known and field not in new_names(_class_of(constructor)):
            choices = {*known, *more}
            here, hint = _ELSEWHERE.get(field, ("", ""))
            if not hint or (here and here not in choices):
                hint = _nearest(field, choices)
            raise TypeError(f"{what} has no argument {field!r}; {hint}")


def _class_of(constructor: Callable[..., Any]) -> Any:
    return constructor.func if isinstance(constructor, partial) else constructor


def _fields(constructor: Callable[..., Any]) -> list[str]:
    cls = _class_of(constructor)
    if not dataclasses.is_dataclass(cls):  # the `make` of a family
        return [name for name, p in inspect.signature(constructor).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return [field.name for field in dataclasses.fields(cls) if field.init and field.name not in ("parent", "name")]  # pyright: ignore[reportArgumentType]


def _nearest(name: object, choices: Iterable[str]) -> str:
    choices = sorted(choices)
    # "UnetPlusPlus" and "DeepLabV3+" are how others write them.
    plain = str(name).lower().removeprefix("tu-").replace("++", "plusplus").replace("+", "plus")
    if plain in choices:
        return f"did you mean {plain!r}?"
    near = difflib.get_close_matches(plain, choices, n=5, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(choices)}"
