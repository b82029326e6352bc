"""segmentation_models_pytorch's names of the LinkNet decoder."""

from densezoo.decoders import LinknetDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _linknet(decoder: LinknetDecoder) -> list[Naming]:
    rules = [
        Rule(r"block(\d+)/reduce/conv", r"blocks.\1.block.0.0"),
        Rule(r"block(\d+)/reduce/norm", r"blocks.\1.block.0.1"),
        Rule(r"block(\d+)/upsample", r"blocks.\1.block.1.0", "conv_transpose"),
        Rule(r"block(\d+)/norm", r"blocks.\1.block.1.1"),
        Rule(r"block(\d+)/expand/conv", r"blocks.\1.block.2.0"),
        Rule(r"block(\d+)/expand/norm", r"blocks.\1.block.2.1"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {LinknetDecoder: Family(_linknet)}
