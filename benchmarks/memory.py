"""Measures the peak memory of inference and of the train step, each form in a fresh process.

Usage: python -m benchmarks.memory --against all --peer-python /path/of/a/python/with/torch

The resident memory after importing the libraries is the baseline. The process builds the model, compiles it and calls
it; the peak until then is `build_bytes`. Then it returns free memory to the system, resets the peak and makes three
more calls; their peak is `peak_bytes`: weights, the program, the batch and temporary memory. All sides are measured in
this way, by Linux's VmHWM and VmRSS. Memory of a compiler's separate processes is not counted.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from benchmarks import models, training
from benchmarks.machine import Refused, console
from benchmarks.networks import NetworkOptions, Shape, compile_model, make_model
from benchmarks.options import machine_of, open_results, peers, run_command
from benchmarks.protocol import PeerError, Worker, serve_process
from benchmarks.record import OWN, PEERS, markdown_table, shape_text
from benchmarks.resident import forget_peak, resident_bytes
from benchmarks.seeded import PEAK, STEPS, WEIGHT_DECAY, random_images
from benchmarks.timing import wait_for

MODES = {"inference": (models.MODELS, PEERS), "training": (training.MODELS, training.PEERS)}


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the memory benchmark."""

    models: tuple[str, ...] = models.MODELS
    """model:encoder of the zoo. Those of benchmarks.training are also trained."""
    modes: tuple[str, ...] = tuple(MODES)
    """inference, training."""


class Own:
    """Commands of a process that measures densezoo: the needed subset of those of benchmarks.peers."""

    def __init__(self, folder: Path):
        self._call: Any = None
        self._model: Any = None
        self._baseline = 0
        wait_for(jnp.zeros(1) + 1)  # starts the backend

    def model(self, model: str, encoder: str, classes: int, image_size: list[int], seed: int) -> dict[str, Any]:
        """Stores the model's name."""
        height, width = image_size
        self._model = ((model, encoder), NetworkOptions(num_classes=classes, seed=seed), (1, height, width))
        return {}

    def infer(self, form: str, images: str, dtype: str, platform: str) -> dict[str, Any]:
        """Compiles inference and calls it."""
        pair, options, shape = self._model
        model = make_model(pair, options, shape, "auto", "float32")
        x = jnp.asarray(np.load(images))
        self._call = functools.partial(compile_model(model, self._variables(model, x), dtype), x)
        return self.sample(form, 1)

    def train(self, form: str, images: str, masks: str, dtype: str, platform: str) -> dict[str, Any]:
        """Compiles the train step and calls it."""
        pair, options, shape = self._model
        model = make_model(pair, options, shape, "auto", dtype)
        batch = {"image": jnp.asarray(np.load(images)), "mask": jnp.asarray(np.load(masks))}
        optimizer = dz.train.make_optimizer(PEAK, STEPS, weight_decay=WEIGHT_DECAY)
        variables = self._variables(model, batch["image"])
        own = [dz.train.create_state(model, optimizer, jax.random.key(0), batch["image"], variables=variables)]
        del variables
        step = training.make_step()

        def call() -> Any:
            own[0], metrics = step(own[0], batch)
            return own[0].params, metrics

        self._call = call
        return self.sample(form, 1)

    def sample(self, form: str, calls: int) -> dict[str, Any]:
        """One more call than requested, as in the peers."""
        for _ in range(calls + 1):
            wait_for(self._call())
        return {}

    def forget_peak(self, baseline: bool = False) -> dict[str, Any]:
        """Resets the peak of the resident memory; with `baseline`, the current resident memory counts as 0."""
        now = forget_peak()
        self._baseline = now if baseline else self._baseline
        return {"bytes": now}

    def peak(self) -> dict[str, Any]:
        """The peak of the resident memory above the baseline."""
        return {"bytes": resident_bytes("VmHWM") - self._baseline}

    @staticmethod
    def _variables(model: Any, images: jax.Array) -> Any:
        """Variables with arbitrary values, created without compiling a program."""
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        return jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, 0.01, x.dtype)), shapes)


