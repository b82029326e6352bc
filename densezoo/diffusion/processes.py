"""Diffusion processes: how much of the image and of the noise there is at each time, and what the network predicts."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from densezoo.messages import option


def _linear(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start, end, steps)


def _scaled_linear(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def _cosine(steps: int, start: float, end: float) -> np.ndarray:
    del start, end
    level = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def _sigmoid(steps: int, start: float, end: float) -> np.ndarray:
    return (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start


SCHEDULES: dict[str, Callable[[int, float, float], np.ndarray] | None] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "flow": None,
}
"""Noise schedules by name: (steps, start, end) -> the variance of the noise of each step. "flow" has no steps."""

TARGETS = ("epsilon", "x0", "v", "velocity")
"""What a network can predict: the noise, the image, `signal * noise - sigma * image`, or `noise - image`."""

_OF_DIFFUSERS = {
    "beta_schedule": {
        "linear": "linear",
        "scaled_linear": "scaled_linear",
        "squaredcos_cap_v2": "cosine",
        "sigmoid": "sigmoid",
    },
    "prediction_type": {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"},
}


_MOST_STEPS = 1_000_000
_SCHEDULERS = {
    "DDIMScheduler": True,
    "DDPMScheduler": True,
    "DPMSolverMultistepScheduler": False,
    "PNDMScheduler": False,
}
"""Schedulers of diffusers, and whether they clip predicted images unless their configuration says otherwise."""

_OF_SAMPLERS: dict[str, tuple[Any, ...]] = {
    "set_alpha_to_one": (True,),
    "steps_offset": (0,),
    "variance_type": ("fixed_small", "fixed_small_log"),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "final_sigmas_type": ("zero",),
}
"""Options of diffusers' schedulers that only change the sampling, and the values of densezoo's samplers."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process from images to noise: at time t, an image is `signal(t) * image + sigma(t) * noise`.

    Images should have values from about -1 to 1.

    Attributes:
        schedule: one of `SCHEDULES`. With "flow", the image turns into noise along a straight line (flow matching,
            rectified flow), and times are any numbers from 0 to `steps`. The others are variances of the steps of a
            Markov chain, with times 0 to `steps - 1`.
        target: what the network predicts, one of `TARGETS`. Empty for "velocity" with "flow", or else "epsilon".
        steps: number of time steps.
        start: variance of the first step, for "linear", "scaled_linear" and "sigmoid".
        end: variance of the last one.
        zero_terminal_snr: whether the schedule is rescaled so that nothing of the image is left at the last time. It
            needs the target "v" or "x0", because noise alone says nothing about the image.
        clip: the samplers limit predicted images to +-clip; None does not.

    Raises:
        ValueError: if a name is unknown or options contradict each other.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> process = Process("cosine", target="v")
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> noise = jax.random.normal(jax.random.key(0), images.shape)
        >>> noisy = process.add_noise(images, noise, jnp.array([0, 999]))
        >>> [f"{jnp.abs(x - 1).mean():.2f}" for x in noisy]
        ['0.00', '0.98']

    References:
        Ho et al., Denoising diffusion probabilistic models, 2020. https://arxiv.org/abs/2006.11239 ("linear")
        Nichol and Dhariwal, 2021. https://arxiv.org/abs/2102.09672 ("cosine")
        Salimans and Ho, 2022. https://arxiv.org/abs/2202.00512 ("v")
        Lin et al., 2023. https://arxiv.org/abs/2305.08891 (zero terminal SNR)
        Lipman et al., 2022. https://arxiv.org/abs/2210.02747 ("flow")
    """

    schedule: str = "linear"
    target: str = ""
    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02
    zero_terminal_snr: bool = False
    clip: float | None = None

    def __post_init__(self):
        if not self.target:
            object.__setattr__(self, "target", "velocity" if self.schedule == "flow" else "epsilon")
        for name, value, choices in (("schedule", self.schedule, SCHEDULES), ("target", self.target, TARGETS)):
            if value not in choices:
                raise ValueError(f"unknown {option(name)} {value!r}; there are: {', '.join(choices)}")
        if self.steps < 2:
            raise ValueError(f"{option('steps')} must be at least 2, got {self.steps}")
        if not 0 < self.start <= self.end < 1:
            raise ValueError(f"variances must satisfy 0 < start <= end < 1, got start={self.start}, end={self.end}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"{option('clip')} must be above 0, or None; got {self.clip}")
        if self.target == "epsilon" and (self.zero_terminal_snr or self.schedule == "flow"):
            flow = self.schedule == "flow"
            other, better = (("schedule", "flow"), "velocity") if flow else (("zero_terminal_snr", True), "v")
            raise ValueError(
                f"{option('target', 'epsilon')} does not work with {option(*other)}: at the last time, the input is"
                " only noise, and a prediction of this noise tells nothing about the image. Use"
                f" {option('target', better)}"
            )
        if self.zero_terminal_snr and self.schedule == "flow":
            raise ValueError("the schedule 'flow' always ends with only noise: leave out zero_terminal_snr")

    @property
    def is_flow(self) -> bool:
        """Whether times are continuous, and image and noise are mixed along a straight line."""
        return self.schedule == "flow"

    @functools.cached_property
    def levels(self) -> np.ndarray:
        """The square of the signal at each time step, (steps,) float64; for a schedule with steps."""
        make = SCHEDULES[self.schedule]
        if make is None:
            raise ValueError("the schedule 'flow' has no time steps")
        levels = np.cumprod(1 - make(self.steps, self.start, self.end))
        if self.zero_terminal_snr:
            signal = np.sqrt(levels)
            levels = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
        return levels

    def at(self, t: Num[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The factors of image and noise at some times.

        Raises:
            ValueError: if a time is out of range. Under `jit`, where values are unknown, the factors are NaN.
        """
        t = jnp.asarray(t)
        last = self.steps if self.is_flow else self.steps - 1
        values = np.zeros(0) if isinstance(t, Tracer) else np.asarray(t)
        if values.size and not 0 <= values.min() <= values.max() <= last:
            raise ValueError(f"times must be from 0 to {last}; got {values.min()} to {values.max()}")
        if self.is_flow:
            sigma = t.astype(jnp.float32) / self.steps
            sigma = jnp.where((sigma >= 0) & (sigma <= 1), sigma, jnp.nan)
            return 1 - sigma, sigma
        tables = (np.sqrt(self.levels), np.sqrt(1 - self.levels))
        t = jnp.where(t < 0, last + 1, t.astype(jnp.int32))  # a negative index would count from the end
        signal, sigma = (jnp.asarray(x, jnp.float32).at[t].get(mode="fill", fill_value=jnp.nan) for x in tables)
        return signal, sigma

    def random_times(self, key: Any, count: int) -> Num[Array, " b"]:
        """Random times for training, evenly spread."""
        if self.is_flow:
            return (1 - jax.random.uniform(key, (count,))) * self.steps
        return jax.random.randint(key, (count,), 0, self.steps)

    def add_noise(
        self, images: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Num[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """The noisy images at some times."""
        signal, sigma = (over_pixels(x, images.dtype) for x in self.at(t))
        return signal * images + sigma * noise

    def target_of(
        self, images: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Num[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """What the network should predict for the noisy images."""
        signal, sigma = (over_pixels(x, images.dtype) for x in self.at(t))
        targets = {"epsilon": noise, "x0": images, "velocity": noise - images}
        return signal * noise - sigma * images if self.target == "v" else targets[self.target]

    def weights(self, t: Num[Array, " b"], gamma: float | None) -> Float[Array, " b"]:
        """Weights of the squared error of the prediction at some times: min-SNR-gamma, or 1 without `gamma`.

        The error of the image gets the weight min(SNR, gamma), with the signal-to-noise ratio SNR.

        References:
            Hang et al., Efficient diffusion training via min-SNR weighting strategy, 2023.
            https://arxiv.org/abs/2303.09556
        """
        signal, sigma = self.at(t)
        if gamma is None:
            return jnp.ones_like(sigma)
        if self.target == "epsilon":
            return jnp.minimum(1, gamma * jnp.square(sigma / signal))
        # The error of the image per error of the prediction.
        factor = {"x0": 1.0, "v": sigma / (signal**2 + sigma**2), "velocity": sigma / (signal + sigma)}[self.target]
        return jnp.minimum(jnp.square(signal / sigma), gamma) * jnp.square(factor)

    def split(self, output: Any, x: Any, signal: Any, sigma: Any) -> tuple[Any, Any]:
        """The image and the noise that a prediction for noisy images `x` implies."""
        if self.target == "epsilon":
            return (x - sigma * output) / signal, output
        if self.target == "x0":
            return output, (x - signal * output) / sigma
        if self.target == "v":
            square = signal**2 + sigma**2
            return (signal * x - sigma * output) / square, (sigma * x + signal * output) / square
        return (x - sigma * output) / (signal + sigma), (x + signal * output) / (signal + sigma)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Process":
        """Reads the configuration of a scheduler of diffusers, `scheduler_config.json`.

        Its `timestep_spacing` is the `spacing` of `make_sampler`. Warns of options that only change the sampling, and
        that densezoo's samplers do not have.

        Raises:
            ValueError: if it names something that densezoo does not have.
        """
        kind = _option(config, "_class_name", "DDIMScheduler")
        steps = _option(config, "num_train_timesteps", 1000)
        if not 2 <= steps <= _MOST_STEPS:
            raise ValueError(f"the scheduler has num_train_timesteps={steps}; expected 2 to {_MOST_STEPS}")
        if kind == "FlowMatchEulerDiscreteScheduler":
            shifts = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling")
            shifts += ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
            if config.get("shift", 1.0) != 1.0 or any(config.get(name) for name in shifts):
                raise ValueError("the scheduler shifts or changes its times, which densezoo does not support")
            return cls("flow", steps=steps)
        if kind not in _SCHEDULERS:
            raise ValueError(
                f"the scheduler is a {kind!r}, which densezoo does not have; it has: {', '.join(_SCHEDULERS)} and"
                " FlowMatchEulerDiscreteScheduler"
            )
        found = {}
        for entry, names in _OF_DIFFUSERS.items():
            value = _option(config, entry, next(iter(names)))
            if value not in names:
                raise ValueError(
                    f"the scheduler has {entry}={value!r}, which densezoo does not have; it has: {', '.join(names)}"
                )
            found[entry] = names[value]
        unsupported = (
            "trained_betas",
            "thresholding",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
        )
        if given := [entry for entry in unsupported if config.get(entry)]:
            raise ValueError(f"the scheduler has {given}, which densezoo does not support")
        if str(config.get("variance_type")).startswith("learned"):
            raise ValueError("the scheduler needs a network that also predicts variances: not supported")
        differs = [name for name, ours in _OF_SAMPLERS.items() if config.get(name) not in (None, *ours)]
        if kind == "DDIMScheduler" and config.get("timestep_spacing") == "linspace":
            differs.append("timestep_spacing")  # see `make_sampler`
        if differs:
            given = ", ".join(f"{name}={config[name]!r}" for name in differs)
            warnings.warn(
                f"the scheduler has {given}, which densezoo's samplers do not follow: their images differ from those of"
                " diffusers",
                stacklevel=2,
            )
        clips = "clip_sample" not in config or config["clip_sample"] is not None  # null is no clipping, as in diffusers
        clips = clips and _option(config, "clip_sample", _SCHEDULERS[kind])
        return cls(
            schedule=found["beta_schedule"],
            target=found["prediction_type"],
            steps=steps,
            start=_option(config, "beta_start", 1e-4),
            end=_option(config, "beta_end", 0.02),
            zero_terminal_snr=_option(config, "rescale_betas_zero_snr", False),
            clip=_option(config, "clip_sample_range", 1.0) if clips else None,
        )


def over_pixels(x: jax.Array, dtype: Any) -> jax.Array:
    """A number for each image, to multiply NHWC images with."""
    return jnp.expand_dims(x, (1, 2, 3)).astype(dtype)


def _option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """An option of a scheduler, of the type of its default; absent ones and null are the default."""
    value = config.get(name)
    if value is None:
        return default
    if type(default) is float and type(value) is int and abs(value) < 2**31:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"the scheduler has {name}={str(value)[:100]!r}; expected a value like {default!r}")
    return value
