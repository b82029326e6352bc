"""Normalisations, with torch's conventions and statistics in float32."""

import functools
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks.factories import build, register_blocks
from densezoo.ops.implementation import whole
from densezoo.types import Dtype, Initializer, ModuleDef, accumulator_dtype


class BatchNorm(nn.Module):
    """Batch normalisation as in torch: momentum 0.9 corresponds to torch's 0.1, and the running variance is unbiased.

    Statistics are computed in float32 over all axes but the last. Training needs more than one value per channel.
    Under `jit` over a mesh, they are those of the global batch, without an axis name. Ioffe and Szegedy, 2015,
    https://arxiv.org/abs/1502.03167.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False, relu: bool = False
    ) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        scale = self.param("scale", self.scale_init, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        dtype = x.dtype if self.dtype is None else self.dtype

        count = x.size // features
        if train and count == 1 and not self.is_initializing():
            raise ValueError(
                f"a batch norm needs more than one value per channel in training, got shape {x.shape}: use a batch of"
                " two or more images (a global mean leaves one value per image), or norm=partial(dz.GroupNorm, ...)"
            )
        if train:
            # In the wider of the two types, so that the result is rounded once.
            wide = x.astype(jnp.promote_types(x.dtype, dtype))
            y, mean, var = ops.batch_norm(
                jnp.asarray(wide), jnp.asarray(scale), jnp.asarray(bias), epsilon=self.epsilon, relu=relu
            )
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    now = now.astype(running.value.dtype)
                    running.value = self.momentum * running.value + (1 - self.momentum) * now
            return y.astype(dtype)

        lead = tuple(range(x.ndim - 1))
        wide = x.astype(accumulator_dtype(x.dtype))
        scale, bias = scale.astype(wide.dtype), bias.astype(wide.dtype)
        mean, var = running_mean.value.astype(wide.dtype), running_var.value.astype(wide.dtype)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = wide * jnp.expand_dims(factor, lead) + jnp.expand_dims(bias - mean * factor, lead)
        return (nn.relu(y) if relu else y).astype(dtype)


class FrozenBatchNorm(BatchNorm):
    """Batch normalisation with constant statistics, scale and bias, also in training.

    Detectors use it in a pretrained encoder, because batches of few large images give poor statistics. All four arrays
    are in `batch_stats`, so optimizers and weight decay do not change them. torchvision's `FrozenBatchNorm2d` has an
    epsilon of 1e-5, but of 0 in the published weights of the first versions of its detectors:

        encoder = dz.create_encoder("resnet50", norm=partial(dz.FrozenBatchNorm, epsilon=0.0))
        model = dz.create_model("faster_rcnn", encoder, num_classes=91)
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False, relu: bool = False
    ) -> Float[Array, "b h w c"]:
        del train
        shape, ones, zeros = (x.shape[-1],), jnp.ones, jnp.zeros
        scale, bias, mean, var = (
            self.variable("batch_stats", name, init, shape, jnp.float32).value
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        wide = x.astype(accumulator_dtype(x.dtype))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        lead = tuple(range(x.ndim - 1))
        factor, shift = (jnp.expand_dims(y.astype(wide.dtype), lead) for y in (factor, bias - mean * factor))
        y = wide * factor + shift
        return (nn.relu(y) if relu else y).astype(x.dtype if self.dtype is None else self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation: statistics of each sample over groups of channels. Works with a batch of one.

    Statistics are computed in float32. Wu and He, 2018, https://arxiv.org/abs/1803.08494.

    Attributes:
        num_groups: number of groups, which must divide the channels. None means the paper's 32 if it divides them, or
            else the largest smaller divisor that leaves at least two channels per group: 8 for 16 channels, 24 for 48.
        group_size: the least number of channels per group. It reduces `num_groups` for maps of few channels, or 32.
    """

    num_groups: int | None = None
    epsilon: float = 1e-5
    group_size: int | None = None
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, relu: bool = False) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        groups = default_groups(features) if self.num_groups is None else self.num_groups
        if self.group_size is not None:
            groups = max(1, min(self.num_groups or 32, features // self.group_size))
        if groups < 1 or features % groups:
            raise ValueError(
                f"num_groups={groups} must divide the {features} channels: pass"
                f" partial(dz.GroupNorm, num_groups={default_groups(features)}), or dz.GroupNorm, which chooses"
            )
        scale = self.param("scale", self.scale_init, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        dtype = x.dtype if self.dtype is None else self.dtype
        wide = x.astype(jnp.promote_types(x.dtype, dtype))
        y = ops.group_norm(
            jnp.asarray(wide),
            jnp.asarray(scale),
            jnp.asarray(bias),
            groups=groups,
            epsilon=self.epsilon,
            relu=relu,
        )
        return y.astype(dtype)


def default_groups(channels: int) -> int:
    """The default number of groups of `GroupNorm`."""
    if channels % 32 == 0:
        return 32
    return max((groups for groups in range(1, 32) if channels % groups == 0 and channels // groups > 1), default=1)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of every pixel or token.

    Statistics are computed in float32. Ba et al., 2016, https://arxiv.org/abs/1607.06450.
    """

    epsilon: float = 1e-6
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = self.param("scale", self.scale_init, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        dtype = x.dtype if self.dtype is None else self.dtype
        wide = x.astype(accumulator_dtype(jnp.promote_types(x.dtype, dtype)))
        scale, bias = (jnp.expand_dims(p.astype(wide.dtype), range(x.ndim - 1)) for p in (scale, bias))
        return layer_norm(wide, scale, bias, self.epsilon).astype(dtype)


# A separate function, so that its gradient is summed separately. Otherwise XLA:CPU lets oneDNN add the part that is
# constant over a pixel's channels to the gradient of a convolution, which takes 200 times as long as the convolution.
@whole
@functools.partial(jax.jit, static_argnames="epsilon")
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalises the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    var = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(var + epsilon) * scale + bias


def norm_act(
    norm: ModuleDef | None,
    act: Callable[[jax.Array], jax.Array] | None,
    x: jax.Array,
    *,
    train: bool,
    name: str,
    dtype: Dtype | None,
    param_dtype: Dtype,
) -> jax.Array:
    """Applies a norm factory, of densezoo or Flax (`partial(nn.GroupNorm, num_groups=8)`), and an activation.

    None omits either. If the norm's call has an argument `train`, or `use_running_average` as in Flax's batch norm, it
    receives the mode. If it has an argument `relu`, it applies the ReLU itself.
    """
    if act is not None and not callable(act):
        raise TypeError(f"act: expected a function, such as jax.nn.relu, got {act!r}")
    if norm is None:
        return x if act is None else act(x)
    layer = build(norm, name=name, dtype=dtype, param_dtype=param_dtype)
    known = inspect.signature(layer).parameters
    relu = act is nn.relu and "relu" in known
    options = {"train": train, "use_running_average": not train, "relu": relu}
    x = layer(x, **{name: value for name, value in options.items() if name in known})
    return x if act is None or relu else act(x)


register_blocks("norm", batch=BatchNorm, group=GroupNorm, layer=LayerNorm, none=None)
