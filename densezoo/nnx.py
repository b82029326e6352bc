"""Conversion of models to Flax NNX modules and back: `to_nnx` and `from_nnx`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from densezoo.freezing import check_names, is_frozen
from densezoo.weights import check_variables

_TYPES: dict[str, type[nnx.Variable]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class Frozen(nnx.Variable):
    """A parameter of a part in `model.frozen`. It is not an `nnx.Param`, so optimizers ignore it."""


class NNXModel(nnx.Module):
    """The result of `to_nnx`: an NNX module that owns a Linen model's variables and computes the same.

    Attributes:
        model: the Linen model.
        variables: the collections of the model as nested dictionaries of `nnx.Param`, `Frozen`, `nnx.BatchStat`, and
            `nnx.Variable` for any other collection.
        rngs: random streams, only used in training.
        deterministic: whether dropout is off. Set by `train()` and `eval()`.
        use_running_average: whether batch norms use their running statistics. Set by `train()` and `eval()`.
    """

    def __init__(self, model: nn.Module, variables: Mapping[str, Any], rngs: nnx.Rngs):
        names = getattr(model, "frozen", ())

        def kind(path: tuple[str, ...]) -> Any:
            frozen = path[0] == "params" and is_frozen(path[1:], names)
            return Frozen if frozen else _TYPES.get(path[0], nnx.Variable)

        held = {path: kind(path)(value) for path, value in flatten_dict(unfreeze(dict(variables))).items()}
        self.model = model
        self.variables = nnx.data(unflatten_dict(held))
        self.rngs = rngs
        self.deterministic = self.use_running_average = True

    def __call__(self, *inputs: Any, train: bool | None = None) -> Any:
        """Runs the model. In training, also updates the running statistics and draws from the random streams.

        Args:
            *inputs: inputs of the model, such as images.
            train: whether to run in training mode. None uses the mode set by `train()` or `eval()`.
        """
        if train is None:
            if self.deterministic != self.use_running_average:
                raise ValueError(
                    "deterministic and use_running_average must be equal: train() sets both to False and eval() both "
                    f"to True; got {self.deterministic} and {self.use_running_average}"
                )
            train = not self.deterministic
        variables = from_nnx(self)
        if not train:
            return self.model.apply(variables, *inputs)
        # Linen falls back to the stream of this name if it is not given the requested one.
        rngs = {"params" if name == "default" else name: stream() for name, stream in self.rngs.items()}
        mutable = [collection for collection in variables if collection != "params"]
        result, updated = self.model.apply(variables, *inputs, train=True, mutable=mutable, rngs=rngs)
        held: Any = flatten_dict(self.variables)
        for path, value in flatten_dict(updated).items():
            if path in held:  # values that a module only sows are not stored
                held[path].set_value(value)
        return result

    def set_view(self, deterministic: bool | None = None, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`.

        Args:
            deterministic: whether dropout is off. Must be equal to `use_running_average`.
            use_running_average: whether batch norms use their running statistics.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if use_running_average is not None:
            self.use_running_average = use_running_average


def to_nnx(model: nn.Module, variables: Mapping[str, Any], *, rngs: nnx.Rngs | int = 0) -> NNXModel:
    """Converts a model and its variables, from `model.init` or `dz.weights.from_torch`, to an NNX module.

    `module(images)` equals `model.apply(variables, images)`. After `module.train()`, the module computes with
    `train=True`, updates the running batch statistics and applies dropout; `module.eval()` switches back. NNX
    transforms and tools work on it, such as `nnx.jit`, `nnx.value_and_grad`, `nnx.Optimizer`, `nnx.split` and
    `nnx.state`. Parameters are `nnx.Param`, except in the parts named by `model.frozen`, where they are
    `densezoo.nnx.Frozen`: `nnx.Optimizer(module, optimizer, wrt=nnx.Param)` does not train them.

    Args:
        model: a Linen model.
        variables: the model's variables.
        rngs: random streams for training, which the module forks, or a seed. Streams without a name of their own use
            `default`.

    Returns:
        The module, in `eval()` mode.

    Raises:
        TypeError: if the model and the variables are swapped.
        ValueError: if the variables belong to another model.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((2, 16, 16, 3))
        >>> module = dz.to_nnx(model, jax.jit(model.init)(jax.random.key(0), images))
        >>> optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
        >>> module.train()
        >>> loss, gradients = nnx.value_and_grad(lambda module: jnp.mean(module(images) ** 2))(module)
        >>> _ = optimizer.update(module, gradients)
        >>> variables = dz.from_nnx(module)
        >>> sorted(variables)
        ['batch_stats', 'params']
    """
    check_variables(model, variables)
    check_names(variables["params"], getattr(model, "frozen", ()))
    return NNXModel(model, variables, nnx.Rngs(rngs) if isinstance(rngs, int) else rngs.fork())


def from_nnx(module: NNXModel) -> dict[str, Any]:
    """Returns the current variables of a module that `to_nnx` made, for `model.apply`, `dz.save` and others.

    Raises:
        TypeError: if the module was not made by `to_nnx`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.PlainEncoder((4, 8))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
        >>> same = dz.from_nnx(dz.to_nnx(model, variables))
        >>> jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), same, variables))
        True
    """
    if not isinstance(module, NNXModel):
        raise TypeError(f"expected a module that dz.to_nnx made, got a {type(module).__name__}")
    held: Any = flatten_dict(module.variables)
    return unflatten_dict({path: variable.get_value() for path, variable in held.items()})
