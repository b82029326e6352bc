"""MobileNetV2 and MobileNetV3, with timm's layout and names, and torchvision's MobileNetV2."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from densezoo.blocks import BatchNorm, ChannelGate, he_normal_fan_out
from densezoo.encoders.base import register_encoders
from densezoo.encoders.inverted_residual import Block, InvertedResidualEncoder, Plan, round_channels
from densezoo.naming import Naming, Rule, backbone, ignoring

# Sandler et al. 2018, table 2: blocks, strides, expansion, channels
_STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (3, 2, 6, 32), (4, 2, 6, 64), (3, 1, 6, 96), (3, 2, 6, 160), (1, 1, 6, 320))

# Howard et al. 2019, tables 1 and 2; the gates' channels are timm's and TensorFlow's: a quarter, rounded.
V3_LARGE = (
    Block(0, 3, 1, 16, 16, 0, nn.relu),
    Block(1, 3, 2, 64, 24, 0, nn.relu),
    Block(1, 3, 1, 72, 24, 0, nn.relu),
    Block(2, 5, 2, 72, 40, 24, nn.relu),
    Block(2, 5, 1, 120, 40, 32, nn.relu),
    Block(2, 5, 1, 120, 40, 32, nn.relu),
    Block(3, 3, 2, 240, 80),
    Block(3, 3, 1, 200, 80),
    Block(3, 3, 1, 184, 80),
    Block(3, 3, 1, 184, 80),
    Block(4, 3, 1, 480, 112, 120),
    Block(4, 3, 1, 672, 112, 168),
    Block(5, 5, 2, 672, 160, 168),
    Block(5, 5, 1, 960, 160, 240),
    Block(5, 5, 1, 960, 160, 240),
)
V3_SMALL = (
    Block(0, 3, 2, 16, 16, 8, nn.relu),
    Block(1, 3, 2, 72, 24, 0, nn.relu),
    Block(1, 3, 1, 88, 24, 0, nn.relu),
    Block(2, 5, 2, 96, 40, 24),
    Block(2, 5, 1, 240, 40, 64),
    Block(2, 5, 1, 240, 40, 64),
    Block(3, 5, 1, 120, 48, 32),
    Block(3, 5, 1, 144, 48, 40),
    Block(4, 5, 2, 288, 96, 72),
    Block(4, 5, 1, 576, 96, 144),
    Block(4, 5, 1, 576, 96, 144),
)


class MobileNetV2(InvertedResidualEncoder):
    """MobileNetV2 as an encoder: maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.

    Attributes:
        width: factor of the channels.
        head_features: channels of a last 1x1 convolution, which then gives the last map (1280 in
            segmentation_models_pytorch); 0 for none, as in timm.
        act: activation.

    The other fields are those of `InvertedResidualEncoder`: norm, coarsest, output_stride, dilate_first, drop_path,
    remat, kernel_init, depthwise_init, padding, padded_for, taps.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = MobileNetV2(head_features=1280)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 16), (1, 16, 17, 24), (1, 8, 9, 32), (1, 4, 5, 96), (1, 2, 3, 1280)]

    References:
        Sandler et al., MobileNetV2: Inverted residuals and linear bottlenecks, 2018. https://arxiv.org/abs/1801.04381
    """

    width: float = 1.0
    head_features: int = 0
    act: Callable[[jax.Array], jax.Array] = nn.relu6

    @property
    def plan(self) -> Plan:
        """The network."""
        stem = channels = round_channels(32 * self.width)
        blocks = []
        for stage, (count, strides, expansion, base) in enumerate(_STAGES):
            features = round_channels(base * self.width)
            for index in range(count):
                blocks.append(Block(stage, 3, 1 if index else strides, expansion * channels, features))
                channels = features
        return Plan(stem, blocks, self.head_features)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm and torchvision."""
        # The last convolution only exists in torchvision's variant, which segmentation_models_pytorch also uses.
        if self.head_features:
            return [*self._torchvision(), *self.timm_names()]
        return [*self.timm_names(), *self._torchvision()]

    def _torchvision(self) -> list[Naming]:
        # One flat list that starts with the first convolution.
        layout = self.layout()
        numbers = {placed.name: number for number, placed in enumerate(layout, start=1)}
        after = len(layout) + 1

        def part(match: re.Match[str]) -> str:
            block, name, leaf = match.groups()
            place = ["expand", "depthwise", "project"].index(name) - int(block.startswith("blocks_0_"))
            if name == "project":  # its convolution and norm are in the same sequence as the previous pairs
                return f"features.{numbers[block]}.conv.{place + (leaf == 'norm')}"
            return f"features.{numbers[block]}.conv.{place}.{int(leaf == 'norm')}"

        rules = [
            Rule(r"conv_stem/conv", "features.0.0"),
            Rule(r"conv_stem/norm", "features.0.1"),
            Rule(r"(blocks_\d+_\d+)/(expand|depthwise|project)/(conv|norm)", part),
            Rule(r"conv_head/conv", f"features.{after}.0"),
            Rule(r"conv_head/norm", f"features.{after}.1"),
        ]
        deeper = self.left_out(lambda number, _: f"features.{number + 1}")
        return ignoring(backbone(rules), rf"features\.{after}\..*|{deeper}")


