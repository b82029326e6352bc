"""segmentation_models_pytorch's names of PSPNet's decoder."""

from densezoo.decoders import PSPNetDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _pspnet(decoder: PSPNetDecoder) -> list[Naming]:
    rules = [
        Rule(r"pooling/conv(\d+)/conv", r"psp.blocks.\1.pool.1.0"),
        Rule(r"pooling/conv(\d+)/norm", r"psp.blocks.\1.pool.1.1"),
        Rule(r"conv/conv", "conv.0"),
        Rule(r"conv/norm", "conv.1"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {PSPNetDecoder: Family(_pspnet)}
