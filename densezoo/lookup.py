"""Checks names and arguments, and suggests the nearest ones."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from densezoo.deprecation import new_names
from densezoo.messages import option

T = TypeVar("T")


def look_up(name: str, table: dict[str, T], kind: str) -> T:
    """Returns the entry of a registry, or raises an error that suggests the closest names."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; {_nearest(name, table)}")
    return table[name]


# Arguments of segmentation_models_pytorch: the corresponding argument here, if any, and the hint for the error message.
_ELSEWHERE = {
    "encoder_name": ("encoder", "use encoder, the second argument"),
    "classes": ("num_classes", "use num_classes"),
    "in_channels": ("", "the images passed to init determine the number of input channels"),
    "encoder_weights": ("", 'load them with dz.weights.from_torch(model, checkpoint, part="encoder")'),
    "encoder_depth": ("", "dz.create_encoder(name, coarsest=...) omits coarser maps"),
    "decoder_channels": ("features", "use features"),
    "decoder_attention_type": ("attention", "use attention, such as attention=dz.SCSE"),
    "decoder_use_norm": ("norm", "use norm, such as norm=dz.BatchNorm or norm=None"),
    "activation": ("", "models return logits: apply jax.nn.softmax or jax.nn.sigmoid to them"),
    "aux_params": ("auxiliary", "use auxiliary for deep supervision"),
}


def check_fields(constructor: Any, fields: dict[str, Any], what: str, more: Iterable[str] = ()) -> None:
    """Checks that the fields exist; `more` lists further arguments of the caller for the suggestions."""
    known = fields_of(constructor)
    for field in fields:
        if field not in known and field not in new_names(class_of(constructor)):
            choices = {*known, *more}
            here, hint = _ELSEWHERE.get(field, ("", ""))
            if not hint or (here and here not in choices):
                hint = _nearest(field, choices)
            raise TypeError(f"{what} has no argument {option(field)!r}; {hint}")


def class_of(constructor: Callable[..., Any]) -> Any:
    """The class or function of a constructor, which may be a partial of it."""
    return constructor.func if isinstance(constructor, partial) else constructor


def fields_of(constructor: Callable[..., Any]) -> list[str]:
    """The names of the arguments of a constructor that have a default or are fields."""
    cls = class_of(constructor)
    if not dataclasses.is_dataclass(cls):  # the `make` of a family
        return [name for name, p in inspect.signature(constructor).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return [field.name for field in dataclasses.fields(cls) if field.init and field.name not in ("parent", "name")]  # pyright: ignore[reportArgumentType]


def _nearest(name: object, choices: Iterable[str]) -> str:
    choices = sorted(choices)
    # Other libraries write "UnetPlusPlus" and "DeepLabV3+".
    plain = str(name).lower().removeprefix("tu-").replace("++", "plusplus").replace("+", "plus")
    if plain in choices:
        return f"did you mean {plain!r}?"
    near = difflib.get_close_matches(plain, choices, n=5, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(choices)}"
