"""The inverted residual of MobileNet and EfficientNet, and the common base class of these encoders."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ChannelGate, ConvNormAct, he_normal_fan_out, run_block
from densezoo.encoders.base import Encoder
from densezoo.encoders.inverted_residual_block import InvertedResidual, Padding
from densezoo.naming import DETECTORS, TIMM, TORCHVISION, Naming, Rule, backbone, dilated, ignoring
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid

depthwise_he_normal: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""timm's and TensorFlow's `he_normal_fan_out` for depthwise convolutions, in which an input feeds one channel only."""


class Block(NamedTuple):
    """One inverted residual of a network.

    Attributes:
        stage: number of its stage.
        kernel_size: kernel size of the depthwise convolution.
        strides: strides of the depthwise convolution.
        hidden: channels of the depthwise convolution.
        features: channels of the result.
        squeeze: hidden channels of the gate, 0 for no gate.
        act: activation, None for the network's default.
    """

    stage: int
    kernel_size: int
    strides: int
    hidden: int
    features: int
    squeeze: int = 0
    act: Callable[[jax.Array], jax.Array] | None = None


class Plan(NamedTuple):
    """A network of inverted residuals.

    Attributes:
        stem: channels of the first convolution.
        blocks: the inverted residuals.
        head: channels of a final 1x1 convolution, whose result is then the last map; 0 for none.
        gate: factory of the gates.
    """

    stem: int
    blocks: Sequence[Block]
    head: int = 0
    gate: ModuleDef = ChannelGate


class Placed(NamedTuple):
    """A block in an encoder: its name, its actual strides and dilation, and the side of its input for `padded_for`."""

    name: str
    block: Block
    strides: int
    dilation: int
    side: int


