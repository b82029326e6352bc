"""U-Net++: a U-Net with nested skips, which have blocks at every scale."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ConcatSkip, Nearest, run_block
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import dropped, one_scale, steps_up
from densezoo.decoders.unet import UNUSED_ATTENTION, UNetBlock, mirrored, smp_block
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, Naming
from densezoo.types import Dtype, ModuleDef, Pyramid


class UNetPlusPlusDecoder(nn.Module):
    """U-Net++: blocks at every scale, each of which reads all earlier maps of its scale and the next coarser map.

    The block `x_d_l` has the scale of skip `l`, counted from the coarsest, and is `d` steps away from the result. It
    upsamples the block `x_d_{l-1}` (or the encoder's map, if there is none) and joins the encoder's map and all
    `x_e_l` with e > d. Blocks with d = 0 are those of a U-Net. The others have as many channels as the encoder's map at
    their scale. Names and order are those of segmentation_models_pytorch.

    With `all_scales=True`, it returns the maps that the paper supervises: the result, then all maps at the encoder's
    finest scale, starting with the one closest to the result.

    Attributes:
        features: channels of the blocks `x_0_l`, coarse to fine: one entry for every skip, then one for every doubling
          from the finest map to the image. None gives the last block 16 channels, the one before 32, and so on.
        skip: factory of the skip for a scale's concatenated maps: `ConcatSkip`, `LateralAdd` or `AttentionGate`.
        upsample: factory of the upsampler; the default samples like segmentation_models_pytorch's "nearest".
        norm: factory of the normalisation, None for none.
        act: activation.
        attention: factory of an attention module in each block, as in `UNetDecoder`; None for none.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> features = jnp.zeros((1, 16, 17, 8)), jnp.zeros((1, 8, 9, 16)), jnp.zeros((1, 4, 5, 32))
        >>> decoder = UNetPlusPlusDecoder(features=(16, 8))
        >>> y, variables = jax.eval_shape(decoder.init_with_output, jax.random.key(0), dz.Pyramid(features))
        >>> y.shape, sorted(variables["params"])
        ((1, 16, 17, 8), ['x_0_0', 'x_0_1', 'x_1_1'])

    References:
        Zhou et al., UNet++: A nested U-Net architecture for medical image segmentation, 2018.
        https://arxiv.org/abs/1807.10165
    """

    features: Sequence[int] | None = None
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    attention: ModuleDef | None = None
    dropout: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, *, train: bool = False, all_scales: bool = False
    ) -> Float[Array, "b h w c"] | tuple[Float[Array, "b _ _ _"], ...]:
        node = partial(
            UNetBlock,
            skip=self.skip,
            norm=self.norm,
            act=self.act,
            attention=self.attention,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        take = partial(run_block, train=train, remat=self.remat)
        # The maps of the next coarser scale: x_0, x_1, ..., and the encoder's map. A block here upsamples each of them.
        below = [pyramid.maps[-1]]
        finest = []
        steps = steps_up(pyramid, self.features, self.upsample, "UNetPlusPlusDecoder")
        for layer, (features, skip, size, upsample) in enumerate(steps):
            block = partial(node, upsample=upsample)
            if skip is None:
                last = layer + 1 == len(steps)
                below = [take(block(features, last=last, name=f"x_0_{layer}"), below[0], None, size=size)]
                continue
            maps = [skip]
            for depth in reversed(range(layer + 1)):
                channels = features if depth == 0 else skip.shape[-1]
                joined = skip if len(maps) == 1 else jnp.concatenate(promote_dtype(*maps, dtype=self.dtype), axis=-1)
                y = take(block(channels, name=f"x_{depth}_{layer}"), below[depth], joined, size=size)
                maps = [y, *maps]
            below, finest = maps, maps[:-1]
        others = finest[1:] if finest and below[0] is finest[0] else finest
        return dropped([below[0], *others], self.dropout, train=train, all_scales=all_scales)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        rules = smp_block(r"(?P<block>x_\d+_\d+)", r"blocks.\g<block>")
        # For VGG, the reference also has a center block, but never calls it.
        return [Naming(SMP, rules, "decoder.", rf"decoder\.center\..*|{UNUSED_ATTENTION}")]


register(
    Blueprint(
        name="unetplusplus",
        description="A U-Net with blocks on the skips, each fed by all previous maps of its scale and the scale below.",
        skip_strategy="nested and dense: concatenates the encoder's map and the outputs of all blocks at its scale",
        excels_at="objects of many sizes, medical images, deep supervision",
        paper="Zhou et al. 2018, https://arxiv.org/abs/1807.10165",
        decoder=UNetPlusPlusDecoder,
        encoder="resnet34",
        head=SegmentationHead,
        decoder_fields=mirrored,
        misfit=one_scale,
    )
)
