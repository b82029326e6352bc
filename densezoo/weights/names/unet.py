"""segmentation_models_pytorch's and plain U-Nets' names of the U-Net's decoder."""

import re

from densezoo.decoders import UNetDecoder
from densezoo.weights.names.plain import PLAIN, PLAIN_FORMS, in_double_conv
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _unet(decoder: UNetDecoder) -> list[Naming]:
    def plain(transposed: str, convs: str) -> Naming:
        def name(match: re.Match[str]) -> str:
            return f"{convs.format(int(match[1]) + 1)}.{in_double_conv(decoder.norm, match)}"

        up = Rule(r"block(\d+)/upsample", lambda match: transposed.format(int(match[1]) + 1), "conv_transpose")
        return Naming(PLAIN, [Rule(r"block(\d+)/convs/conv(\d)/(conv|norm)", name), up])

    smp = [
        Rule(r"block(\d+)/convs/conv(\d)/conv", r"blocks.\1.conv\2.0"),
        Rule(r"block(\d+)/convs/conv(\d)/norm", r"blocks.\1.conv\2.1"),
        Rule(r"center/conv(\d)/conv", lambda match: f"center.{int(match[1]) - 1}.0"),
        Rule(r"center/conv(\d)/norm", lambda match: f"center.{int(match[1]) - 1}.1"),
    ]
    return [
        Naming(SMP, smp, "decoder."),
        # The transposed convolution is within the block, or beside it.
        *(plain("up{}.up", convs) for _, _, convs in PLAIN_FORMS),
        *(plain("up{}", convs) for _, _, convs in PLAIN_FORMS),
    ]


FAMILIES = {UNetDecoder: Family(_unet)}
