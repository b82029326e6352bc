"""The augmentation of tasks with maps."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from densezoo.data import transforms

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe


def augmentation(recipe: "Recipe", *, fill: int) -> Callable[[Any, Any], Any]:
    """The recipe's random flips, rotations, scaling and colour changes; `fill` surrounds label maps."""
    steps = [transforms.random_flip(horizontal=recipe.flip_horizontal, vertical=recipe.flip_vertical)]
    if recipe.rotate:
        steps.append(transforms.random_rot90())
    if recipe.scale != (1.0, 1.0):
        steps.append(transforms.random_scale(recipe.scale, ignore_index=fill))
    if recipe.color_jitter:
        strength = recipe.color_jitter
        steps.append(transforms.color_jitter(brightness=strength, contrast=strength, saturation=strength))
    return transforms.compose(*steps)
