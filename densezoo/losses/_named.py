"""Losses by name with weights, as on a command line: "cross_entropy + 0.5 * dice"."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.losses._cross_entropy import cross_entropy, focal_loss
from densezoo.losses._depth import depth_l1_loss, gradient_matching_loss, scale_shift_invariant_loss, silog_loss
from densezoo.losses._lovasz import lovasz_loss
from densezoo.losses._overlap import dice_loss, jaccard_loss, tversky_loss
from densezoo.losses._pixels import ClassWeights, check_class_weights, weighted_mean
from densezoo.messages import option

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "dice": dice_loss,
    "focal": focal_loss,
    "jaccard": jaccard_loss,
    "lovasz": lovasz_loss,
    "tversky": tversky_loss,
}
"""Names that `named_loss` accepts."""
DEPTH_LOSSES: dict[str, Callable[..., Any]] = {
    "gradient": gradient_matching_loss,
    "l1": depth_l1_loss,
    "scale_shift_invariant": scale_shift_invariant_loss,
    "silog": silog_loss,
}
"""Names that `named_depth_loss` accepts."""
_OPTIONS = {
    name: [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name, loss in {**LOSSES, **DEPTH_LOSSES}.items()
}

_EXAMPLES = ("silog + 0.5*gradient", "cross_entropy + 0.5*dice")
_TERM = re.compile(r"(?:([\d.]+(?:e-?\d+)?)\s*\*\s*)?(\w+)\s*(?:\(([^()]*)\))?")


def named_loss(
    text: str,
    *,
    class_weights: ClassWeights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    multilabel: bool = False,
) -> Callable[[Any, Any], Float[Array, ""]]:
    """Creates a loss, or a weighted sum of several losses, from names.

    Args:
        text: names of `LOSSES` joined by +, with optional weights and arguments: "cross_entropy",
            "cross_entropy+dice", "0.5*focal(gamma=3)+tversky(alpha=0.3,beta=0.7)".
        class_weights: a weight for each class, for every loss of the sum that takes them.
        label_smoothing: label smoothing of the cross-entropy.
        ignore_index: label of ignored pixels.
        multilabel: whether a pixel may have several labels, with a sigmoid per class. Logits and labels are then
            (b, h, w, k), with labels 0 or 1. The loss is the mean of the classes' binary losses, weighted by
            `class_weights`.

    Returns:
        `loss(logits, labels)`, a float32 scalar.

    Raises:
        ValueError: if a name or argument is unknown, or none of the losses takes an option.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = named_loss("cross_entropy + 0.5*dice", ignore_index=255)
        >>> labels = jnp.ones((1, 4, 4), jnp.int32)
        >>> round(float(loss(jnp.zeros((1, 4, 4, 1)), labels)), 4)  # log 2 + 0.5 (1 - 2 / 3)
        0.8598
    """
    terms = _terms(text, LOSSES)
    given: dict[str, Any] = {"ignore_index": ignore_index}
    if class_weights is not None and not multilabel:
        given["class_weights"] = class_weights
    if label_smoothing:
        given["label_smoothing"] = label_smoothing
    for argument in given:
        if not any(argument in _OPTIONS[name] for _, name, _ in terms):
            raise ValueError(f"{option(argument)} was given, and no loss of {text!r} takes it")

    def total(logits: Any, labels: Any) -> jax.Array:
        values = []
        for weight, name, arguments in terms:
            options = {argument: value for argument, value in given.items() if argument in _OPTIONS[name]}
            if logits.shape[-1] == 1 and name != "cross_entropy":
                options.pop("class_weights", None)  # one channel is one class for these
            values.append(weight * LOSSES[name](logits, labels, **options | arguments))
        return jnp.sum(jnp.stack(values))

    if not multilabel:
        return total

    def by_class(logits: Any, labels: Any) -> jax.Array:
        if logits.shape != labels.shape:
            raise ValueError(
                f"with several labels per pixel, logits and labels must be (b, h, w, classes); got {logits.shape} and"
                f" {labels.shape}"
            )
        binary = jax.vmap(lambda x, y: total(x[..., None], y), in_axes=-1)(logits, labels)
        return weighted_mean(binary, check_class_weights(class_weights, logits.shape[-1]))

    return by_class


def named_depth_loss(text: str) -> Callable[[Any, Any], Float[Array, ""]]:
    """Creates a loss of depth, or a weighted sum of several losses, from names.

    Args:
        text: names of `DEPTH_LOSSES`, in the syntax of `named_loss`: "silog(focus=0.85) + 0.5*gradient(log=True)".

    Returns:
        `loss(predictions, depth)`, a float32 scalar.

    Raises:
        ValueError: if a name or argument is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> float(named_depth_loss("2*l1")(jnp.ones((1, 2, 2)), jnp.full((1, 2, 2), 3.0)))
        4.0
    """
    terms = _terms(text, DEPTH_LOSSES)

    def total(predictions: Any, depth: Any) -> jax.Array:
        values = [weight * DEPTH_LOSSES[name](predictions, depth, **options) for weight, name, options in terms]
        return jnp.sum(jnp.stack(values))

    return total


def _terms(text: str, table: Mapping[str, Any]) -> list[tuple[float, str, dict[str, Any]]]:
    """The terms of a sum, split at each + outside of brackets."""
    return [_term(part.strip(), text, table) for part in re.split(r"\+(?![^(]*\))", text)]


def _term(part: str, text: str, table: Mapping[str, Any]) -> tuple[float, str, dict[str, Any]]:
    match = _TERM.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} in {text!r} is not a loss: write losses as in {_EXAMPLES[table is LOSSES]}")
    weight, name, options = match.groups()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(table)}"
        raise ValueError(f"unknown loss {name!r}; {hint}")
    arguments = {}
    for argument in filter(None, (each.strip() for each in (options or "").split(","))):
        key, _, value = (each.strip() for each in argument.partition("="))
        if key not in _OPTIONS[name]:
            raise ValueError(f"the loss {name} has no argument {key!r}; it has {', '.join(_OPTIONS[name])}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{argument!r} in the loss {text!r}: {value!r} is not a number") from error
    return float(weight) if weight else 1.0, name, arguments
