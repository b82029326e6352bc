"""Vision Transformer: the image as a sequence of patches; with timm's layout and names."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import Conv, LayerNorm, drop_path_rates, run_block, torch_bias, torch_uniform
from densezoo.blocks import truncated_normal as kernel_init
from densezoo.blocks.rotary import axial_rotation
from densezoo.blocks.transformer import Block, gelu
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import SMP, TIMM, TRANSFORMERS, Naming, Rule
from densezoo.ops.checks import check_fixed
from densezoo.ops.sharding import repeat_for, reshape
from densezoo.types import Dtype, Pyramid, Size, size_of


@renamed(width="embed_dim", heads="num_heads")
class ViT(Encoder):
    """A Vision Transformer as an encoder: maps of the tokens after evenly spaced blocks, all at 1/16 of the image.

    The pyramid's `tokens` has the class token, followed by the registers, after each of these blocks.

    By default, it equals timm's model with `dynamic_img_size` and `dynamic_img_pad`: an image whose sides are not
    multiples of the patch is padded with zeros at the bottom and right, and the maps include the padding. The position
    embeddings are resampled to the image's grid (bicubic, antialiased). The maps are not normalised, because timm's
    last norm belongs to its classifier.

    Attributes:
        embed_dim: channels of every token.
        depth: number of blocks.
        num_heads: number of attention heads, which must divide `embed_dim`.
        patch_size: side of a patch in pixels.
        grid: side of the grid of position embeddings: the image side that the weights were trained with, divided by the
          patch size.
        levels: number of blocks whose results are maps: of 12 blocks, 4 levels are the third, sixth, ninth and last. Or
          the numbers of these blocks, such as (3, 6, 9, 12).
        mlp_features: hidden channels of the linear layers; None means `4 * embed_dim`.
        gated: whether the hidden channels are multiplied by gates (SwiGLU with `act=nn.silu`).
        act: activation of the linear layers.
        qkv_bias: whether queries, keys and values have a bias.
        registers: number of learned tokens without a position (Darcet et al.).
        embed_class: whether the class token has a position embedding.
        layer_scale: initial value of a learned factor per channel of each branch; None for no factor.
        rotary: rotates queries and keys by their positions (DINOv3), instead of position embeddings.
        norm_maps: whether maps and tokens get the layer norm that follows the last block.
        epsilon: epsilon of the norms.
        resample: how position embeddings are resampled: "antialiased", "bicubic" or "bilinear".
        pad: whether images are padded to whole patches. If not, rows and columns that do not fill a patch are left out.
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
        Oquab et al., DINOv2, 2023. https://arxiv.org/abs/2304.07193
        Darcet et al., Vision transformers need registers, 2023. https://arxiv.org/abs/2309.16588
        Siméoni et al., DINOv3, 2025. https://arxiv.org/abs/2508.10104
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    grid: int = 14
    levels: int | Sequence[int] = 4
    mlp_features: int | None = None
    gated: bool = False
    act: Callable[[jax.Array], jax.Array] = gelu
    qkv_bias: bool = True
    registers: int = 0
    embed_class: bool = True
    layer_scale: float | None = None
    rotary: bool = False
    norm_maps: bool = False
    epsilon: float = 1e-6
    resample: str = "antialiased"
    pad: bool = True
    drop_path: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "patch_embed"

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.patch_size,) * len(self._blocks_of_maps())

    @property
    def min_size(self) -> int:
        """The smallest image side that has a patch."""
        return 1 if self.pad else self.patch_size

    def _blocks_of_maps(self) -> tuple[int, ...]:
        """The numbers of the blocks whose results are maps; the first block has number 1."""
        if isinstance(self.levels, int):
            return tuple(int(self.depth / self.levels * level) for level in range(1, self.levels + 1))
        return tuple(self.levels)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self._check_fields()
        self.check(images)
        check_fixed("ViT, whose positions depend on the image's size,", *size_of(images))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        side, channels = self.patch_size, images.shape[-1]
        if self.pad:
            x = jnp.pad(images, ((0, 0), *((0, -pixels % side) for pixels in size_of(images)), (0, 0)))
        else:
            x = images[:, : images.shape[1] // side * side, : images.shape[2] // side * side]
        # timm keeps torch's default initialiser for this convolution.
        inits = {"kernel_init": torch_uniform, "bias_init": torch_bias(side**2 * channels)}
        x = Conv(self.embed_dim, side, side, padding=0, name="patch_embed", **inits, **dtypes)(x)
        size = size_of(x)
        x = reshape(x, x.shape[0], -1, self.embed_dim)
        rotation = None
        first = [self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.embed_dim), self.param_dtype)]
        if self.registers:
            shape = (1, self.registers, self.embed_dim)
            first.append(self.param("registers", nn.initializers.normal(1e-6), shape, self.param_dtype))
        if self.rotary:
            rotation = axial_rotation(size, self.embed_dim // self.num_heads, before=1 + self.registers)
        else:
            shape = (1, self.embed_class + self.grid**2, self.embed_dim)
            positions = jnp.asarray(self.param("pos_embed", kernel_init, shape, self.param_dtype))
            if self.embed_class:
                first[0] = first[0] + positions[:, :1]
            x = x + self._resampled(positions[:, self.embed_class :], size).astype(x.dtype)
        tokens = repeat_for(x, jnp.concatenate(first, axis=1).astype(x.dtype))
        x = jnp.concatenate([tokens, x], axis=1)

        norm = LayerNorm(self.epsilon, name="norm", **dtypes) if self.norm_maps else None
        maps, tokens = [], []
        for number, rate in enumerate(drop_path_rates(self.drop_path, self.depth), start=1):
            block = Block(
                self.num_heads,
                self.mlp_features or 4 * self.embed_dim,
                self.gated,
                self.act,
                self.qkv_bias,
                self.layer_scale,
                self.epsilon,
                rate,
                name=f"blocks_{number - 1}",
                **dtypes,
            )
            x = run_block(block, x, rotation, train=train, remat=self.remat)
            if number in self._blocks_of_maps():
                y = x if norm is None else norm(x)
                maps.append(reshape(y[:, 1 + self.registers :], x.shape[0], *size, self.embed_dim))
                tokens.append(y[:, : 1 + self.registers])
        return self.pyramid(images, maps, tokens=tokens)

    def _check_fields(self) -> None:
        if isinstance(self.levels, int) and not 1 <= self.levels <= self.depth:
            raise ValueError(f"levels must be 1 to depth={self.depth}; got levels={self.levels}")
        blocks = self._blocks_of_maps()
        if not blocks or list(blocks) != sorted(set(blocks)) or not 1 <= blocks[0] <= blocks[-1] <= self.depth:
            raise ValueError(f"levels must be ascending numbers of blocks in 1..{self.depth}; got {self.levels}")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim; got num_heads={self.num_heads}, embed_dim={self.embed_dim}"
            )
        if self.resample not in _RESAMPLING:
            raise ValueError(f"resample must be one of {', '.join(_RESAMPLING)}; got {self.resample!r}")

    def _resampled(self, positions: Float[Array, "1 n c"], size: Size) -> Float[Array, "1 _ c"]:
        """The position embeddings of the patches of a grid of this size."""
        if size == (self.grid, self.grid):
            return positions
        maps = positions.reshape(1, self.grid, self.grid, self.embed_dim)
        return _RESAMPLING[self.resample](maps, size).reshape(1, -1, self.embed_dim)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm, torchvision and transformers."""
        rules = [
            Rule("patch_embed", "patch_embed.proj"),
            Rule("registers", "reg_token"),
            Rule("(cls_token|pos_embed|norm)", r"\1"),
            Rule(r"blocks_(\d+)/(norm\d)", r"blocks.\1.\2"),
            *([Rule(r"blocks_(\d+)/mlp/fc1", r"blocks.\1.mlp.{fc1_g,fc1_x}")] if self.gated else []),
            Rule(r"blocks_(\d+)/(attn|mlp)/(\w+)", r"blocks.\1.\2.\3"),
            Rule(r"blocks_(\d+)/gamma_(\d)", r"blocks.\1.gamma_\2" if self.rotary else r"blocks.\1.ls\2.gamma"),
        ]
        namings = [
            Naming(source, rules, prefix, ignored=rf"{re.escape(prefix)}(norm|fc_norm|head|pre_logits)\..*")
            for source, prefix in ((SMP, "encoder.model."), (TIMM, ""), (TIMM, "backbone."))
        ]
        namings += [self._torchvision(linear) for linear in (("0", "3"), ("linear_1", "linear_2"))]
        return namings + [self._transformers(prefix) for prefix in ("dpt.", "backbone.", "")]

    def _transformers(self, prefix: str) -> Naming:
        """Parameter names of transformers' DPT, and of its DINOv2 on its own or as a backbone."""
        names = _OF_DPT if prefix == "dpt." else _OF_GATED_DINOV2 if self.gated else _OF_DINOV2
        rules = [
            Rule("patch_embed", "embeddings.patch_embeddings.projection"),
            Rule("cls_token", "embeddings.cls_token"),
            Rule("pos_embed", "embeddings.position_embeddings"),
            Rule("registers", "embeddings.register_tokens"),
            Rule("norm", "layernorm"),
            *(Rule(rf"blocks_(\d+)/{here}", rf"encoder.layer.\1.{there}") for here, there in names.items()),
        ]
        resample = "bilinear" if prefix == "dpt." else "antialiased" if self.registers else "bicubic"
        differs = "" if (self.pad, self.resample) == (False, resample) else f"a ViT with {resample=}, pad=False"
        others = r"embeddings\.mask_token|layernorm\..*|pooler\..*|classifier\..*"
        return Naming(TRANSFORMERS, rules, prefix, rf"{re.escape(prefix)}({others})", differs=differs)

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