class InvertedResidualEncoder(Encoder):
    """The base class of EfficientNet and the MobileNets: a strided convolution and inverted residuals, given by `plan`.

    The maps are the last ones at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image, unless `taps` says otherwise.

    Attributes:
        padding: "SAME" pads the strided convolutions as in TensorFlow; None as in torch.
        padded_for: with "SAME", use the padding of a square image with this side for images of all sizes.
        taps: blocks whose results are the maps, counted from 0; -1 is the first convolution.
        coarsest: 8 builds no blocks beyond 1/8 of the image; 32 builds all.
        output_stride: 8 or 16 limits the reduction of the later blocks; dilation replaces their strides.
        dilate_first: whether dilation starts in the block that loses its stride, as in segmentation_models_pytorch, or
            in the next block, as in timm.
        norm: factory of the normalisation, None for none.
        act: activation.
        drop_path: rate of stochastic depth in the last block, approximately; the rates increase linearly from 0.
        remat: recomputes each block in the backward pass, to save memory.
        kernel_init: initialiser of the convolutions.
        depthwise_init: initialiser of the depthwise convolutions.
    """

    padding: Literal["SAME"] | None = None
    padded_for: int | None = None
    taps: Sequence[int] | None = None
    coarsest: int = 32
    output_stride: int = 32
    dilate_first: bool = False
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    drop_path: float = 0.0
    remat: bool = False
    # As in timm and TensorFlow.
    kernel_init: Initializer = he_normal_fan_out
    depthwise_init: Initializer = depthwise_he_normal
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "conv_stem/conv"
    unseen = ("padding", "padded_for", "norm")

    @property
    def plan(self) -> Plan:
        """The network."""
        raise NotImplementedError

    @property
    def all_taps(self) -> tuple[int, ...]:
        """The blocks whose results are maps, including those beyond `coarsest`."""
        blocks = self.plan.blocks
        last = (*(index - 1 for index, block in enumerate(blocks) if block.strides > 1), len(blocks) - 1)
        return last if self.taps is None else tuple(self.taps)

    @property
    def scales(self) -> tuple[int, ...]:
        strides = [block.strides for block in self.plan.blocks]
        return tuple(2 * math.prod(strides[: tap + 1]) for tap in self.all_taps)

    @property
    def min_size(self) -> int:
        """The smallest image side that is valid with the fixed padding of another image size."""
        size, built = 1, self.layout()[: self.all_taps[len(self.reductions) - 1] + 1]
        for side in (*(placed.side for placed in reversed(built) if placed.strides > 1), self.padded_for or 1):
            size = 2 * size - side % 2
        return size if self.padded_for else 1

    def layout(self) -> list[Placed]:
        """All blocks with their names, strides and dilations."""
        layout, seen, reduction, side = [], Counter[int](), 2, -(-(self.padded_for or 0) // 2)
        taps, scales = self.all_taps, self.scales
        for index, block in enumerate(self.plan.blocks):
            next_scale = next((s for tap, s in zip(taps, scales, strict=True) if tap >= index), 2 * scales[-1])
            before, reduction = reduction, reduction * block.strides
            dilation = max(1, (next_scale if self.dilate_first else before) // self.output_stride)
            strides = 1 if reduction > self.output_stride else block.strides
            layout.append(Placed(f"blocks_{block.stage}_{seen[block.stage]}", block, strides, dilation, side))
            seen[block.stage] += 1
            side = -(-side // block.strides)
        return layout

    def _padding(self, kernel_size: int, side: int) -> Padding:
        """The padding of a convolution with stride 2; the padding of others does not depend on the image."""
        if self.padded_for is None:
            return self.padding
        missing = kernel_size - 2 + side % 2
        before, after = missing // 2, missing - missing // 2
        return (before, after), (before, after)

    @nn.nowrap
    def check(self, images: jax.Array) -> None:
        """The checks of every encoder, and of the consistency of the padding's fields."""
        if self.padding not in (None, "SAME") or (self.padded_for is not None and self.padding is None):
            raise ValueError(
                f'padding is None or "SAME", and "SAME" with padded_for; got padding={self.padding!r},'
                f" padded_for={self.padded_for}"
            )
        super().check(images)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        plan, levels = self.plan, len(self.reductions)
        taps = self.all_taps[:levels]
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, norm=self.norm, act=self.act, **fields)
        padding = self._padding(3, self.padded_for or 0)
        x = conv(plan.stem, 3, 2, padding=padding, name="conv_stem")(images, train=train)
        maps = [x] if -1 in taps else []
        for index, (name, block, strides, dilation, side) in enumerate(self.layout()[: taps[-1] + 1]):
            module = InvertedResidual(
                block.features,
                block.hidden,
                block.kernel_size,
                strides,
                dilation,
                padding=self._padding(block.kernel_size, side) if strides > 1 else None,
                conv=conv if block.act is None else partial(conv, act=block.act),
                gate=partial(plan.gate, block.squeeze, **fields) if block.squeeze else None,
                depthwise_init=self.depthwise_init,
                # Both references divide by the number of blocks, so the last block does not reach the full rate.
                drop_path=self.drop_path * index / (len(plan.blocks) + (plan.head > 0)),
                name=name,
            )
            x = run_block(module, x, train=train, remat=self.remat)
            if index in taps:
                maps.append(x)
        if plan.head and levels == len(self.all_taps):
            maps[-1] = conv(plan.head, 1, name="conv_head")(x, train=train)
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm."""
        return self.timm_names()

    def timm_names(self, *, wrapped: bool = True) -> list[Naming]:
        """The names of networks of inverted residuals in timm."""

        def part(match: re.Match[str]) -> str:
            stage, index, name, leaf = match.groups()
            names = _TIMM_SHORT if stage == "0" else _TIMM_PARTS
            return f"blocks.{stage}.{index}.{names[name][leaf == 'norm']}"

        after = self.plan.blocks[-1].stage + 1
        rules = [
            Rule(r"conv_stem/conv", "conv_stem"),
            Rule(r"conv_stem/norm", "bn1"),
            Rule(r"blocks_(\d+)_(\d+)/(expand|depthwise|project)/(conv|norm)", part),
            Rule(r"blocks_(\d+)_(\d+)/gate/(reduce|expand)", r"blocks.\1.\2.se.conv_\3"),
            Rule(r"conv_head/conv", f"blocks.{after}.0.conv"),
            Rule(r"conv_head/norm", f"blocks.{after}.0.bn1"),
        ]
        others = rf"(conv_head|bn2|blocks\.{after})\..*"
        deeper = self.left_out(lambda _, path: f"blocks.{path[1]}.{path[2]}")
        return ignoring(backbone(rules, wrapped=wrapped), f"{others}|{deeper}")

    def torchvision_names(self, *, nested: bool, epsilon: float) -> list[Naming]:
        """The names of EfficientNet and MobileNetV3 in torchvision, alone and in its segmentation models.

        None with another padding than torchvision's.

        Args:
            nested: whether each stage is a sequence of its own.
            epsilon: of the reference's batch norms.
        """
        if self.padding is not None:
            return []
        layout = self.layout()
        last = layout[-1].block.stage
        places = {}
        for number, (name, block, *_) in enumerate(layout, start=1):
            index = name.rsplit("_", 1)[1]
            channels = layout[number - 2].block.features if number > 1 else self.plan.stem
            parts = ["expand"] if block.hidden != channels else []
            parts += ["depthwise", "gate", "project"] if block.squeeze else ["depthwise", "project"]
            place = f"{block.stage + 1}.{index}" if nested else str(number)
            places[name] = {part: f"{place}.block.{position}" for position, part in enumerate(parts)}
        after = last + 2 if nested else len(layout) + 1

        def part(match: re.Match[str]) -> str:
            return f"{places[match[1]][match[2]]}.{int(match[3] == 'norm')}"

        def gate(match: re.Match[str]) -> str:
            return f"{places[match[1]]['gate']}.fc{1 + (match[2] == 'expand')}"

        rules = [
            Rule(r"conv_stem/conv", "0.0"),
            Rule(r"conv_stem/norm", "0.1"),
            Rule(r"(blocks_\d+_\d+)/(expand|depthwise|project)/(conv|norm)", part),
            Rule(r"(blocks_\d+_\d+)/gate/(reduce|expand)", gate),
            Rule(r"conv_head/conv", f"{after}.0"),
            Rule(r"conv_head/norm", f"{after}.1"),
        ]
        deeper = self.left_out(lambda number, path: places[path[0]]["project"].rpartition(".block")[0])
        namings = [
            Naming(TIMM, rules, "features.", r"classifier\..*", epsilon),
            Naming(TORCHVISION, rules, "backbone.", "", epsilon),
            *(naming for naming in backbone(rules) if naming.source == DETECTORS),
        ]
        namings = ignoring(namings, rf"{after}\..*|{deeper}")
        return namings if self.output_stride == 16 and self.dilate_first else dilated(namings, 16, dilate_first=True)

    def left_out(self, name: Callable[[int, re.Match[str]], str]) -> str:
        """A pattern of the blocks that a smaller `coarsest` omits; `name` maps number and path to a name."""
        names = [placed.name for placed in self.layout()]
        built = self.all_taps[len(self.reductions) - 1] + 1
        paths = [re.fullmatch(r"blocks_(\d+)_(\d+)", path) for path in names]
        prefixes = [name(number, path) for number, path in enumerate(paths) if path is not None and number >= built]
        return rf"({'|'.join(map(re.escape, prefixes))})\..*"


# timm uses another class, with its own numbering, for blocks without expansion.
_TIMM_PARTS = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
_TIMM_SHORT = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, or the next one if that would be more than 10 % smaller (TensorFlow's rule)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
