"""Samplers: from noise to images, each as one loop in one compiled program.

All of them are one update with other numbers. A step evaluates the network at time t, which gives an image x0 and the
noise e, and then computes

    x <- a x + b x0 + c e + d z + f x0' + g x'

with fresh noise z, and the image x0' and the state x' of the step before.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo.compiling import Jitted
from densezoo.diffusion.processes import Process
from densezoo.inputs import check_collections
from densezoo.messages import option
from densezoo.models.diffusion import check_labels
from densezoo.ops.implementation import within_loop


class Row(NamedTuple):
    """The numbers of a step; see the module's docstring. `signal` and `sigma` are the process's factors at `t`."""

    t: Any  # all of them floats, or in the loop arrays
    signal: Any
    sigma: Any
    x: Any = 0.0
    image: Any = 0.0
    noise: Any = 0.0
    fresh: Any = 0.0
    previous_image: Any = 0.0
    previous_x: Any = 0.0


Point = tuple[float, float, float]
"""A time with the factors of image and noise."""


def _ddim(points: list[Point], eta: float) -> list[Row]:
    rows = []
    for (t, signal, sigma), (_, to_signal, to_sigma) in itertools.pairwise(points):
        fresh = 0.0
        if eta:
            fresh = eta * to_sigma / sigma * max(0.0, 1 - (signal / to_signal) ** 2) ** 0.5
        rows.append(Row(t, signal, sigma, image=to_signal, noise=max(0.0, to_sigma**2 - fresh**2) ** 0.5, fresh=fresh))
    return rows


def _ddpm(points: list[Point], eta: float) -> list[Row]:
    del eta
    rows = []
    for (t, signal, sigma), (_, to_signal, to_sigma) in itertools.pairwise(points):
        kept = (signal / to_signal) ** 2  # the product of 1 - variance over the steps between
        fresh = to_sigma / sigma * max(0.0, 1 - kept) ** 0.5
        x = kept**0.5 * to_sigma**2 / sigma**2
        rows.append(Row(t, signal, sigma, x=x, image=to_signal * (1 - kept) / sigma**2, fresh=fresh))
    return rows


def _dpm(points: list[Point], eta: float) -> list[Row]:
    del eta
    rows, before = [], None
    for (t, signal, sigma), (_, to_signal, to_sigma) in itertools.pairwise(points):
        # exp(-h) for the step h in the logarithm of signal / sigma; both ends may be infinite.
        shrink = to_sigma * signal / (sigma * to_signal)
        step = -np.log(shrink) if shrink > 0 else np.inf
        gain = to_signal * (1 - shrink)
        # The second order needs the step before. It is left out where one of both is infinite.
        extra = 0.0 if before is None or not np.isfinite([step, before]).all() else gain * step / (2 * before)
        rows.append(Row(t, signal, sigma, x=to_sigma / sigma, image=gain + extra, previous_image=-extra))
        before = step
    return rows


def _heun(points: list[Point], eta: float) -> list[Row]:
    rows = []
    del eta
    for (here, there), row in zip(itertools.pairwise(points), _ddim(points, 0.0), strict=True):
        rows.append(row)
        (_, signal, sigma), (t, to_signal, to_sigma) = here, there
        if to_sigma > 0 and signal > 0:  # else only Euler's step is defined
            change = to_sigma - to_signal * sigma / signal
            rows.append(Row(t, to_signal, to_sigma, x=0.5, noise=0.5 * change, previous_x=0.5 * to_signal / signal))
    return rows


METHODS: dict[str, Callable[[list[Point], float], list[Row]]] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "dpm": _dpm,
    "heun": _heun,
    "euler": _ddim,
}
"""Samplers by name: (points, eta) -> rows. For a flow, DDIM is Euler's method."""


