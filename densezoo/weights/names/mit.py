"""segmentation_models_pytorch's names of the Mix Transformer, which are those of its authors."""

import re

from densezoo.encoders import MixTransformer
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _mit(encoder: MixTransformer) -> list[Naming]:
    rules = [
        Rule(r"patch_embed(\d)_(proj|norm)", r"patch_embed\1.\2"),
        Rule(r"block(\d)_(\d+)/(norm\d)", r"block\1.\2.\3"),
        Rule(r"block(\d)_(\d+)/mlp/dwconv", r"block\1.\2.mlp.dwconv.dwconv"),
        Rule(r"block(\d)_(\d+)/(attn|mlp)/(\w+)", r"block\1.\2.\3.\4"),
        Rule(r"norm(\d)", r"norm\1"),
    ]
    others = rf"head\..*|(patch_embed|block|norm)[{encoder.stages + 1}-9]\..*"
    places = ((SMP, "encoder."), ("SegFormer's authors", ""), ("SegFormer's authors", "backbone."))
    return [Naming(source, rules, prefix, rf"{re.escape(prefix)}({others})") for source, prefix in places]


FAMILIES = {MixTransformer: Family(_mit, stem="patch_embed1_proj")}
