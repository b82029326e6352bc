"""segmentation_models_pytorch's names of the FPN decoder, and torchvision's of the neck."""

import re

from densezoo.decoders import FPNDecoder, FPNNeck
from densezoo.weights.names.rules import DETECTORS, SMP, Family, Naming, Rule


def _fpn(decoder: FPNDecoder) -> list[Naming]:
    coarsest = decoder.levels - 1

    def segmentation_block(match: re.Match[str]) -> str:
        # Counted from the coarsest map there, from the finest here.
        return f"seg_blocks.{coarsest - int(match[1])}.block.{match[2]}.block.{int(match[3] == 'norm')}"

    rules = [
        Rule(r"top_down/top", f"p{coarsest + 2}"),
        Rule(r"top_down/skip(\d)/lateral", lambda match: f"p{int(match[1]) + 2}.skip_conv"),
        Rule(r"level(\d)_conv(\d)/(conv|norm)", segmentation_block),
    ]
    return [Naming(SMP, rules, "decoder.")]


def _fpn_neck(neck: FPNNeck) -> list[Naming]:
    def naming(prefix: str, within: str) -> Naming:
        rules = [
            Rule(r"top_down/top", f"inner_blocks.{neck.levels - 1}{within}"),
            Rule(r"top_down/skip(\d)/lateral", rf"inner_blocks.\1{within}"),
            Rule(r"output(\d)", rf"layer_blocks.\1{within}"),
        ]
        others = rf"{re.escape(prefix)}extra_blocks\..*|(rpn|roi_heads|head)\..*"
        return Naming(DETECTORS, rules, prefix, others)

    # Since torchvision 0.13 every convolution of the neck is in a block of its own.
    return [naming(prefix, within) for prefix in ("backbone.fpn.", "fpn.") for within in (".0", "")]


FAMILIES = {FPNDecoder: Family(_fpn), FPNNeck: Family(_fpn_neck)}
