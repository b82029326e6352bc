"""Heads for deep supervision: logits from a decoder's coarser scales, so that the loss acts on each scale directly."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Bilinear
from densezoo.heads.segmentation import SegmentationHead
from densezoo.types import Dtype, ModuleDef, Size


class AuxiliaryHeads(nn.Module):
    """Heads that map several scales to logits of the image's size. A `SegmentationModel` only runs them in training.

    Attributes:
        num_classes: channels of the logits.
        count: number of maps that get a head, starting with the finest. A decoder with fewer maps is an error.
        kernel_size: kernel size of each head's convolution.
        upsample: factory of the upsampler to the image's size. It uses half-pixel centres, while the reference's main
            head uses align-corners.

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
                f"{self.count} auxiliary heads were requested, but the decoder only has {len(maps)} maps besides the"
                " main head's map"
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
