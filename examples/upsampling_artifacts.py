"""Exercise 4: which upsamplers make checkerboards, at initialisation and after training, and at what cost.

Usage: python examples/upsampling_artifacts.py --out out/upsampling_artifacts

At initialisation each upsampler enlarges smooth random maps, once and three times in a row; the number is the share of
the result's energy at the frequencies of the lattice (`viz.lattice_energy`). Then the same tiny U-Net is trained with
each on scenes of digits. Its answer to images of one grey should be flat away from the borders, whatever the grey; the
number is how much it varies instead, as a share of its variation on scenes. Beside them stand mean IoU, boundary
F-score, parameters and milliseconds, all with 95% intervals over the seeds where there are seeds.

Each finished training is kept in a file under --out, and a script that was interrupted goes on with the next. Writes
upsampling_artifacts.png and results.json too, and says whether the numbers confirm that transposed convolution makes
checkerboards and that resize + convolution is the stable choice. The last line on standard output is a JSON object.
"""

import dataclasses
import functools
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import (
    NUM_CLASSES,
    PREPROCESSING,
    TASK,
    digit_recipe,
    digit_scenes,
    keep_compiled,
    score,
    summarise,
    tiny_unet,
    user_errors,
)
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import ops, viz
from densezoo.blocks import he_uniform
from densezoo.data import to_float
from densezoo.files import replace
from densezoo.predictor import Predictor
from densezoo.train import train as train_model


class TransposedConv3x3(nn.Module):
    """The awkward one: 3x3 kernels at stride 2 overlap on every other row and column only."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        if size != (2 * x.shape[1], 2 * x.shape[2]):
            raise ValueError(f"this upsampler only doubles, got a map of {x.shape[1:3]} for the size {size}")
        channels = x.shape[-1]
        # A pixel of the result sums 9/4 taps on average.
        init = nn.initializers.variance_scaling(8.0, "fan_in", "uniform")
        kernel = self.param("kernel", init, (3, 3, channels, channels), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        y = ops.conv_transpose(x, kernel.astype(x.dtype), stride=2, padding=0)[:, 1:, 1:]
        return y + jnp.reshape(bias, (1, 1, 1, -1)).astype(x.dtype)


UPSAMPLERS: dict[str, Any] = {
    "nearest": dz.Nearest,
    "bilinear": dz.Bilinear,
    "resize_conv": dz.ResizeConv,
    "transposed_2x2": dz.TransposedConv,
    "transposed_3x3": TransposedConv3x3,
    "transposed_4x4": partial(dz.TransposedConv, kernel_size=4),
    "shuffle": partial(dz.PixelShuffle, kernel_init=he_uniform),
    "shuffle_icnr": dz.PixelShuffle,
    "carafe": dz.CARAFE,
    "dysample": dz.DySample,
}
INITIAL_SEEDS = 10
CHANNELS = 16
STACKS = {"x2": 1, "x8": 3}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/upsampling_artifacts")
    """Where the picture and the numbers go."""
    upsamplers: tuple[str, ...] = tuple(UPSAMPLERS)
    """Which to compare; resize_conv and a transposed one must be among them."""
    seeds: int = 3
    """Trainings with each upsampler, 2 to 10."""
    steps: int = 450
    """Training steps of 32 scenes each."""
    val: int = 200
    """Scenes to validate on."""


def main(arguments: Arguments) -> None:
    check(arguments)
    console = Console()
    start = {name: at_initialisation(name) for name in arguments.upsamplers}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.upsamplers}
    pictures = {f"{row} at initialisation": {name: start[name][1][row] for name in runs} for row in STACKS}
    answers: dict[str, dict[str, np.ndarray]] = {"a scene, trained": {}, "one grey, trained": {}}
    val = digit_scenes(arguments.val, "val")
    for seed in range(arguments.seeds):
        train = digit_scenes(20_000, "train", seed=seed)
        for name in runs:
            numbers, maps = trained(name, seed, train, val, arguments)
            runs[name].append(numbers)
            if seed == 0:
                for row in answers:
                    answers[row][name] = maps[row]
            scores = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())
            console.print(f"seed {seed}, {name}: {scores}", soft_wrap=True)

    costs = milliseconds(arguments.upsamplers)
    summary = {
        name: {"parameters": parameters_with(name)} | costs[name] | summarise(start[name][0]) | summarise(runs[name])
        for name in runs
    }
    strides = {row: 2 ** STACKS[row.split()[0]] for row in pictures} | dict.fromkeys(answers, 8)
    figure = viz.spectra(pictures | answers, strides)
    picture = viz.save(figure, arguments.out / "upsampling_artifacts.png")
    truth = viz.lattice_energy(larger_scenes()[1], 8)
    show(console, summary, truth)
    verdict = judge({name: start[name][0] for name in runs}, runs)
    for sentence in verdict.values():
        console.print(sentence, soft_wrap=True)
    result = {
        "seeds": arguments.seeds,
        "scores": summary,
        "truth_on_scenes": truth,
        "verdict": verdict,
        "picture": str(picture),
    }
    write(arguments.out / "results.json", {"arguments": vars(arguments), "runs": runs} | result)
    print(json.dumps(result))


def check(arguments: Arguments) -> None:
    names = arguments.upsamplers
    if unknown := set(names) - set(UPSAMPLERS):
        raise ValueError(f"unknown upsamplers {sorted(unknown)}; there are: {', '.join(UPSAMPLERS)}")
    if "resize_conv" not in names or not any(name.startswith("transposed") for name in names):
        raise ValueError(f"--upsamplers needs resize_conv and a transposed one, to be compared; got {' '.join(names)}")
    if not 2 <= arguments.seeds <= 10:
        raise ValueError(f"--seeds is 2 to 10, for an interval; got {arguments.seeds}")
    if arguments.steps < 1 or arguments.val < 1:
        raise ValueError(f"--steps and --val are at least 1; got {arguments.steps} and {arguments.val}")


def network(name: str) -> nn.Module:
    """The tiny U-Net of the exercises with this upsampler."""
    model = tiny_unet()
    return model.clone(decoder=model.decoder.clone(upsample=UPSAMPLERS[name]))


def parameters_with(name: str) -> int:
    shapes = jax.eval_shape(network(name).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def trained(
    name: str, seed: int, train: Any, val: Any, arguments: Arguments
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of the trained network and pieces of its answers; from their file, if an earlier start got that far."""
    path = arguments.out / "trained" / f"{name}_seed{seed}_steps{arguments.steps}_val{arguments.val}.npz"
    if path.exists():
        with np.load(path) as kept:
            maps = {row: kept[row] for row in kept.files}
        return json.loads(str(maps.pop("numbers"))), maps
    model = network(name)
    recipe = digit_recipe(arguments.steps, seed=seed)
    state, _ = train_model(TASK, model, train, val, recipe, preprocessing=PREPROCESSING)
    numbers, maps = on_scenes_and_greys(model, state.variables)
    numbers |= score(Predictor(TASK, model, state.variables, PREPROCESSING), val, 1)
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, numbers=json.dumps(numbers), **maps)

    replace(path, save)
    return numbers, maps


