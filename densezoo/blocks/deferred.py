"""Maps that need not be built, since the next convolution reads them as they are."""

import jax
import jax.numpy as jnp
from flax import struct

from densezoo import ops
from densezoo.types import Dtype


@struct.dataclass
class Upsampled:
    """Maps to be doubled and concatenated with a skip. `Conv` takes them in place of an array.

    Attributes:
        x: NHWC maps.
        skip: NHWC maps of twice the height and width, or None.
        method: as in `ops.upsample_concat_conv`.
        skip_first: the skip's channels come first.
    """

    x: jax.Array
    skip: jax.Array | None = None
    method: str = struct.field(pytree_node=False, default="nearest")
    skip_first: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it stands for."""
        batch, height, width, channels = self.x.shape
        return batch, 2 * height, 2 * width, channels + (0 if self.skip is None else self.skip.shape[-1])

    def build(self) -> jax.Array:
        """What it stands for."""
        size = (2 * self.x.shape[1], 2 * self.x.shape[2])
        if self.method == "nearest":
            x = ops.resize_nearest(self.x, size)
        else:
            x = ops.resize_bilinear(self.x, size, align_corners=self.method == "bilinear_align_corners")
        if self.skip is None:
            return x
        return jnp.concatenate([self.skip, x] if self.skip_first else [x, self.skip], axis=-1)

    def conv(self, kernel: jax.Array, dtype: Dtype) -> jax.Array:
        """The 3x3 convolution of it."""
        skip = None if self.skip is None else jnp.asarray(self.skip).astype(dtype)
        return ops.upsample_concat_conv(
            jnp.asarray(self.x).astype(dtype), skip, kernel, method=self.method, skip_first=self.skip_first
        )
