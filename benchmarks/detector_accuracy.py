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
import math
import operator
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
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
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    train, val = (InstanceFolder(arguments.data / part) for part in ("train", "val"))
    task = Detection(2, masks=True, first_label=1, region_samples=arguments.region_samples)
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
                    print(json.dumps(compare_start(setting)), flush=True)
                    checked = True
            started = time.perf_counter()
            scores, losses = trainings[framework](setting)
            run |= {"scores": scores, "losses": losses, "seconds": round(time.perf_counter() - started, 1)}
            run["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
            results.append(run)
            with arguments.out.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(json.dumps(run), flush=True)
    print(table(results))


def model_here(setting: Setting) -> Any:
    return dz.create_model(MODEL, setting.encoder, setting.task.num_classes)


def train_here(setting: Setting) -> tuple[dict[str, float], list[float]]:
    """The scores, and the mean loss of every tenth of the training."""
    recipe, task, model = setting.recipe, setting.task, model_here(setting)
    rate = one_cycle(recipe.learning_rate, recipe.steps)
    optimizer = make_optimizer(rate, recipe.steps, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
    image = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.crop, 3), jnp.float32)
    state = create_state(model, optimizer, jax.random.key(recipe.seed), image)
    step, losses = make_train_step(task.loss), []
    for batch in setting.batches():
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    measure = make_eval_step(task.measure)
    return setting.scores(lambda batch: measure(state, batch)), tenths(losses)


def model_there(setting: Setting, **options: Any) -> Any:
    """The model of torchvision, for images that are resized and normalised already."""
    torch: Any = importlib.import_module("torch")
    detection: Any = importlib.import_module("torchvision.models.detection")
    backbones: Any = importlib.import_module("torchvision.models.detection.backbone_utils")
    backbone = backbones.resnet_fpn_backbone(
        backbone_name=setting.encoder, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    given = {"box_batch_size_per_image": setting.task.region_samples} | options
    still = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
    model = detection.MaskRCNN(backbone, setting.task.num_classes, **still, **given)
    # The masks as the network gives them, not yet in the image: the scores paste those of both sides.
    model.transform.postprocess = lambda found, *_: found
    return model


def train_there(setting: Setting) -> tuple[dict[str, float], list[float]]:
    """The same as `train_here`, by torchvision."""
    torch: Any = importlib.import_module("torch")
    recipe, task = setting.recipe, setting.task
    if recipe.accumulate != 1 or recipe.ema_decay is not None:
        raise ValueError("the torch side has no accumulate and ema_decay: leave them out")
    torch.manual_seed(recipe.seed)
    model = model_there(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, cycle_momentum=False
    )
    losses = []
    for batch in setting.batches():
        optimizer.zero_grad(set_to_none=True)
        loss: Any = sum(model(*inputs_there(batch)).values())
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    with torch.inference_mode():
        scores = setting.scores(lambda batch: task.measure(lambda *_, **__: found_there(model, batch), batch))
    return scores, tenths(losses)


def inputs_there(batch: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """A batch as torchvision's models take it: images without padding, and targets without empty rows."""
    torch: Any = importlib.import_module("torch")
    arrays = {name: np.array(value) for name, value in batch.items()}
    images, targets = [], []
    for row, (height, width) in enumerate(arrays["size"]):
        boxes, labels = arrays["boxes"][row], arrays["labels"][row]
        rows = np.flatnonzero((labels >= 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        instances = arrays["instances"][row, :height, :width]
        targets.append(
            {
                "boxes": torch.from_numpy(boxes[rows].astype(np.float32)),
                "labels": torch.from_numpy(labels[rows].astype(np.int64) + 1),
                "masks": torch.from_numpy((instances == rows[:, None, None] + 1).astype(np.uint8)),
            }
        )
        images.append(torch.from_numpy(arrays["image"][row, :height, :width].transpose(2, 0, 1).copy()))
    return images, targets


def found_there(model: Any, batch: Mapping[str, Any]) -> dz.Detections:
    """The detections of torchvision's model in an image, as `dz.detect` gives them."""
    (found,) = model(inputs_there(batch)[0])
    arrays = {name: value.numpy() for name, value in found.items()}
    count = len(arrays["scores"])

    def rows(x: np.ndarray) -> Any:
        return np.concatenate([x, np.zeros((100 - count, *x.shape[1:]), x.dtype)])[None]

    valid = rows(np.ones(count, bool))
    labels = rows(arrays["labels"].astype(np.int32))
    return dz.Detections(rows(arrays["boxes"]), rows(arrays["scores"]), labels, valid, rows(arrays["masks"][:, 0]))


def compare_start(setting: Setting) -> dict[str, Any]:
    """Compares torchvision's losses and initial weights with densezoo's.

    The losses are those of one batch with torchvision's weights, where the losses' samples are so large that nothing is
    left to chance. Of the weights that each side draws, the ratio of standard deviations is compared.

    Raises:
        ValueError: if losses differ by more than 0.1 %, or a standard deviation by more than 20 %.
    """
    torch: Any = importlib.import_module("torch")
    batch = next(setting.batches())
    every, proposals = 10**6, 100
    task = dataclasses.replace(setting.task, anchor_samples=every, region_samples=4 * proposals, region_positives=0.5)
    torch.manual_seed(0)
    peer = model_there(
        setting,
        rpn_batch_size_per_image=every,
        box_batch_size_per_image=4 * proposals,
        box_positive_fraction=0.5,
        rpn_post_nms_top_n_train=proposals,
    )
    model = model_here(setting).clone(proposals=(proposals, proposals))
    theirs = {name: x.numpy() for name, x in peer.state_dict().items()}
    loaded = dz.weights.from_torch(model, theirs)
    drawn = jax.jit(model.init)(jax.random.key(0), batch["image"][:1])
    spreads = {}
    pairs = zip(jax.tree.leaves_with_path(loaded["params"]), jax.tree.leaves(drawn["params"]), strict=True)
    for (path, there), here in pairs:
        if there.size >= 500 and float(there.std()) > 0:
            spreads[jax.tree_util.keystr(path)] = float(here.std() / there.std())

    def apply(*inputs: Any, **options: Any) -> Any:
        return model.apply(loaded, *inputs, train=True, mutable=["batch_stats"], **options)[0]

    ours = jax.jit(lambda batch: task.loss(apply, batch, jax.random.key(0)))(batch)[1]
    with torch.no_grad():
        losses = {name: float(value) for name, value in peer(*inputs_there(batch)).items()}
    names = {
        "objectness": "loss_objectness",
        "proposal_box": "loss_rpn_box_reg",
        "region_class": "loss_classifier",
        "region_box": "loss_box_reg",
        "mask": "loss_mask",
    }
    both = {name: (float(ours[name]), losses[names[name]]) for name in names}
    result = {"losses": both, "spreads": (min(spreads.values()), max(spreads.values())), "parameters": len(spreads)}
    if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5) for a, b in both.values()):
        raise ValueError(f"the losses differ at equal weights: {result}")
    if wrong := {path: ratio for path, ratio in spreads.items() if not 0.8 < ratio < 1.25}:
        raise ValueError(f"the initial weights differ in their standard deviation, ours over torchvision's: {wrong}")
    return result


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
