"""Heads that predict for every anchor of a pyramid: RetinaNet's, FCOS's, and the region proposal network's."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Conv, ConvNormAct, GroupNorm
from densezoo.heads.anchors import AnchorOutputs, PointOutputs, grid_of
from densezoo.naming import DETECTORS, Naming, Rule
from densezoo.ops.sharding import reshape
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid

Maps = Sequence[Float[Array, "b _ _ c"]]
normal: Initializer = nn.initializers.normal(0.01)
"""torchvision's initialiser of these heads."""


def _prior(probability: float) -> Initializer:
    """A bias initialiser that sets the initial probability of every class (Lin et al. 2017, section 4.1)."""
    return nn.initializers.constant(-math.log((1 - probability) / probability))


class Tower(nn.Module):
    """Convolutions of equal width, shared by all maps of a pyramid.

    Attributes:
        depth: number of convolutions.
        norm: factory of the normalisation, None for none.
        use_bias: whether they have a bias. None means only if no norm follows.
    """

    depth: int = 4
    norm: ModuleDef | None = None
    use_bias: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool = False) -> list[jax.Array]:
        conv = partial(
            ConvNormAct,
            norm=self.norm,
            use_bias=self.use_bias,
            kernel_init=normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        convs = [conv(maps[0].shape[-1], name=f"conv{index}") for index in range(self.depth)]
        results = []
        for x in maps:
            for layer in convs:
                x = layer(x, train=train)
            results.append(x)
        return results


def flat(conv: Any, maps: Sequence[jax.Array], channels: int) -> Float[Array, "b n k"]:
    """Applies one convolution to all maps and flattens the results to one row per anchor, in float32."""
    rows = [reshape(y, y.shape[0], -1, channels) for y in map(conv, maps)]
    return jnp.concatenate(rows, axis=1).astype(jnp.float32)


class RetinaNetHead(nn.Module):
    """RetinaNet's head: class scores and an encoded box for each anchor, from two towers of convolutions.

    Attributes:
        num_classes: channels of the scores, each with its own sigmoid.
        sizes: sides of the anchors in pixels, a tuple for each map. None means 4, 5 and 6.3 times the map's reduction,
            rounded down as in torchvision.
        ratios: heights over widths of the anchors.
        depth: number of convolutions in each tower.
        norm: factory of their normalisation, None for none.
        box_loss: the reference's loss of the boxes, "l1" or "giou", for `tasks.Detection`.

    References:
        Lin et al., Focal loss for dense object detection, 2017. https://arxiv.org/abs/1708.02002 (figure 3)
    """

    num_classes: int
    sizes: Sequence[Sequence[float]] | None = None
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    depth: int = 4
    norm: ModuleDef | None = None
    box_loss: str = "l1"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def anchor_sizes(self, reductions: Sequence[int]) -> Sequence[Sequence[float]]:
        """The sides of the anchors on each map."""
        octaves = (1.0, 2 ** (1.0 / 3), 2 ** (2.0 / 3))
        return self.sizes or tuple(tuple(int(4 * r * octave) for octave in octaves) for r in reductions)

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, sizes: Float[Array, "b 2"] | None = None, *, train: bool = False
    ) -> AnchorOutputs:
        grid = grid_of(pyramid, self.anchor_sizes(pyramid.reductions or ()), self.ratios, sizes)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tower = partial(Tower, self.depth, self.norm, **dtypes)
        conv = partial(Conv, kernel_init=normal, **dtypes)
        classes = tower(name="classification")(pyramid.maps, train=train)
        boxes = tower(name="regression")(pyramid.maps, train=train)
        logits = conv(grid.per_cell * self.num_classes, bias_init=_prior(0.01), name="logits")
        deltas = conv(grid.per_cell * 4, name="deltas")
        return AnchorOutputs(
            flat(logits, classes, self.num_classes), flat(deltas, boxes, 4), grid, box_loss=self.box_loss
        )

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision's detectors, before version 0.13 too."""
        if self.norm is not None:
            return [_towers("{0}.0", "{0}.1")]
        return [_towers("{0}.0"), _towers("{0}", step=2)]


