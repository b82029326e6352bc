"""Trains Mask R-CNN with the same recipe here and in torchvision, from scratch, and compares average precision.

Usage: python -m benchmarks.detector_accuracy --data DIR --seeds 0 1 --out results.jsonl

Both sides read the same crops and flips in the same order, take the same steps of the same optimizer, and are scored by
the same code on the same whole images; the framework, the model's code, the random initial weights and the random
samples of the losses differ. Before the first training of torchvision's model, its losses and initial weights are
compared with densezoo's. Needs torch and torchvision, unless `--frameworks densezoo`. Each finished run is a line of
--out, and a run that is there already is not repeated.
"""

import dataclasses
import functools
import importlib
import json
import operator
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
from benchmarks.record import append_line, read_lines
from densezoo.data import InstanceFolder, Resize, eval_batches, train_batches
from densezoo.tasks import Detection
from densezoo.train import Recipe, create_state, make_eval_step, make_optimizer, make_train_step, one_cycle

MODEL = "mask_rcnn"


@dataclasses.dataclass(frozen=True)
class Arguments(Recipe):
    """Options of the benchmark; those of the recipe come first, of which `seed` is replaced by `seeds`."""

    data: Path = tyro.MISSING
    """Folder with train and val, each with images and instances, of one class."""
    encoder: str = "resnet18"
    """A ResNet that both have."""
    shortest: int = 128
    """Resize images to this shortest side; crops larger than that are padded."""
    region_samples: int = 32
    """Boxes for each image in the loss of the second stage. Each one with an object costs a mask."""
    frameworks: tuple[str, ...] = ("densezoo", "torchvision")
    """densezoo, torchvision."""
    peer_setup: str | None = None
    """A module to import before torchvision."""
    seeds: tuple[int, ...] = (0, 1)
    """A run for each."""
    out: Path = Path("out/detector_accuracy.jsonl")
    """Where the results go."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the runs of both frameworks share."""

    task: Detection
    encoder: str
    recipe: Recipe
    train: InstanceFolder
    val: InstanceFolder
    resize: Resize

    def batches(self) -> Iterator[dict[str, Any]]:
        """The training batches, flipped and normalised."""
        recipe, task = self.recipe, self.task
        change, normalize = task.augment(recipe), dz.Preprocessing().normalize()
        augment = jax.jit(lambda key, batch: normalize(key, change(key, batch)))
        read = train_batches(
            self.train,
            batch_size=recipe.batch_size,
            crop_size=recipe.crop,
            seed=recipe.seed,
            resize=self.resize,
            ignore_index=task.fill,
            fields=task.fields,
        )
        for step, batch in zip(range(recipe.steps), read(0), strict=False):
            yield augment(jax.random.fold_in(jax.random.key(recipe.seed), step), batch)

    def model(self) -> Any:
        """The model that is compared."""
        return dz.create_model(MODEL, self.encoder, self.task.num_classes)

    def scores(self, measure: Any) -> dict[str, float]:
        """Average precision on the validation images, from the counts of each batch."""
        normalize = jax.jit(dz.Preprocessing().normalize())
        read = eval_batches(
            self.val,
            batch_size=1,
            multiple=128,  # few sizes to compile for
            resize=self.resize,
            ignore_index=self.task.fill,
            fields=self.task.fields,
        )
        counts = (measure(normalize(jax.random.key(0), batch)) for batch in read)
        found = self.task.scores(functools.reduce(operator.add, counts))
        return {name: found[name] for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")}


def main(arguments: Arguments) -> None:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_lines(arguments.out)
    train, val = (InstanceFolder(arguments.data / part) for part in ("train", "val"))
    task = Detection(2, masks=True, first_label=1, region_samples=arguments.region_samples)
    if "torchvision" in arguments.frameworks and (arguments.accumulate != 1 or arguments.ema_decay is not None):
        raise ValueError(
            "torchvision's side has no --accumulate and --ema-decay: omit them, or pass --frameworks densezoo"
        )
    trainings = {"densezoo": train_here, "torchvision": train_there}
    checked = False
    for seed in arguments.seeds:
        for framework in arguments.frameworks:
            chosen: dict[str, Any] = {
                field.name: getattr(arguments, field.name) for field in dataclasses.fields(Recipe)
            }
            chosen["seed"] = seed
            recipe = Recipe(**chosen)
            run: dict[str, Any] = {"data": arguments.data.name, "train_images": len(train), "val_images": len(val)}
            run |= {"framework": framework, "model": f"{MODEL}:{arguments.encoder}", "shortest": arguments.shortest}
            run |= {"region_samples": arguments.region_samples}
            run["recipe"] = json.loads(json.dumps(dataclasses.asdict(recipe)))
            if any(result | run == result for result in results):
                continue
            setting = Setting(task, arguments.encoder, recipe, train, val, Resize(shortest=arguments.shortest))
            if framework == "torchvision":
                if arguments.peer_setup:
                    importlib.import_module(arguments.peer_setup)
                if not checked:
                    peer = importlib.import_module("benchmarks.torch_detector_training")
                    print(json.dumps(peer.compare_start(setting)), flush=True)
                    checked = True
            started = time.perf_counter()
            scores, losses = trainings[framework](setting)
            run |= {"scores": scores, "losses": tenths(losses), "seconds": round(time.perf_counter() - started, 1)}
            run["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
            results.append(run)
            append_line(arguments.out, run)
    print(table(results))


def train_here(setting: Setting) -> tuple[dict[str, float], list[float]]:
    """The scores, and the loss of each step."""
    recipe, task = setting.recipe, setting.task
    rate = one_cycle(recipe.learning_rate, recipe.steps)
    optimizer = make_optimizer(rate, recipe.steps, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
    image = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.crop, 3), jnp.float32)
    key = jax.random.key(recipe.seed)
    state = create_state(setting.model(), optimizer, key, image, ema_decay=recipe.ema_decay)
    step, losses = make_train_step(task.loss, accumulate=recipe.accumulate), []
    for batch in setting.batches():
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    measure = make_eval_step(task.measure)
    return setting.scores(lambda batch: measure(state, batch)), losses


def train_there(setting: Setting) -> tuple[dict[str, float], list[float]]:
    """The same as `train_here`, by torchvision."""
    return importlib.import_module("benchmarks.torch_detector_training").train(setting)


def tenths(losses: list[float]) -> list[float]:
    """The mean of each tenth."""
    return [round(float(part.mean()), 4) for part in np.array_split(np.array(losses), min(10, len(losses)))]


def table(results: list[dict[str, Any]]) -> str:
    """The runs' scores as a Markdown table, a row for each framework and settings: the mean, and each seed's."""
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for result in results:
        settings = json.dumps({"steps": result["recipe"]["steps"], "rate": result["recipe"]["learning_rate"]})
        groups.setdefault((result["model"], result["framework"], settings), []).append(result["scores"])
    names = ("box_ap50", "box_ap", "mask_ap50", "mask_ap")
    lines = ["| model | framework | settings | " + " | ".join(names) + " |", "| --- " * (3 + len(names)) + "|"]
    for key, runs in sorted(groups.items()):
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
