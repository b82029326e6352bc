"""segmentation_models_pytorch's names of DPT's decoder and head."""

from densezoo.decoders import DPTDecoder
from densezoo.heads import DPTHead
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _dpt(decoder: DPTDecoder) -> list[Naming]:
    fusion = r"decoder.fusion_blocks.\1"
    reassemble = r"decoder.reassemble_blocks.\1"
    rules = [
        Rule(r"readout(\d)/project", r"decoder.projection_blocks.\1.project.0"),
        Rule(r"reassemble(\d)/project", rf"{reassemble}.project_to_out_channel"),
        Rule(r"reassemble(\d)/enlarge", rf"{reassemble}.upsample", "conv_transpose"),
        Rule(r"reassemble(\d)/reduce", rf"{reassemble}.upsample"),
        Rule(r"reassemble(\d)/output", rf"{reassemble}.project_to_feature_dim"),
        Rule(r"fusion(\d)/residual(\d)/conv_(\d)/conv", rf"{fusion}.residual_conv_block\2.conv_\3"),
        Rule(r"fusion(\d)/residual(\d)/conv_(\d)/norm", rf"{fusion}.residual_conv_block\2.batch_norm_\3"),
        Rule(r"fusion(\d)/project", rf"{fusion}.project"),
        # Part of the head there.
        Rule("output/conv", "segmentation_head.head.0"),
        Rule("output/norm", "segmentation_head.head.1"),
    ]
    return [Naming(SMP, rules)]


def _dpt_head(head: DPTHead) -> list[Naming]:
    return [Naming(SMP, [Rule("conv", "segmentation_head.head.4")])]


FAMILIES = {DPTDecoder: Family(_dpt), DPTHead: Family(_dpt_head)}
