"""timm's names of Swin, and those of its authors."""

import re

from densezoo.encoders import Swin
from densezoo.weights.names.rules import SMP, TIMM, Family, Naming, Rule


def _swin(encoder: Swin) -> list[Naming]:
    coarsest = len(encoder.reductions) - 1

    def naming(source: str, prefix: str, dot: str, step_in_stage_before: bool = False) -> Naming:
        def downsample(match: re.Match[str]) -> str:
            return f"layers{dot}{int(match[1]) - step_in_stage_before}.downsample.{match[2]}"

        block = r"stage(\d)_block(\d+)"
        rules = [
            Rule(r"patch_embed_(proj|norm)", r"patch_embed.\1"),
            Rule(r"stage(\d)_downsample/(norm|reduction)", downsample),
            Rule(rf"{block}/(norm\d)", rf"layers{dot}\1.blocks.\2.\3"),
            Rule(rf"{block}/attn/(\w+)", rf"layers{dot}\1.blocks.\2.attn.\3"),
            Rule(rf"{block}/(fc\d)", rf"layers{dot}\1.blocks.\2.mlp.\3"),
        ]
        # The classifier, what older versions of timm kept with the weights, and stages that this encoder leaves out.
        others = [r"(norm|head)\..*", r".*\.(relative_position_index|attn_mask)"]
        others.append(rf"layers{re.escape(dot)}[{coarsest + 1}-9]\..*")
        if step_in_stage_before:
            others.append(rf"layers\.{coarsest}\.downsample\..*")
        return Naming(source, rules, prefix, rf"{re.escape(prefix)}({'|'.join(others)})")

    # timm's `features_only` puts the modules of a list side by side: `layers.0` is `layers_0` there.
    places = [(TIMM, "", "."), (TIMM, "", "_"), (SMP, "encoder.model.", "_"), (SMP, "encoder.model.", ".")]
    places += [(SMP, "encoder.", "."), (SMP, "encoder.", "_")]
    # The authors' steps down end the stage before, timm's begin the next. First, since timm's names of the first few
    # stages are in the authors' checkpoints too.
    return [naming("Swin's authors", "", ".", True), *(naming(*place) for place in places)]


FAMILIES = {Swin: Family(_swin, stem="patch_embed_proj")}
