"""How references name the parameters of the encoders, decoders, necks and heads here: a table a family, a file each."""

import flax.linen as nn

from densezoo.decoders import SegNetDecoder
from densezoo.weights.names import (
    convnext,
    deeplab,
    densenet,
    dpt,
    efficientnet,
    fpn,
    heads,
    hrnet,
    linknet,
    manet,
    mit,
    mobilenet,
    pan,
    plain,
    pspnet,
    resnet,
    segformer,
    senet,
    swin,
    unet,
    unetplusplus,
    upernet,
    vgg,
    vit,
)
from densezoo.weights.names.rules import Family

FAMILIES: dict[type[nn.Module], Family] = {
    **resnet.FAMILIES,
    **senet.FAMILIES,
    **densenet.FAMILIES,
    **vgg.FAMILIES,
    **convnext.FAMILIES,
    **swin.FAMILIES,
    **efficientnet.FAMILIES,
    **mobilenet.FAMILIES,
    **plain.FAMILIES,
    **unet.FAMILIES,
    **unetplusplus.FAMILIES,
    **manet.FAMILIES,
    **linknet.FAMILIES,
    **fpn.FAMILIES,
    **deeplab.FAMILIES,
    **pan.FAMILIES,
    **mit.FAMILIES,
    **vit.FAMILIES,
    **segformer.FAMILIES,
    **dpt.FAMILIES,
    **hrnet.FAMILIES,
    **upernet.FAMILIES,
    **pspnet.FAMILIES,
    SegNetDecoder: Family(lambda decoder: []),  # no reference for it is in common use
    **heads.FAMILIES,
}
"""Classes of modules to what is known of their names elsewhere."""
