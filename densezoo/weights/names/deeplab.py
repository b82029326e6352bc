"""segmentation_models_pytorch's and torchvision's names of DeepLab's decoders."""

from densezoo.decoders import DeepLabV3Decoder, DeepLabV3PlusDecoder
from densezoo.weights.names.rules import SMP, TORCHVISION, Family, Naming, Rule


def _aspp(rates: int, name: str) -> list[Rule]:
    """Rules of a pyramid pooling with so many rates."""
    branch = rf"{name}.convs.\1"
    return [
        Rule(r"aspp/convs_(\d+)/conv", f"{branch}.0"),
        Rule(r"aspp/convs_(\d+)/norm", f"{branch}.1"),
        Rule(r"aspp/convs_(\d+)/depthwise", f"{branch}.0.0"),
        Rule(r"aspp/convs_(\d+)/pointwise/conv", f"{branch}.0.1"),
        Rule(r"aspp/convs_(\d+)/pointwise/norm", f"{branch}.1"),
        Rule(r"aspp/pool/conv", f"{name}.convs.{rates + 1}.1"),
        Rule(r"aspp/pool/norm", f"{name}.convs.{rates + 1}.2"),
        Rule(r"aspp/project/conv", f"{name}.project.0"),
        Rule(r"aspp/project/norm", f"{name}.project.1"),
    ]


def _deeplabv3(decoder: DeepLabV3Decoder) -> list[Naming]:
    def naming(source: str, prefix: str, aspp: str, conv: str, norm: str, ignored: str = "") -> Naming:
        rules = [*_aspp(len(decoder.atrous_rates), aspp), Rule("conv/conv", conv), Rule("conv/norm", norm)]
        return Naming(source, rules, prefix, ignored)

    return [
        naming(SMP, "decoder.", "aspp", "conv", "bn"),
        naming(SMP, "decoder.", "0", "1", "2"),  # up to its version 0.3
        naming(TORCHVISION, "classifier.", "0", "1", "2", r"aux_classifier\..*"),
    ]


def _deeplabv3plus(decoder: DeepLabV3PlusDecoder) -> list[Naming]:
    rules = [
        *_aspp(len(decoder.atrous_rates), "aspp.0"),
        Rule(r"aspp_conv/depthwise", "aspp.1.0"),
        Rule(r"aspp_conv/pointwise/conv", "aspp.1.1"),
        Rule(r"aspp_conv/pointwise/norm", "aspp.2"),
        Rule(r"block1/conv", "block1.0"),
        Rule(r"block1/norm", "block1.1"),
        Rule(r"block2/depthwise", "block2.0.0"),
        Rule(r"block2/pointwise/conv", "block2.0.1"),
        Rule(r"block2/pointwise/norm", "block2.1"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {DeepLabV3Decoder: Family(_deeplabv3), DeepLabV3PlusDecoder: Family(_deeplabv3plus)}
