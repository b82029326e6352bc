"""timm's names of ConvNeXt."""

import re

from densezoo.encoders import ConvNeXt
from densezoo.weights.names.rules import SMP, TIMM, Family, Naming, Rule


def _convnext(encoder: ConvNeXt) -> list[Naming]:
    def naming(source: str, prefix: str, dot: str) -> Naming:
        block = r"stage(\d)_block(\d+)"
        rules = [
            Rule(r"stem_conv", f"stem{dot}0"),
            Rule(r"stem_norm", f"stem{dot}1"),
            Rule(r"stage(\d)_downsample_norm", rf"stages{dot}\1.downsample.0"),
            Rule(r"stage(\d)_downsample_conv", rf"stages{dot}\1.downsample.1"),
            Rule(rf"{block}/(conv_dw|norm|gamma)", rf"stages{dot}\1.blocks.\2.\3"),
            Rule(rf"{block}/(fc1|grn|fc2)", rf"stages{dot}\1.blocks.\2.mlp.\3"),
        ]
        # The classifier, and stages that this encoder leaves out.
        others = rf"(norm_pre|head)\..*|stages{re.escape(dot)}[{len(encoder.reductions)}-9]\..*"
        return Naming(source, rules, prefix, rf"{re.escape(prefix)}({others})")

    # timm's `features_only` puts the modules of a list side by side: `stages.0` is `stages_0` there.
    places = [(TIMM, "", "."), (TIMM, "", "_"), (SMP, "encoder.model.", "_"), (SMP, "encoder.model.", ".")]
    return [naming(*place) for place in [*places, (SMP, "encoder.", "."), (SMP, "encoder.", "_")]]


FAMILIES = {ConvNeXt: Family(_convnext, stem="stem_conv")}
