"""EfficientNet in the three common variants: timm's, TensorFlow's, and segmentation_models_pytorch's."""

import math
import re
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from densezoo.blocks import BatchNorm, ChannelGate, torch_uniform
from densezoo.encoders.base import register_encoders
from densezoo.encoders.inverted_residual import Block, InvertedResidualEncoder, Plan, round_channels
from densezoo.naming import SMP, Naming, Rule, ignoring

# Tan and Le 2019, table 1: blocks, kernel size, strides, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNet(InvertedResidualEncoder):
    """EfficientNet as an encoder: maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.

    The defaults are timm's `efficientnet_*`, with torch's padding; each map is the last one of its size. The
    `tf_efficientnet_*` have TensorFlow's padding and epsilon. So do the `efficientnet-*` of
    segmentation_models_pytorch, but with the fixed padding of an image of the published size, and the first map is the
    first convolution's result.

    Attributes:
        width: factor of the channels.
        depth: factor of the blocks in each stage.
        padding: "SAME" pads the strided convolutions as in TensorFlow; None as in torch.
        padded_for: with "SAME", use the padding of a square image with this side for images of all sizes.
        taps: blocks whose results are the maps, counted from 0; -1 is the first convolution.
        act: activation.
        norm, coarsest, output_stride, dilate_first, drop_path, remat, kernel_init, depthwise_init: as in
            `InvertedResidualEncoder`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = EfficientNet(width=1.0, depth=1.0)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 16), (1, 16, 17, 24), (1, 8, 9, 40), (1, 4, 5, 112), (1, 2, 3, 320)]
        >>> encoder.clone(output_stride=8).reductions, encoder.clone(coarsest=8).reductions
        ((2, 4, 8, 8, 8), (2, 4, 8))

    References:
        Tan and Le, EfficientNet, 2019. https://arxiv.org/abs/1905.11946
    """

    width: float = 1.0
    depth: float = 1.0
    act: Callable[[jax.Array], jax.Array] = nn.silu

    @property
    def plan(self) -> Plan:
        """The network."""
        stem = channels = round_channels(32 * self.width)
        blocks = []
        for stage, (count, kernel_size, strides, expansion, base) in enumerate(_STAGES):
            features = round_channels(base * self.width)
            for index in range(math.ceil(count * self.depth)):
                block = Block(
                    stage, kernel_size, 1 if index else strides, expansion * channels, features, channels // 4
                )
                blocks.append(block)
                channels = features
        return Plan(stem, blocks, gate=partial(ChannelGate, act=self.act))

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm and torchvision, or of efficientnet-pytorch if `padded_for` is set."""
        # segmentation_models_pytorch has three: efficientnet-*, timm-efficientnet-*, and timm's own as tu-.
        if self.padded_for:
            return self._efficientnet_pytorch()
        # torchvision has TensorFlow's epsilon from b5 on.
        epsilon = 1e-3 if self.width >= _SIZES["b5"][0] else 1e-5
        return [*self.timm_names(wrapped=not self.dilate_first), *self.torchvision_names(nested=True, epsilon=epsilon)]

    def _efficientnet_pytorch(self) -> list[Naming]:
        numbers = {placed.name: number for number, placed in enumerate(self.layout())}
        norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}

        def part(match: re.Match[str]) -> str:
            block, name, leaf = match.groups()
            return f"_blocks.{numbers[block]}.{f'_{name}_conv' if leaf == 'conv' else norms[name]}"

        rules = [
            Rule(r"conv_stem/conv", "_conv_stem"),
            Rule(r"conv_stem/norm", "_bn0"),
            Rule(r"(blocks_\d+_\d+)/(expand|depthwise|project)/(conv|norm)", part),
            Rule(r"(blocks_\d+_\d+)/gate/(\w+)", lambda match: f"_blocks.{numbers[match[1]]}._se_{match[2]}"),
        ]
        deeper = self.left_out(lambda number, _: f"_blocks.{number}")
        places = ((SMP, "encoder."), ("efficientnet-pytorch", ""))
        namings = [Naming(source, rules, prefix, epsilon=1e-3) for source, prefix in places]
        return ignoring(namings, rf"(_conv_head|_bn1|_fc)\..*|{deeper}")


# Tan and Le 2019 and their code: width, depth, side of the image; and the last blocks at 1/4, 1/8, 1/16 and 1/32
_SIZES = {
    "b0": (1.0, 1.0, 224, (2, 4, 10, 15)),
    "b1": (1.0, 1.1, 240, (4, 7, 15, 22)),
    "b2": (1.1, 1.2, 260, (4, 7, 15, 22)),
    "b3": (1.2, 1.4, 300, (4, 7, 17, 25)),
    "b4": (1.4, 1.8, 380, (5, 9, 21, 31)),
    "b5": (1.6, 2.2, 456, (7, 12, 26, 38)),
    "b6": (1.8, 2.6, 528, (8, 14, 30, 44)),
    "b7": (2.0, 3.1, 600, (10, 17, 37, 54)),
}

_tf_norm = partial(BatchNorm, epsilon=1e-3)
_timm_in_smp = partial(EfficientNet, dilate_first=True, drop_path=0.2)
# Its author uses torch's default initialisation.
_smp = partial(
    _timm_in_smp,
    padding="SAME",
    norm=partial(BatchNorm, epsilon=1e-3, momentum=0.99),
    kernel_init=torch_uniform,
    depthwise_init=torch_uniform,
)


def _efficientnets() -> dict[str, Callable[..., EfficientNet]]:
    table: dict[str, Callable[..., EfficientNet]] = {}
    for size, (width, depth, side, last) in _SIZES.items():
        scale = {"width": width, "depth": depth}
        table[f"efficientnet_{size}"] = partial(EfficientNet, **scale)
        table[f"tf_efficientnet_{size}"] = partial(EfficientNet, padding="SAME", norm=_tf_norm, **scale)
        # b0's map at 1/16 is taken in the middle of a stage.
        taps = (-1, 2, 4, 8, 15) if size == "b0" else (-1, *last)
        table[f"efficientnet-{size}"] = partial(_smp, padded_for=side, taps=taps, **scale)
        table[f"timm-efficientnet-{size}"] = partial(_timm_in_smp, taps=(-1, *last), **scale)
    return table


register_encoders(_efficientnets())
