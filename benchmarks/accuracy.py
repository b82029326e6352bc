"""Trains the same models with the same recipe in densezoo and segmentation_models_pytorch, and compares the scores.

Usage: python -m benchmarks.accuracy --data DIR --num-classes 2 --rotate --seeds 0 1 2 --out results.jsonl
       python -m benchmarks.accuracy --task depth --models unet:resnet18 --crop-size 96 128 --out results.jsonl
       python -m benchmarks.accuracy --task change --data DIR --models siamese_unet:resnet18 --out results.jsonl

Segmentation and change detection read a folder; depth reads rendered scenes (`data.RenderedScenes`), and both sides
minimise `silog_loss`. In torch, the siamese U-Net is made of the U-Net's encoder, used twice, and its decoder.

Both sides read the same crops in the same order and are scored on the same whole images. They differ in the framework,
the model's code, the random initial weights and the random numbers of the augmentation. Needs torch and
segmentation-models-pytorch, unless `--frameworks densezoo`. Each finished run is a line of --out; finished runs are not
repeated.
"""

import dataclasses
import functools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import densezoo as dz
from benchmarks.record import append_line, read_lines
from benchmarks.smp_models import SIAMESE, SMP_MODELS, make, make_siamese
from densezoo.data import ChangeFolder, ImageMaskFolder, RenderedScenes, Subset, eval_batches, train_batches
from densezoo.tasks import ChangeDetection, Depth, Segmentation
from densezoo.train import Recipe, train
from densezoo.zoo import MODELS


