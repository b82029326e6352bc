"""Training: state, jitted steps, checkpoints, the loop and the recipe. Independent of architectures and tasks."""

import importlib
from typing import TYPE_CHECKING, Any

from densezoo.train.loop import fit
from densezoo.train.optimizer import freeze, make_optimizer, one_cycle
from densezoo.train.restore import load_variables, read_facts, restore_state
from densezoo.train.sharding import RULES, Layout, over_fsdp
from densezoo.train.state import TrainState, create_state
from densezoo.train.step import make_eval_step, make_train_step

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe, evaluator, train
    from densezoo.train.segmentation import SegmentationRecipe, predictor, train_segmentation
    from densezoo.train.tensorboard import to_tensorboard

# Imported on first use, because they read data, which needs packages that a custom training loop does not need.
_ON_FIRST_USE = {
    "Recipe": "recipe",
    "evaluator": "recipe",
    "train": "recipe",
    "SegmentationRecipe": "segmentation",
    "predictor": "segmentation",
    "to_tensorboard": "tensorboard",
    "train_segmentation": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"densezoo.train.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module 'densezoo.train' has no attribute {name!r}")


__all__ = [
    "RULES",
    "Layout",
    "Recipe",
    "SegmentationRecipe",
    "TrainState",
    "create_state",
    "evaluator",
    "fit",
    "freeze",
    "load_variables",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "one_cycle",
    "over_fsdp",
    "predictor",
    "read_facts",
    "restore_state",
    "to_tensorboard",
    "train",
    "train_segmentation",
]
