"""The U-Net of diffusion models: predicts noise, or what the noise hides, for an image, a time and a class."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from densezoo.blocks import (
    ConcatSkip,
    Conv,
    GroupNorm,
    ResidualBlock,
    ResizeConv,
    SelfAttention,
    Sinusoidal,
    StridedConv,
    build,
    fan_average,
    nearly_zero,
    norm_act,
)
from densezoo.blueprint import Blueprint, register
from densezoo.models.diffusion_levels import DownLevel, MiddleLevel, UpLevel
from densezoo.models.diffusion_names import diffusers_names
from densezoo.models.segmentation import computed_by
from densezoo.naming import Naming
from densezoo.types import Dtype, ModuleDef, size_of

CONCAT: ModuleDef = ConcatSkip


class DiffusionUNet(nn.Module):
    """A U-Net whose residual blocks know the time, and optionally a class: `model.apply(variables, x, t, labels)`.

    Every residual block of the way down gives a skip, and every block of the way up takes one. Images may have any size
    and number of channels. `dz.create_model("diffusion_unet", ...)` composes one from simpler arguments.

    Attributes:
        features: channels of each level, fine to coarse.
        down: factory of each level of the way down, such as `partial(DownLevel, attention=SelfAttention)`.
        middle: factory of the coarsest level, None for none.
        up: factory of each level of the way up, coarse to fine.
        layers: number of residual blocks of each level on the way down; one more on the way up.
        out_channels: channels of the output; None for those of `x`.
        num_classes: number of classes that condition the output; None for none.
        null_label: whether the label `num_classes` means no class, for classifier-free guidance. Missing labels are
            this label.
        labels_as: "table" looks the labels up in a table of vectors, "time" embeds them like times, and "vector" adds
            vectors (b, `condition_features`) that are given as labels.
        time: factory of the embedding of times.
        condition_features: length of the vector of time and class; None for four times the finest level's channels.
        norm: factory of the normalisation before the last convolution.
        center: whether to map images in 0..1 to -1..1 first.
        divide_by_time: whether to divide the output by the time, for a time that is a standard deviation.
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = DiffusionUNet((8, 16), down=(DownLevel, DownLevel), middle=MiddleLevel, up=(UpLevel, UpLevel))
        >>> x = jnp.zeros((2, 9, 14, 1))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(2))
        >>> jax.eval_shape(model.apply, variables, x, jnp.array([0, 999])).shape
        (2, 9, 14, 1)

    References:
        Ho et al., Denoising diffusion probabilistic models, 2020. https://arxiv.org/abs/2006.11239
        Ho and Salimans, Classifier-free diffusion guidance, 2022. https://arxiv.org/abs/2207.12598
    """

    features: Sequence[int]
    down: Sequence[ModuleDef]
    middle: ModuleDef | None
    up: Sequence[ModuleDef]
    layers: int = 2
    out_channels: int | None = None
    num_classes: int | None = None
    null_label: bool = True
    labels_as: Literal["table", "time", "vector"] = "table"
    time: ModuleDef = Sinusoidal
    condition_features: int | None = None
    norm: ModuleDef | None = GroupNorm
    center: bool = False
    divide_by_time: bool = False
    frozen: tuple[str, ...] = ()
    impl: str = "auto"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem: ClassVar[str] = "stem"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"] | float,
        labels: Any = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """Predicts the target for noisy images.

        Args:
            x: noisy images.
            t: time of each image, or one for all.
            labels: class of each image (b,). None means no class.
            train: whether to apply dropout.

        Returns:
            Maps of the images' size, such as the predicted noise.

        Raises:
            TypeError: if the images are not floats.
            ValueError: if shapes are wrong, labels are missing or not expected, or a label is beyond the classes. The
                values of labels cannot be checked under `jit`; the output is then NaN.
        """
        t, labels = self._checked(x, t, labels)
        with computed_by(self):
            return self._denoised(x, t, labels, train)

    def _denoised(self, x: jax.Array, t: jax.Array, labels: jax.Array | None, train: bool) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        condition = self._condition(t, labels, x)
        x = 2 * x - 1 if self.center else x
        image, channels = x, self.out_channels or x.shape[-1]
        x = Conv(self.features[0], kernel_init=fan_average, name="stem", **dtypes)(x)
        skips = [x]
        for index, (factory, features) in enumerate(zip(self.down, self.features, strict=True)):
            fields = {"features": features, "layers": self.layers, "resamples": index + 1 < len(self.features)}
            level = build(factory, name=f"down{index}", **fields, **dtypes)
            x, maps, image = level(x, condition, image, train=train)
            skips += maps
        if self.middle is not None:
            middle = build(self.middle, features=self.features[-1], name="middle", **dtypes)
            x = middle(x, condition, train=train)
        image = None
        for index, (factory, features) in enumerate(zip(self.up, reversed(self.features), strict=True)):
            joined = [skips.pop() for _ in range(self.layers + 1)]
            last = not skips
            fields = {"features": features, "resamples": not last}
            fields |= {"image_features": channels} if "image" in getattr(factory, "keywords", {}) else {}
            level = build(factory, name=f"up{index}", **fields, **dtypes)
            x, image = level(x, condition, joined, size_of(x if last else skips[-1]), image, train=train)
        x = norm_act(self.norm, nn.silu, x, train=train, name="out_norm", **dtypes)
        x = Conv(channels, kernel_init=nearly_zero, name="out", **dtypes)(x)
        x = x if image is None else x + image
        return x / jnp.expand_dims(t, (1, 2, 3)).astype(x.dtype) if self.divide_by_time else x

    def _condition(self, t: jax.Array, labels: jax.Array | None, x: jax.Array) -> jax.Array:
        """The vector of time and class that conditions every residual block."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = self.condition_features or 4 * self.features[0]
        dense = partial(nn.Dense, width, kernel_init=fan_average, **dtypes)
        embed = build(self.time, features=self.features[0], name="time", **dtypes)

        def perceptron(vectors: jax.Array, name: str) -> jax.Array:
            hidden = nn.silu(dense(name=f"{name}1")(vectors.astype(self.dtype or x.dtype)))
            return dense(name=f"{name}2")(hidden)

        condition = perceptron(embed(t), "time_dense")
        if labels is None:
            return condition
        if self.labels_as == "vector":
            return condition + labels.astype(condition.dtype)
        if self.labels_as == "time":
            return condition + perceptron(embed(labels), "class_dense")
        rows = (self.num_classes or 0) + self.null_label
        table = self.param("classes", nn.initializers.normal(1.0), (rows, width), self.param_dtype)
        labels = jnp.where(labels < 0, rows, labels)  # a negative index would count from the end
        vectors = jnp.asarray(table).at[labels].get(mode="fill", fill_value=jnp.nan)
        return condition + vectors.astype(condition.dtype)

    def _checked(self, x: jax.Array, t: Any, labels: Any) -> tuple[jax.Array, jax.Array | None]:
        """Checks the inputs, and returns a time and a label for each image."""
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"expected a batch of NHWC images without empty axes, got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"expected float images, got {x.dtype}: densezoo.data.to_float scales integer pixels to 0..1"
            )
        if not len(self.down) == len(self.up) == len(self.features):
            raise ValueError(
                f"features, down and up need an entry for each level; got {len(self.features)}, {len(self.down)} and"
                f" {len(self.up)}"
            )
        t = jnp.asarray(t)
        if t.shape not in ((), x.shape[:1]):
            raise ValueError(f"t must be a number, or one for each of the {x.shape[0]} images; got shape {t.shape}")
        t = jnp.broadcast_to(t if t.ndim else t[None], x.shape[:1])
        return t, self._checked_labels(labels, x)

    def _checked_labels(self, labels: Any, x: jax.Array) -> jax.Array | None:
        conditional = self.num_classes is not None or self.labels_as != "table"
        if not conditional:
            if labels is not None:
                raise ValueError("this model has no classes: leave out labels, or create it with num_classes=")
            return None
        if labels is None:
            if self.labels_as == "table" and self.null_label:
                return jnp.full(x.shape[:1], self.num_classes or 0, jnp.int32)
            raise ValueError("this model needs a class for each image: pass labels=")
        labels = jnp.asarray(labels)
        if self.labels_as != "vector" and labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have the shape {x.shape[:1]}, one for each image; got {labels.shape}")
        if self.labels_as == "table":
            check_labels(labels, self.num_classes or 0, null_label=self.null_label)
        return labels

    @nn.nowrap
    def example_inputs(self, images: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of images, times, and labels if the model needs them; see `dz.inputs.example_inputs`."""
        batch = images.shape[0]
        inputs = [jax.ShapeDtypeStruct(images.shape, images.dtype), jax.ShapeDtypeStruct((batch,), jnp.float32)]
        if self.labels_as == "vector":
            shape = (batch, self.condition_features or 4 * self.features[0])
            inputs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
        elif self.labels_as == "time" or self.num_classes is not None:
            inputs.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
        return tuple(inputs)

    def reference_names(self) -> list[Naming]:
        """Parameter names of diffusers' UNet2DModel, of today and of its first versions."""
        return diffusers_names(self.down, self.up)


def check_labels(labels: Any, num_classes: int, *, null_label: bool) -> None:
    """Raises an error for labels that are no class numbers; their values are only known outside of `jit`.

    Raises:
        ValueError: if a label is not a whole number from 0 on below the number of classes, or the null label.
    """
    if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        raise ValueError(f"labels must be whole numbers, got {jnp.asarray(labels).dtype}")
    last = num_classes - (not null_label)
    values = np.zeros(0, int) if isinstance(labels, Tracer) else np.asarray(labels)
    if values.size and not 0 <= values.min() <= values.max() <= last:
        meaning = f", where {num_classes} means no class" if null_label else ""
        raise ValueError(f"labels must be from 0 to {last}{meaning}; got {values.min()} to {values.max()}")


def diffusion_unet(
    encoder: None,
    num_classes: int,
    *,
    features: Sequence[int] = (64, 128, 256),
    layers: int = 2,
    attention_levels: Sequence[int] = (-1,),
    head_features: int | None = 32,
    conditioning: Literal["shift", "scale_shift"] = "scale_shift",
    downsample: ModuleDef = StridedConv,
    upsample: ModuleDef = ResizeConv,
    residual: bool = False,
    skip: ModuleDef = CONCAT,
    norm: ModuleDef | None = GroupNorm,
    act: Callable[[jax.Array], jax.Array] = nn.silu,
    dropout: float = 0.0,
    out_channels: int | None = None,
    time: ModuleDef = Sinusoidal,
    condition_features: int | None = None,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> DiffusionUNet:
    """Composes a diffusion U-Net whose levels are alike. See `DiffusionUNet` and `ResidualBlock` for most arguments.

    Args:
        encoder: must be None.
        num_classes: number of classes that condition the output; 1 for none.
        features: channels of each level, fine to coarse.
        layers: number of residual blocks of each level.
        attention_levels: the levels with attention after each block; -1 is the coarsest. The middle always has it.
        head_features: channels per head of the attention, None for a single head.
        conditioning: see `ResidualBlock`.
        downsample: factory of the downsamplers.
        upsample: factory of the upsamplers.
        residual: whether down- and upsampling happen within a residual block.
        skip: factory of the skips.
        norm: factory of all normalisations.
        act: activation of the residual blocks.
        dropout: dropout of the residual blocks.
        out_channels: see `DiffusionUNet`.
        time: see `DiffusionUNet`.
        condition_features: see `DiffusionUNet`.
        impl: see `SegmentationModel`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """
    del encoder
    count = len(features)
    if wrong := [level for level in attention_levels if not -count <= level < count]:
        raise ValueError(
            f"attention_levels={tuple(attention_levels)}: there is no level {wrong[0]}, only {count} levels"
        )
    attending = {level % count for level in attention_levels}
    attention = partial(SelfAttention, head_features=head_features, norm=norm)
    block = partial(ResidualBlock, conditioning=conditioning, norm=norm, act=act, dropout=dropout)
    here = [{"block": block, "attention": attention if level in attending else None} for level in range(count)]
    down = [partial(DownLevel, downsample=downsample, residual=residual, **fields) for fields in here]
    up = [partial(UpLevel, upsample=upsample, residual=residual, skip=skip, **fields) for fields in reversed(here)]
    return DiffusionUNet(
        features=tuple(features),
        down=tuple(down),
        middle=partial(MiddleLevel, block=block, attention=attention),
        up=tuple(up),
        layers=layers,
        out_channels=out_channels,
        num_classes=num_classes if num_classes > 1 else None,
        time=time,
        condition_features=condition_features,
        norm=norm,
        impl=impl,
        dtype=dtype,
        param_dtype=param_dtype,
    )


register(
    Blueprint(
        name="diffusion_unet",
        description="A U-Net of residual blocks and attention that predicts the noise in an image at a given time.",
        skip_strategy="concatenates the map of every residual block at every scale",
        excels_at="generating images, and restoring noisy ones",
        paper="Ho et al. 2020, https://arxiv.org/abs/2006.11239",
        encoder="",
        make=diffusion_unet,
        task="diffusion",
    )
)
