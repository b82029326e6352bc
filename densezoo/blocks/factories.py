"""Builds blocks from the factories in fields such as `upsample` and `norm`, and registers names of factories."""

import inspect
from typing import Any

import flax.linen as nn

from densezoo.types import ModuleDef

BLOCKS: dict[str, dict[str, Any]] = {
    "upsample": {},
    "downsample": {},
    "skip": {},
    "norm": {},
    "act": {},
    "attention": {},
}
"""For each kind of field, the names that `create_model`, `create_encoder` and the scripts accept, with factories."""

_CALLS = {"upsample": ("x", "size"), "downsample": ("x", "size"), "skip": ("x", "feature"), "attention": ("x",)}


def register_blocks(field: str, **blocks: Any) -> None:
    """Registers names of blocks for `create_model` and `create_encoder`.

    Args:
        field: the field that accepts them: "upsample", "downsample", "skip", "norm", "act" or "attention". A field such
            as `attention_upsample` accepts the names of "upsample".
        **blocks: names to factories, or to functions for "act".

    Raises:
        ValueError: if there is no such kind of field.

    Example:
        >>> from functools import partial
        >>> import densezoo as dz
        >>> dz.register_blocks("norm", group8=partial(dz.GroupNorm, num_groups=8))
        >>> dz.create_model("unet", "resnet18", norm="group8").decoder.norm.keywords
        {'num_groups': 8}
        >>> del dz.blocks.BLOCKS["norm"]["group8"]
    """
    if field not in BLOCKS:
        raise ValueError(f"unknown field of blocks {field!r}; there are: {', '.join(BLOCKS)}")
    BLOCKS[field].update(blocks)


register_blocks(
    "act",
    relu=nn.relu,
    relu6=nn.relu6,
    leaky_relu=nn.leaky_relu,
    elu=nn.elu,
    gelu=nn.gelu,
    silu=nn.silu,
    swish=nn.silu,
    hard_swish=nn.hard_swish,
    tanh=nn.tanh,
)


def build(factory: ModuleDef, **fields: Any) -> Any:
    """Creates a block from its factory.

    Args:
        factory: a Module class, a `functools.partial` of one, or a function.
        **fields: arguments of the factory: `dtype`, `param_dtype` and `name`. The name states the block's purpose, such
            as "upsample" or "skip2".

    Returns:
        The block.

    Raises:
        TypeError: if `factory` is not a factory, lacks such a field, or creates a block with an unsuitable call. The
            message names the class and the argument.

    Example:
        >>> import flax.linen as nn
        >>> class Twice(nn.Module):
        ...     def __call__(self, x, size):
        ...         return x.repeat(2, 1).repeat(2, 2)
        >>> build(Twice, name="upsample0", dtype=None)
        Traceback (most recent call last):
        TypeError: Twice cannot be built as upsample: got an unexpected keyword argument 'dtype'. ...
    """
    place = str(fields.get("name") or "block").rstrip("_0123456789")
    if isinstance(factory, str):
        raise TypeError(
            f"{place}={factory!r}: only dz.create_model and dz.create_encoder accept names; pass a factory to a module,"
            " such as dz.Bilinear"
        )
    if not callable(factory):
        raise TypeError(
            f"{place}: expected a factory of modules, such as dz.Bilinear or dz.LateralAdd, got {factory!r}"
        )
    if isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise TypeError(
            f"{place}: expected a factory of modules, got an instance of {kind}: pass {kind} or a partial({kind}, ...)"
        )
    if mismatch := _mismatch(factory, **fields):
        raise TypeError(
            f"{_name(factory)} cannot be built as {place}: {mismatch}. A block is a Flax module with the fields"
            " `dtype: Any = None` (of the computation) and `param_dtype: Any = jnp.float32` (of the parameters), and"
            " defaults for all other fields. For a class that you cannot change, pass a function:"
            f" lambda dtype, param_dtype, name: {_name(factory)}(..., name=name)"
        )
    block = factory(**fields)
    arguments = _CALLS.get(place.rpartition("_")[2])
    if arguments and (mismatch := _mismatch(block, *arguments)):
        raise TypeError(f"{_name(block)} cannot be called as {place}({', '.join(arguments)}): {mismatch}")
    return block


def check_call(module: Any, place: str, *arguments: str, **keywords: Any) -> None:
    """Raises a TypeError that names the class unless it is a module that can be called with these arguments.

    Args:
        module: the module to call.
        place: its place in the model, such as "decoder".
        *arguments: names of the positional arguments, for the message.
        **keywords: the keyword arguments.
    """
    if isinstance(module, str):
        raise TypeError(
            f"{place}={module!r}: names are for dz.create_model and dz.create_encoder; a model composed by hand"
            f" takes the {place} itself, such as encoder=dz.create_encoder('resnet18')"
        )
    if isinstance(module, type) or not callable(module):
        kind = module.__name__ if isinstance(module, type) else repr(module)
        raise TypeError(f"{place}={kind}: expected an instance of a Flax module, such as dz.PlainEncoder()")
    if mismatch := _mismatch(module, *arguments, **keywords):
        call = ", ".join([*arguments, *(f"{name}=..." for name in keywords)])
        raise TypeError(
            f"{_name(module)} cannot be called as {place}({call}): {mismatch}. Its __call__ must accept these"
            " arguments; it may ignore keyword arguments"
        )


def _mismatch(function: Any, *arguments: Any, **keywords: Any) -> str:
    """The reason why a call with these arguments would raise a TypeError; "" if it would not."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return ""
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        return str(error)
    return ""


def _name(function: Any) -> str:
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__)
