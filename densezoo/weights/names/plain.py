"""Names in wide use for plain U-Nets: what they call the encoder."""

import re
from typing import Any

from densezoo.encoders import PlainEncoder
from densezoo.weights.names.rules import Family, Naming, Rule


def in_double_conv(norm: Any, match: re.Match[str]) -> int:
    """Place of a convolution or norm in the sequence (convolution, norm, activation) twice; or without the norms."""
    return (int(match[2]) - 1) * (2 if norm is None else 3) + (match[3] == "norm")


# The plain U-Nets that people write have modules inc, down1.., up1.., outc, and differ in what is between them and the
# double convolution: (inc, down, up).
PLAIN_FORMS = (
    ("inc.double_conv", "down{}.maxpool_conv.1.double_conv", "up{}.conv.double_conv"),
    ("inc.double_conv", "down{}.1.double_conv", "conv{}.double_conv"),
    ("inc.double_conv", "down{}.double_conv", "up{}.double_conv"),
    ("inc.conv.conv", "down{}.mpconv.1.conv", "up{}.conv.conv"),
)
PLAIN = "plain U-Nets"


def _plain_encoder(encoder: PlainEncoder) -> list[Naming]:
    def naming(inc: str, down: str) -> Naming:
        def name(match: re.Match[str]) -> str:
            level = int(match[1])
            return f"{down.format(level) if level else inc}.{in_double_conv(encoder.norm, match)}"

        rules = [Rule(r"block(\d+)/conv(\d)/(conv|norm)", name)]
        return Naming(PLAIN, rules, ignored=r"(up\d+|conv\d+|outc)\..*")

    return [naming(inc, down) for inc, down, _ in PLAIN_FORMS]


FAMILIES = {PlainEncoder: Family(_plain_encoder, stem="block0/conv1/conv")}
