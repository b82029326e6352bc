"""Detects checkpoints whose names and shapes fit but whose reference computes something else than the model."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from densezoo.blocks import FrozenBatchNorm
from densezoo.encoders import ENCODERS, Encoder
from densezoo.messages import shortened
from densezoo.naming import DETECTORS, TORCHVISION, TRANSFORMERS, Naming
from densezoo.weights._fingerprints import names_of
from densezoo.weights._parameters import Path, epsilon_of, namings_of


def unseen(encoder: nn.Module, naming: Naming | None = None) -> dict[str, Any]:
    """The properties of an encoder that change its results but no array: such fields, and its norms' epsilon.

    The epsilon is omitted if `naming` contains the reference's, because loading then compensates for it.
    """
    fields = encoder.unseen if isinstance(encoder, Encoder) else ()
    values: dict[str, Any] = {}
    for field in fields:
        if field != "norm":
            values[field] = getattr(encoder, field)
        elif naming is None or naming.epsilon is None:
            values["epsilon"] = epsilon_of(encoder)
    return values


def difference(came: nn.Module, ours: nn.Module, naming: Naming | None = None) -> list[str]:
    """The differences between two encoders' computations, such as "act=silu where the model's encoder has relu"."""
    theirs, mine = unseen(came, naming), unseen(ours, naming)
    return [f"{k}={v!r} where the model's encoder has {mine.get(k)!r}" for k, v in theirs.items() if mine.get(k) != v]


def check_architecture(architecture: str, encoder: nn.Module, naming: Naming | None) -> None:
    """Rejects an encoder that computes something else than the one of this name.

    Raises:
        ValueError: if there is no such encoder, or it differs.
    """
    if architecture not in ENCODERS:
        near = difflib.get_close_matches(architecture, ENCODERS, n=3)
        hint = f"; perhaps {' or '.join(near)}" if near else ""
        raise ValueError(f"architecture is the name of an encoder (dz.list_encoders()), got {architecture!r}{hint}")
    there = ENCODERS[architecture]()
    if not isinstance(encoder, type(there)):
        raise ValueError(f"{architecture} is a {type(there).__name__}, the model's encoder a {type(encoder).__name__}")
    if lines := difference(there, encoder, naming):
        raise ValueError(
            f"{architecture} has {', and '.join(lines)}: with its weights, the results would differ. Create the"
            f" encoder as {architecture!r}"
        )


def doubt(encoder: nn.Module, naming: Naming, shapes: Mapping[Path, tuple[int, ...]], stem: Path | None) -> str:
    """Other encoders of the zoo whose weights have the same names and shapes but another meaning.

    Args:
        encoder: the encoder to load into.
        naming: the naming of its weights.
        shapes: shapes of the encoder's arrays.
        stem: path of its first kernel.
    """
    if naming.source == TRANSFORMERS:  # its names determine the computation: `Naming.differs`
        return ""
    rivals = {}
    for name in names_of(shapes, stem):
        other = ENCODERS[name]()
        usual = next((n for n in namings_of(other) if n.source == naming.source), None)
        same_names = usual is not None and usual.find(encoder.stem or "") == naming.find(encoder.stem or "")  # pyright: ignore
        if type(other) is type(encoder) and same_names and (lines := difference(other, encoder, naming)):
            rivals[name] = lines
    if not rivals:
        return ""
    name = next(iter(rivals))
    mine = next((n for n in names_of(shapes, stem) if not difference(ENCODERS[n](), encoder)), None)
    confirm = f"architecture={mine!r}" if mine else "architecture= with the name of the encoder"
    return (
        f"Names and shapes are also those of {shortened(list(rivals), ', ')}, which has"
        f" {', and '.join(rivals[name])}. If the weights are of {name}, create the encoder as {name!r}; if they are of"
        f" the model's encoder, say so: {confirm}"
    )


def doubt_of_frozen_norms(encoder: nn.Module, naming: Naming, names: Iterable[str]) -> str:
    """A warning if a detector's frozen norms, whose epsilon no array shows, become ordinary ones; empty otherwise.

    torchvision sets the epsilon of `FrozenBatchNorm2d` to 0 when it loads its published weights of the first versions
    of RetinaNet, Faster and Mask R-CNN over a ResNet.
    """
    norm, epsilon = getattr(encoder, "norm", None), epsilon_of(encoder)
    if naming.source != DETECTORS or naming.epsilon is not None or norm is None or not epsilon:
        return ""
    body = [name for name in names if name.startswith(naming.prefix)]
    ends = {name.rpartition(".")[2] for name in body}
    # The weights of FCOS keep the epsilon, and a backbone without heads is not one of the published weights.
    published = any(name.startswith(("rpn.", "head.")) for name in names) and not any(
        "bbox_ctrness" in n for n in names
    )
    frozen = "running_var" in ends and "num_batches_tracked" not in ends
    if isinstance(norm(), FrozenBatchNorm) or not frozen or not published:
        return ""
    return (
        "the backbone's batch norms were frozen, for they have no num_batches_tracked. torchvision's published weights"
        f" of its first versions (COCO_V1) are for an epsilon of 0, and the model's encoder has {epsilon}: for these,"
        " create it with norm=partial(dz.FrozenBatchNorm, epsilon=0.0); for weights that you trained, with"
        " norm=dz.FrozenBatchNorm"
    )


def contradictions(namings: Mapping[str, Naming | None], names: Mapping[str, Any]) -> list[str]:
    """The differences between the computations of these references and those of the model's parts."""
    return [
        naming.differs
        for naming in namings.values()
        if naming is not None
        and naming.differs
        # `backbone.` alone is ambiguous.
        and (naming.source != TORCHVISION or any(name.startswith("classifier.") for name in names))
    ]
