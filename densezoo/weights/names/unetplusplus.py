"""segmentation_models_pytorch's names of the U-Net++ decoder."""

from densezoo.decoders import UNetPlusPlusDecoder
from densezoo.weights.names.rules import SMP, Family, Naming
from densezoo.weights.names.unet import UNUSED_ATTENTION, smp_block


def _unetplusplus(decoder: UNetPlusPlusDecoder) -> list[Naming]:
    rules = smp_block(r"(?P<block>x_\d+_\d+)", r"blocks.\g<block>")
    # Over VGG the reference has a center block too, and never calls it.
    return [Naming(SMP, rules, "decoder.", rf"decoder\.center\..*|{UNUSED_ATTENTION}")]


FAMILIES = {UNetPlusPlusDecoder: Family(_unetplusplus)}
