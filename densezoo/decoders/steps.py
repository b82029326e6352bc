"""Functions shared by decoders: the selection of maps, the sizes of the decoder's steps, and the output."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from densezoo.blocks import Nearest, SpatialDropout
from densezoo.encoders import Encoder
from densezoo.types import ModuleDef, Pyramid, Size, size_of


def from_reduction(pyramid: Pyramid, finest: int) -> list[tuple[jax.Array, int]]:
    """The maps at 1/`finest` of the image and coarser, but at least the coarsest map, each with its reduction.

    For a pyramid without reductions, these are all of its maps, with reductions that double from map to map.
    """
    reductions = pyramid.reductions or tuple(finest * 2**level for level in range(len(pyramid.maps)))
    features = list(zip(pyramid.maps, reductions, strict=True))
    return [(x, reduction) for x, reduction in features if reduction >= finest] or features[-1:]


def dropped(
    maps: Sequence[jax.Array], rate: float, *, train: bool, all_scales: bool
) -> jax.Array | tuple[jax.Array, ...]:
    """The output of a decoder after dropout: the first of its maps, or all of them."""
    kept = tuple(maps) if all_scales else (maps[0],)
    if rate:  # no dropout module otherwise, so that the last block produces the output, also in diagrams
        dropout = SpatialDropout(rate)
        kept = tuple(dropout(x, train=train) for x in kept)
    return kept if all_scales else kept[0]


def check_count(decoder: str, needed: int, given: int, *, field: str, what: str = "maps", more: bool = False) -> None:
    """Raises a ValueError unless the encoder gives what a decoder needs.

    Args:
        decoder: name of the decoder.
        needed: the number that it needs.
        given: the number that the encoder gives.
        field: the decoder's field that sets `needed`, with its value.
        what: what is counted.
        more: whether the encoder may give more.
    """
    if needed < 1 or given < needed or (given > needed and not more):
        least = "at least " if more or needed < 1 else ""
        raise ValueError(
            f"{decoder} needs {least}{max(needed, 1)} of the encoder's {what} for {field}, and this encoder gives"
            f" {given}: change the field or the encoder. dz.create_model can choose the field if it is a dz.Encoder"
        )


class Step(NamedTuple):
    """A step of a decoder: its channels, the encoder's map of the skip (None beyond the finest map), and its size.

    `upsample` creates the upsampler from the coarser map to that size.
    """

    features: int
    skip: jax.Array | None
    size: Size
    upsample: ModuleDef


def upsampler_to(level: int, reductions: Sequence[int] | None, upsample: ModuleDef) -> ModuleDef:
    """The upsampler from map `level + 1` to map `level`. It has no weights if dilation left both at one scale.

    The reductions decide this, not the sizes: all maps of a one-pixel image have the same size.
    """
    return Nearest if reductions is not None and reductions[level] == reductions[level + 1] else upsample


def steps_up(pyramid: Pyramid, features: Sequence[int] | None, upsample: ModuleDef, decoder: str) -> list[Step]:
    """The steps of a decoder from the coarsest map to the image: one for every skip, then doublings without skips.

    Args:
        pyramid: the decoder's input.
        features: channels of each step; None gives the last one 16, the one before 32, and so on.
        upsample: creates the upsampler of each step that changes the scale.
        decoder: name of the decoder, for messages.
    """
    *skips, _ = pyramid.maps
    if isinstance(features, int):
        raise TypeError(f"features needs an entry for each block of {decoder}, such as (256, 128, 64); got {features}")
    beyond = None if features is None else len(features) - len(skips)
    if beyond is not None and beyond < 0:
        raise ValueError(
            f"the encoder has {len(skips)} skips, and {decoder} needs a block for each; got only"
            f" {len(features or ())} in features={features}"
        )
    sizes = [size_of(skip) for skip in reversed(skips)] + sizes_beyond(pyramid, beyond)
    joined = [*reversed(skips), *[None] * (len(sizes) - len(skips))]
    upsamplers = [upsampler_to(level, pyramid.reductions, upsample) for level in reversed(range(len(skips)))]
    upsamplers += [upsample] * (len(sizes) - len(skips))
    channels = features or [16 * 2**step for step in reversed(range(len(sizes)))]
    return [Step(*step) for step in zip(channels, joined, sizes, upsamplers, strict=True)]


def sizes_beyond(pyramid: Pyramid, count: int | None) -> list[Size]:
    """Sizes of `count` doublings beyond the finest map, finest last. None means as many as the image size needs."""
    height, width = size_of(pyramid.maps[0])
    if pyramid.reductions is None or pyramid.image_size is None:
        return [(height * 2**step, width * 2**step) for step in range(1, (count or 0) + 1)]
    to_image = math.ceil(math.log2(pyramid.reductions[0]))
    if count is None:
        count = to_image
    if count > to_image:
        raise ValueError(
            f"the finest map is at 1/{pyramid.reductions[0]} of the image, {to_image} doublings away from it, but the"
            f" decoder has {count} blocks for them: remove {count - to_image} entries from features"
        )
    # Rounded up, as every strided convolution here rounds; the last of them is exactly the image.
    steps = range(to_image - 1, to_image - 1 - count, -1)
    return [(-(-pyramid.image_size[0] // 2**step), -(-pyramid.image_size[1] // 2**step)) for step in steps]


def one_scale(encoder: Encoder) -> str:
    """The `misfit` of decoders that need several scales."""
    scales = encoder.reductions
    if len(scales) < 2 or len(set(scales)) > 1:
        return ""
    return f"all of its maps are at 1/{scales[0]} of the image, and this decoder needs several scales: use dpt"


def from_a_quarter(reductions: Sequence[int]) -> list[int]:
    """The indices of the maps at 1/4 of the image and coarser, as selected by `from_reduction(pyramid, 4)`."""
    return [level for level, reduction in enumerate(reductions) if reduction >= 4] or [len(reductions) - 1]