class MobileNetV3(InvertedResidualEncoder):
    """MobileNetV3 as an encoder: maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.

    Attributes:
        blocks: the inverted residuals, such as `V3_LARGE` and `V3_SMALL` in this module.
        stem_features: channels of the first convolution.
        head_features: channels of the final 1x1 convolution, whose result is the last map.
        act: activation of blocks without their own.

    The other fields are those of `InvertedResidualEncoder`: norm, coarsest, output_stride, dilate_first, drop_path,
    remat, kernel_init, depthwise_init, padding, padded_for, taps.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = MobileNetV3(blocks=V3_SMALL, head_features=576)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 16), (1, 16, 17, 16), (1, 8, 9, 24), (1, 4, 5, 48), (1, 2, 3, 576)]

    References:
        Howard et al., Searching for MobileNetV3, 2019. https://arxiv.org/abs/1905.02244
    """

    blocks: Sequence[Block] = V3_LARGE
    stem_features: int = 16
    head_features: int = 960
    act: Callable[[jax.Array], jax.Array] = nn.hard_swish

    @property
    def plan(self) -> Plan:
        """The network."""
        gate = partial(ChannelGate, act=nn.relu, gate=nn.hard_sigmoid)
        blocks = [Block(*block) for block in self.blocks]  # a file has plain tuples
        return Plan(self.stem_features, blocks, self.head_features, gate)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm and torchvision."""
        return [*self.timm_names(), *self.torchvision_names(nested=False, epsilon=1e-3)]


_small = partial(MobileNetV3, blocks=V3_SMALL, head_features=576)
_tf_norm = partial(BatchNorm, epsilon=1e-3)

register_encoders(
    {
        # torchvision's, whose initialiser counts a depthwise convolution as if every pixel sent to all channels
        "mobilenet_v2": partial(MobileNetV2, head_features=1280, dilate_first=True, depthwise_init=he_normal_fan_out),
        "mobilenetv2_100": MobileNetV2,
        "mobilenetv3_large_100": MobileNetV3,
        # The body of torchvision's detectors, with one map more: after the first block at 1/32.
        "mobilenet_v3_large": partial(MobileNetV3, taps=(0, 2, 5, 11, 12, 14)),
        "mobilenetv3_small_100": _small,
        "tf_mobilenetv3_large_100": partial(MobileNetV3, padding="SAME", norm=_tf_norm),
        "tf_mobilenetv3_small_100": partial(_small, padding="SAME", norm=_tf_norm),
    }
)
