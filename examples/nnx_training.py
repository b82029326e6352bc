"""A U-Net as an NNX module, trained with `nnx.Optimizer` and `nnx.jit` on scenes of digits.

Usage: python examples/nnx_training.py --out out/nnx

Takes one to two minutes on two CPU cores. Writes the trained model to OUT/model.safetensors, which `dz.load` reads. The
last line on standard output is a JSON object with the mean IoU on scenes that were not used for training. See
docs/nnx.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import NUM_CLASSES, command_line, digit_scenes, tiny_unet
from flax import nnx

import densezoo as dz
from densezoo.data import to_float


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/nnx")
    """Output folder for the model."""
    steps: int = 300
    """Number of training steps."""
    batch_size: int = 16
    """Number of scenes per step."""
    seed: int = 0
    """Seed of scenes and training."""


@nnx.jit
def train_step(module: Any, optimizer: nnx.Optimizer, images: jax.Array, masks: jax.Array) -> jax.Array:
    """Performs one update in place."""
    loss, gradients = nnx.value_and_grad(lambda module: dz.losses.cross_entropy(module(images), masks))(module)
    optimizer.update(module, gradients)
    return loss


def normalise(image: np.ndarray) -> np.ndarray:
    """Converts an image to the network's input."""
    return (to_float(image) - 0.5) / 0.25


def main(arguments: Arguments) -> None:
    model = tiny_unet()
    scenes = digit_scenes(20_000, "train", seed=arguments.seed)
    variables = jax.jit(model.init)(jax.random.key(arguments.seed), jnp.zeros((1, 40, 40, 3)))
    module = dz.to_nnx(model, variables, rngs=arguments.seed)
    schedule = optax.cosine_onecycle_schedule(arguments.steps, 5e-3)
    optimizer = nnx.Optimizer(
        module, optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(schedule, weight_decay=1e-4)), wrt=nnx.Param
    )

    module.train()
    for step in range(arguments.steps):
        start = step * arguments.batch_size
        batch = [scenes[index % len(scenes)] for index in range(start, start + arguments.batch_size)]
        images = jnp.stack([normalise(scene["image"]) for scene in batch])
        loss = train_step(module, optimizer, images, jnp.stack([scene["mask"] for scene in batch]))
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step}  loss {float(loss):.3f}", flush=True)

    module.eval()
    val = digit_scenes(64, "val", seed=arguments.seed)
    samples = [val[index] for index in range(len(val))]
    predictions = nnx.jit(lambda module, images: dz.metrics.predict(module(images)))(
        module, jnp.stack([normalise(sample["image"]) for sample in samples])
    )
    masks = jnp.stack([sample["mask"] for sample in samples])
    counts = dz.metrics.confusion_counts(predictions, masks, num_classes=NUM_CLASSES)
    path = arguments.out / "model.safetensors"
    dz.save(path, model, dz.from_nnx(module))
    print(json.dumps({"mean_iou": float(dz.metrics.mean_iou(counts)), "model": str(path)}))


if __name__ == "__main__":
    command_line(main, Arguments)