_ATTENTION = {
    "attn/qkv": "attention.attention.{query,key,value}",
    "attn/proj": "attention.output.dense",
}
_OF_DPT = _ATTENTION | {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_OF_DINOV2 = _ATTENTION | {r"(norm\d)": r"\2", r"mlp/(fc\d)": r"mlp.\2", r"gamma_(\d)": r"layer_scale\2.lambda1"}
_OF_GATED_DINOV2 = {"mlp/fc1": "mlp.weights_in", "mlp/fc2": "mlp.weights_out"} | _OF_DINOV2


def _antialiased(maps: Float[Array, "1 h w c"], size: Size) -> Float[Array, "1 h2 w2 c"]:
    # With the cubic kernel that torch uses for antialiasing (a = -0.5), unlike `ops`.
    return jax.image.resize(maps, (1, *size, maps.shape[-1]), "cubic")


_RESAMPLING = {"antialiased": _antialiased, "bicubic": ops.resize_bicubic, "bilinear": ops.resize_bilinear}

register_encoders(
    {
        # Dosovitskiy et al. 2020, table 1; tiny and small are from Touvron et al. 2020, https://arxiv.org/abs/2012.12877
        "vit_tiny_patch16_224": partial(ViT, embed_dim=192, depth=12, num_heads=3),
        "vit_small_patch16_224": partial(ViT, embed_dim=384, depth=12, num_heads=6),
        "vit_base_patch16_224": partial(ViT, embed_dim=768, depth=12, num_heads=12),
        "vit_large_patch16_224": partial(ViT, embed_dim=1024, depth=24, num_heads=16),
    }
)
# Oquab et al. 2023, appendix B.2, trained with images of 518x518 pixels; without and with registers.
_dinov2 = partial(ViT, patch_size=14, grid=37, layer_scale=1e-5)
_sizes = {
    "small": partial(_dinov2, embed_dim=384, depth=12, num_heads=6),
    "base": partial(_dinov2, embed_dim=768, depth=12, num_heads=12),
    "large": partial(_dinov2, embed_dim=1024, depth=24, num_heads=16),
}
register_encoders({f"vit_{size}_patch14_dinov2": encoder for size, encoder in _sizes.items()})
register_encoders(
    {
        f"vit_{size}_patch14_reg4_dinov2": partial(encoder, registers=4, embed_class=False)
        for size, encoder in _sizes.items()
    }
)
# Siméoni et al. 2025, table 2 and section 5.
_dinov3 = partial(ViT, registers=4, layer_scale=1e-5, rotary=True, qkv_bias=False, epsilon=1e-5)
register_encoders(
    {
        "vit_small_patch16_dinov3": partial(_dinov3, embed_dim=384, depth=12, num_heads=6),
        "vit_small_plus_patch16_dinov3": partial(
            _dinov3, embed_dim=384, depth=12, num_heads=6, mlp_features=1536, gated=True, act=nn.silu
        ),
        "vit_base_patch16_dinov3": partial(_dinov3, embed_dim=768, depth=12, num_heads=12),
        "vit_large_patch16_dinov3": partial(_dinov3, embed_dim=1024, depth=24, num_heads=16),
    }
)
