"""The jitted train step and evaluation step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from densezoo.compiling import Jitted
from densezoo.train.state import TrainState

Batch = Mapping[str, PyTree]
Metrics = dict[str, Float[Array, ""]]
Loss = Callable[[Any, Any], Any]  # (logits, batch) -> scalar, or (scalar, dict of scalars)


def make_train_step(
    loss: Loss,
    *,
    augment: Callable[[Key[Array, ""], Any], Any] | None = None,
    accumulate: int = 1,
    inputs: tuple[str, ...] = ("image",),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A jitted function that does one update.

    The function donates its state: use the state it returns, the one passed in is gone. Nothing in it is tied to a
    device or mesh, so the same function trains under any sharding of state and batch; batch statistics are then those
    of the whole batch. The randomness of a step depends on the state's key and step alone.

    Args:
        loss: `loss(logits, batch)` gives a scalar, or a scalar and a dict of further scalars to report.
        augment: `augment(key, batch)` gives the batch to train on; runs on the device, inside the step.
        accumulate: split the batch into this many parts and take them one after the other. The gradient is the mean of
            the parts' gradients; batch statistics are updated part by part. On an accelerator the parts are a loop and
            activations take about that fraction of the memory; on a CPU they are unrolled, which saves no memory.
        inputs: names of the batch's entries that the model is called with, in order.

    Returns:
        `train_step(state, batch) -> (state, metrics)`; metrics are scalars on the device: `loss`, `grad_norm`, and
        what the loss reports.

    Raises:
        ValueError: if `accumulate` is not positive; when the step is first called, if it does not divide the batch,
            the batch lacks an input, or the loss is not a scalar.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from densezoo.train import create_state
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, images, *, train=False):
        ...         return nn.Conv(1, (3, 3))(images)
        >>> batch = {"image": jnp.ones((2, 8, 8, 3)), "target": jnp.ones((2, 8, 8, 1))}
        >>> state = create_state(Net(), optax.sgd(0.1), jax.random.key(0), batch["image"])
        >>> step = make_train_step(lambda prediction, batch: jnp.mean((prediction - batch["target"]) ** 2))
        >>> state, metrics = step(state, batch)
        >>> sorted(metrics), int(state.step)
        (['grad_norm', 'loss'], 1)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is the number of parts of a batch, at least 1; got {accumulate}")
    _check_inputs(inputs)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if augment is not None:
            batch = augment(augment_key, batch)
        trainable = state.trainable

        def part_loss(trainable, batch_stats, part, key):
            logits, updated = state.apply_fn(
                {"params": state.params | trainable, "batch_stats": batch_stats},
                *_pick(part, inputs),
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            value, reported = _scalars(loss(logits, part))
            return value, (updated.get("batch_stats", batch_stats), {"loss": value} | reported)

        # Only the trainable parameters are differentiated, so that a frozen encoder has no backward pass.
        gradient = jax.grad(part_loss, has_aux=True)

        if accumulate == 1:
            gradients, (batch_stats, metrics) = gradient(trainable, state.batch_stats, batch, dropout_key)
        else:

            def add_part(carry, part_and_key):
                (total, batch_stats), (part, key) = carry, part_and_key
                gradients, (batch_stats, metrics) = gradient(trainable, batch_stats, part, key)
                return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

            (gradients, batch_stats), metrics = jax.lax.scan(
                add_part,
                (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats),
                (_split(batch, accumulate), jax.random.split(dropout_key, accumulate)),
                # Inside a loop, XLA:CPU computes convolution gradients by a naive method, many times slower.
                unroll=jax.default_backend() == "cpu",
            )
            gradients = jax.tree.map(lambda x: x / accumulate, gradients)
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats.
            updates, opt_state = state.optimizer.update(gradients, state.opt_state, trainable)
            trainable: Any = optax.apply_updates(trainable, updates)
        metrics["grad_norm"] = _norm(gradients)
        step = state.step + 1
        state = state.replace(
            step=step,
            params=state.params | trainable,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, trainable, state.ema_decay, step),
        )
        return state, metrics

    return Jitted(train_step, training=True, donate_argnums=0)


def make_eval_step(
    measure: Callable[[Any, Any], PyTree],
    *,
    inputs: tuple[str, ...] = ("image",),
    ema: bool = True,
) -> Callable[[TrainState, Batch], PyTree]:
    """A jitted function that measures one batch.

    Args:
        measure: `measure(logits, batch)` gives a pytree that adds over batches, for instance confusion counts.
        inputs: names of the batch's entries that the model is called with, in order.
        ema: use the averaged parameters if the state has them.

    Returns:
        `eval_step(state, batch) -> measure(logits, batch)`, with the model as in inference.

    Raises:
        ValueError: when the step is first called, if the batch lacks an input.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_error = make_eval_step(lambda prediction, batch: jnp.sum((prediction - batch["depth"]) ** 2))
    """
    _check_inputs(inputs)

    def eval_step(state: TrainState, batch: Batch) -> PyTree:
        variables = state.ema_variables if ema else state.variables
        return measure(state.apply_fn(variables, *_pick(batch, inputs), train=False), batch)

    return Jitted(eval_step)


def _average(ema: PyTree, params: PyTree, decay: float | None, step: Array) -> PyTree:
    if ema is None or decay is None:
        return ema
    count = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda average, x: average + (1 - decay_now).astype(x.dtype) * (x - average), ema, params)


def _norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm. As contractions over all axes, which XLA:CPU computes several times faster than sums."""
    exact = partial(jnp.tensordot, precision="highest", preferred_element_type=jnp.float32)
    return jnp.sqrt(sum((exact(x, x, x.ndim) for x in jax.tree.leaves(tree)), jnp.float32(0)))


def _check_inputs(inputs: tuple[str, ...]) -> None:
    if isinstance(inputs, str):
        raise ValueError(f"inputs is a tuple of names; got the string {inputs!r}: write ({inputs!r},)")


def _pick(batch: Batch, names: tuple[str, ...]) -> list[PyTree]:
    if missing := [name for name in names if name not in batch]:
        raise ValueError(f"the batch has no {missing}; it has {sorted(batch)}. Name the model's inputs by inputs=(...)")
    return [batch[name] for name in names]


def _split(batch: Batch, parts: int) -> PyTree:
    """Leaves (b, ...) as (parts, b / parts, ...); image i goes to part i % parts, so that shards stay balanced."""

    def split(path, x):
        if x.ndim == 0 or x.shape[0] % parts:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"accumulate={parts} does not divide the batch: {name} has shape {x.shape}")
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map_with_path(split, batch)


def _scalars(result: Any) -> tuple[Float[Array, ""], Metrics]:
    """What a loss gave, as a float32 scalar and a dict of float32 scalars."""
    value, reported = result if isinstance(result, tuple) else (result, {})
    if taken := sorted({"loss", "grad_norm"} & set(reported)):
        raise ValueError(f"the loss reports {taken}, names that the step itself uses: choose others")
    for name, x in {"loss": value, **reported}.items():
        if jnp.shape(x) != ():
            raise ValueError(f"{name} is to be a scalar, but has shape {jnp.shape(x)}: take its mean")
    as_float32 = lambda x: jnp.asarray(x).astype(jnp.float32)  # noqa: E731
    return as_float32(value), {name: jax.lax.stop_gradient(as_float32(x)) for name, x in reported.items()}
