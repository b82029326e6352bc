"""Plain U-Nets, whose architecture is inferred from the checkpoint."""

import itertools
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from densezoo.blocks import BatchNorm, Bilinear, ConcatSkip, TransposedConv
from densezoo.decoders import UNetDecoder
from densezoo.encoders import PlainEncoder
from densezoo.heads import SegmentationHead
from densezoo.models import SegmentationModel
from densezoo.naming import PLAIN, Named, Naming
from densezoo.types import ModuleDef
from densezoo.weights._convert import from_torch
from densezoo.weights._names import read_names
from densezoo.weights._prefix import prefix_of

_BILINEAR = partial(Bilinear, align_corners=True)  # as in most plain U-Nets


def _plain(module: Named) -> list[Naming]:
    """The namings of only plain U-Nets."""
    return [naming for naming in module.reference_names() if naming.source == PLAIN]


def plain_unet(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    skip_first: bool = True,
    upsample: ModuleDef = _BILINEAR,
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Creates a plain U-Net (`inc`, `down1`.., `up1`.., `outc`) and its variables from a PyTorch checkpoint.

    Channels, depth, classes, norms and transposed convolutions are inferred from the shapes. The arguments set what
    the shapes do not determine. Outputs equal the original's for images whose sides can be halved at every level. For
    other sizes, the originals pad the upsampled map with zeros, while densezoo repeats its edge or resizes it.

    Args:
        checkpoint: see `from_torch`.
        skip_first: whether the encoder's map comes before the decoder's in the concatenation, as in most plain U-Nets.
        upsample: factory of the upsampler, if the checkpoint has no transposed convolutions. Most plain U-Nets use
            bilinear with align-corners.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or is not a plain U-Net.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from densezoo.weights import plain_unet
        >>> shapes = {"inc.double_conv.0": (4, 3), "inc.double_conv.2": (4, 4), "down1.double_conv.0": (8, 4)}
        >>> shapes |= {"down1.double_conv.2": (8, 8), "up1.double_conv.0": (6, 12), "up1.double_conv.2": (4, 6)}
        >>> arrays = {f"{name}.weight": np.ones((*shape, 3, 3)) for name, shape in shapes.items()}
        >>> arrays |= {f"{name}.bias": np.ones(shape[0]) for name, shape in shapes.items()}
        >>> model, variables = plain_unet(arrays | {"outc.weight": np.ones((2, 4, 1, 1)), "outc.bias": np.zeros(2)})
        >>> model.decoder.features, model.decoder.hidden
        ((4,), (6,))
        >>> model.apply(variables, jnp.ones((1, 8, 6, 3))).shape
        (1, 8, 6, 2)
    """
    names = read_names(checkpoint)
    begin = [{f"{n.find('block0/conv1/conv')[0]}.weight"} for n in _plain(PlainEncoder())]  # pyright: ignore
    names.take_off(prefix_of(names, [begin], names.source))
    names.warn_of_others()
    shapes = {name: tuple(np.shape(array)) for name, array in names.items()}

    def shape(naming: Naming, path: str) -> tuple[int, ...] | None:
        found = naming.find(path)
        return shapes.get(f"{found[0]}.weight") if found else None

    def all_shapes(naming: Naming, path: str) -> list[tuple[int, ...]]:
        """Shapes of the kernels at a path for the levels 0, 1, ..., as long as they exist."""
        found = (shape(naming, path.format(level)) for level in itertools.count())
        return list(itertools.takewhile(lambda s: s is not None, found))  # pyright: ignore[reportReturnType]

    best = None
    for norm in (BatchNorm, None):
        for down in _plain(PlainEncoder(norm=norm)):
            features = [kernel[0] for kernel in all_shapes(down, "block{}/conv2/conv")]
            if len(features) > 1 and (best is None or len(features) > len(best[1])):
                best = norm, features
    if best is None:
        raise ValueError(f"{names.source} has no names of a plain U-Net, such as inc.double_conv.0 and down1...")
    norm, features = best
    hidden, out, transposed = [], [], []
    for up in _plain(UNetDecoder(norm=norm)):
        first, second = all_shapes(up, "block{}/convs/conv1/conv"), all_shapes(up, "block{}/convs/conv2/conv")
        if len(first) == len(second) == len(features) - 1:
            hidden, out = [kernel[0] for kernel in first], [kernel[0] for kernel in second]
            transposed = transposed or all_shapes(up, "block{}/upsample")
    heads = [kernel for naming in _plain(SegmentationHead(1)) if (kernel := shape(naming, "conv"))]
    if not out or not heads:
        raise ValueError(f"{names.source} has {len(features)} levels on the way down, but not up1.. or outc to match")
    if transposed:
        inputs, outputs, size, _ = transposed[0]
        upsample = partial(TransposedConv, kernel_size=size, reduction=inputs // outputs)
    model = SegmentationModel(
        encoder=PlainEncoder(features=tuple(features), norm=norm),
        decoder=UNetDecoder(
            features=tuple(out),
            hidden=tuple(hidden),
            skip=partial(ConcatSkip, skip_first=skip_first),
            upsample=upsample,
            norm=norm,
        ),
        head=SegmentationHead(heads[0][0], kernel_size=heads[0][2]),
    )
    return model, from_torch(model, names)