@dataclasses.dataclass(frozen=True)
class Arguments(Recipe):
    """Options of the benchmark; those of the recipe come first. `seeds` replaces `seed`."""

    task: Literal["segmentation", "depth", "change"] = "segmentation"
    """What to predict."""
    data: Path | None = None
    """Folder with train and val, each with images and masks, or A, B and label for change; not for depth."""
    num_classes: int | None = None
    """Number of classes in the masks; only for segmentation."""
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
    task, (train, val) = task_of(arguments), (source_of(arguments, part) for part in ("train", "val"))
    if arguments.limit_val is not None:
        val = Subset(val, range(min(arguments.limit_val, len(val))))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_lines(arguments.out)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for seed in arguments.seeds:
        for framework in arguments.frameworks:
            for pair in arguments.models:
                name, encoder = pair.split(":")
                if framework == "smp" and name not in (*SMP_MODELS, SIAMESE):
                    continue
                chosen: dict[str, Any] = {field: getattr(arguments, field) for field in fields}
                chosen["seed"] = seed
                recipe = Recipe(**chosen)
                images = {"train_images": len(train), "val_images": len(val)}
                name_of_data = arguments.data.name if arguments.data else "rendered scenes"
                run: dict[str, Any] = {"data": name_of_data, **images, "framework": framework, "model": pair}
                run["recipe"] = json.loads(json.dumps(dataclasses.asdict(recipe)))
                if any(result | run == result for result in results):
                    continue
                started = time.perf_counter()
                train_run = train_here if framework == "densezoo" else train_smp
                scores = train_run(task, name, encoder, train, val, recipe)
                run |= {"scores": scores, "seconds": round(time.perf_counter() - started, 1)}
                run["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
                results.append(run)
                append_line(arguments.out, run)
    print_table(results)


def task_of(arguments: Arguments) -> Segmentation | Depth:
    """The task; raises a ValueError for options that do not fit it."""
    given = arguments.data is not None, arguments.num_classes is not None
    if given != {"segmentation": (True, True), "depth": (False, False), "change": (True, False)}[arguments.task]:
        raise ValueError("segmentation needs --data and --num-classes, change needs --data, and depth takes neither")
    if arguments.task == "change":
        return ChangeDetection()
    if arguments.num_classes is None:
        return Depth(criterion="silog")
    return Segmentation(arguments.num_classes, ignore_index=arguments.ignore_index)


def source_of(arguments: Arguments, part: Any) -> Any:
    """The pictures of train or val."""
    if arguments.data is None:
        return RenderedScenes(10**6 if part == "train" else 64, size=arguments.crop, split=part)
    if arguments.task == "change":
        return ChangeFolder(arguments.data / part, channels=3)
    options = {"num_classes": arguments.num_classes, "ignore_index": arguments.ignore_index, "channels": 3}
    return ImageMaskFolder(arguments.data / part, **options)


def train_here(
    task: Segmentation | Depth, name: str, encoder: str, train_source, val, recipe: Recipe
) -> dict[str, float]:
    model = dz.create_model(name, encoder or None, task.num_classes)
    _, history = train(task, model, train_source, val, recipe, progress=False)
    return next(record["scores"] for record in reversed(history) if "scores" in record)


def train_smp(
    task: Segmentation | Depth, name: str, encoder: str, train_source, val, recipe: Recipe
) -> dict[str, float]:
    import torch  # pyright: ignore[reportMissingImports]

    if recipe.clip_norm is not None or recipe.accumulate != 1 or recipe.ema_decay is not None:
        raise ValueError("torch does not support clip_norm, accumulate and ema_decay here: omit them")
    torch.manual_seed(recipe.seed)
    create = make_siamese if name == SIAMESE else functools.partial(make, name)
    model = create(encoder or MODELS[name].encoder, task.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, cycle_momentum=False
    )

    def loss(outputs, target):
        if isinstance(task, Segmentation):
            return torch.nn.functional.cross_entropy(outputs, target.long(), ignore_index=task.fill)
        # `losses.silog_loss` of exp(outputs); rendered scenes have no holes.
        difference = outputs[:, 0] - torch.log(target)
        return ((difference**2).mean((1, 2)) - 0.5 * difference.mean((1, 2)) ** 2).mean()

    normalize = dz.Preprocessing().normalize()
    change = task.augment(recipe)
    augment = jax.jit(lambda key, batch: normalize(key, change(key, batch)))
    batches = train_batches(
        train_source,
        batch_size=recipe.batch_size,
        crop_size=recipe.crop,
        seed=recipe.seed,
        ignore_index=task.fill,
        fields=task.fields,
    )(0)

    def outputs_of(batch):
        return model(*(torch.from_numpy(np.array(batch[name])).permute(0, 3, 1, 2) for name in task.inputs))

    for step in range(recipe.steps):
        batch = augment(jax.random.fold_in(jax.random.key(recipe.seed), step), next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss(outputs_of(batch), torch.from_numpy(np.array(batch[task.fields[-1]]))).backward()
        optimizer.step()
        schedule.step()

    model.eval()
    normalize = jax.jit(normalize)
    measure = jax.jit(lambda outputs, batch: task.measure(lambda *images: outputs, batch))
    counts: Any = None
    with torch.inference_mode():
        for batch in eval_batches(val, batch_size=4, ignore_index=task.fill, fields=task.fields):
            outputs = outputs_of(normalize(jax.random.key(0), batch)).permute(0, 2, 3, 1)
            found = measure(outputs.contiguous().numpy(), batch)
            counts = found if counts is None else counts + found
    return task.scores(counts)


def print_table(results: list[dict]) -> None:
    """Mean and standard deviation over the seeds, with a row for each data set, model, framework and score."""
    groups: dict[tuple, list[float]] = {}
    for result in results:
        for score in ("mean_iou", "abs_rel", "delta1", "f1"):
            if score in result["scores"]:
                key = (result["data"], result["model"], result["framework"], score)
                groups.setdefault(key, []).append(result["scores"][score])
    print("| data | model | framework | score | mean | seeds |\n| --- | --- | --- | --- | --- | --- |")
    for key, values in sorted(groups.items()):
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"| {' | '.join(key)} | {statistics.mean(values):.3f} ± {spread:.3f} | {len(values)} |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