def _points(process: Process, steps: int, spacing: str, method: str) -> list[Point]:
    """The times of a sampler, from noise to the image, with the factors of image and noise."""
    last = process.steps
    # As in diffusers, the last step of DPM-Solver begins before time 0, where there is hardly any noise left.
    spare = int(method == "dpm" and spacing != "trailing" and not process.is_flow)
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"unknown {option('spacing')} {spacing!r}; there are: trailing, leading, linspace")
    if not 1 <= steps <= last - spare:
        raise ValueError(f"{option('steps')} must be from 1 to the {last - spare} of the process, got {steps}")
    if process.is_flow:
        times = last * (1 - np.arange(steps) / steps)
        return [(float(t), 1 - t / last, t / last) for t in times] + [(0.0, 1.0, 0.0)]
    times = {
        "trailing": np.round(np.arange(last, 0, -last / steps)) - 1,
        "leading": (np.arange(steps + spare) * (last // (steps + spare)))[::-1],
        "linspace": np.round(np.linspace(0, last - 1, steps + spare))[::-1],
    }[spacing][:steps].astype(int)
    levels = process.levels[times]
    return [(float(t), level**0.5, (1 - level) ** 0.5) for t, level in zip(times, levels, strict=True)] + [
        (0.0, 1.0, 0.0)
    ]


class Sampler:
    """The result of `make_sampler`: `sampler(variables, key, shape, ...)` returns images."""

    def __init__(self, model: nn.Module, process: Process, rows: list[Row], trajectory: bool):
        self.model, self.process = model, process
        self._rows, self._trajectory = rows, trajectory
        self._run = Jitted(self._loop)

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated, without guidance."""
        return len(self._rows)

    def __call__(
        self,
        variables: Any,
        key: jax.Array,
        shape: tuple[int, int, int, int] | None = None,
        *,
        labels: Any = None,
        guidance: float | None = None,
        noise: Any = None,
    ) -> Any:
        """Samples images.

        Args:
            variables: the model's variables.
            key: random key.
            shape: shape of the images, NHWC.
            labels: the class of each image, for a model with classes.
            guidance: scale of classifier-free guidance: 1 is none, and more makes images more typical of their class.
                It needs labels and a model with a null label, and evaluates the network on twice as many images.
            noise: the noise to start with, instead of `shape`.

        Returns:
            Images. With `trajectory`, a tuple of them and of the images that were predicted at each evaluation, (n, b,
            h, w, c).

        Raises:
            TypeError: if the variables are not a dictionary.
            ValueError: if the variables have no `params`, a label is beyond the classes, or arguments contradict each
                other.
        """
        check_collections(variables)
        if (shape is None) == (noise is None):
            raise ValueError("pass either the shape of the images, or the noise to start with")
        start_key, key = jax.random.split(key)
        x = jax.random.normal(start_key, shape or ()) if noise is None else jnp.asarray(noise)
        classes = getattr(self.model, "num_classes", None)
        if labels is not None:
            labels = jnp.asarray(labels)
            if getattr(self.model, "labels_as", "table") != "vector":
                labels = jnp.broadcast_to(labels, x.shape[:1])
            if classes is not None:
                check_labels(labels, classes, null_label=getattr(self.model, "null_label", False))
        guided = guidance is not None and guidance != 1
        if guided and (labels is None or classes is None or not getattr(self.model, "null_label", False)):
            raise ValueError(
                "guidance needs labels, and a model with classes and a null label, such as"
                " create_model('diffusion_unet', num_classes=10)"
            )
        return self._run(variables, x, key, labels, jnp.float32(guidance) if guided else None)

    def _loop(self, variables: Any, x: jax.Array, key: jax.Array, labels: Any, guidance: Any) -> Any:
        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            times = jnp.broadcast_to(t[None], x.shape[:1])
            if guidance is None:
                return self.model.apply(variables, x, times, labels)  # pyright: ignore[reportReturnType]
            null = jnp.full_like(labels, getattr(self.model, "num_classes", 0))
            twice = (jnp.concatenate(pair) for pair in ((x, x), (times, times), (labels, null)))
            with_label, without = jnp.split(jnp.asarray(self.model.apply(variables, *twice)), 2)
            return without + guidance.astype(x.dtype) * (with_label - without)

        def step(carry: Any, given: Any) -> Any:
            x, previous_x, previous_image = carry
            row, key = given
            t = row.t  # in float32: bfloat16 has no 999
            row = Row(*(value.astype(x.dtype) for value in row))
            with within_loop():
                output = predict(x, t).astype(x.dtype)
            image, noise = self.process.split(output, x, row.signal, row.sigma)
            if self.process.clip is not None:
                image = jnp.clip(image, -self.process.clip, self.process.clip)
                if guidance is not None:
                    # Guided images are clipped in many steps. With noise that does not fit the clipped ones, errors add
                    # up: the more steps, the worse the samples. Without guidance, the noise is that of diffusers.
                    noise = (x - row.signal * image) / row.sigma
            y = row.x * x + row.image * image + row.noise * noise
            y += row.previous_image * previous_image + row.previous_x * previous_x
            if any(row.fresh for row in self._rows):
                y += row.fresh * jax.random.normal(key, x.shape, x.dtype)
            return (y, x, image), image if self._trajectory else None

        rows = Row(*(jnp.asarray(column, jnp.float32) for column in zip(*self._rows, strict=True)))
        keys = jax.random.split(key, len(self._rows))
        (x, _, _), images = jax.lax.scan(step, (x, jnp.zeros_like(x), jnp.zeros_like(x)), (rows, keys))
        return (x, images) if self._trajectory else x


def make_sampler(
    model: nn.Module,
    process: Process,
    *,
    method: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    spacing: str = "trailing",
    trajectory: bool = False,
) -> Sampler:
    """Returns a function that samples images: one loop in one compiled program.

    Args:
        model: `model.apply(variables, x, t, labels)` predicts the target of the process.
        process: the process that the model was trained for, such as `task.process`.
        method: "ddpm" follows the process backwards, with fresh noise in every step. "ddim" and "euler" are the
            deterministic first-order method, "dpm" is DPM-Solver++(2M), of second order at the same cost, and "heun" of
            second order with two evaluations per step.
        steps: number of steps.
        eta: for "ddim", the amount of fresh noise; 1 is as much as in "ddpm".
        spacing: the times: "trailing" starts at the last one, "leading" ends at the first, and "linspace" does both;
            but "dpm" ends before the first. The times are those of diffusers, whose DDIM and DDPM use "leading" by
            default, and DPM-Solver "linspace". Each step ends at the next time. In diffusers, a step of DDIM always
            ends `process.steps // steps` earlier, which misses the next time of "linspace", and of "trailing" unless
            `steps` divides `process.steps`: then images differ.
        trajectory: whether to return the predicted image of every step too.

    Raises:
        ValueError: if a name is unknown, or the method does not fit the process.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("diffusion_unet", num_classes=10, features=(8, 16), layers=1)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
        >>> sample = make_sampler(model, Process("cosine"), steps=3)
        >>> sample(variables, jax.random.key(1), (2, 8, 8, 1), labels=7, guidance=2.0).shape
        (2, 8, 8, 1)

    References:
        Song et al., Denoising diffusion implicit models, 2020. https://arxiv.org/abs/2010.02502
        Lu et al., DPM-Solver++, 2022. https://arxiv.org/abs/2211.01095
        Karras et al., 2022. https://arxiv.org/abs/2206.00364 (Heun's method)
        Ho and Salimans, Classifier-free diffusion guidance, 2022. https://arxiv.org/abs/2207.12598
    """
    if method not in METHODS:
        raise ValueError(f"unknown {option('method')} {method!r}; there are: {', '.join(METHODS)}")
    if process.is_flow and (method == "ddpm" or eta):
        raise ValueError("a flow has no fresh noise: use 'euler', 'dpm' or 'heun', and eta=0")
    if not 0 <= eta <= 1 or (eta and method != "ddim"):
        raise ValueError(f"eta must be from 0 to 1, and is only for 'ddim'; got {eta} for {method!r}")
    return Sampler(model, process, METHODS[method](_points(process, steps, spacing, method), eta), trajectory)
