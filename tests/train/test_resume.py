"""A killed and resumed run ends with the same bits as an uninterrupted one."""

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

from densezoo.train import create_state, fit, make_train_step
from densezoo.train.checkpoint import newest_checkpoint

STEPS = 6


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(not train)(nn.Conv(2, (3, 3))(images))
        return nn.Conv(1, (1, 1))(nn.Dropout(0.5, deterministic=not train)(x))


def train(directory, *, kill_after=None, resume=False):
    """Six steps with dropout, statistics and an average; killed that many seconds after the first one."""

    def batches(done):
        for step in range(done, STEPS + 1):
            if kill_after is not None and step == 1:
                threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            time.sleep(0 if kill_after is None else 0.03)
            yield {"image": np.random.default_rng(step).normal(size=(2, 4, 4, 1)).astype(np.float32)}

    state = create_state(Net(), optax.adamw(0.1), jax.random.key(0, impl="rbg"), jnp.zeros((2, 4, 4, 1)), ema_decay=0.9)
    train_step = make_train_step(lambda apply, batch, key: jnp.mean((apply(batch["image"]) - batch["image"] ** 2) ** 2))
    return fit(
        state,
        train_step,
        batches,
        steps=STEPS,
        directory=directory,
        resume=resume,
        checkpoint_every=1,
        log_every=1,
        progress=False,
    )


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    kill_after = random.uniform(0, 0.4)  # Anywhere from the first step to the last, also while a checkpoint is written.
    command = [sys.executable, __file__, str(tmp_path / "killed"), str(kill_after)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, (kill_after, killed.stderr)

    reached = newest_checkpoint(tmp_path / "killed", "last")
    resumed, resumed_history = train(tmp_path / "killed", resume=True)
    straight, history = train(tmp_path / "straight")
    message = f"killed after {kill_after} s, resumed from {reached}"
    pairs = zip(jax.tree.leaves_with_path(straight), jax.tree.leaves(resumed), strict=True)
    for (path, x), y in pairs:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(y, x, err_msg=f"{jax.tree_util.keystr(path)}: {message}")
    losses = [[(record["step"], record["loss"]) for record in records] for records in (resumed_history, history)]
    assert losses[0] == losses[1], message


if __name__ == "__main__":
    train(sys.argv[1], kill_after=float(sys.argv[2]))
    time.sleep(60)  # Finished before the timer: wait for it.
