"""Swin transformer, with timm's layout and names."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.blocks import (
    Conv,
    DropPath,
    LayerNorm,
    attend,
    drop_path_rates,
    run_block,
    torch_bias,
    torch_uniform,
    truncated_normal,
)
from densezoo.deprecation import renamed
from densezoo.encoders.base import ENCODERS, Encoder, register_encoders
from densezoo.naming import SMP, TIMM, TRANSFORMERS, Naming, Rule
from densezoo.ops.checks import check_fixed
from densezoo.ops.sharding import repeat_for, reshape
from densezoo.types import Dtype, Pyramid, Size, accumulator_dtype, size_of

_LARGEST_WINDOW = 64


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset between two pixels of a window.

    Attributes:
        num_heads: number of attention heads.
        table_window: size of the windows for which the table of biases is made; smaller windows resample it.
    """

    num_heads: int
    table_window: Size = (7, 7)
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, windows: Float[Array, "b n h w c"], regions: np.ndarray | None = None
    ) -> Float[Array, "b n h w c"]:
        """Applies attention. `regions` numbers each pixel of each window; only equal numbers attend to each other."""
        batch, count, height, width, channels = windows.shape
        tokens = height * width
        dense = partial(nn.Dense, kernel_init=truncated_normal, dtype=self.dtype, param_dtype=self.param_dtype)
        offsets = [2 * side - 1 for side in self.table_window]
        table = self.param(
            "relative_position_bias_table",
            truncated_normal,
            (offsets[0] * offsets[1], self.num_heads),
            self.param_dtype,
        )
        qkv = dense(3 * channels, use_bias=self.qkv_bias, name="qkv")(reshape(windows, batch * count, tokens, channels))
        qkv = reshape(qkv, batch * count, tokens, 3, self.num_heads, channels // self.num_heads)
        table = table.astype(accumulator_dtype(qkv.dtype)).reshape(*offsets, self.num_heads)
        bias = _by_pair(table, (height, width))[None]
        if regions is not None:
            numbers = regions.reshape(count, tokens)
            apart = numbers[:, :, None] != numbers[:, None, :]
            masks = jnp.asarray(np.where(apart, -100.0, 0.0), bias.dtype)
            bias = repeat_for(windows, (bias + masks[:, None])[None])
            bias = reshape(bias, batch * count, *bias.shape[2:])
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias)
        y = dense(channels, name="proj")(reshape(y, batch * count, tokens, channels))
        return reshape(y, *windows.shape)


def _by_pair(table: jax.Array, window: Size) -> jax.Array:
    """For each head and each two pixels of a window, the bias of the offset between them: (heads, pixels, pixels)."""
    if table.shape[:2] != (2 * window[0] - 1, 2 * window[1] - 1):
        rows, columns = (
            jnp.asarray(_resampling(size, side), table.dtype)
            for size, side in zip(table.shape[:2], window, strict=True)
        )
        table = jnp.einsum("pi,qj,ijh->pqh", rows, columns, table)
    row, column = (i.ravel() for i in np.indices(window))
    rows = row[:, None] - row + window[0] - 1
    columns = column[:, None] - column + window[1] - 1
    return table[rows, columns].transpose(2, 0, 1)