def measure(worker: Worker, mode: str, form: str, pair: tuple[str, str], shape: Shape, arguments: Arguments) -> Any:
    """The bytes of one form, in a fresh worker."""
    worker.ask("prepare", form=form)
    worker.ask("forget_peak", baseline=True)
    asked = {"model": pair[0], "encoder": pair[1], "classes": arguments.num_classes}
    worker.ask("model", **asked, image_size=shape[1:], seed=arguments.seed)
    sent = {"images": worker.send("images", random_images(shape, arguments.seed))}
    if mode == "training":
        masks = np.random.default_rng(arguments.seed).integers(0, max(2, arguments.num_classes), shape, np.int32)
        sent["masks"] = worker.send("masks", masks)
    command = "infer" if mode == "inference" else "train"
    worker.ask(command, form=form, **sent, dtype=arguments.dtype, platform="cpu")
    worker.ask("sample", form=form, calls=1)
    build = worker.ask("peak")["bytes"]
    worker.ask("forget_peak")
    worker.ask("sample", form=form, calls=2)
    return {"build_bytes": build, "peak_bytes": worker.ask("peak")["bytes"]}


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    lines = [
        (
            *(row["model"], shape_text(row["shape"]), row["mode"], row["form"]),
            *(f"{row[key] / 2**20:.0f}" if key in row else "-" for key in ("peak_bytes", "build_bytes")),
        )
        for row in rows
    ]
    return markdown_table(("model", "images", "mode", "form", "peak, MiB", "while building, MiB"), lines)


def main(arguments: Arguments, platform: str) -> int:
    """Runs the benchmark; returns the exit code."""
    if platform != "cpu":
        raise Refused("resident memory does not measure an accelerator: use --platform cpu")
    if wrong := set(arguments.modes) - set(MODES):
        raise Refused(f"--modes: expected some of {' '.join(MODES)}, got {' '.join(wrong)}")
    with peers(arguments, platform) as (_, facts):
        machine = machine_of(platform, facts)
    head = {"mode": "memory" + "-quick" * arguments.quick, "dtype": arguments.dtype, "machine": machine}
    results = open_results(arguments, head | {"limits": {}, "method": {"num_classes": arguments.num_classes}})
    for mode in arguments.modes:
        known, possible = MODES[mode]
        for pair in arguments.pairs():
            if arguments.models == models.MODELS and ":".join(pair) not in known:
                continue
            (shape,) = arguments.shapes_of(pair, ("4x256x256",))[:1]
            forms = [OWN, *arguments.forms(possible)]
            name = ":".join(pair)
            if not arguments.again and results.has((name, mode, shape), forms):
                continue
            rows = []
            for form in forms:
                row = {"model": name, "mode": mode, "shape": list(shape), "dtype": arguments.dtype, "form": form}
                python = sys.executable if form == OWN else arguments.peer_python
                module = "benchmarks.memory" if form == OWN else "benchmarks.peers"
                command = [python, "-m", module, *(["--serve"] if form == OWN else [])]
                with Worker(command, None if form == OWN else arguments.peer_setup) as worker:
                    try:
                        row |= measure(worker, mode, form, pair, shape, arguments)
                    except PeerError as error:
                        console.print(f"{name} {shape_text(shape)} {mode}: {form} is skipped: {error}")
                        row["left_out"] = str(error)[:200]
                rows.append(row)
            results.put(rows)
    print(table(results.rows))
    console.print(f"wrote {results.path}, and a .csv file beside it")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        own_commands = ("model", "infer", "train", "sample", "forget_peak", "peak")
        jax.config.update("jax_platforms", "cpu")

        def make(folder: Path) -> dict[str, Any]:
            own = Own(folder)
            return {"prepare": lambda form: {}} | {name: getattr(own, name) for name in own_commands}

        serve_process(make, sys.argv[2:])
    else:
        sys.exit(run_command(main, Arguments))
