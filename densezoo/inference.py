"""Variables made ready for inference."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from densezoo.blocks import BatchNorm, Conv
from densezoo.blocks.norm import is_folded
from densezoo.types import accumulator_dtype

Path = tuple[str, ...]


def fold_batch_norm(model: nn.Module, variables: Any) -> Any:
    """Folds every batch norm that follows a convolution into that convolution's weights, for inference.

    The tree of parameters stays the same, and the same model takes it: `model.apply(folded, images)` equals
    `model.apply(variables, images)` up to rounding. The kernels carry the norms' scales, the norms' biases are what is
    left to add, and their statistics are arrays of no length, by which `BatchNorm` knows. They cannot be trained.
    Norms that do not directly follow a convolution stay as they are. A convolution whose result is read by anything
    else besides its norm must not be folded; the zoo has none.

    Args:
        model: a model of `densezoo.Conv` and `densezoo.BatchNorm`.
        variables: of the model, with `params` and `batch_stats`.

    Returns:
        Variables of the same structure.

    Raises:
        ValueError: variables without `params`.

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
    if "params" not in variables:
        raise ValueError(f"expected variables with params and batch_stats, got {sorted(variables)}")
    if "batch_stats" not in variables:
        return variables  # no batch norm
    params: dict[Path, Any] = flatten_dict(variables["params"])
    stats: dict[Path, Any] = flatten_dict(variables["batch_stats"])
    for conv, (norm, epsilon) in _pairs(model, variables).items():
        mean, var = stats[*norm, "mean"], stats[*norm, "var"]
        if is_folded(mean):
            continue
        kernel, scale, bias = params[*conv, "kernel"], params[*norm, "scale"], params[*norm, "bias"]
        wide = accumulator_dtype(kernel.dtype)
        factor = scale.astype(wide) * jax.lax.rsqrt(var.astype(wide) + epsilon)
        shift = bias.astype(wide) - mean.astype(wide) * factor
        if (*conv, "bias") in params:
            shift = shift + params[*conv, "bias"].astype(wide) * factor
            params[*conv, "bias"] = jnp.zeros_like(params[*conv, "bias"])
        params[*conv, "kernel"] = (kernel.astype(wide) * jnp.expand_dims(factor, (0, 1, 2))).astype(kernel.dtype)
        params[*norm, "scale"] = jnp.ones_like(scale)
        params[*norm, "bias"] = shift.astype(bias.dtype)
        stats[*norm, "mean"] = stats[*norm, "var"] = jnp.zeros((0,), jnp.float32)
    return {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def _pairs(model: nn.Module, variables: Any) -> dict[Path, tuple[Path, float]]:
    """Path of each convolution -> path and epsilon of the batch norm that alone reads its result."""
    made: list[tuple[Any, Path]] = []  # results of convolutions; kept, so that no identity is used twice
    readers: dict[Path, set[tuple[Path, float] | None]] = {}
    sources: dict[Path, set[Path | None]] = {}

    def watch(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, Conv | BatchNorm):
            return call(*args, **kwargs)
        if isinstance(module, Conv):
            if not made:  # the first convolution reads the image, which has its number of channels
                kernel = variables["params"]
                for name in module.path:
                    kernel = kernel[name]
                channels = kernel["kernel"].shape[2] * module.groups
                args = (jnp.zeros((*args[0].shape[:-1], channels), args[0].dtype), *args[1:])
            y = call(*args, **kwargs)
            made.append((y, module.path))
            readers.setdefault(module.path, set())
            return y
        x = args[0]
        conv = next((path for y, path in reversed(made) if y is x), None)
        sources.setdefault(module.path, set()).add(conv)
        if conv is not None:
            readers[conv].add((module.path, module.epsilon))
        return call(*args, **kwargs)

    def run(variables):
        side = max(64, getattr(getattr(model, "encoder", model), "min_size", 1))
        with nn.intercept_methods(watch):
            return model.apply(variables, jnp.zeros((1, side, side, 3), jnp.float32), train=False)

    jax.eval_shape(run, variables)
    pairs = {}
    for conv, norms in readers.items():
        if len(norms) == 1:
            ((norm, epsilon),) = norms
            if sources[norm] == {conv}:
                pairs[conv] = (norm, epsilon)
    return pairs
