"""Gradients layer by layer, and the length of the paths that they took."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from densezoo.inputs import check_collections
from densezoo.inspect.walk import Path, as_reference, module_calls


@dataclasses.dataclass(frozen=True)
class LayerGradient:
    """The gradient of one layer's kernel.

    Attributes:
        path: names of modules, from the outermost inwards.
        parameters: size of the kernel.
        norm: Euclidean norm of the gradient of the loss with respect to the kernel.
        relative: `norm` over the norm of the kernel itself: the relative change of the layer for a unit step of
            gradient descent.
        path_length: mean number of other layers between this layer and the loss, weighted by how much each path
            contributes to the gradient.
    """

    path: Path
    parameters: int
    norm: float
    relative: float
    path_length: float

    @property
    def name(self) -> str:
        """The path as text."""
        return "/".join(self.path)


@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """The gradients of a model's layers, in the order in which the layers run. `print` shows a table.

    Attributes:
        loss: the loss.
        layers: one entry for each convolution and dense layer that received a gradient.
    """

    loss: float
    layers: tuple[LayerGradient, ...]

    def __getitem__(self, name: str) -> LayerGradient:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the layers are {', '.join(layer.name for layer in self.layers)}")

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':<{width}}  gradient  / kernel  path length"]
        lines.append("-" * len(lines[0]))
        for layer in self.layers:
            numbers = f"{layer.norm:>8.2e}  {layer.relative:>8.2e}  {layer.path_length:>11.2f}"
            lines.append(f"{layer.name:<{width}}  {numbers}")
        return "\n".join([*lines, f"loss: {self.loss:.4g}"])


def gradient_flow(
    model: nn.Module,
    variables: Any,
    batch: Mapping[str, Any],
    loss: Callable[[Callable[..., Any], Any, Any], Any],
    *,
    key: Any = None,
) -> GradientFlow:
    """Measures how large the gradient of each layer is, and how many layers it passed on the way from the loss.

    A gradient is a sum over all paths from the loss to the layer. With skips, some paths are short. If the backward
    pass of every layer is multiplied by z, a path through n layers is multiplied by z**n, and the gradient becomes a
    polynomial g(z). Its logarithmic derivative at z = 1, <g'(1), g(1)> / |g(1)|**2, is the mean of n over the paths,
    weighted by their contributions to g: `path_length`. A path that works against the sum has a negative weight, so
    the mean may lie outside the lengths of the shortest and the longest path.

    Layers are modules with a kernel: convolutions and dense layers. Normalisation layers do not count.

    Args:
        model: the model.
        variables: its variables.
        batch: a batch for the loss.
        loss: `loss(apply, batch, key)` as for `train.make_train_step`, such as a task's `loss`. `apply` runs the model
            with `train=True`.
        key: random key for dropout and for the loss. None for `jax.random.key(0)`.

    Returns:
        The loss, and the layers that receive a gradient.

    Raises:
        TypeError: if the variables are not a dictionary.
        ValueError: if the variables have no `params`, the loss is not a scalar, or it does not depend on any layer of
            the model.

    Paper:
        Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks (2016), for the view of a
        gradient as a sum over paths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> from densezoo.inspect import gradient_flow
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8, 16)), num_classes=2)
        >>> batch = {"image": jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), "mask": jnp.ones((1, 16, 16), int)}
        >>> variables = model.init(jax.random.key(0), batch["image"])
        >>> flow = gradient_flow(model, variables, batch, dz.tasks.Segmentation(2).loss)
        >>> deep, shallow = flow["encoder/block0/conv1/conv"], flow["head/conv"]
        >>> deep.path_length > shallow.path_length
        True
    """
    check_collections(variables)
    try:
        measure, order = _measurement(model, loss)
    except TypeError:  # a field that cannot be hashed, such as a list
        measure, order = _measurement.__wrapped__(model, loss)
    key = jax.random.key(0) if key is None else key
    value, first, second = jax.device_get(measure(variables, dict(batch), key))
    kernels, first, second = (flatten_dict(tree) for tree in (jax.device_get(variables["params"]), first, second))
    layers = []
    for path in order:
        at = (*path, "kernel")
        kernel, g, derivative = (np.asarray(tree[at], np.float64) for tree in (kernels, first, second))
        if square := float((g * g).sum()):
            norm = square**0.5
            relative = norm / max(float(np.linalg.norm(kernel)), np.finfo(np.float32).tiny)
            layers.append(LayerGradient(path, kernel.size, norm, relative, float((g * derivative).sum() / square)))
    if not layers:
        raise ValueError(
            "no layer received a gradient: are the labels within the classes and not all ignored, and does the loss"
            " call apply(...) and use its result?"
        )
    return GradientFlow(float(value), tuple(layers))


@functools.lru_cache(maxsize=8)  # so that repeated calls during training compile once
def _measurement(model: nn.Module, loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[Path, None]]:
    """A jitted function of variables, batch and key, and the layers in the order in which they run.

    The function returns the loss, the gradients g(z) at z = 1, and their derivatives in z. The order is known after its
    first call, since Flax sorts parameters by name.
    """
    order: dict[Path, None] = {}

    def measure(variables: Any, batch: Any, key: Any) -> tuple[Any, Any, Any]:
        def gradients(z: Float[Array, ""]) -> tuple[Float[Array, ""], Any]:
            def value(params: Any) -> Float[Array, ""]:
                result = loss(_apply(plain, variables | {"params": params}, z, key, order), batch, key)
                result = result[0] if isinstance(result, tuple) else result
                if jnp.shape(result) != ():
                    raise ValueError(f"the loss must be a scalar, but has shape {jnp.shape(result)}: take its mean")
                return result

            return jax.value_and_grad(value)(variables["params"])

        one = jnp.ones(())
        with as_reference(model) as plain:
            (value, first), (_, second) = jax.jvp(gradients, (one,), (one,))
        return value, first, second

    return jax.jit(measure), order


def _apply(
    model: nn.Module, variables: Any, z: Float[Array, ""], key: Any, order: dict[Path, None]
) -> Callable[..., Any]:
    """The model in training, where the backward pass of every layer with a kernel is multiplied by z."""
    names = {path[:-1] for path in flatten_dict(variables["params"]) if path[-1] == "kernel"}

    def visit(module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        if module.path not in names:
            return call(*args, **kwargs)
        order[module.path] = None
        # Multiplied on the input's side, so that the layer's own kernel does not count itself.
        return call(*(_scale_gradient(x, z) for x in args), **kwargs)

    def apply(*inputs: Any, train: bool = True, **arguments: Any) -> Any:
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 0)}
        mutable = [name for name in variables if name != "params"] if train else False
        with module_calls(visit):
            outputs = model.apply(variables, *inputs, train=train, rngs=rngs, mutable=mutable, **arguments)
        return outputs[0] if train else outputs

    return apply


def _scale_gradient(x: Any, z: Float[Array, ""]) -> Any:
    """Equals x for every z, with a gradient that is multiplied by z and that can be differentiated in z."""

    def scale(x: Array) -> Array:
        constant = jax.lax.stop_gradient(x)
        return constant + z.astype(x.dtype) * (x - constant)

    return jax.tree.map(scale, x)
