"""Trains the same models with the same recipe in densezoo and segmentation_models_pytorch, and compares the scores.

Usage: python -m benchmarks.accuracy --data DIR --num-classes 2 --rotate --seeds 0 1 2 --out results.jsonl

Both sides read the same crops in the same order and are scored on the same whole images. They differ in the framework,
the model's code, the random initial weights and the random numbers of the augmentation. Needs torch and
segmentation-models-pytorch, unless `--frameworks densezoo`. Each finished run is a line of --out; finished runs are not
repeated.
"""

import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import densezoo as dz
from benchmarks.smp_models import SMP_MODELS, make
from densezoo import metrics
from densezoo.data import ImageMaskFolder, Subset, eval_batches, train_batches
from densezoo.tasks import Segmentation
from densezoo.train import Recipe, train
from densezoo.zoo import MODELS


@dataclasses.dataclass(frozen=True)
class Arguments(Recipe):
    """Options of the benchmark; those of the recipe come first. `seeds` replaces `seed`."""

    data: Path = tyro.MISSING
    """Folder with train and val, each with images and masks."""
    num_classes: int = tyro.MISSING
    """Number of classes in the masks."""
    ignore_index: int | None = 255
    """Mask value of unlabelled pixels, None if there are none."""
    models: tuple[str, ...] = ("unet:resnet34", "fpn:resnet18", "segnet:vgg11_bn")
    """model:encoder. segmentation_models_pytorch also trains those that it has."""
    frameworks: tuple[str, ...] = ("densezoo", "smp")
    """densezoo, smp."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one run for each."""
    limit_val: int | None = None
    """Only validate on this many images."""
    out: Path = Path("out/accuracy.jsonl")
    """Output file for the results."""


def main(arguments: Arguments) -> None:
    train, val = (
        ImageMaskFolder(
            arguments.data / part,
            num_classes=arguments.num_classes,
            ignore_index=arguments.ignore_index,
            channels=3,
        )
        for part in ("train", "val")
    )
    if arguments.limit_val is not None:
        val = Subset(val, range(min(arguments.limit_val, len(val))))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for seed in arguments.seeds:
        for framework in arguments.frameworks:
            for pair in arguments.models:
                name, encoder = pair.split(":")
                if framework == "smp" and name not in SMP_MODELS:
                    continue
                chosen: dict[str, Any] = {field: getattr(arguments, field) for field in fields}
                chosen["seed"] = seed
                recipe = Recipe(**chosen)
                images = {"train_images": len(train), "val_images": len(val)}
                run: dict[str, Any] = {"data": arguments.data.name, **images, "framework": framework, "model": pair}
                run["recipe"] = json.loads(json.dumps(dataclasses.asdict(recipe)))
                if any(result | run == result for result in results):
                    continue
                task = Segmentation(arguments.num_classes, ignore_index=arguments.ignore_index)
                started = time.perf_counter()
                train_run = train_here if framework == "densezoo" else train_smp
                scores = train_run(task, name, encoder, train, val, recipe)
                run |= {"scores": scores, "seconds": round(time.perf_counter() - started, 1)}
                run["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
                results.append(run)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(json.dumps(run), flush=True)
    print_table(results)


def train_here(task: Segmentation, name: str, encoder: str, train_source, val, recipe: Recipe) -> dict[str, float]:
    model = dz.create_model(name, encoder or None, task.num_classes)
    _, history = train(task, model, train_source, val, recipe, progress=False)
    return next(record["scores"] for record in reversed(history) if "scores" in record)


def train_smp(task: Segmentation, name: str, encoder: str, train_source, val, recipe: Recipe) -> dict[str, float]:
    import torch  # pyright: ignore[reportMissingImports]

    if recipe.clip_norm is not None or recipe.accumulate != 1 or recipe.ema_decay is not None:
        raise ValueError("torch does not support clip_norm, accumulate and ema_decay here: omit them")
    torch.manual_seed(recipe.seed)
    model = make(name, encoder or MODELS[name].encoder, task.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, cycle_momentum=False
    )
    loss = torch.nn.CrossEntropyLoss(ignore_index=task.fill)
    normalize = dz.Preprocessing().normalize()
    change = task.augment(recipe)
    augment = jax.jit(lambda key, batch: normalize(key, change(key, batch)))
    batches = train_batches(
        train_source,
        batch_size=recipe.batch_size,
        crop_size=recipe.crop,
        seed=recipe.seed,
        ignore_index=task.fill,
    )(0)

    def images_of(batch):
        return torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)

    for step in range(recipe.steps):
        batch = augment(jax.random.fold_in(jax.random.key(recipe.seed), step), next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss(model(images_of(batch)), torch.from_numpy(np.array(batch["mask"])).long()).backward()
        optimizer.step()
        schedule.step()

    model.eval()
    normalize = jax.jit(normalize)
    counts = metrics.Counts.zeros(task.classes)
    with torch.inference_mode():
        for batch in eval_batches(val, batch_size=4, ignore_index=task.fill):
            predictions = model(images_of(normalize(jax.random.key(0), batch))).argmax(1).numpy().astype(np.int32)
            counts += metrics.confusion_counts(
                jax.numpy.asarray(predictions),
                jax.numpy.asarray(batch["mask"]),
                num_classes=task.classes,
                ignore_index=task.fill,
            )
    return task.scores(counts)


def print_table(results: list[dict]) -> None:
    """Mean and standard deviation over the seeds, with a row for each data set, model and framework."""
    groups: dict[tuple, list[float]] = {}
    for result in results:
        key = (result["data"], result["model"], result["framework"])
        groups.setdefault(key, []).append(result["scores"]["mean_iou"])
    print("| data | model | framework | mean IoU | seeds |\n| --- | --- | --- | --- | --- |")
    for (data, model, framework), values in sorted(groups.items()):
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"| {data} | {model} | {framework} | {statistics.mean(values):.3f} ± {spread:.3f} | {len(values)} |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
