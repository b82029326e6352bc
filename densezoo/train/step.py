"""The jitted train step and evaluation step."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from densezoo import freezing
from densezoo.compiling import Jitted
from densezoo.ops.sharding import explicitly_sharded, in_auto_mesh
from densezoo.train.sharding import replicated
from densezoo.train.state import TrainState

Batch = Mapping[str, PyTree]
Metrics = dict[str, Float[Array, ""]]
Apply = Callable[..., Any]  # (*inputs, **arguments of the model's __call__) -> the model's outputs
Loss = Callable[[Apply, Any, Key[Array, ""]], Any]  # (apply, batch, key) -> scalar, or (scalar, dict of scalars)


def make_train_step(
    loss: Loss,
    *,
    augment: Callable[[Key[Array, ""], Any], Any] | None = None,
    accumulate: int = 1,
    learning_rate: optax.Schedule | None = None,
    inputs: tuple[str, ...] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a jitted function that performs one update.

    The function donates its state, so use the returned state. It does not depend on a device or mesh and works with any
    sharding of state and batch; batch statistics are those of the global batch. The randomness of a step only depends
    on the state's key and step.

    Args:
        loss: `loss(apply, batch, key)` returns a scalar, or a scalar and a dict of further scalars to report.
            `apply(*inputs, **arguments)` runs the model with `train=True` and the step's parameters, and returns its
            outputs. It also updates collections such as `batch_stats` and provides all random streams. A loss may call
            it several times. `key` is for random numbers in the loss itself.
        augment: `augment(key, batch)` returns the batch to train on. It runs on the device, inside the step.
        accumulate: number of parts into which the batch is split. The parts are processed one after the other. The
            gradient is the mean of the parts' gradients, and batch statistics are updated part by part. On accelerators
            the parts are a loop, which reduces the memory of activations by about this factor. On CPU they are
            unrolled, which saves no memory.
        learning_rate: the optimizer's schedule, to report its value as the metric `learning_rate`.
        inputs: deprecated, for a loss of the form `loss(outputs, batch)`: names of the model's inputs in the batch.

    Returns:
        `train_step(state, batch) -> (state, metrics)`; metrics are scalars on the device: `loss`, `grad_norm`,
        `learning_rate` if its schedule is given, and what the loss reports.

    Raises:
        ValueError: if `accumulate` is not positive; when the step is first called, if it does not divide the batch or
            the loss is not a scalar.
        TypeError: if the loss does not take three arguments.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from densezoo.train import create_state
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, images, *, train=False):
        ...         return nn.Conv(1, (3, 3))(images)
        >>> batch = {"image": jnp.ones((2, 8, 8, 3)), "target": jnp.ones((2, 8, 8, 1))}
        >>> state = create_state(Net(), optax.sgd(0.1), jax.random.key(0), batch["image"])
        >>> step = make_train_step(lambda apply, batch, key: jnp.mean((apply(batch["image"]) - batch["target"]) ** 2))
        >>> state, metrics = step(state, batch)
        >>> sorted(metrics), int(state.step)
        (['grad_norm', 'loss'], 1)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate, the number of parts of a batch, must be at least 1; got {accumulate}")
    loss = _loss_of_apply(loss, inputs)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if augment is not None:
            batch = augment(augment_key, batch)
        trainable = state.trainable

        def part_loss(trainable, collections, part, key):
            apply = _Apply(state, freezing.merged(state.params, trainable), collections, key)
            value, reported = _scalars(loss(apply, part, jax.random.fold_in(key, 1)))
            return value, (apply.collections, {"loss": value} | reported)

        # Only the trainable parameters are differentiated, so that a frozen encoder has no backward pass.
        gradient = jax.grad(part_loss, has_aux=True)

        if accumulate == 1:
            gradients, (collections, metrics) = gradient(trainable, state.collections, batch, loss_key)
        else:

            def add_part(carry, part_and_key):
                (total, collections), (part, key) = carry, part_and_key
                gradients, (collections, metrics) = gradient(trainable, collections, part, key)
                return (jax.tree.map(jnp.add, total, gradients), collections), metrics

            (gradients, collections), metrics = jax.lax.scan(
                add_part,
                (jax.tree.map(jnp.zeros_like, trainable), state.collections),
                (_split(batch, accumulate), jax.random.split(loss_key, accumulate)),
                # Inside a loop, XLA:CPU computes convolution gradients with a naive method that is many times slower.
                unroll=jax.default_backend() == "cpu",
            )
            gradients = jax.tree.map(lambda x: x / accumulate, gradients)
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats.
            updates, opt_state = state.optimizer.update(gradients, state.opt_state, trainable)
            trainable: Any = optax.apply_updates(trainable, updates)
            if learning_rate is not None:
                metrics["learning_rate"] = jnp.asarray(learning_rate(state.step)).astype(jnp.float32)
        metrics["grad_norm"] = _norm(gradients)
        step = state.step + 1
        state = state.replace(
            step=step,
            params=freezing.merged(state.params, trainable),
            collections=collections,
            opt_state=opt_state,
            ema=_average(state.ema, trainable, state.ema_decay, step),
        )
        if state.layout is not None:  # XLA could choose other shardings, and the next step would be recompiled.
            state, metrics = state.layout.keep(state), replicated(metrics, state.layout)
        return state, metrics

    return Jitted(train_step, training=True, donate_argnums=0)


class _Apply:
    """The model in a train step: a function of its inputs that stores updated collections in `collections`."""

    def __init__(self, state: TrainState, params: PyTree, collections: dict[str, Any], key: Key[Array, ""]):
        self._state, self._params, self._key, self._calls = state, params, key, 0
        self.collections = collections

    def __call__(self, *inputs: Any, train: bool = True, **arguments: Any) -> Any:
        # The first call takes the step's key itself. Flax takes any stream that has no key of its own from `params`.
        key = jax.random.fold_in(self._key, 1 + self._calls) if self._calls else self._key
        self._calls += 1
        variables = replicated({"params": self._params, **self.collections}, self._state.layout)
        if not train:
            return self._state.apply_fn(variables, *inputs, train=False, **arguments)
        outputs, updated = self._state.apply_fn(
            variables,
            *inputs,
            train=True,
            rngs={"dropout": key, "params": jax.random.fold_in(key, 0)},
            mutable=list(self.collections),
            **arguments,
        )
        self.collections = self.collections | dict(updated)
        return outputs


def make_eval_step(
    measure: Callable[[Apply, Any], PyTree],
    *,
    ema: bool = True,
) -> Callable[[TrainState, Batch], PyTree]:
    """Returns a jitted function that evaluates one batch.

    Args:
        measure: `measure(apply, batch)` returns a pytree that is summed over batches, for instance confusion counts.
            `apply(*inputs)` runs the model in inference mode.
        ema: whether to use the averaged parameters if the state has them.

    Returns:
        `eval_step(state, batch) -> measure(apply, batch)`.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_error = make_eval_step(lambda apply, batch: jnp.sum((apply(batch["image"]) - batch["depth"]) ** 2))
    """

    def eval_step(state: TrainState, batch: Batch) -> PyTree:
        variables = replicated(state.ema_variables if ema else state.variables, state.layout)
        return replicated(measure(partial(state.apply_fn, variables, train=False), batch), state.layout)

    return Jitted(eval_step)


def _loss_of_apply(loss: Any, inputs: tuple[str, ...] | None) -> Loss:
    """Converts a loss of the deprecated form `loss(outputs, batch)` to `loss(apply, batch, key)`."""
    try:
        inspect.signature(loss).bind(None, None, None)
    except TypeError:
        try:
            inspect.signature(loss).bind(None, None)
        except TypeError:
            raise TypeError(f"the loss must take (apply, batch, key); got {inspect.signature(loss)}") from None
    except ValueError:  # a function without a signature
        return loss
    else:
        if inputs is not None:
            raise TypeError("inputs= is for a loss of the form loss(outputs, batch); this one calls apply itself")
        return loss
    warnings.warn(
        "a loss of the form loss(outputs, batch) is deprecated: write loss(apply, batch, key), which calls the model"
        ' itself, such as lambda apply, batch, key: cross_entropy(apply(batch["image"]), batch["mask"])',
        DeprecationWarning,
        stacklevel=3,
    )
    names = ("image",) if inputs is None else inputs
    if isinstance(names, str):
        raise ValueError(f"inputs must be a tuple of names; got the string {names!r}: write ({names!r},)")

    def of_outputs(apply, batch, key):
        if missing := [name for name in names if name not in batch]:
            raise ValueError(f"the batch has no {missing}; it has {sorted(batch)}. Name the inputs by inputs=(...)")
        return loss(apply(*(batch[name] for name in names)), batch)

    return of_outputs


def _average(ema: PyTree, params: PyTree, decay: float | None, step: Array) -> PyTree:
    if ema is None or decay is None:
        return ema
    count = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda average, x: average + (1 - decay_now).astype(x.dtype) * (x - average), ema, params)


def _norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm, by contractions over all axes, which XLA:CPU computes several times faster than sums."""
    exact = partial(jnp.tensordot, precision="highest", preferred_element_type=jnp.float32)
    leaves = jax.tree.leaves(tree)
    if jax.default_backend() == "cpu" and not explicitly_sharded(*leaves) and not any(map(in_auto_mesh, leaves)):
        # XLA:CPU compiles up to four loops for each contraction, so small arrays are joined to a vector.
        small = [x.astype(jnp.float32).reshape(-1) for x in leaves if x.size < 2**16]
        leaves = [x for x in leaves if x.size >= 2**16] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(sum((exact(x, x, x.ndim) for x in leaves), jnp.float32(0)))


def _split(batch: Batch, parts: int) -> PyTree:
    """Leaves (b, ...) as (parts, b / parts, ...); image i goes to part i % parts, so that shards stay balanced."""

    def split(path, x):
        if x.ndim == 0 or x.shape[0] % parts:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"accumulate={parts} does not divide the batch: {name} has shape {x.shape}")
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map_with_path(split, batch)


def _scalars(result: Any) -> tuple[Float[Array, ""], Metrics]:
    """Converts the result of a loss to a float32 scalar and a dict of float32 scalars."""
    value, reported = result if isinstance(result, tuple) else (result, {})
    if taken := sorted({"loss", "grad_norm", "learning_rate"} & set(reported)):
        raise ValueError(f"the loss reports {taken}, which are reserved names of the step: choose others")
    for name, x in {"loss": value, **reported}.items():
        if jnp.shape(x) != ():
            raise ValueError(f"{name} must be a scalar, but has shape {jnp.shape(x)}: take its mean")
    as_float32 = lambda x: jnp.asarray(x).astype(jnp.float32)  # noqa: E731
    return as_float32(value), {name: jax.lax.stop_gradient(as_float32(x)) for name, x in reported.items()}
