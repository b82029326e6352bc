"""Several processes train like one, stop together, and another number of processes continues a killed run."""

import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo.data import DigitScenes
from densezoo.tasks import TASKS, Segmentation
from densezoo.train import Recipe, fit, load_variables, recipe, train
from densezoo.train.checkpoint import newest_checkpoint

STEPS = 5
AXES = {2: {"fsdp": 2}, 4: {"data": 2, "fsdp": 2}}


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(not train)(nn.Conv(64, (3, 3), use_bias=False)(images))
        return nn.Conv(11, (3, 3))(x)


class NumberedScenes(DigitScenes):
    """Scenes with their number as `label`. After `readable` reads, the next one fails."""

    readable: int | None = None

    def __getitem__(self, index):
        if self.readable is not None:
            self.readable -= 1
            if self.readable < 0:
                raise OSError("cannot read the file")
        return super().__getitem__(index) | {"label": np.int32(index)}


@dataclasses.dataclass(frozen=True)
class Numbered(Segmentation):
    """Segmentation that reports the samples of each batch as the sum of 2**number."""

    @property
    def fields(self):
        return (*super().fields, "label")

    def loss(self, apply, batch, key):
        return super().loss(apply, batch, key), {"samples": jnp.left_shift(1, batch["label"]).sum()}


TASKS["numbered"] = Numbered  # for the model file


def trained(count=1, **options):
    """A training by that number of processes with one device each."""
    mesh = None if count == 1 else jax.make_mesh(tuple(AXES[count].values()), tuple(AXES[count]))
    scenes = NumberedScenes(10, size=(40, 40)), NumberedScenes(3, size=(40, 40), split="val")
    each = Recipe(crop_size=32, batch_size=4, steps=STEPS, evaluate_every=2, eval_batch_size=2, checkpoint_every=1)
    with mock.patch.object(recipe, "fit", functools.partial(fit, log_every=1)):
        return train(Numbered(11), Net(), *scenes, each, mesh=mesh, progress=False, **options)


def start(count, directory, *, stop=0):
    """Starts processes that train together.

    The first one sends itself the signal `stop` after the first step. With -1, the second one cannot read a sample.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return [
        subprocess.Popen(
            [sys.executable, __file__, address, str(count), str(index), str(directory), str(int(stop))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes, codes):
    """Waits for processes, and checks their exit codes."""
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == codes, "\n".join(outputs)[-3000:]


@pytest.fixture(scope="module")
def undisturbed():
    return trained()


def check(directory, undisturbed):
    """Compares the log and the final variables of a run with those of one process that trained without a break."""
    state, history = undisturbed
    records = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [record["step"] for record in history] == [1, 2, 2, 3, 4, 4, 5, 5]
    for record, wanted in zip(records, history, strict=True):
        assert record.get("samples") == wanted.get("samples")
        assert record.get("loss", 0) == pytest.approx(wanted.get("loss", 0), rel=1e-5)
    found, wanted = load_variables(directory, "last"), state.variables
    for (path, x), y in zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))
    assert (directory / "model.safetensors").is_file()


# Only the first of them gets the signal. Most of the time is the start of the processes.
def test_two_processes_stop_together_and_one_continues(tmp_path, undisturbed):
    ended(start(2, tmp_path, stop=signal.SIGTERM), [143, 143])
    assert newest_checkpoint(tmp_path, "last").name[-6:] in ("step-2", "step-3")
    trained(directory=tmp_path, resume=True)
    check(tmp_path, undisturbed)


@pytest.mark.parity
def test_four_processes_continue_the_run_of_two_that_were_killed(tmp_path, undisturbed):
    both = start(2, tmp_path)
    assert any(line == "3\n" for line in both[0].stdout), "they ended before step 3"
    for process in both:
        process.send_signal(signal.SIGKILL)
    ended(both, [-signal.SIGKILL] * 2)
    assert newest_checkpoint(tmp_path, "last"), "nothing to continue"
    ended(start(4, tmp_path), [0] * 4)
    check(tmp_path, undisturbed)


@pytest.mark.parity
def test_a_process_that_cannot_read_a_sample_ends_all(tmp_path):
    ended(start(2, tmp_path, stop=-1), [1, 1])  # within two minutes


if __name__ == "__main__":
    address, count, index, directory, stop = sys.argv[1:]

    def on_record(record):
        print(record["step"], flush=True)
        if int(stop) > 0 and record["step"] == 1:  # a second signal would stop at once
            os.kill(os.getpid(), int(stop))

    if int(stop) < 0 and int(index) == 1:
        NumberedScenes.readable = 6
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(index))
    assert jax.device_count() == int(count) and jax.local_device_count() == 1
    trained(int(count), directory=directory, resume=True, on_record=on_record)
