"""How references name the parameters of the encoders, decoders, necks and heads here: a table a family, a file each."""

import flax.linen as nn

from densezoo.decoders import SegNetDecoder
from densezoo.weights.names import fpn, heads, plain, resnet, unet, vgg
from densezoo.weights.names.rules import Family

FAMILIES: dict[type[nn.Module], Family] = {
    **resnet.FAMILIES,
    **vgg.FAMILIES,
    **plain.FAMILIES,
    **unet.FAMILIES,
    **fpn.FAMILIES,
    SegNetDecoder: Family(lambda decoder: []),  # no reference for it is in common use
    **heads.FAMILIES,
}
"""Classes of modules to what is known of their names elsewhere."""
