"""Converts models to plain data and back: the description in a file, which contains nothing executable."""

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo.deprecation import new_names

_PACKAGES = ("blocks", "encoders", "decoders", "heads", "models")
_FLAX = ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "squareplus"),
    *("tanh", "sigmoid", "log_sigmoid", "soft_sign", "hard_tanh", "hard_sigmoid", "hard_silu"),
)
_INITIALIZERS = ("he_normal_fan_out", "he_uniform", "he_uniform_transposed", "torch_uniform", "truncated_normal")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_PLAIN = (bool, int, float, str, type(None))


class Unknown(ValueError):
    """A description contains an unknown name."""


def describe(value: Any, where: str) -> Any:
    """Converts a field's value to JSON. Modules become the names of their classes with all of their fields.

    Defaults are included, because another version may have other defaults, which would silently change the meaning of
    an old file. Only defaults without a name are omitted: these are initialisers, which a model with its variables does
    not need. A factory has only the keywords that it was given, because its caller adds others.

    Args:
        value: a module, a factory of modules, one of the listed functions or types, or plain data.
        where: description of the value, for messages.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return [describe(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, functools.partial):
        return _describe_partial(value, where)
    if isinstance(value, nn.Module):
        fields = {}
        for name, field in _fields(type(value)).items():
            mine = getattr(value, name)
            try:
                fields[name] = describe(mine, f"{where}.{name}")
            except ValueError:
                if mine is not field.default:
                    raise
        return {"class": _name(type(value), _class_names(), where), "fields": fields}
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"type": _name(value, _class_names(), where)}
    if (dtype := _dtype(value)) is not None:
        return {"dtype": dtype}
    return {"function": _name(value, _function_names(), where)}


def build(description: Any, largest: float = math.inf) -> Any:
    """The inverse of `describe`. Only looks up the listed classes and functions, by name.

    Args:
        description: description of a module or a field's value.
        largest: maximum number in a field.

    Raises:
        Unknown: if it contains another name.
        ValueError: if a number is larger.
    """
    if type(description) in _PLAIN:
        if isinstance(description, (int, float)) and abs(description) > largest:
            number = f"{description:g}" if abs(description) < 1e300 else "1e300 or more"
            raise ValueError(f"it contains the number {number}, more than any that arrays of this size allow")
        return description
    if isinstance(description, list):
        return tuple(build(item, largest) for item in description)
    match description:
        case {"class": name, "fields": {**fields}}:
            cls = _look_up(name, _classes(), "class")
            return cls(**_arguments(cls, fields, largest))
        case {"partial": name, "keywords": {**keywords}}:
            function = _look_up(name, _classes() | _functions(), "function")
            return functools.partial(function, **_arguments(function, keywords, largest))
        case {"type": name}:
            return _look_up(name, _classes(), "class")
        case {"function": name}:
            return _look_up(name, _functions(), "function")
        case {"dtype": str(name)} if name in _DTYPES:
            return getattr(jnp, name)
    raise Unknown(f"the entry {json.dumps(description)[:100]}")


def _describe_partial(value: functools.partial, where: str) -> dict[str, Any]:
    keywords = dict(value.keywords)
    if isinstance(value.func, type) and issubclass(value.func, nn.Module):
        keywords |= dict(zip(_fields(value.func), value.args, strict=False))
    elif value.args:
        raise _indescribable(value, where)
    name = _name(value.func, _class_names() | _function_names(), where)
    return {"partial": name, "keywords": {key: describe(item, f"{where}.{key}") for key, item in keywords.items()}}


def _arguments(function: Any, described: dict[str, Any], largest: float) -> dict[str, Any]:
    """The arguments of a class or function; renamed ones under their current names."""
    names = new_names(function)
    arguments = {names.get(name, name): build(value, largest) for name, value in described.items()}
    for name in arguments if isinstance(function, type) else ():
        if name not in _fields(function):
            raise Unknown(f"the field {name!r} of {function.__name__}")
    return arguments


def _fields(cls: Any) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")}


def _dtype(value: Any) -> str | None:
    """The name of a dtype, such as `jnp.bfloat16` or `np.dtype("bfloat16")`."""
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        name = np.dtype(value).name
    else:
        name = next((name for name in _DTYPES if value is getattr(jnp, name)), None)
    return name if name in _DTYPES else None


def _look_up(name: Any, table: dict[str, Any], kind: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise Unknown(f"the {kind} {name!r}")
    return table[name]


def _name(value: Any, names: dict[int, str], where: str) -> str:
    if id(value) not in names:
        raise _indescribable(value, where)
    return names[id(value)]


def _indescribable(value: Any, where: str) -> ValueError:
    what = value if isinstance(value, type) else type(value) if isinstance(value, nn.Module) else None
    said = repr(value)[:100] if what is None else f"of the class {what.__module__}.{what.__qualname__}"
    return ValueError(
        f"{where} cannot be written into a file: it is {said}, and a file names only densezoo's own modules and usual"
        " functions. Save the variables alone, dz.save(path, None, variables), and fill a model that is built in code:"
        " dz.load(path, model=model)"
    )


def _modules() -> list[ModuleType]:
    """The packages that contain modules, and their files."""
    packages = [importlib.import_module(f"densezoo.{package}") for package in _PACKAGES]
    return packages + [
        value
        for package in packages
        for value in vars(package).values()
        if isinstance(value, ModuleType) and value.__name__.startswith(f"{package.__name__}.")
    ]


@functools.cache
def _classes() -> dict[str, type[nn.Module]]:
    """The modules by name: those that a package exports by their own names, others as `encoders.resnet.ResNet`."""
    classes: dict[str, type[nn.Module]] = {f"flax.linen.{name}": getattr(nn, name) for name in _FLAX}
    exported: dict[str, list[type[nn.Module]]] = {}
    for module in _modules():
        for name, value in vars(module).items():
            if not isinstance(value, type) or not issubclass(value, nn.Module) or name.startswith("_"):
                continue
            if value.__module__ == module.__name__:
                classes[f"{module.__name__.removeprefix('densezoo.')}.{name}"] = value
            elif module.__name__.removeprefix("densezoo.") in _PACKAGES:
                exported.setdefault(name, []).append(value)
    return classes | {name: found[0] for name, found in exported.items() if len(found) == 1}


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Activations and initialisers by name."""
    blocks = importlib.import_module("densezoo.blocks")
    functions = {name: getattr(jax.nn, name) for name in _ACTIVATIONS}
    functions |= {name: getattr(blocks, name) for name in _INITIALIZERS}
    functions |= {"zeros": nn.initializers.zeros, "ones": nn.initializers.ones}
    # Initialisers in the packages, such as `decoders.hrnet.hrnet_normal`.
    for module in _modules():
        for name, value in vars(module).items():
            made_by_jax = str(getattr(value, "__module__", "")).endswith("nn.initializers") and callable(value)
            if made_by_jax and not any(value is known for known in functions.values()):
                functions[f"{module.__name__.removeprefix('densezoo.')}.{name}"] = value
    return functions


@functools.cache
def _class_names() -> dict[int, str]:
    return {id(value): name for name, value in _classes().items()}  # shorter names come last and win


@functools.cache
def _function_names() -> dict[int, str]:
    return {id(value): name for name, value in _functions().items()}
