"""Initialisers that the reference implementations use."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from densezoo.types import Initializer

he_normal_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""torchvision's initialiser of ResNet and VGG convolutions (He et al. 2015)."""

he_uniform: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
"""segmentation_models_pytorch's initialiser of decoders (He et al. 2015)."""

torch_uniform: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""The default kernel initialiser of torch's convolutions and linear layers; see also `torch_bias`."""


def torch_bias(fan_in: int) -> Initializer:
    """The default bias initialiser of torch's convolutions and linear layers: uniform within +-1 / sqrt(fan_in)."""

    def initialise(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return initialise


fan_average: Initializer = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
"""The initialiser of diffusion models (Ho et al. 2020)."""

nearly_zero: Initializer = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
"""The initialiser of the last layer of a residual branch in diffusion models, which starts as the identity."""

truncated_normal: Initializer = nn.initializers.truncated_normal(0.02, lower=-2 / 0.02, upper=2 / 0.02)
"""timm's `trunc_normal_(std=0.02)` of transformers. It truncates at +-2, a hundred standard deviations."""

# Each pixel of a transposed convolution with stride 2 sums a quarter of the kernel's taps, hence four times the
# variance of he_uniform.
he_uniform_transposed: Initializer = nn.initializers.variance_scaling(8.0, "fan_in", "uniform")


def icnr(init: Initializer = he_uniform, factor: int = 2) -> Initializer:
    """Initialises the convolution before a pixel shuffle as nearest upsampling, which has no checkerboard.

    Aitken et al., Checkerboard artifact free sub-pixel convolution, 2017. https://arxiv.org/abs/1707.02937
    """

    def initialise(key, shape, dtype=jnp.float32):
        *lead, features = shape
        return jnp.repeat(init(key, (*lead, features // factor**2), dtype), factor**2, axis=-1)

    return initialise
