"""Semantics at every scale: what a linear classifier can read from each map of a U-Net's and an FPN's decoder.

Usage: python examples/scale_semantics.py --out out/scale_semantics

Trains a U-Net and an FPN over the same encoder on scenes of digits, with several seeds. Then it freezes them, and fits
a linear classifier (a 1x1 convolution) to the map of each scale: of the encoder, and of the decoder. Its mean IoU on
unseen scenes, with the labels at the map's resolution, says how much the map knows about the classes. A number after ±
is half the width of the 95 % interval (Student's t) of the mean over the seeds. Draws the scores by scale, and what the
classifiers see in a scene.

Finished runs are kept in files under --out, so that the same command continues an interrupted one. The last line on
standard output is a JSON object with all numbers.
"""

import dataclasses
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import (
    NUM_CLASSES,
    PREPROCESSING,
    QUICK_NOTE,
    Finished,
    check_runs,
    command_line,
    differences,
    digit_recipe,
    digit_scenes,
    finished,
    keep_compiled,
    number,
    summarise,
    tiny_unet,
    training,
)
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import metrics, viz
from densezoo.viz.colors import palette

NETWORKS = ("unet", "fpn")
PARTS = ("unet encoder", "unet", "fpn encoder", "fpn")
QUICK: dict[str, Any] = {"seeds": 2, "steps": 2, "samples": 8, "val": 4}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/scale_semantics")
    """Output folder for the picture, the numbers and finished runs."""
    seeds: int = 3
    """Number of training runs of each network, 2 to 10."""
    steps: int = 240
    """Number of training steps of 32 scenes each."""
    samples: int = 300
    """Number of scenes that the classifiers are fitted to."""
    val: int = 100
    """Number of unseen scenes, the same for all runs."""
    quick: bool = False
    """Check that the script works: smaller networks, few scenes, two seeds, two steps. Overrides the rest."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check_runs(arguments)
    console = Console()
    runs: dict[str, list[Finished]] = {name: [] for name in NETWORKS}
    for seed in range(arguments.seeds):
        for name in NETWORKS:
            runs[name].append(trained(name, seed, arguments))
            scores = {place: round(score, 3) for place, score in runs[name][-1][0].items()}
            console.print(f"seed {seed}, {name}: mean IoU {scores}", soft_wrap=True)
    parts = by_part(runs)
    summary = {part: summarise(scores) for part, scores in parts.items()}
    summary["fpn - unet"] = differences(parts["fpn"], parts["unet"])
    show(console, summary, arguments)
    picture = viz.save(draw(runs, summary, arguments), arguments.out / "scale_semantics.png")
    print(json.dumps({"quick": arguments.quick, "seeds": arguments.seeds, "scores": summary, "picture": str(picture)}))


def by_part(runs: dict[str, list[Finished]]) -> dict[str, list[dict[str, float]]]:
    """The scores of every run, by part and scale."""
    found = {}
    for part in PARTS:
        name, _, encoder = part.partition(" ")
        place = encoder or "decoder"
        found[part] = [
            {key.split()[1]: value for key, value in numbers.items() if key.startswith(place)}
            for numbers, _ in runs[name]
        ]
    return found


def network(name: str, quick: bool) -> dz.SegmentationModel:
    """The tiny U-Net, or an FPN over the same encoder with about as many parameters."""
    unet = tiny_unet(quick=quick)
    decoder = dz.FPNDecoder(features=64, segmentation_features=64, dropout=0.0)
    return unet if name == "unet" else unet.clone(decoder=decoder)


def trained(name: str, seed: int, arguments: Arguments) -> Finished:
    """The scores of a training run, such as "decoder 1/4", and what the classifiers see in the first unseen scene."""

    def work(checkpoints: Path) -> Finished:
        del checkpoints  # a run takes about two minutes
        model, recipe = network(name, arguments.quick), digit_recipe(arguments.steps, seed=seed)
        _, state = deque(training(model, digit_scenes(20_000, "train", seed=seed), recipe), maxlen=1).pop()
        maps = maps_of(model, state.variables)
        known, known_labels = collected(maps, digit_scenes(arguments.samples, "train", seed=seed + 1000))
        unseen, unseen_labels = collected(maps, digit_scenes(arguments.val, "val"))
        scores, seen = {}, {}
        for place in unseen:
            truth = at_scale(unseen_labels, unseen[place].shape)
            found = classified(known[place], at_scale(known_labels, known[place].shape), unseen[place])
            counts = metrics.confusion_counts(found, truth, num_classes=NUM_CLASSES)
            scores[place], seen[place] = float(metrics.mean_iou(counts)), np.asarray(found[0])
        return scores, seen

    settings = f"steps{arguments.steps}_samples{arguments.samples}_val{arguments.val}{'_quick' * arguments.quick}"
    return finished(arguments.out / "runs" / f"{name}_seed{seed}_{settings}.npz", work)


def maps_of(model: dz.SegmentationModel, variables: Any) -> Callable[[Any], dict[str, jax.Array]]:
    """A function from pictures to the maps of the encoder and the decoder by scale, such as "decoder 1/4"."""
    normalize = PREPROCESSING.normalize()

    def inner(module: Any, method: str) -> bool:
        within = module.path[:1] == ("decoder",) and len(module.path) == 2
        return method == "__call__" and (module.path == ("encoder",) or within)

    @jax.jit
    def run(pictures: jax.Array) -> dict[str, jax.Array]:
        images = normalize(jax.random.key(0), {"image": pictures})["image"]
        kept: Any = model.apply(variables, images, capture_intermediates=inner, mutable=["intermediates"])[1]
        (pyramid,) = kept["intermediates"]["encoder"]["__call__"]
        decoder = {name: call["__call__"][0] for name, call in kept["intermediates"]["decoder"].items()}
        # The decoder's maps: those of the U-Net's blocks, or of the FPN's top-down pathway. The U-Net's coarsest map is
        # that of its encoder.
        blocks = [decoder[name] for name in decoder if name.startswith("block")]
        decoded = decoder["top_down"] if "top_down" in decoder else [*blocks, pyramid.maps[-1]]
        found = {}
        for place, maps in (("encoder", pyramid.maps), ("decoder", decoded)):
            for x in maps:
                found[f"{place} 1/{images.shape[1] // x.shape[1]}"] = x
        return found

    return run


def collected(maps: Callable[[Any], dict[str, jax.Array]], scenes: Any) -> tuple[dict[str, jax.Array], np.ndarray]:
    """The maps and the labels of scenes."""
    samples = [scenes[index] for index in range(len(scenes))]
    pictures = dz.data.to_float(np.stack([sample["image"] for sample in samples]))
    parts = [maps(part) for part in np.array_split(pictures, max(1, len(pictures) // 50))]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts), np.stack([sample["mask"] for sample in samples])


def at_scale(labels: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """The labels of the pixels in the middle of a map's cells."""
    step = labels.shape[1] // shape[1]
    return jnp.asarray(labels[:, step // 2 :: step, step // 2 :: step])


@jax.jit
def classified(known: jax.Array, labels: jax.Array, unseen: jax.Array, steps: int = 400) -> jax.Array:
    """Fits a linear classifier to maps and their labels; returns the classes that it finds in other maps."""
    mean, std = known.mean((0, 1, 2)), known.std((0, 1, 2)) + 1e-6
    known, unseen = (known - mean) / std, (unseen - mean) / std
    optimizer = optax.adamw(0.05, weight_decay=1e-3)
    params = {"kernel": jnp.zeros((known.shape[-1], NUM_CLASSES)), "bias": jnp.zeros(NUM_CLASSES)}
    truth = jax.nn.one_hot(labels, NUM_CLASSES)

    def loss(params: Any) -> jax.Array:
        logits = known @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy(logits, truth).mean()

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
    return (unseen @ params["kernel"] + params["bias"]).argmax(-1)


def show(console: Console, summary: dict[str, Any], arguments: Arguments) -> None:
    caption = (
        f"mean IoU of the classifiers: mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds;"
        " a difference whose interval contains 0 may be chance"
    )
    scales = list(summary["fpn"])
    table = Table("maps", *(f"{scale} of the side" for scale in scales), caption=caption)
    for part, row in summary.items():
        table.add_row(part, *(number(row, scale, "+" if " - " in part else "") for scale in scales))
    console.print(table)
    if arguments.quick:
        console.print(QUICK_NOTE)


def draw(runs: dict[str, list[Finished]], summary: dict[str, Any], arguments: Arguments) -> Figure:
    """The scores by scale, and the classes that are read from each map of the first unseen scene."""
    scales = list(summary["fpn"])
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.6))
    panel = parts[0].subplots()
    for index, part in enumerate(PARTS):
        means, halves = np.array([summary[part][scale] for scale in scales]).T
        style = {"color": f"C{index // 2}", "linestyle": ":" if "encoder" in part else "-", "marker": "o"}
        panel.errorbar(range(len(scales)), means, halves, capsize=3, label=part, **style)
    panel.set_xticks(range(len(scales)), scales)
    panel.set(xlabel="size of the map, of the picture's side", ylabel="mean IoU of a linear classifier", ylim=(0, 1))
    panel.legend()
    scene, colours = digit_scenes(arguments.val, "val")[0], palette(NUM_CLASSES)
    axes = parts[1].subplots(len(NETWORKS), 2 + len(scales), squeeze=False)
    for row, name in zip(axes, NETWORKS, strict=True):
        seen = runs[name][0][1]
        pictures = {"picture": scene["image"], "truth": colours[scene["mask"]]}
        pictures |= {f"{name} {scale}": colours[seen[f"decoder {scale}"]] for scale in reversed(scales)}
        for axis, (title, picture) in zip(row, pictures.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    if arguments.quick:
        figure.suptitle(QUICK_NOTE)
    return figure


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
