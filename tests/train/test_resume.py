"""A killed and resumed run ends with the same bits as an uninterrupted one."""

import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import densezoo as dz
from densezoo.inputs import example_inputs
from densezoo.train import create_state, fit, make_train_step
from densezoo.train.checkpoint import newest_checkpoint

STEPS = 6


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(not train)(nn.Conv(2, (3, 3))(images))
        return nn.Conv(1, (1, 1))(nn.Dropout(0.5, deterministic=not train)(x))


def net():
    """Dropout and batch statistics."""

    def batch(rng):
        return {"image": rng.normal(size=(2, 4, 4, 1)).astype(np.float32)}

    return Net(), lambda apply, batch, key: jnp.mean((apply(batch["image"]) - batch["image"] ** 2) ** 2), batch


def panoptic():
    """Losses of anchors, regions and their masks, which are drawn by the step's key, and of a semantic branch."""
    encoder = dz.ResNet((1,), dz.BasicBlock, width=8)
    fields = {"features": 8, "hidden": (8,), "levels": 1, "sizes": ((16.0,),) * 2, "stuff_classes": 1}
    fields |= {"semantic_features": 8, "semantic_norm": None}
    model = dz.create_model("panoptic_fpn", encoder, 2, **fields).clone(candidates=(8, 8), proposals=(8, 8))

    def batch(rng):
        corners = rng.uniform(0, 16, (2, 2, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 16, (2, 2, 2))], -1).astype(np.float32)
        image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
        instances = rng.integers(0, 3, (2, 32, 32), np.int32)
        objects = {"boxes": boxes, "labels": np.array([[0, 0], [0, -1]], np.int32), "instances": instances}
        return {"image": image, "mask": (instances > 0).astype(np.int32)} | objects

    # Fewer samples than candidates, so that other keys draw others.
    task = dz.tasks.PanopticSegmentation(2, anchor_samples=8, region_samples=4)
    return model, task.loss, batch


def diffusion():
    """Times, noise, dropped labels and dropout, all drawn by the step's key."""
    model = dz.create_model("diffusion_unet", num_classes=3, features=(4,), layers=1, attention_levels=(), dropout=0.5)
    model = model.clone(middle=None)

    def batch(rng):
        return {"image": rng.normal(size=(4, 4, 4, 1)).astype(np.float32), "label": rng.integers(0, 3, 4, np.int32)}

    return model, dz.tasks.Diffusion(3, label_dropout=0.5).loss, batch


@functools.cache
def prepared(kind):
    """Initial state, compiled step and batches, shared by the runs of a process."""
    model, loss, batch = {"net": net, "panoptic": panoptic, "diffusion": diffusion}[kind]()
    optimizer = optax.adamw(0.1 if kind == "net" else 1e-3)
    inputs = example_inputs(model, jnp.asarray(batch(np.random.default_rng(0))["image"]))
    state = create_state(model, optimizer, jax.random.key(0, impl="rbg"), *inputs, ema_decay=0.9)
    return state, make_train_step(loss), batch


def train(kind, directory, *, kill_after=None, resume=False):
    """Six steps with an average of the parameters; killed that many seconds after the first one."""
    state, train_step, batch = prepared(kind)

    def batches(done):
        for step in range(done, STEPS + 1):
            if kill_after is not None and step == 1:
                threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            time.sleep(0 if kill_after is None else 0.03)
            yield batch(np.random.default_rng(step))

    return fit(
        jax.tree.map(jnp.copy, state),  # a step donates its state
        train_step,
        batches,
        steps=STEPS,
        directory=directory,
        resume=resume,
        checkpoint_every=1,
        log_every=1,
        progress=False,
    )


@pytest.mark.parametrize("kind", ["net", "diffusion", pytest.param("panoptic", marks=pytest.mark.parity)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, kind):
    kill_after = random.uniform(0, 0.4)  # Anywhere from the first step to the last, also while a checkpoint is written.
    command = [sys.executable, __file__, kind, str(tmp_path / "killed"), str(kill_after)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, (kill_after, killed.stderr)

    reached = newest_checkpoint(tmp_path / "killed", "last")
    resumed, resumed_history = train(kind, tmp_path / "killed", resume=True)
    straight, history = train(kind, tmp_path / "straight")
    message = f"killed after {kill_after} s, resumed from {reached}"
    pairs = zip(jax.tree.leaves_with_path(straight), jax.tree.leaves(resumed), strict=True)
    for (path, x), y in pairs:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(y, x, err_msg=f"{jax.tree_util.keystr(path)}: {message}")
    times = {"images_per_second", "input_wait", "recompilations"}
    resumed_history, history = (
        [{name: record[name] for name in record.keys() - times} for record in records]
        for records in (resumed_history, history)
    )
    assert len(history) == STEPS and resumed_history == history, message


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], kill_after=float(sys.argv[3]))
    time.sleep(60)  # Finished before the timer: wait for it.
