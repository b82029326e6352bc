"""Folding of batch norms for inference."""

from collections import Counter
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from densezoo.blocks import BatchNorm, Conv
from densezoo.inputs import example_inputs
from densezoo.inspect.walk import Path, traced, walk
from densezoo.types import accumulator_dtype
from densezoo.weights import check_variables


def fold_batch_norm(model: nn.Module, variables: Any, images: Any = None) -> Any:
    """Folds every batch norm that follows a convolution into that convolution's weights, for inference.

    The result is a tree of the same structure for the same model: `model.apply(folded, images)` equals
    `model.apply(variables, images)` up to rounding. The kernels include the norms' scales. The norms keep their biases
    and get neutral statistics. A norm is not folded if something else also reads its convolution, or if either is an
    instance of a subclass of `Conv` or `BatchNorm`.

    Args:
        model: a model of `densezoo.Conv` and `densezoo.BatchNorm`.
        variables: the model's variables, with `params` and `batch_stats`.
        images: images for the model; only their shape matters. None uses a small square image with the number of
            channels that the first convolution reads.

    Returns:
        Variables of the same structure.

    Raises:
        TypeError: if the model and the variables are swapped.
        ValueError: if the variables have no `params`, or belong to another model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> folded = dz.fold_batch_norm(model, variables)
        >>> bool(jnp.allclose(model.apply(folded, images), model.apply(variables, images), atol=1e-5))
        True
    """
    check_variables(model, variables)
    if "batch_stats" not in variables:
        return variables  # no batch norm
    params: dict[Path, Any] = flatten_dict(variables["params"])
    stats: dict[Path, Any] = flatten_dict(variables["batch_stats"])
    for conv, (norm, epsilon) in _pairs(model, variables, images).items():
        kernel, scale, bias = params[*conv, "kernel"], params[*norm, "scale"], params[*norm, "bias"]
        mean, var = stats[*norm, "mean"], stats[*norm, "var"]
        if kernel.ndim != 4:
            continue  # stacked by a scan
        wide = accumulator_dtype(kernel.dtype)
        factor = scale.astype(wide) * jax.lax.rsqrt(var.astype(wide) + epsilon)
        shift = bias.astype(wide) - mean.astype(wide) * factor
        if (*conv, "bias") in params:
            shift = shift + params[*conv, "bias"].astype(wide) * factor
            params[*conv, "bias"] = jnp.zeros_like(params[*conv, "bias"])
        params[*conv, "kernel"] = (kernel.astype(wide) * jnp.expand_dims(factor, (0, 1, 2))).astype(kernel.dtype)
        params[*norm, "scale"], params[*norm, "bias"] = jnp.ones_like(scale), shift.astype(bias.dtype)
        stats[*norm, "mean"], stats[*norm, "var"] = jnp.zeros_like(mean), jnp.full_like(var, 1 - epsilon)
    return {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def _pairs(model: nn.Module, variables: Any, images: Any) -> dict[Path, tuple[Path, float]]:
    """Maps the path of each convolution to the path and epsilon of the batch norm that is its only reader."""
    made: list[tuple[Any, Path]] = []  # results of convolutions, kept alive so that no id is reused
    norms: dict[Path, Counter] = {}  # for each convolution, the norms that read it and how often
    sources: dict[Path, set[Path | None]] = {}  # for each norm, its inputs

    def watch(module, call, args, kwargs):
        if type(module) not in (Conv, BatchNorm):
            return call(*args, **kwargs)
        if type(module) is Conv:
            if not made and images is None and isinstance(args[0], jax.Array):  # the stem, or another kind of module
                kernel = variables["params"]
                for name in module.path:
                    kernel = kernel[name]
                channels = kernel["kernel"].shape[2] * module.groups
                args = (jnp.zeros((*args[0].shape[:-1], channels), args[0].dtype), *args[1:])
            y = checkpoint_name(call(*args, **kwargs), "/".join(module.path))
            made.append((y, module.path))
            return y
        conv = next((path for y, path in reversed(made) if y is args[0]), None)
        sources.setdefault(module.path, set()).add(conv)
        if conv is not None:
            norms.setdefault(conv, Counter())[module.path, module.epsilon] += 1
        return call(*args, **kwargs)

    side = max(64, getattr(getattr(model, "encoder", model), "min_size", 1))
    shape = (1, side, side, 3) if images is None else images.shape
    inputs = example_inputs(model, jax.ShapeDtypeStruct(shape, jnp.float32))
    program = traced(partial(model.apply, train=False), variables, *inputs, visit=watch)
    calls = Counter(path for _, path in made)
    named = [step for step in walk(program) if step.name == "name"]
    elsewhere = {step.equation.params["name"] for step in named if _readers(step.program, step.equation.outvars[0]) > 1}
    pairs = {}
    for conv, found in norms.items():
        ((norm, epsilon), times), *others = found.items()
        alone = not others and times == calls[conv] and sources[norm] == {conv} and "/".join(conv) not in elsewhere
        if alone:
            pairs[conv] = (norm, epsilon)
    return pairs


def _readers(program: Any, variable: Any) -> int:
    """The number of equations of a traced program that read an array, including the program's outputs."""
    read = (other for equation in program.eqns for other in equation.invars)
    return sum(other is variable for other in (*read, *program.outvars))
