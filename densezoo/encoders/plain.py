"""The plain U-Net encoder: double convolutions with 2x2 max-pooling between them."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, DoubleConv, ResidualDoubleConv
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import PLAIN, SNUNET, Naming, Rule
from densezoo.ops import max_pool_with_indices
from densezoo.types import Dtype, ModuleDef, Pyramid


class PlainEncoder(Encoder):
    """Double convolutions at every scale, 2x2 max-pooling between the scales; keeps the pooling indices.

    Attributes:
        features: channels at each scale, fine to coarse; the first scale is the image's own.
        norm: factory of the normalisation, None for none.
        act: activation.
        block: factory of the convolutions of a scale: `DoubleConv`, or `ResidualDoubleConv` as in SNUNet.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = PlainEncoder(features=(8, 16, 32))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 65, 48, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 65, 48, 8), (1, 32, 24, 16), (1, 16, 12, 32)]

    References:
        Ronneberger et al., U-Net, 2015. https://arxiv.org/abs/1505.04597 (padded convolutions, as everybody's today)
    """

    features: Sequence[int] = (64, 128, 256, 512, 1024)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    block: ModuleDef = DoubleConv
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    pools = True

    @property
    def stem(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The convolution that reads the images."""
        return "block0/conv1" if self.block is ResidualDoubleConv else "block0/conv1/conv"

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(2**level for level in range(len(self.features)))

    @property
    def min_size(self) -> int:
        """The smallest image side that can be pooled by all stages."""
        return self.reductions[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        x, maps, pool_indices = images, [], []
        for level, channels in enumerate(self.features):
            if level > 0:
                x, indices = max_pool_with_indices(x)
                pool_indices.append(indices)
            x = self.block(
                channels,
                norm=self.norm,
                act=self.act,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"block{level}",
            )(x, train=train)
            maps.append(x)
        return self.pyramid(images, maps, pool_indices)

    def reference_names(self) -> list[Naming]:
        """Parameter names of plain U-Nets, or of SNUNet."""
        if self.block is ResidualDoubleConv:
            return [Naming(SNUNET, residual_rules(r"block(?P<level>\d+)", r"conv\g<level>_0"))]

        def naming(inc: str, down: str) -> Naming:
            def name(match: re.Match[str]) -> str:
                level = int(match[1])
                return f"{down.format(level) if level else inc}.{in_double_conv(self.norm, match)}"

            rules = [Rule(r"block(\d+)/conv(\d)/(conv|norm)", name)]
            return Naming(PLAIN, rules, ignored=r"(up\d+|conv\d+|outc)\..*")

        return [naming(inc, down) for inc, down, _ in PLAIN_FORMS]


# Common implementations have modules inc, down1.., up1.., outc, and differ in the path from them to the double
# convolution: (inc, down, up).
PLAIN_FORMS = (
    ("inc.double_conv", "down{}.maxpool_conv.1.double_conv", "up{}.conv.double_conv"),
    ("inc.double_conv", "down{}.1.double_conv", "conv{}.double_conv"),
    ("inc.double_conv", "down{}.double_conv", "up{}.double_conv"),
    ("inc.conv.conv", "down{}.mpconv.1.conv", "up{}.conv.conv"),
)


def in_double_conv(norm: Any, match: re.Match[str]) -> int:
    """The index of a convolution or norm in the sequence of twice (convolution, norm, activation), or without norms."""
    return (int(match[2]) - 1) * (2 if norm is None else 3) + (match[3] == "norm")


def residual_rules(path: str, name: str) -> list[Rule]:
    """Rules for a `ResidualDoubleConv` in SNUNet. `name` may refer to the groups of `path`."""
    return [
        Rule(f"{path}/conv1", f"{name}.conv1"),
        Rule(f"{path}/norm1", f"{name}.bn1"),
        Rule(f"{path}/conv2/conv", f"{name}.conv2"),
        Rule(f"{path}/conv2/norm", f"{name}.bn2"),
    ]


# Fang et al. 2021, section II-A: 32 channels, doubled at each scale
_SNUNET = partial(PlainEncoder, features=(32, 64, 128, 256, 512), block=ResidualDoubleConv)

register_encoders({"plain": PlainEncoder, "snunet": _SNUNET})
