"""segmentation_models_pytorch's and plain U-Nets' names of the U-Net's decoder."""

import re

from densezoo.decoders import UNetDecoder
from densezoo.weights.names.plain import PLAIN, PLAIN_FORMS, in_double_conv
from densezoo.weights.names.rules import SMP, Family, Naming, Rule

UNUSED_ATTENTION = r"decoder\.blocks\.\w+\.attention1\..*"
"""The reference has it in the last block too, and never calls it there."""


def smp_block(path: str, name: str) -> list[Rule]:
    """Rules for a `UNetBlock`; what `path` calls a group, `name` may use."""
    attention = r"attention(?P<attention>\d)"
    there = rf"{name}.attention\g<attention>.attention"
    return [
        Rule(rf"{path}/convs/conv(?P<conv>\d)/conv", rf"{name}.conv\g<conv>.0"),
        Rule(rf"{path}/convs/conv(?P<conv>\d)/norm", rf"{name}.conv\g<conv>.1"),
        Rule(rf"{path}/{attention}/channels/reduce", rf"{there}.cSE.1"),
        Rule(rf"{path}/{attention}/channels/expand", rf"{there}.cSE.3"),
        Rule(rf"{path}/{attention}/pixels", rf"{there}.sSE.0"),
    ]


def _unet(decoder: UNetDecoder) -> list[Naming]:
    def plain(transposed: str, convs: str) -> Naming:
        def name(match: re.Match[str]) -> str:
            return f"{convs.format(int(match[1]) + 1)}.{in_double_conv(decoder.norm, match)}"

        up = Rule(r"block(\d+)/upsample", lambda match: transposed.format(int(match[1]) + 1), "conv_transpose")
        return Naming(PLAIN, [Rule(r"block(\d+)/convs/conv(\d)/(conv|norm)", name), up])

    smp = [
        *smp_block(r"block(?P<block>\d+)", r"blocks.\g<block>"),
        Rule(r"center/conv(\d)/conv", lambda match: f"center.{int(match[1]) - 1}.0"),
        Rule(r"center/conv(\d)/norm", lambda match: f"center.{int(match[1]) - 1}.1"),
    ]
    return [
        Naming(SMP, smp, "decoder.", UNUSED_ATTENTION),
        # The transposed convolution is within the block, or beside it.
        *(plain("up{}.up", convs) for _, _, convs in PLAIN_FORMS),
        *(plain("up{}", convs) for _, _, convs in PLAIN_FORMS),
    ]


FAMILIES = {UNetDecoder: Family(_unet)}
