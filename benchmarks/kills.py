"""Kills training runs at random moments, continues them, and compares the results with an undisturbed run bit for bit.

Usage: python -m benchmarks.kills [--runs 25] [--kills 1] [--out kills.jsonl]

Each run is the same command, which trains a tiny model with `resume=True`. It gets SIGKILL at a random moment between
its start and its end, and is started again. The final parameters, their average, the statistics
of batch norms, the optimizer's state and the log must be those of a run that nobody killed. Checkpoints are written
every few steps, so that many kills meet one that is being written. The result is a line of JSON.
"""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.record import append_line

STATE = "final.npz"
TIMINGS = ("images_per_second", "input_wait", "recompilations")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kills and continues training runs."""

    tasks: tuple[str, ...] = ("segmentation", "diffusion")
    """Tasks to train: segmentation, diffusion."""
    runs: int = 25
    """Number of runs of each task."""
    kills: int = 1
    """How often each run is killed."""
    seed: int = 0
    """Seed of the moments."""
    out: Path | None = None
    """File to append the result to."""


def train(task: str, directory: Path) -> None:
    """The command: trains, or continues, and stores the final state."""
    import jax
    import jax.numpy as jnp

    import densezoo as dz
    from densezoo.data import DigitScenes
    from densezoo.train import Recipe
    from densezoo.train import train as fit

    model: Any
    common: dict[str, Any] = {
        "batch_size": 4,
        "steps": 60,
        "evaluate_every": 20,
        "checkpoint_every": 3,
        "ema_decay": 0.9,
    }
    if task == "segmentation":
        job, model = dz.tasks.Segmentation(11), dz.create_model("unet", dz.PlainEncoder((4, 8)), 11)
        recipe = Recipe(crop_size=24, scale=(0.8, 1.2), color_jitter=0.2, **common)
    else:
        job = dz.tasks.Diffusion()
        model = dz.create_model(
            "diffusion_unet", features=(4,), layers=1, attention_levels=(), norm=None, dropout=0.5
        ).clone(middle=None)
        recipe = Recipe(crop_size=16, **common)
    scenes = DigitScenes(24, size=(40, 40)), DigitScenes(4, size=(40, 40), split="val")
    print("started", flush=True)
    state, _ = fit(job, model, *scenes, recipe, directory=directory, resume=True, progress=False)
    arrays = {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for path, x in jax.tree.leaves_with_path(state)
    }
    np.savez(directory / STATE, **arrays)  # pyright: ignore[reportArgumentType]


class Command:
    """Starts the training command in a folder, with a cache of compiled programs.

    Args:
        folder: a folder for the cache and the runs.
        task: the task.
    """

    def __init__(self, folder: Path, task: str):
        self._task = task
        self._folder = folder
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def run(self, directory: Path, kill_after: float | None = None) -> tuple[bool, float]:
        """Runs the command. Returns whether it was killed, and the seconds from its start of training to its end.

        Args:
            directory: the directory of the training.
            kill_after: seconds after the start of training to kill it, or None to let it end.

        Raises:
            RuntimeError: if the command fails.
        """
        command = [sys.executable, "-m", "benchmarks.kills", "train", self._task, str(directory)]
        errors = self._folder / "errors.txt"
        with (
            errors.open("w", encoding="utf-8") as file,
            subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=file, text=True) as process,
        ):
            assert process.stdout is not None
            process.stdout.readline()
            start = time.perf_counter()
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            seconds = time.perf_counter() - start
        killed = process.returncode == -9
        if not killed and process.returncode != 0:
            raise RuntimeError(f"the command failed: {' '.join(command)}\n{errors.read_text(encoding='utf-8')[-3000:]}")
        return killed, seconds


def same(directory: Path, other: Path) -> bool:
    """Whether two trainings have the same final state, bit for bit, and the same log, but for its timings."""

    def records(path: Path) -> list[dict[str, Any]]:
        lines = (path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [{name: x for name, x in json.loads(line).items() if name not in TIMINGS} for line in lines]

    with np.load(directory / STATE) as found, np.load(other / STATE) as wanted:
        arrays = found.files == wanted.files and all(
            found[name].dtype == wanted[name].dtype and found[name].tobytes() == wanted[name].tobytes()
            for name in wanted.files
        )
    return arrays and records(directory) == records(other)


def judge(task: str, arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Kills and continues the runs of one task. Returns counts."""
    draw = random.Random(f"{arguments.seed} {task}")
    command, expected = Command(folder, task), folder / f"{task}-undisturbed"
    command.run(folder / f"{task}-first")  # compiles
    _, duration = command.run(expected)
    counts = {"runs": 0, "identical": 0, "kills": 0, "while_writing": 0, "before_the_first_checkpoint": 0}
    counts["undisturbed_identical"] = int(same(folder / f"{task}-first", expected))
    directory = folder / f"{task}-killed"
    while counts["runs"] < arguments.runs:
        shutil.rmtree(directory, ignore_errors=True)
        if not all(command.run(directory, draw.uniform(0, duration))[0] for _ in range(arguments.kills)):
            continue  # it ended before the moment: draw others
        counts["kills"] += arguments.kills
        counts["while_writing"] += any(directory.glob("*/*.orbax-checkpoint-tmp*"))
        counts["before_the_first_checkpoint"] += not any(directory.glob("last/*-step-*[0-9]"))
        command.run(directory)
        counts["runs"] += 1
        identical = same(directory, expected)
        counts["identical"] += identical
        print(f"{task}: {'identical' if identical else 'differs'}, {counts}", file=sys.stderr, flush=True)
    return counts | {"seconds_of_a_run": round(duration, 2)}


def main(arguments: Arguments) -> int:
    """Kills runs of all tasks; returns 1 if one differs from the undisturbed run."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        result = {task: judge(task, arguments, Path(folder)) for task in arguments.tasks}
    if arguments.out is None:
        print(json.dumps(result))
    else:
        append_line(arguments.out, result)
    return int(any(counts["identical"] < counts["runs"] for counts in result.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(tyro.cli(Arguments)))
