"""segmentation_models_pytorch's names of SegFormer's decoder."""

from densezoo.decoders import SegFormerDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _segformer(decoder: SegFormerDecoder) -> list[Naming]:
    rules = [
        Rule(r"mlp_stage_(\d)", r"mlp_stage.\1.linear"),
        Rule("fuse_conv", "fuse_stage.0"),
        Rule("fuse_norm", "fuse_stage.1"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {SegFormerDecoder: Family(_segformer)}
