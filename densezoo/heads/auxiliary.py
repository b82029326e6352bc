"""Heads for deep supervision: logits from a decoder's coarser scales too, so that the loss reaches each directly."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Bilinear
from densezoo.heads.segmentation import SegmentationHead
from densezoo.types import Dtype, ModuleDef, Size


class AuxiliaryHeads(nn.Module):
    """Maps at several scales -> logits of the image's size for each; a `SegmentationModel` has them in training only.

    Attributes:
        num_classes: channels of the results.
        count: how many maps get a head, from the finest on; a decoder with fewer maps is an error.
        kernel_size: of each head's convolution.
        upsample: factory of the upsampler that brings the logits to the image's size; with half-pixel centres, where
          the reference's head for the result has align-corners.

    References:
        Lee et al., Deeply-supervised nets, 2014. https://arxiv.org/abs/1409.5185
    """

    num_classes: int
    count: int = 2
    kernel_size: int = 1
    upsample: ModuleDef = partial(Bilinear, align_corners=False)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "b _ _ _"], ...], size: Size) -> tuple[Float[Array, "b h w k"], ...]:
        if not 1 <= self.count <= len(maps):
            raise ValueError(
                f"{self.count} auxiliary heads were asked for; the decoder has {len(maps)} maps for them besides the"
                " one of the model's head"
            )
        head = partial(
            SegmentationHead,
            self.num_classes,
            self.kernel_size,
            self.upsample,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return tuple(head(name=f"head{index}")(x, size) for index, x in enumerate(maps[: self.count]))
