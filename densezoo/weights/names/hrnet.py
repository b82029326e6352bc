"""timm's names of HRNet, which are its authors', and the authors' of its head for segmentation."""

import re

from densezoo.decoders import HRNetDecoder
from densezoo.encoders import HRNet
from densezoo.weights.names.rules import Family, Naming, Rule, backbone, ignoring

AUTHORS = "HRNet's authors"


def _hrnet(encoder: HRNet) -> list[Naming]:
    def transition(match: re.Match[str]) -> str:
        stage, scale = match[1], match[2]
        # The scale that is new in a stage has a sequence of convolutions there, of one.
        inner = "0." if stage == scale else ""
        return f"transition{stage}.{scale}.{inner}{int(match[3] == 'norm')}"

    rules = [Rule(r"transition(\d)_(\d)/(conv|norm)", transition)]
    blocks = {r"layer1_(\d+)": r"layer1.\1", r"incre(\d)": r"incre_modules.\1.0"}
    blocks[r"stage(\d)_(\d+)/branch(\d)_(\d+)"] = r"stage\1.\2.branches.\3.\4"
    for place, (part, name) in enumerate((("conv", "conv"), ("norm", "bn"))):
        rules += [
            Rule(rf"conv(\d)/{part}", rf"{name}\1"),
            Rule(rf"stage(\d)_(\d+)/fuse(\d)_(\d)/{part}", rf"stage\1.\2.fuse_layers.\3.\4.{place}"),
            Rule(rf"stage(\d)_(\d+)/fuse(\d)_(\d)_(\d)/{part}", rf"stage\1.\2.fuse_layers.\3.\4.\5.{place}"),
        ]
        for path, block in blocks.items():
            rules.append(Rule(rf"{path}/conv(?P<number>\d)/{part}", rf"{block}.{name}\g<number>"))
            rules.append(Rule(rf"{path}/downsample/{part}", f"{block}.downsample.{place}"))
    # What only classification needs, the head, and what a smaller `coarsest` leaves out.
    last = f"stage{len(encoder.stage_sizes) + 1}\\.{encoder.stage_sizes[-1] - 1}"
    coarser = rf"{last}\.fuse_layers\.[{len(encoder.scales)}-9]\..*"
    others = r"(incre_modules|downsamp_modules|final_layer|classifier|last_layer)\..*"
    # The authors' model for segmentation has the backbone's names without a prefix, as timm's encoder has.
    return ignoring([*backbone(rules, wrapped=True), Naming(AUTHORS, rules)], f"{others}|{coarser}")


def _hrnet_decoder(decoder: HRNetDecoder) -> list[Naming]:
    return [Naming(AUTHORS, [Rule("conv/conv", "last_layer.0"), Rule("conv/norm", "last_layer.1")])]


FAMILIES = {HRNet: Family(_hrnet, stem="conv1/conv"), HRNetDecoder: Family(_hrnet_decoder)}