def smooth_maps(seed: int, side: int) -> np.ndarray:
    """Random NHWC maps of waves at least 8 pixels long; mean 1, as features after a ReLU have one, and deviation 1."""
    waves = np.fft.fft2(np.random.default_rng(seed).standard_normal((1, side, side, CHANNELS)), axes=(1, 2))
    slow = np.abs(np.fft.fftfreq(side)) <= 1 / 8
    maps = np.fft.ifft2(waves * np.outer(slow, slow)[None, :, :, None], axes=(1, 2)).real
    maps -= maps.mean((1, 2), keepdims=True)
    return (1 + maps / maps.std((1, 2), keepdims=True)).astype(np.float32)


def at_initialisation(name: str) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The energy at the lattice's frequencies for every seed, and of the first seed pieces to look at."""

    @partial(jax.jit, static_argnums=2)
    def enlarge(key, x, times):
        for step in jax.random.split(key, times):
            layer, size = UPSAMPLERS[name](), (2 * x.shape[1], 2 * x.shape[2])
            x = layer.apply(layer.init(step, x, size), x, size)
        return x

    numbers: list[dict[str, float]] = []
    pieces = {}
    for seed in range(INITIAL_SEEDS):
        numbers.append({})
        for row, times in STACKS.items():
            x = jnp.asarray(smooth_maps(seed, 64 if times == 1 else 32))
            y = np.asarray(enlarge(jax.random.key(seed), x, times))
            edge = 8 * times  # what lies nearer to the border has seen the padding
            y = y[:, edge:-edge, edge:-edge]
            numbers[-1][f"initial_{row}"] = viz.lattice_energy(y, 2**times)
            if seed == 0:
                # The channel in the middle of the order, so that the picture shows neither the best nor the worst.
                shares = [viz.lattice_energy(y[..., channel, None], 2**times) for channel in range(CHANNELS)]
                pieces[row] = y[0, :64, :64, np.argsort(shares)[CHANNELS // 2]]
    return numbers, pieces


@functools.cache
def larger_scenes() -> tuple[np.ndarray, np.ndarray]:
    """Images and one-hot masks of scenes in which many digits stand: spectra need pixels."""
    source = digit_scenes(8, "val", size=88, digits=(8, 10), seed=1)
    samples = [source[index] for index in range(8)]
    masks = np.stack([sample["mask"] for sample in samples])
    return np.stack([to_float(sample["image"]) for sample in samples]), np.eye(NUM_CLASSES)[masks]


def on_scenes_and_greys(model: nn.Module, variables: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How much the logits vary on images of one grey, and their energy at the lattice's frequencies on scenes."""
    # Large, so that in the middle nothing has seen the borders.
    greys = np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32).reshape(-1, 1, 1, 1), (5, 288, 288, 3))

    @jax.jit
    def logits_of(images):
        logits: Any = model.apply(
            variables, (images - jnp.asarray(PREPROCESSING.mean)) / jnp.asarray(PREPROCESSING.std)
        )
        return logits

    on_scenes = np.asarray(logits_of(larger_scenes()[0]), np.float64)
    on_greys = np.asarray(logits_of(greys), np.float64)[:, 112:176, 112:176]
    spread = on_greys.std((1, 2))
    grey, channel = np.unravel_index(spread.argmax(), spread.shape)
    numbers = {
        "on_greys": float(np.sqrt(np.square(spread).mean() / on_scenes.var((0, 1, 2)).mean())),
        "on_scenes": viz.lattice_energy(on_scenes, 8),
    }
    maps = {"a scene, trained": on_scenes[0, :64, :64, 0], "one grey, trained": on_greys[grey, :, :, channel]}
    return numbers, maps


def milliseconds(names: tuple[str, ...], rounds: int = 15) -> dict[str, dict[str, float]]:
    """Medians over turns of a pass forward, and of forward and backward, from (8, 32, 32, 32) to twice the side."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 32, 32, 32)).astype(np.float32))
    timed = {}
    for name in names:
        layer = UPSAMPLERS[name]()
        variables = layer.init(jax.random.key(0), x, (64, 64))
        forward = partial(layer.apply, size=(64, 64))
        both = jax.grad(lambda variables, x, f=forward: jnp.square(f(variables, x)).sum(), (0, 1))
        for key, function in (("forward_ms", forward), ("both_ms", both)):
            f = jax.jit(function, compiler_options=dz.compiler_options())
            jax.block_until_ready(f(variables, x))
            timed[name, key] = (f, variables, [])
    for _ in range(rounds):
        for f, variables, times in timed.values():
            started = time.perf_counter()
            jax.block_until_ready(f(variables, x))
            times.append(1e3 * (time.perf_counter() - started))
    keys = ("forward_ms", "both_ms")
    return {name: {key: statistics.median(timed[name, key][2]) for key in keys} for name in names}


def show(console: Console, summary: dict[str, Any], truth: float) -> None:
    shares = {"initial_x2": "initial x2", "initial_x8": "initial x8", "on_greys": "on greys", "on_scenes": "on scenes"}
    caption = (
        "initial, on scenes: energy at the lattice's frequencies, of random maps and of a trained network's logits (the"
        f" true masks have {truth:.1%}); on greys: deviation of its logits on flat images over that on scenes"
    )
    table = Table("checkerboards, %", *shares.values(), caption=caption)
    for name, row in summary.items():
        table.add_row(name, *(f"{100 * row[key][0]:.2f} ± {100 * row[key][1]:.2f}" for key in shares))
    console.print(table)
    table = Table("upsampler", "mean IoU", "boundary F", "parameters", "forward ms", "+ backward")
    for name, row in summary.items():
        scores = (f"{row[key][0]:.3f} ± {row[key][1]:.3f}" for key in ("mean_iou", "boundary_f"))
        table.add_row(name, *scores, f"{row['parameters']:,}", f"{row['forward_ms']:.2f}", f"{row['both_ms']:.2f}")
    console.print(table)


def judge(start: dict[str, list[dict[str, float]]], runs: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Whether the differences, seed by seed, from resize + convolution confirm the two claims; 95% intervals decide."""

    def versus(name: str, key: str) -> tuple[float, float]:
        values = start if key.startswith("initial") else runs
        pairs = zip(values[name], values["resize_conv"], strict=True)
        return summarise([{key: a[key] - b[key]} for a, b in pairs])[key]

    patterns = ("initial_x2", "initial_x8", "on_greys")
    boards = {(name, key): versus(name, key) for name in runs if name.startswith("transposed") for key in patterns}
    more = [pair for pair, (mean, half) in boards.items() if mean > half]
    first = "confirmed" if len(more) == len(boards) else "refuted" if not more else "confirmed in part"
    others = [name for name in runs if name != "resize_conv"]
    calmer = [f"{name} ({key})" for name in others for key in patterns if sum(versus(name, key)) < 0]
    better = [f"{name} ({key})" for name in others for key in ("mean_iou", "boundary_f") if _above(versus(name, key))]
    second = "confirmed" if not calmer and not better else "confirmed in part" if not better else "not confirmed"
    listed = "; ".join(f"{name} {key} {100 * m:+.2f} ± {100 * h:.2f} points" for (name, key), (m, h) in boards.items())
    return {
        "transposed convolution makes checkerboards": f"Transposed convolution makes checkerboards: {first}, more than"
        f" resize + convolution in {len(more)} of {len(boards)} comparisons: {listed}.",
        "resize + convolution is the stable choice": f"Resize + convolution is the stable choice: {second}; less"
        f" pattern than it: {', '.join(calmer) or 'none'}; more accurate: {', '.join(better) or 'none'}.",
    }


def _above(interval: tuple[float, float]) -> bool:
    return interval[0] > interval[1]


def write(path: Path, contents: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda temporary: temporary.write_text(json.dumps(contents, indent=1, default=str)))


if __name__ == "__main__":
    with user_errors():
        keep_compiled()
        main(tyro.cli(Arguments))
