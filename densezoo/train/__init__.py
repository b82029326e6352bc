"""Training: state, jitted steps, checkpoints and the loop. Knows no architecture."""

from densezoo.train.checkpoint import load_variables, read_facts, restore_state
from densezoo.train.loop import fit
from densezoo.train.optimizer import make_optimizer, one_cycle
from densezoo.train.segmentation import SegmentationRecipe, make_evaluator, predictor, train_segmentation
from densezoo.train.state import TrainState, create_state
from densezoo.train.step import make_eval_step, make_train_step

__all__ = [
    "SegmentationRecipe",
    "TrainState",
    "create_state",
    "fit",
    "load_variables",
    "make_eval_step",
    "make_evaluator",
    "make_optimizer",
    "make_train_step",
    "one_cycle",
    "predictor",
    "read_facts",
    "restore_state",
    "train_segmentation",
]
