"""The optimizer of the recipes: AdamW with a one-cycle learning rate and optional clipping; and frozen parts."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from densezoo.freezing import check_names, is_frozen


def one_cycle(peak: float, steps: int) -> optax.Schedule:
    """One-cycle learning rate: rises to `peak` over the first 30% of the steps, then falls to almost 0, both by cosine.

    It starts at `peak / 25` and ends at `peak / 250_000`. The values are those of `torch.optim.lr_scheduler.OneCycleLR`
    with `total_steps=steps`, where the peak comes at step `0.3 * steps - 1` and the end at step `steps - 1`
    (`optax.cosine_onecycle_schedule` puts both one step later). After the last step the rate stays at its end.

    Args:
        peak: the largest learning rate.
        steps: number of updates of the whole training.

    Returns:
        A function from the number of completed updates to the learning rate.

    Raises:
        ValueError: if `steps` is not positive, or `peak` is not finite.

    Example:
        >>> schedule = one_cycle(0.1, 10)
        >>> [f"{schedule(step):.4f}" for step in (0, 2, 9)]
        ['0.0040', '0.1000', '0.0000']

    References:
        Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2017,
        https://arxiv.org/abs/1708.07120
    """
    if steps < 1:
        raise ValueError(f"a one-cycle schedule needs at least one step; got steps={steps}")
    if isinstance(peak, int | float) and not math.isfinite(peak):
        raise ValueError(f"a learning rate must be a finite number, got {peak}")
    top, end = 0.3 * steps - 1, steps - 1

    def cosine(start: float, stop: float, fraction):
        return stop + (start - stop) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0, 1)))

    def schedule(count):
        count = jnp.asarray(count).astype(jnp.float32)
        # With up to three steps, there is no rise: top <= 0, and the fall starts immediately.
        rise = cosine(peak / 25, peak, count / max(top, 1e-6))
        fall = cosine(peak, peak / 250_000, (count - top) / (end - top))
        return jnp.where(count <= top, rise, fall)

    return schedule


def make_optimizer(
    learning_rate: float | optax.Schedule,
    steps: int,
    *,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """AdamW with a one-cycle learning rate: the recipe that densezoo's scripts and baselines use.

    The updates are those of `torch.optim.AdamW` (betas 0.9 and 0.999, epsilon 1e-8) under `OneCycleLR`. As there,
    weight decay acts on every parameter, biases and norms included.

    Args:
        learning_rate: the peak of the cycle, or any optax schedule, which replaces the cycle.
        steps: number of updates of the whole training.
        weight_decay: strength of the decoupled weight decay.
        clip_norm: the largest global norm of the gradients; larger ones are scaled down. None does not clip.

    Returns:
        An optax gradient transformation.

    Raises:
        ValueError: if `steps` is not positive, or the learning rate is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer(1e-3, 200, clip_norm=1.0)
        >>> memory = optimizer.init({"kernel": jnp.zeros((3, 3))})

    References:
        Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, https://arxiv.org/abs/1711.05101
    """
    if steps < 1:
        raise ValueError(f"an optimizer needs at least one step; got steps={steps}")
    schedule = learning_rate if callable(learning_rate) else one_cycle(learning_rate, steps)
    adamw = optax.adamw(schedule, eps=1e-8, weight_decay=weight_decay)
    return adamw if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def freeze(optimizer: optax.GradientTransformation, names: Sequence[str]) -> optax.GradientTransformation:
    """Wraps an optimizer so that it does not change some parts of a model, for your own training loop.

    `densezoo.train`'s own step does not need it. Frozen parameters get no weight decay and no optimizer state.

    Args:
        optimizer: for the other parameters.
        names: parts of the model, such as `model.frozen`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> params = {"encoder": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
        >>> optimizer = freeze(optax.adamw(0.1), ("encoder",))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> updates["encoder"]["kernel"].tolist(), bool((updates["head"]["kernel"] != 0).all())
        ([0.0, 0.0], True)
    """
    frozen = (names,) if isinstance(names, str) else tuple(names)

    def labels(params):
        check_names(params, frozen, "freeze: names")
        kinds = {path: "frozen" if is_frozen(path, frozen) else "trained" for path in flatten_dict(params)}
        return unflatten_dict(kinds)

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
