"""Parameter names of a diffusion U-Net in diffusers."""

import re
from collections.abc import Sequence
from typing import Any

from densezoo.naming import DIFFUSERS, Naming, Rule
from densezoo.types import ModuleDef


def diffusers_names(down: Sequence[ModuleDef], up: Sequence[ModuleDef]) -> list[Naming]:
    """Names of the `UNet2DModel` of today, and of its first versions, for factories of levels."""
    return [Naming(DIFFUSERS, _rules(down, up, attention)) for attention in (_TODAY, _FIRST)]


_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_FIRST = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
"""Names of the layers of attention in diffusers."""


def _rules(down: Sequence[ModuleDef], up: Sequence[ModuleDef], attention: dict[str, str]) -> list[Rule]:
    levels = {"down": "down_blocks.{}.", "up": "up_blocks.{}.", "middle": "mid_block."}
    layers = {"condition": "time_emb_proj", "shortcut": "conv_shortcut"}

    def level(match: re.Match[str]) -> str:
        return levels[match["way"]].format(match["level"])

    def resample(match: re.Match[str]) -> str:
        factory: Any = (down if match["way"] == "down" else up)[int(match["level"])]
        image = getattr(factory, "keywords", {}).get("image")
        alone = f"resnet_{match['way']}" if image else f"{match['way']}samplers.0"
        return f"{level(match)}{alone}.{layers.get(match['layer'], match['layer'])}"

    def block(match: re.Match[str]) -> str:
        return f"{level(match)}resnets.{match['index']}.{layers.get(match['layer'], match['layer'])}"

    def attend(match: re.Match[str]) -> str:
        return f"{level(match)}attentions.{match['index']}.{(attention | {'norm': 'group_norm'})[match['layer']]}"

    start = r"(?P<way>down|up|middle)(?P<level>\d*)"
    layer = r"(?P<layer>norm1|conv1|condition|norm2|conv2|shortcut)"
    return [
        Rule("stem", "conv_in"),
        Rule("out_norm", "conv_norm_out"),
        Rule("out", "conv_out"),
        Rule(r"time_dense(\d)", r"time_embedding.linear_\1"),
        Rule(r"class_dense(\d)", r"class_embedding.linear_\1"),
        Rule("classes", "class_embedding.weight"),
        Rule("time/weight|time/table/embedding", "time_proj.weight"),
        Rule(rf"{start}/block(?P<index>\d+)/{layer}", block),
        Rule(rf"{start}/attention(?P<index>\d+)/(?P<layer>norm|query|key|value|out)", attend),
        Rule(rf"{start}/resample/{layer}", resample),
        Rule(rf"{start}/(down|up)sample/conv", lambda match: f"{level(match)}{match['way']}samplers.0.conv"),
        Rule(rf"{start}/image", lambda match: f"{level(match)}skip_conv"),
        Rule(rf"{start}/image_norm", lambda match: f"{level(match)}skip_norm"),
    ]