def _resampling(size: int, side: int) -> np.ndarray:
    """The interpolation matrix from a table's `size` offsets along an axis to those in a window of `side` pixels.

    As in timm, it interpolates linearly between positions whose distances grow by a factor of 1.01, so that biases of
    neighbours do not change and the others change by about 1 %.
    """
    outwards = np.cumsum(1.01 ** np.arange(size // 2))
    positions = np.concatenate([-outwards[::-1], [0.0], outwards])
    return np.stack([np.interp(np.arange(1 - side, side), positions, one) for one in np.eye(size)], 1)


def _regions(size: Size, window: Size, shift: Size) -> np.ndarray:
    """A number for each pixel of each window of a shifted map: (windows, height, width).

    The shift moves rows and columns from the other end of the image into the last windows; these are separate regions.
    """
    rows, columns = (np.zeros(side, np.int32) for side in size)
    for numbers, side, by in zip((rows, columns), window, shift, strict=True):
        if by:
            numbers[-side:] = 1
            numbers[-by:] = 2
    grid = size[0] // window[0], window[0], size[1] // window[1], window[1]
    return (3 * rows[:, None] + columns).reshape(grid).swapaxes(1, 2).reshape(-1, *window)


class SwinBlock(nn.Module):
    """Attention within windows, then two linear layers, each with a norm before and a shortcut (Liu et al., figure 3).

    Attributes:
        shifted: whether the windows are shifted by half of their size.
        layout: size of the map for which the windows are laid out. None means the size of the input map.

    The other fields are those of `Swin`.
    """

    num_heads: int
    window_size: int = 7
    shifted: bool = False
    layout: Size | None = None
    pad_first: bool = False
    whole_windows: bool = False
    mlp_ratio: float = 4
    qkv_bias: bool = True
    epsilon: float = 1e-5
    act: Callable[[jax.Array], jax.Array] = partial(nn.gelu, approximate=False)
    drop_path: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, kernel_init=truncated_normal, **dtypes)
        y = self._attend(LayerNorm(self.epsilon, name="norm1", **dtypes)(x))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = LayerNorm(self.epsilon, name="norm2", **dtypes)(x)
        y = dense(x.shape[-1], name="fc2")(self.act(dense(int(self.mlp_ratio * x.shape[-1]), name="fc1")(y)))
        return x + DropPath(self.drop_path)(y, train=train)

    def _attend(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        layout = size_of(x) if self.layout is None else self.layout
        pad_first = self.pad_first or self.whole_windows
        least = self.window_size if pad_first else 1
        window = min(self.window_size, max(least, layout[0])), min(self.window_size, max(least, layout[1]))
        half = self.window_size // 2 if self.shifted else 0
        always = self.whole_windows
        shift = tuple(half if always or side > self.window_size else 0 for side in layout)
        rows, columns = -(-height // window[0]), -(-width // window[1])
        padded = rows * window[0], columns * window[1]
        padding = ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0))
        if pad_first:
            x = jnp.pad(x, padding)
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        # As in both references, padding at the bottom and right is not masked.
        if not pad_first:
            x = jnp.pad(x, padding)
        windows = reshape(x, batch, rows, window[0], columns, window[1], channels).swapaxes(2, 3)
        windows = WindowAttention(
            self.num_heads,
            (self.window_size, self.window_size) if self.layout is None else window,
            self.qkv_bias,
            self.dtype,
            self.param_dtype,
            name="attn",
        )(
            reshape(windows, batch, rows * columns, *window, channels),
            _regions(padded, window, shift) if any(shift) else None,
        )
        x = reshape(windows, batch, rows, columns, *window, channels).swapaxes(2, 3)
        x = reshape(x, batch, *padded, channels)
        if not pad_first:
            x = x[:, :height, :width]
        if any(shift):
            x = jnp.roll(x, shift, (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Downsampling: merges the pixels of every 2x2 block into one, with a norm and a linear layer over their channels.

    Odd sides are padded with a row or column of zeros.
    """

    features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = reshape(x, batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = LayerNorm(1e-5, name="norm", **dtypes)(reshape(x, batch, height // 2, width // 2, 4 * channels))
        return nn.Dense(self.features, use_bias=False, kernel_init=truncated_normal, name="reduction", **dtypes)(x)


@renamed(stage_sizes="depths", width="embed_dim", heads="num_heads", window="window_size")
class Swin(Encoder):
    """A transformer that attends within windows, as an encoder: maps at 1/4, 1/8, 1/16 and 1/32 of the image.

    Any image size works, with the same weights. Patches are cut without padding, so the map at 1/4
    has its sides rounded down; from there on they are rounded up.

    By default, it equals timm's model built for the given image size (`img_size=`). Maps whose sides are not multiples
    of the window are padded with zeros, and windows shift in every second block. If a side of the map is not larger
    than the window, the window has that side and does not shift along it. If it is smaller, its biases are resampled
    from the full window's table, as timm does when it loads weights. With windows of 7, this happens below 196 pixels;
    for larger images, timm's weights have the same shapes for all sizes.

    With `image_size`, it equals timm's model built for that size and run on others (`dynamic_img_size=True`): windows
    and shifts are those of that size, smaller maps are padded to them, and the tables have the shapes of that model.

    Attributes:
        depths: number of blocks in each of the four stages.
        embed_dim: channels of the first stage; each further stage has twice as many.
        num_heads: number of attention heads in each stage.
        window_size: side of the windows.
        image_size: (height, width) of the images for which windows are laid out; None means the size of the input.
        pad_first: whether maps are padded to whole windows before the shift, as in torchvision. Otherwise they are
          shifted first, and the window shrinks for smaller maps, as in timm. Both are equal for images whose sides are
          multiples of 224.
        whole_windows: whether images are padded to whole patches, maps are padded to whole windows before the shift,
          and windows shift on maps of all sizes, as in the authors' code for segmentation and transformers' backbone.
        mlp_ratio: hidden channels of the linear layers, as a multiple of the stage's channels.
        qkv_bias: whether queries, keys and values have a bias.
        epsilon: epsilon of the norms in the blocks.
        act: activation.
        drop_path: rate of stochastic depth in the last block; the rates increase linearly from 0. timm trains with 0.1.
        coarsest: reduction of the last stage to build: 4, 8, 16 or 32.
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = Swin(depths=(2, 2, 2, 2), embed_dim=8, num_heads=(1, 2, 4, 8))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 99, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 16, 24, 8), (1, 8, 12, 16), (1, 4, 6, 32), (1, 2, 3, 64)]

    References:
        Liu et al., Swin transformer, 2021. https://arxiv.org/abs/2103.14030
    """

    depths: Sequence[int]
    embed_dim: int
    num_heads: Sequence[int]
    window_size: int = 7
    image_size: Size | None = None
    pad_first: bool = False
    whole_windows: bool = False
    mlp_ratio: float = 4
    qkv_bias: bool = True
    epsilon: float = 1e-5
    act: Callable[[jax.Array], jax.Array] = partial(nn.gelu, approximate=False)
    drop_path: float = 0.0
    coarsest: int = 32
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scales = (4, 8, 16, 32)  # pyright: ignore[reportAssignmentType]
    min_size = 4
    stem = "patch_embed_proj"
    unseen = ("pad_first", "whole_windows")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        check_fixed("Swin, whose windows depend on the image,", *size_of(images))
        if self.window_size > _LARGEST_WINDOW:
            raise ValueError(
                f"attention within a window takes memory by the fourth power of its side: window_size is"
                f" {_LARGEST_WINDOW} at most, got {self.window_size}"
            )
        if self.image_size is not None and min(self.image_size) < self.min_size:
            raise ValueError(f"Swin's patches are 4x4 pixels; got image_size={self.image_size}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.whole_windows:
            images = jnp.pad(images, ((0, 0), *((0, -side % 4) for side in size_of(images)), (0, 0)))
        # timm keeps torch's default initialiser for this convolution, and uses normal weights for linear layers.
        x = Conv(
            self.embed_dim,
            4,
            4,
            padding=0,
            kernel_init=torch_uniform,
            bias_init=torch_bias(16 * images.shape[-1]),
            name="patch_embed_proj",
            **dtypes,
        )(images)
        x = LayerNorm(1e-5, name="patch_embed_norm", **dtypes)(x)
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        maps = []
        for stage in range(len(self.reductions)):
            if stage > 0:
                x = PatchMerging(self.embed_dim * 2**stage, name=f"stage{stage}_downsample", **dtypes)(x)
            for index in range(self.depths[stage]):
                block = SwinBlock(
                    self.num_heads[stage],
                    self.window_size,
                    index % 2 == 1,
                    None if self.image_size is None else _map_size(self.image_size, stage),
                    self.pad_first,
                    self.whole_windows,
                    self.mlp_ratio,
                    self.qkv_bias,
                    self.epsilon,
                    self.act,
                    next(rates),
                    name=f"stage{stage}_block{index}",
                    **dtypes,
                )
                x = run_block(block, x, train=train, remat=self.remat)
            maps.append(x)
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm, of Swin's authors, of torchvision and of transformers."""
        coarsest = len(self.reductions) - 1

        def naming(source: str, prefix: str, dot: str, step_in_stage_before: bool = False) -> Naming:
            def downsample(match: re.Match[str]) -> str:
                return f"layers{dot}{int(match[1]) - step_in_stage_before}.downsample.{match[2]}"

            block = r"stage(\d)_block(\d+)"
            rules = [
                Rule(r"patch_embed_(proj|norm)", r"patch_embed.\1"),
                Rule(r"stage(\d)_downsample/(norm|reduction)", downsample),
                Rule(rf"{block}/(norm\d)", rf"layers{dot}\1.blocks.\2.\3"),
                Rule(rf"{block}/attn/(\w+)", rf"layers{dot}\1.blocks.\2.attn.\3"),
                Rule(rf"{block}/(fc\d)", rf"layers{dot}\1.blocks.\2.mlp.\3"),
            ]
            # The classifier, buffers of older timm versions, and stages that this encoder lacks.
            others = [r"(norm|head)\..*", r".*\.(relative_position_index|attn_mask)"]
            others.append(rf"layers{re.escape(dot)}[{coarsest + 1}-9]\..*")
            if step_in_stage_before:
                others.append(rf"layers\.{coarsest}\.downsample\..*")
            return Naming(source, rules, prefix, rf"{re.escape(prefix)}({'|'.join(others)})")

        # timm's `features_only` flattens lists of modules: `layers.0` becomes `layers_0`.
        places = [(TIMM, "", "."), (TIMM, "", "_"), (SMP, "encoder.model.", "_"), (SMP, "encoder.model.", ".")]
        places += [(SMP, "encoder.", "."), (SMP, "encoder.", "_")]
        # Downsampling ends a stage in the authors' code, and starts one in timm. The authors' naming comes first,
        # because timm's names of the first few stages are also in the authors' checkpoints.
        namings = [naming("Swin's authors", "", ".", True), *(naming(*place) for place in places)]
        namings.append(self._transformers())
        return [self._torchvision(), *namings] if self.pad_first else [*namings, self._torchvision()]

    def _transformers(self) -> Naming:
        """Parameter names of a backbone of transformers."""
        block, layer = r"stage(\d)_block(\d+)", r"encoder.layers.\1.blocks.\2"

        def downsample(match: re.Match[str]) -> str:
            return f"encoder.layers.{int(match[1]) - 1}.downsample.{match[2]}"

        rules = [
            Rule("patch_embed_proj", "embeddings.patch_embeddings.projection"),
            Rule("patch_embed_norm", "embeddings.norm"),
            Rule(r"stage(\d)_downsample/(norm|reduction)", downsample),
            Rule(rf"{block}/norm1", rf"{layer}.layernorm_before"),
            Rule(rf"{block}/norm2", rf"{layer}.layernorm_after"),
            Rule(rf"{block}/attn/qkv", rf"{layer}.attention.self.{{query,key,value}}"),
            Rule(rf"{block}/attn/proj", rf"{layer}.attention.output.dense"),
            Rule(
                rf"{block}/attn/relative_position_bias_table", rf"{layer}.attention.self.relative_position_bias_table"
            ),
            Rule(rf"{block}/fc1", rf"{layer}.intermediate.dense"),
            Rule(rf"{block}/fc2", rf"{layer}.output.dense"),
        ]
        differs = "" if self.whole_windows else "its windows always shift: Swin(whole_windows=True)"
        others = r"hidden_states_norms\..*|(encoder\.)?layernorm\..*|.*\.relative_position_index"
        return Naming(TRANSFORMERS, rules, "backbone.", rf"backbone\.({others})", differs=differs)

    def _torchvision(self) -> Naming:
        block = r"stage(\d)_block(\d+)"

        def within(match: re.Match[str]) -> str:
            return f"features.{2 * int(match[1]) + 1}.{match[2]}.{match[3].replace('/', '.')}"

        def linear(match: re.Match[str]) -> str:
            return f"features.{2 * int(match[1]) + 1}.{match[2]}.mlp.{0 if match[3] == '1' else 3}"

        rules = [
            Rule("patch_embed_proj", "features.0.0"),
            Rule("patch_embed_norm", "features.0.2"),
            Rule(r"stage(\d)_downsample/(norm|reduction)", lambda m: f"features.{2 * int(m[1])}.{m[2]}"),
            Rule(rf"{block}/(norm\d|attn/\w+)", within),
            Rule(rf"{block}/fc(\d)", linear),
        ]
        others = rf"(norm|head)\..*|.*\.relative_position_index|features\.[{2 * len(self.reductions)}-9]\..*"
        return Naming(TIMM, rules, "", others)


def _map_size(image_size: Size, stage: int) -> Size:
    height, width = image_size
    return -(-(height // 4) // 2**stage), -(-(width // 4) // 2**stage)


# Liu et al. 2021, section 3.3
register_encoders(
    {
        "swin_tiny_patch4_window7_224": partial(Swin, depths=(2, 2, 6, 2), embed_dim=96, num_heads=(3, 6, 12, 24)),
        "swin_small_patch4_window7_224": partial(Swin, depths=(2, 2, 18, 2), embed_dim=96, num_heads=(3, 6, 12, 24)),
        "swin_base_patch4_window7_224": partial(Swin, depths=(2, 2, 18, 2), embed_dim=128, num_heads=(4, 8, 16, 32)),
    }
)
# torchvision's
register_encoders(
    {
        f"swin_{size[0]}": partial(ENCODERS[f"swin_{size}_patch4_window7_224"], pad_first=True)
        for size in ("tiny", "small", "base")
    }
)
