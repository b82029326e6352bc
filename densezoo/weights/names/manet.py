"""segmentation_models_pytorch's names of the MA-Net decoder."""

import re

from densezoo.decoders import MAnetDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule
from densezoo.weights.names.unet import smp_block


def _manet(decoder: MAnetDecoder) -> list[Naming]:
    def high_conv(match: re.Match[str]) -> str:
        return f"blocks.{match[1]}.hl_conv.{int(match[2]) - 1}.{int(match[3] == 'norm')}"

    def gate(match: re.Match[str]) -> str:
        return f"blocks.{match[1]}.SE_{match[2][0]}l.{1 if match[3] == 'reduce' else 3}"

    rules = [
        Rule(r"center/(\w+)_conv", r"center.\1_conv"),
        Rule(r"block(\d+)/high_conv(\d)/(conv|norm)", high_conv),
        Rule(r"block(\d+)/(high|low)_gate/(reduce|expand)", gate),
        *smp_block(r"block(?P<block>\d+)", r"blocks.\g<block>"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {MAnetDecoder: Family(_manet)}
