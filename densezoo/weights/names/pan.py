"""segmentation_models_pytorch's names of the PAN decoder."""

from densezoo.decoders import PANDecoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _pan(decoder: PANDecoder) -> list[Naming]:
    def named(path: str, name: str) -> list[Rule]:
        return [Rule(rf"{path}/conv", rf"{name}.conv"), Rule(rf"{path}/norm", rf"{name}.bn")]

    rules = [
        *named(r"fpa/(branch1|down1|down2)", r"fpa.\1.1"),
        *named(r"fpa/mid", r"fpa.mid.0"),
        *named(r"fpa/down3_(\d)", r"fpa.down3.\1"),
        *named(r"fpa/(conv\d)", r"fpa.\1"),
        *named(r"gau(\d+)/conv1", r"gau\1.conv1.1"),
        *named(r"gau(\d+)/conv2", r"gau\1.conv2"),
    ]
    return [Naming(SMP, rules, "decoder.")]


FAMILIES = {PANDecoder: Family(_pan)}
