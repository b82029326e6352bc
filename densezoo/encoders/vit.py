"""Vision Transformer: the image as a sequence of patches; with timm's layout and names."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Conv, DropPath, LayerNorm, attend, drop_path_rates, run_block, torch_bias, torch_uniform
from densezoo.blocks import truncated_normal as kernel_init
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import SMP, TIMM, Naming, Rule
from densezoo.ops.checks import check_fixed
from densezoo.ops.sharding import repeat_for, reshape
from densezoo.types import Dtype, Pyramid, Size, size_of


class Attention(nn.Module):
    """Self-attention between all tokens."""

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        channels = x.shape[-1]
        qkv = dense(3 * channels, name="qkv")(x)
        qkv = reshape(qkv, *x.shape[:2], 3, self.num_heads, channels // self.num_heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return dense(channels, name="proj")(reshape(y, *x.shape))


class Mlp(nn.Module):
    """Two linear layers, applied to each token."""

    hidden: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        y = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
        return dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Attention, then the two linear layers, each with a norm before it and a shortcut around it."""

    num_heads: int
    mlp_ratio: int = 4
    drop_path: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool = False) -> Float[Array, "b n c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Attention(self.num_heads, name="attn", **dtypes)(LayerNorm(name="norm1", **dtypes)(x))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = Mlp(self.mlp_ratio * x.shape[-1], name="mlp", **dtypes)(LayerNorm(name="norm2", **dtypes)(x))
        return x + DropPath(self.drop_path)(y, train=train)


@renamed(width="embed_dim", heads="num_heads")
class ViT(Encoder):
    """A Vision Transformer as an encoder: maps of the tokens after evenly spaced blocks, all at 1/16 of the image.

    The maps are not normalised, because timm's last norm belongs to its classifier. The pyramid's `tokens` has the
    class token after each of these blocks. If an image's sides are not multiples of the patch, it is padded with zeros
    at the bottom and right, and the maps include the padding. The position embeddings are resampled to the image's grid
    (bicubic, antialiased). Both are as in timm with `dynamic_img_size` and `dynamic_img_pad`.

    Attributes:
        embed_dim: channels of every token.
        depth: number of blocks.
        num_heads: number of attention heads, which must divide `embed_dim`.
        patch_size: side of a patch in pixels.
        grid: side of the grid of position embeddings: the image side that the weights were trained with, divided by the
          patch size.
        levels: number of blocks whose results are maps: of 12 blocks, 4 levels are the third, sixth, ninth and last.
        drop_path: rate of stochastic depth in the last block; the rates increase linearly from 0.
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = ViT(embed_dim=192, depth=12, num_heads=3)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 4, 5, 192), (1, 4, 5, 192), (1, 4, 5, 192), (1, 4, 5, 192)]
        >>> pyramid.tokens[0].shape
        (1, 1, 192)

    References:
        Dosovitskiy et al., An image is worth 16x16 words, 2020. https://arxiv.org/abs/2010.11929
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    grid: int = 14
    levels: int = 4
    drop_path: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "patch_embed"

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.patch_size,) * self.levels

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        if self.embed_dim % self.num_heads or not 1 <= self.levels <= self.depth:
            raise ValueError(
                f"num_heads must divide embed_dim, and levels be 1 to depth={self.depth}; got"
                f" num_heads={self.num_heads}, embed_dim={self.embed_dim}, levels={self.levels}"
            )
        self.check(images)
        check_fixed("ViT, whose position embeddings are resampled to the image,", *size_of(images))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        missing = [-side % self.patch_size for side in size_of(images)]
        x = jnp.pad(images, ((0, 0), *((0, pixels) for pixels in missing), (0, 0)))
        x = Conv(
            self.embed_dim,
            self.patch_size,
            self.patch_size,
            padding=0,
            # timm keeps torch's default initialiser for this convolution.
            kernel_init=torch_uniform,
            bias_init=torch_bias(self.patch_size**2 * images.shape[-1]),
            name="patch_embed",
            **dtypes,
        )(x)
        size = size_of(x)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.embed_dim), self.param_dtype)
        positions = self.param("pos_embed", kernel_init, (1, 1 + self.grid**2, self.embed_dim), self.param_dtype)
        token = repeat_for(x, jnp.asarray(token).astype(x.dtype))
        x = jnp.concatenate([token, reshape(x, x.shape[0], -1, self.embed_dim)], axis=1)
        x = x + self._resample(jnp.asarray(positions), size).astype(x.dtype)

        last_of_level = [int(self.depth / self.levels * level) - 1 for level in range(1, self.levels + 1)]
        maps, tokens = [], []
        for index, rate in enumerate(drop_path_rates(self.drop_path, self.depth)):
            block = Block(self.num_heads, drop_path=rate, name=f"blocks_{index}", **dtypes)
            x = run_block(block, x, train=train, remat=self.remat)
            if index in last_of_level:
                maps.append(reshape(x[:, 1:], x.shape[0], *size, self.embed_dim))
                tokens.append(x[:, :1])
        return self.pyramid(images, maps, tokens=tokens)

    def _resample(self, positions: Float[Array, "1 n c"], size: Size) -> Float[Array, "1 _ c"]:
        """The position embeddings for a grid of this size, starting with the class token's."""
        if size == (self.grid, self.grid):
            return positions
        maps = positions[:, 1:].reshape(1, self.grid, self.grid, self.embed_dim)
        # Antialiased, with the cubic kernel that torch uses for antialiasing (a = -0.5), unlike `ops`.
        maps = jax.image.resize(maps, (1, *size, self.embed_dim), "cubic")
        return jnp.concatenate([positions[:, :1], maps.reshape(1, -1, self.embed_dim)], axis=1)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm and torchvision."""
        rules = [
            Rule("patch_embed", "patch_embed.proj"),
            Rule("cls_token", "cls_token"),
            Rule("pos_embed", "pos_embed"),
            Rule(r"blocks_(\d+)/(norm\d)", r"blocks.\1.\2"),
            Rule(r"blocks_(\d+)/(attn|mlp)/(\w+)", r"blocks.\1.\2.\3"),
        ]
        namings = [
            Naming(source, rules, prefix, ignored=rf"{re.escape(prefix)}(norm|fc_norm|head|pre_logits)\..*")
            for source, prefix in ((SMP, "encoder.model."), (TIMM, ""), (TIMM, "backbone."))
        ]
        return [*namings, *(self._torchvision(linear) for linear in (("0", "3"), ("linear_1", "linear_2")))]

    def _torchvision(self, linear: tuple[str, str]) -> Naming:
        """Parameter names of torchvision, whose published files have other names of the linear layers."""
        block, there = r"blocks_(\d+)", r"encoder.layers.encoder_layer_\1"
        rules = [
            Rule("patch_embed", "conv_proj"),
            Rule("cls_token", "class_token"),
            Rule("pos_embed", "encoder.pos_embedding"),
            Rule(rf"{block}/norm(\d)", rf"{there}.ln_\2"),
            Rule(rf"{block}/attn/qkv/kernel", rf"{there}.self_attention.in_proj_weight", "dense"),
            Rule(rf"{block}/attn/qkv/bias", rf"{there}.self_attention.in_proj_bias"),
            Rule(rf"{block}/attn/proj", rf"{there}.self_attention.out_proj"),
            *(Rule(rf"{block}/mlp/fc{number}", rf"{there}.mlp.{name}") for number, name in enumerate(linear, start=1)),
        ]
        return Naming(TIMM, rules, "", r"encoder\.ln\..*|heads\..*")


register_encoders(
    {
        # Dosovitskiy et al. 2020, table 1; tiny and small are from Touvron et al. 2020, https://arxiv.org/abs/2012.12877
        "vit_tiny_patch16_224": partial(ViT, embed_dim=192, depth=12, num_heads=3),
        "vit_small_patch16_224": partial(ViT, embed_dim=384, depth=12, num_heads=6),
        "vit_base_patch16_224": partial(ViT, embed_dim=768, depth=12, num_heads=12),
        "vit_large_patch16_224": partial(ViT, embed_dim=1024, depth=24, num_heads=16),
    }
)
