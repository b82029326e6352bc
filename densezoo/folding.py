"""Replaces convolutions and their batch norms by one convolution while a model is traced."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo.blocks import BatchNorm, Conv, FrozenBatchNorm
from densezoo.ops.implementation import chosen, onednn
from densezoo.ops.winograd import winograd_conv, winograd_is_faster, winograd_kernel
from densezoo.types import Dtype


class Folding:
    """Replaces a convolution and its batch norm by one convolution with a bias, while a model is traced.

    Convolutions of large maps with many channels are computed by `ops.winograd` where the program is compiled with
    oneDNN.

    The original convolution is traced too; XLA removes it if nothing else reads it.
    """

    def __init__(self, exact: Mapping[str, Any], variables: Mapping[str, Any], dtype: Dtype | None):
        self._exact, self._variables, self._dtype = exact, variables, dtype
        self._made: list[tuple[Any, Conv, Any]] = []  # result, module and input of each convolution
        self._transformed: dict[tuple[str, ...], jax.Array] = {}

    def __call__(self, module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        # Subclasses are excluded, because they may compute anything.
        if type(module) not in (Conv, BatchNorm, FrozenBatchNorm):
            return call(*args, **kwargs)
        x = args[0] if args else kwargs["x"]
        if type(module) is Conv:
            params = _at(self._variables, "params", module) if module.path else {}
            if "kernel" not in params or module.get_variable("params", "kernel") is not params["kernel"]:
                # A transformation computes the kernel, a scan stacks it, or it belongs to another model.
                return call(*args, **kwargs)
            y = self._by_winograd(module, params, x, (*module.path, "as it is"))
            y = call(*args, **kwargs) if y is None else y
            self._made.append((y, module, x))
            return y
        source = next((made for made in reversed(self._made) if made[0] is x), None)
        if source is None or kwargs.get("train"):
            return call(*args, **kwargs)
        _, conv, x = source
        learned = "batch_stats" if type(module) is FrozenBatchNorm else "params"
        params, norm, stats = (
            _at(self._exact, *where) for where in (("params", conv), (learned, module), ("batch_stats", module))
        )
        if stats["var"].ndim != 1:
            return call(*args, **kwargs)
        factor = norm["scale"] / np.sqrt(stats["var"] + module.epsilon)
        shift = norm["bias"] + (params.get("bias", 0.0) - stats["mean"]) * factor
        folded = {
            "kernel": (params["kernel"] * factor).astype(params["kernel"].dtype),
            "bias": shift.astype(factor.dtype),
        }
        alone = conv.clone(parent=None, name=None, use_bias=True, dtype=self._dtype or conv.dtype)
        y: Any = self._by_winograd(alone, folded, x, (*conv.path, "folded by", *module.path))
        y = alone.apply({"params": folded}, x) if y is None else y
        y = y if module.dtype is None or self._dtype is not None else y.astype(module.dtype)
        return nn.relu(y) if kwargs.get("relu") else y

    def _by_winograd(self, conv: Conv, params: Mapping[str, Any], x: Any, name: tuple[str, ...]) -> Any:
        """The convolution with fewer multiplications, or None where that is not faster.

        A kernel that is used again under the same name is transformed once.
        """
        kernel, padding = params["kernel"], 1 if conv.padding is None else conv.padding
        options = (conv.kernel_size, conv.strides, conv.dilation, conv.groups, padding)
        if options != (3, 1, 1, 1, 1) or not isinstance(x, jax.Array) or not (onednn() and chosen() == "auto"):
            return None
        if {x.dtype, kernel.dtype, jnp.dtype(conv.dtype or x.dtype)} != {jnp.dtype(jnp.float32)}:
            return None
        if any(map(jax.export.is_symbolic_dim, x.shape)):
            return None
        if not winograd_is_faster(x.shape, kernel.shape, shared=name in self._transformed):
            return None
        if name not in self._transformed:
            with jax.ensure_compile_time_eval():
                self._transformed[name] = jnp.asarray(winograd_kernel(kernel))
        y = winograd_conv(x, self._transformed[name])
        return y + params["bias"].reshape(1, 1, 1, -1) if conv.use_bias else y


def _at(variables: Mapping[str, Any], collection: str, module: nn.Module) -> Any:
    """A module's own variables; empty if there are none."""
    tree = variables[collection]
    for name in module.path:
        tree = tree.get(name, {})
    return tree
