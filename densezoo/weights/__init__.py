"""PyTorch checkpoints -> variables, by tables of names; nothing in a checkpoint is executed."""

from densezoo.weights._convert import from_torch
from densezoo.weights._files import read_checkpoint
from densezoo.weights._plain import plain_unet

__all__ = ["from_torch", "plain_unet", "read_checkpoint"]
