"""The plain U-Net encoder: double convolutions with 2x2 max-pooling between them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, DoubleConv
from densezoo.ops import max_pool_with_indices
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class PlainEncoder(nn.Module):
    """Double convolutions at every scale, 2x2 max-pooling between the scales; keeps the pooling indices.

    Args (fields):
        features: channels at each scale, fine to coarse; the first scale is the image's own.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = PlainEncoder(features=(8, 16, 32))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 65, 48, 3)))
        >>> [feature.shape for feature in pyramid.features]
        [(1, 65, 48, 8), (1, 32, 24, 16), (1, 16, 12, 32)]

    References:
        Ronneberger et al., U-Net, 2015. https://arxiv.org/abs/1505.04597 (padded convolutions, as everybody's today)
    """

    features: Sequence[int] = (64, 128, 256, 512, 1024)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def reductions(self) -> tuple[int, ...]:
        """Image size over feature size, fine to coarse."""
        return tuple(2**level for level in range(len(self.features)))

    @property
    def min_size(self) -> int:
        """The smallest image side that survives all the poolings; models pad smaller images up to it."""
        return self.reductions[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        x, features, pool_indices = images, [], []
        for level, channels in enumerate(self.features):
            if level > 0:
                x, indices = max_pool_with_indices(x)
                pool_indices.append(indices)
            x = DoubleConv(
                channels,
                norm=self.norm,
                act=self.act,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"block{level}",
            )(x, train=train)
            features.append(x)
        return Pyramid(tuple(features), tuple(pool_indices), self.reductions, size_of(images))
