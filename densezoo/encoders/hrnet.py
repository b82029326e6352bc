"""HRNet, with timm's layout and names: four parallel scales with repeated exchange."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    BatchNorm,
    ConvNormAct,
    Nearest,
    build,
    he_normal_fan_out,
    run_block,
    run_blocks,
    upsampled,
)
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.encoders.resnet import BasicBlock, Bottleneck
from densezoo.naming import HRNET, Naming, Rule, backbone, ignoring
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class ExchangeUnit(nn.Module):
    """Residual blocks at each scale, then every scale becomes the sum of all scales, resized to it.

    Finer maps are downsampled by strided 3x3 convolutions, and coarser maps upsampled after a 1x1 convolution (Wang et
    al., figure 3).

    Attributes:
        size: number of residual blocks at each scale.
        outputs: number of scales to return, starting with the finest.
        conv: factory of convolutions with norm and activation.
    """

    size: int
    outputs: int
    conv: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    upsample: ModuleDef
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]], *, train: bool = False) -> list[jax.Array]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scales = []
        for scale, x in enumerate(maps):
            blocks = [
                BasicBlock(x.shape[-1], 1, self.conv, self.act, name=f"branch{scale}_{index}")
                for index in range(self.size)
            ]
            scales.append(run_blocks(blocks, x, train=train, remat=self.remat))
        fused = []
        for to, target in enumerate(scales[: self.outputs]):
            channels, terms = target.shape[-1], []
            for scale, x in enumerate(scales):
                if scale > to:
                    x = self.conv(channels, 1, act=None, name=f"fuse{to}_{scale}")(x, train=train)
                    x = upsampled(build(self.upsample, name=f"upsample{to}_{scale}", **dtypes), x, size_of(target))
                for step in range(to - scale):
                    last = step == to - scale - 1
                    fields = {"act": None} if last else {}
                    x = self.conv(channels if last else x.shape[-1], 3, 2, name=f"fuse{to}_{scale}_{step}", **fields)(
                        x, train=train
                    )
                terms.append(x)
            fused.append(self.act(sum(terms[1:], terms[0])))
        return fused


@renamed(stage_sizes="depths")
class HRNet(Encoder):
    """A high-resolution network as an encoder: maps at 1/2 (of the stem), 1/4, 1/8, 1/16 and 1/32 of the image.

    Attributes:
        width: channels at 1/4 of the image; each coarser scale has twice as many.
        layer1_size: number of bottleneck blocks at 1/4 of the image, before the scales separate.
        layer1_features: channels of the 3x3 convolutions in these blocks.
        depths: number of exchange units in each of the later stages. Each stage adds a scale.
        branch_size: number of residual blocks at each scale of an exchange unit.
        incre: whether a bottleneck block expands each scale to the channels (128, 256, 512, 1024) of the classification
          networks, as in timm. False returns the scales themselves, from 1/4 of the image, as HRNet's own head needs.
        coarsest: reduction of the last map: 4, 8, 16 or 32. This saves little computation, because the scales depend on
          each other.
        upsample: factory of the upsampler in the exchange: nearest in timm, bilinear in the authors' segmentation code.
        norm: factory of the normalisation, None for none.
        act: activation.
        remat: recomputes each residual block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = HRNet(width=8, layer1_size=1, depths=(1, 1, 1), branch_size=1, incre=False)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 97, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 16, 25, 8), (1, 8, 13, 16), (1, 4, 7, 32), (1, 2, 4, 64)]

    References:
        Wang et al., Deep high-resolution representation learning for visual recognition, 2019.
        https://arxiv.org/abs/1908.07919
    """

    width: int
    layer1_size: int = 4
    layer1_features: int = 64
    depths: Sequence[int] = (1, 4, 3)
    branch_size: int = 4
    incre: bool = True
    coarsest: int = 32
    # For odd sides, pixel 0 of a scale is aligned with pixel 0 of the finer one, as in the strided convolutions.
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "conv1/conv"
    separable = False

    @property
    def scales(self) -> tuple[int, ...]:
        if self.coarsest < 4:
            raise ValueError(f"coarsest must be at least 4, since HRNet's finest branch is at 1/4; got {self.coarsest}")
        return ((2,) if self.incre else ()) + tuple(4 * 2**branch for branch in range(len(self.depths) + 1))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, norm=self.norm, act=self.act, kernel_init=he_normal_fan_out, **dtypes)  # timm's
        stem = conv(64, 3, 2, name="conv1")(images, train=train)
        x = conv(64, 3, 2, name="conv2")(stem, train=train)
        for index in range(self.layer1_size):
            block = Bottleneck(self.layer1_features, 1, conv, self.act, name=f"layer1_{index}")
            x = run_block(block, x, train=train, remat=self.remat)
        maps = [x]
        for stage, size in enumerate(self.depths, start=1):
            new = conv(self.width * 2**stage, 3, 2, name=f"transition{stage}_{stage}")(maps[-1], train=train)
            for scale, x in enumerate(maps):
                if x.shape[-1] != self.width * 2**scale:
                    maps[scale] = conv(self.width * 2**scale, name=f"transition{stage}_{scale}")(x, train=train)
            maps.append(new)
            units = []
            for index in range(size):
                at_the_end = stage == len(self.depths) and index == size - 1
                unit = ExchangeUnit(
                    self.branch_size,
                    len(self.reductions) - self.incre if at_the_end else len(maps),
                    conv,
                    self.act,
                    self.upsample,
                    self.remat,
                    name=f"stage{stage + 1}_{index}",
                    **dtypes,
                )
                units.append(unit)
            maps = run_blocks(units, maps, train=train)
        if self.incre:
            for scale, x in enumerate(maps):
                block = Bottleneck(32 * 2**scale, 1, conv, self.act, name=f"incre{scale}")
                maps[scale] = run_block(block, x, train=train, remat=self.remat)
            maps = [stem, *maps]
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm, which are its authors'."""

        def transition(match: re.Match[str]) -> str:
            stage, scale = match[1], match[2]
            # A stage's new scale has a sequence of a single convolution in the reference.
            inner = "0." if stage == scale else ""
            return f"transition{stage}.{scale}.{inner}{int(match[3] == 'norm')}"

        rules = [Rule(r"transition(\d)_(\d)/(conv|norm)", transition)]
        blocks = {r"layer1_(\d+)": r"layer1.\1", r"incre(\d)": r"incre_modules.\1.0"}
        blocks[r"stage(\d)_(\d+)/branch(\d)_(\d+)"] = r"stage\1.\2.branches.\3.\4"
        for place, (part, name) in enumerate((("conv", "conv"), ("norm", "bn"))):
            rules += [
                Rule(rf"conv(\d)/{part}", rf"{name}\1"),
                Rule(rf"stage(\d)_(\d+)/fuse(\d)_(\d)/{part}", rf"stage\1.\2.fuse_layers.\3.\4.{place}"),
                Rule(rf"stage(\d)_(\d+)/fuse(\d)_(\d)_(\d)/{part}", rf"stage\1.\2.fuse_layers.\3.\4.\5.{place}"),
            ]
            for path, block in blocks.items():
                rules.append(Rule(rf"{path}/conv(?P<number>\d)/{part}", rf"{block}.{name}\g<number>"))
                rules.append(Rule(rf"{path}/downsample/{part}", f"{block}.downsample.{place}"))
        # Modules for classification only, the head, and modules that a smaller `coarsest` omits.
        last = f"stage{len(self.depths) + 1}\\.{self.depths[-1] - 1}"
        coarser = rf"{last}\.fuse_layers\.[{len(self.reductions) - self.incre}-9]\..*"
        others = r"(incre_modules|downsamp_modules|final_layer|classifier|last_layer)\..*"
        # The authors' segmentation model has the backbone's names without a prefix, like timm's encoder.
        return ignoring([*backbone(rules, wrapped=True), Naming(HRNET, rules)], f"{others}|{coarser}")


register_encoders(
    {
        # Wang et al. 2019, section 3, and appendix for the small ones, as timm has them
        "hrnet_w18_small": partial(HRNet, width=16, layer1_size=1, layer1_features=32, depths=(1, 1, 1), branch_size=2),
        "hrnet_w18_small_v2": partial(HRNet, width=18, layer1_size=2, depths=(1, 3, 2), branch_size=2),
        "hrnet_w18": partial(HRNet, width=18),
        "hrnet_w32": partial(HRNet, width=32),
        "hrnet_w48": partial(HRNet, width=48),
    }
)
