"""segmentation_models_pytorch's names of SE-ResNet, which are those of the Caffe models' first port to PyTorch."""

from densezoo.encoders import SENet
from densezoo.weights.names.resnet import blocks, deeper
from densezoo.weights.names.rules import SMP, Family, Naming, Rule, ignoring


def _senet(encoder: SENet) -> list[Naming]:
    stem = [Rule(r"conv1/conv", "layer0.conv1"), Rule(r"conv1/norm", "layer0.bn1")]
    rules = [*stem, *blocks(encoder, "se_module")]
    namings = [Naming(SMP, rules, "encoder."), Naming(SMP, rules, "", ignored=r"last_linear\..*")]
    return ignoring(namings, deeper(encoder))


FAMILIES = {SENet: Family(_senet, stem="conv1/conv")}