class FCOSHead(nn.Module):
    """FCOS's head: for each pixel, class scores, the distances to the four sides of a box, and centerness.

    Attributes:
        num_classes: channels of the scores, each with its own sigmoid.
        sizes: the unit of the distances in pixels, a tuple of one for each map. None means the map's reduction.
        depth: number of convolutions in each tower.
        norm: factory of their normalisation.

    References:
        Tian et al., FCOS: a simple and strong anchor-free object detector, 2020. https://arxiv.org/abs/2006.09214
    """

    num_classes: int
    sizes: Sequence[Sequence[float]] | None = None
    depth: int = 4
    norm: ModuleDef | None = GroupNorm
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, sizes: Float[Array, "b 2"] | None = None, *, train: bool = False
    ) -> PointOutputs:
        squares = self.sizes or tuple((reduction,) for reduction in pyramid.reductions or ())
        grid = grid_of(pyramid, squares, (1.0,), sizes)
        if grid.per_cell != 1:
            raise ValueError(f"FCOS has one size for each map, got sizes={squares}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tower = partial(Tower, self.depth, self.norm, use_bias=True, **dtypes)
        conv = partial(Conv, kernel_init=normal, **dtypes)
        classes = tower(name="classification")(pyramid.maps, train=train)
        boxes = tower(name="regression")(pyramid.maps, train=train)
        logits = flat(conv(self.num_classes, bias_init=_prior(0.01), name="logits"), classes, self.num_classes)
        distances = nn.relu(flat(conv(4, name="deltas"), boxes, 4))
        return PointOutputs(logits, distances, flat(conv(1, name="centerness"), boxes, 1)[..., 0], grid)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision."""
        return [_towers("{0}", "{1}", step=3)]


class RPNHead(nn.Module):
    """The head of the region proposal network: objectness and an encoded box for each anchor.

    Attributes:
        sizes: sides of the anchors in pixels, a tuple for each map; None for 8 times the map's reduction.
        ratios: heights over widths of the anchors.
        depth: 3x3 convolutions before the two 1x1 ones.

    References:
        Ren et al., Faster R-CNN, 2015. https://arxiv.org/abs/1506.01497 (section 3.1)
    """

    sizes: Sequence[Sequence[float]] | None = None
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    depth: int = 1
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def anchor_sizes(self, reductions: Sequence[int]) -> Sequence[Sequence[float]]:
        """The sides of the anchors on each map."""
        return self.sizes or tuple((8 * reduction,) for reduction in reductions)

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, sizes: Float[Array, "b 2"] | None = None, *, train: bool = False
    ) -> AnchorOutputs:
        grid = grid_of(pyramid, self.anchor_sizes(pyramid.reductions or ()), self.ratios, sizes)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        maps = Tower(self.depth, name="tower", **dtypes)(pyramid.maps, train=train)
        conv = partial(Conv, kernel_size=1, kernel_init=normal, **dtypes)
        logits = flat(conv(grid.per_cell, name="logits"), maps, 1)
        return AnchorOutputs(logits, flat(conv(grid.per_cell * 4, name="deltas"), maps, 4), grid)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision's detectors, before version 0.13 too."""
        heads = [Rule("logits", "cls_logits"), Rule("deltas", "bbox_pred")]
        forms = [Rule(r"tower/conv(\d)/conv", r"conv.\1.0"), Rule(r"tower/conv0/conv", "conv")]
        return [Naming(DETECTORS, [form, *heads], "rpn.head.") for form in forms]


def _towers(conv: str, norm: str = "", step: int = 1) -> Naming:
    """Rules for the two towers: the n-th convolution has the number `step` * n, {0}; {1} is the next number."""

    def name(form: str) -> Any:
        def of(match: re.Match[str]) -> str:
            number = step * int(match[2])
            return f"{match[1]}_head.conv.{form.format(number, number + 1)}"

        return of

    rules = [
        Rule(r"(classification|regression)/conv(\d)/conv", name(conv)),
        Rule(r"(classification|regression)/conv(\d)/norm", name(norm)),
        Rule("logits", "classification_head.cls_logits"),
        Rule("deltas", "regression_head.bbox_reg"),
        Rule("centerness", "regression_head.bbox_ctrness"),
    ]
    return Naming(DETECTORS, rules, "head.")
