"""Families of whole models on the hub: a repository's configuration -> a model."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn

from densezoo.weights import _diffusers, _smp, _transformers
from densezoo.weights._repository import Config
from densezoo.weights._shards import WEIGHTS


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of configuration that is read.

    Attributes:
        build: makes the model of a configuration. It raises a ValueError for an option that densezoo does not have.
        files: names of the weights' files in a repository, the preferred one first.
    """

    build: Callable[[Config], nn.Module]
    files: Sequence[str] = WEIGHTS


# The kinds by name: `model_type` of transformers, `_class_name` of diffusers, `_model_class` of
# segmentation_models_pytorch. A new family needs a function here, and its names in `reference_names` of its modules.
FAMILIES: dict[str, Family] = {
    "segformer": Family(_transformers.segformer),
    "upernet": Family(_transformers.upernet),
    "dpt": Family(_transformers.dpt),
    "depth_anything": Family(_transformers.depth_anything),
    "dinov2": Family(_transformers.dinov2),
    "dinov2_with_registers": Family(_transformers.dinov2),
    **{name: Family(build) for name, build in _smp.BUILDERS.items()},
    "UNet2DModel": Family(_diffusers.unet, _diffusers.WEIGHTS),
}


def kind_of(config: Config) -> str | None:
    """The name of the kind of a configuration; None for one of a bare encoder."""
    if "architecture" in config.options:  # of timm
        return None
    for option in ("_class_name", "_model_class", "model_type"):
        if config.options.get(option) is not None:
            return config.get(option, "")
    return None


def family_of(config: Config, kind: str) -> Family:
    """The family of a kind.

    Raises:
        ValueError: if it is unknown.
    """
    if kind not in FAMILIES:
        raise ValueError(
            f"{config.source} is of a {kind!r}, which densezoo cannot build; there are: {', '.join(FAMILIES)}. If you"
            " have a model for its weights, pass it as `model`"
        )
    return FAMILIES[kind]
