"""timm's names of the Vision Transformer."""

import re

from densezoo.encoders import ViT
from densezoo.weights.names.rules import SMP, TIMM, Family, Naming, Rule


def _vit(encoder: ViT) -> list[Naming]:
    rules = [
        Rule("patch_embed", "patch_embed.proj"),
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "pos_embed"),
        Rule(r"blocks_(\d+)/(norm\d)", r"blocks.\1.\2"),
        Rule(r"blocks_(\d+)/(attn|mlp)/(\w+)", r"blocks.\1.\2.\3"),
    ]
    return [
        Naming(source, rules, prefix, ignored=rf"{re.escape(prefix)}(norm|fc_norm|head|pre_logits)\..*")
        for source, prefix in ((SMP, "encoder.model."), (TIMM, ""), (TIMM, "backbone."))
    ]


FAMILIES = {ViT: Family(_vit, stem="patch_embed")}
