"""Deferred maps, which the next convolution reads without materialising them."""

import jax
import jax.numpy as jnp
from flax import struct

from densezoo import ops
from densezoo.types import Dtype


@struct.dataclass
class Upsampled:
    """Deferred upsampling by 2 and concatenation with a skip. `Conv` accepts it instead of an array.

    Attributes:
        x: NHWC maps.
        skip: NHWC maps of twice the height and width, or None.
        method: as in `ops.upsample_concat_conv`.
        skip_first: whether the skip's channels come first.
    """

    x: jax.Array
    skip: jax.Array | None = None
    method: str = struct.field(pytree_node=False, default="nearest")
    skip_first: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the materialised array."""
        batch, height, width, channels = self.x.shape
        return batch, 2 * height, 2 * width, channels + (0 if self.skip is None else self.skip.shape[-1])

    def build(self) -> jax.Array:
        """The materialised array."""
        size = (2 * self.x.shape[1], 2 * self.x.shape[2])
        if self.method == "nearest":
            x = ops.resize_nearest(self.x, size)
        else:
            x = ops.resize_bilinear(self.x, size, align_corners=self.method == "bilinear_align_corners")
        if self.skip is None:
            return x
        return jnp.concatenate([self.skip, x] if self.skip_first else [x, self.skip], axis=-1)

    def conv(self, kernel: jax.Array, dtype: Dtype) -> jax.Array:
        """Applies a 3x3 convolution."""
        skip = None if self.skip is None else jnp.asarray(self.skip).astype(dtype)
        return ops.upsample_concat_conv(
            jnp.asarray(self.x).astype(dtype), skip, kernel, method=self.method, skip_first=self.skip_first
        )
