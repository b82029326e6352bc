"""Upsamplers and measurements of exercise 4: checkerboard energy and time of each upsampler.

The script is `upsampling_artifacts.py`.
"""

import functools
import statistics
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import NUM_CLASSES, PREPROCESSING, digit_scenes, tiny_unet

import densezoo as dz
from densezoo import ops, viz
from densezoo.blocks import he_uniform
from densezoo.data import to_float


class TransposedConv3x3(nn.Module):
    """A transposed 3x3 convolution with stride 2, whose windows overlap unevenly."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        if size != (2 * x.shape[1], 2 * x.shape[2]):
            raise ValueError(f"this upsampler only doubles the size; got a map of {x.shape[1:3]} for the size {size}")
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


def network(name: str, *, quick: bool = False) -> nn.Module:
    """The tiny U-Net of the exercises with this upsampler."""
    model = tiny_unet(quick=quick)
    return model.clone(decoder=model.decoder.clone(upsample=UPSAMPLERS[name]))


def smooth_maps(seed: int, side: int) -> np.ndarray:
    """Random NHWC maps with wavelengths of at least 8 pixels, mean 1 (positive, as after a ReLU) and deviation 1."""
    waves = np.fft.fft2(np.random.default_rng(seed).standard_normal((1, side, side, CHANNELS)), axes=(1, 2))
    slow = np.abs(np.fft.fftfreq(side)) <= 1 / 8
    maps = np.fft.ifft2(waves * np.outer(slow, slow)[None, :, :, None], axes=(1, 2)).real
    maps -= maps.mean((1, 2), keepdims=True)
    return (1 + maps / maps.std((1, 2), keepdims=True)).astype(np.float32)


def at_initialisation(name: str) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The energy at the lattice's frequencies for every seed, and crops of the first seed's maps for the picture."""

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
            edge = 8 * times  # pixels nearer to the border are affected by padding
            y = y[:, edge:-edge, edge:-edge]
            numbers[-1][f"initial_{row}"] = viz.lattice_energy(y, 2**times)
            if seed == 0:
                # The median channel, which is typical.
                shares = [viz.lattice_energy(y[..., channel, None], 2**times) for channel in range(CHANNELS)]
                pieces[row] = y[0, :64, :64, np.argsort(shares)[CHANNELS // 2]]
    return numbers, pieces


@functools.cache
def larger_scenes() -> tuple[np.ndarray, np.ndarray]:
    """Images and one-hot masks of large scenes with many digits, because spectra need many pixels."""
    source = digit_scenes(8, "val", size=88, digits=(8, 10), seed=1)
    samples = [source[index] for index in range(8)]
    masks = np.stack([sample["mask"] for sample in samples])
    return np.stack([to_float(sample["image"]) for sample in samples]), np.eye(NUM_CLASSES)[masks]


def on_scenes_and_greys(model: nn.Module, variables: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The deviation of logits on images of one grey value, and their energy at the lattice's frequencies on scenes."""
    # Large, so that the padding does not affect the centre.
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
    """The time of a layer that doubles the size of (8, 32, 32, 32), as medians over rounds.

    `forward_ms` is the forward pass. `train_ms` also includes the gradients of its input and parameters.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 32, 32, 32)).astype(np.float32))

    def train(layer: nn.Module, variables: Any, x: jax.Array) -> Any:
        y, pull_back = jax.vjp(partial(layer.apply, size=(64, 64)), variables, x)
        return y, pull_back(y)

    timed: dict[tuple[str, str], tuple[Any, Any, list[float]]] = {}
    for name in names:
        layer = UPSAMPLERS[name]()
        variables = layer.init(jax.random.key(0), x, (64, 64))
        for key, function in (
            ("forward_ms", partial(layer.apply, size=(64, 64))),
            ("train_ms", partial(train, layer)),
        ):
            f = jax.jit(function, compiler_options=dz.compiler_options())
            jax.block_until_ready(f(variables, x))
            timed[name, key] = (f, variables, [])
    for _ in range(rounds):
        for f, variables, times in timed.values():
            started = time.perf_counter()
            jax.block_until_ready(f(variables, x))
            times.append(1e3 * (time.perf_counter() - started))
    keys = ("forward_ms", "train_ms")
    return {name: {key: statistics.median(timed[name, key][2]) for key in keys} for name in names}
