"""segmentation_models_pytorch's names of UPerNet's decoder."""

from densezoo.decoders import UPerNetDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _upernet(decoder: UPerNetDecoder) -> list[Naming]:
    rules = [Rule(r"feature_norm(\d+)", r"feature_norms.\1")]
    for place, part in enumerate(("conv", "norm")):
        rules += [
            Rule(rf"pooling/conv(\d+)/{part}", rf"psp.blocks.\1.1.{place}"),
            Rule(rf"pooling_conv/{part}", f"psp.out_conv.{place}"),
            Rule(rf"lateral(\d+)/{part}", rf"fpn_lateral_blocks.\1.conv_norm_relu.{place}"),
            Rule(rf"conv(\d+)/{part}", rf"fpn_conv_blocks.\1.{place}"),
            Rule(rf"fusion/{part}", f"fusion_block.{place}"),
        ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {UPerNetDecoder: Family(_upernet)}
