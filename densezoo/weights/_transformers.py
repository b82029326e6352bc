"""The configurations of transformers' models -> densezoo's models."""

from functools import partial

import flax.linen as nn

from densezoo.blocks import Bilinear
from densezoo.decoders import SegFormerDecoder
from densezoo.encoders import MixTransformer
from densezoo.heads import SegmentationHead
from densezoo.models import SegmentationModel
from densezoo.weights._repository import Config

ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}
"""Activations by transformers' names."""

_DEEPEST = 1000  # layers; no published model has more than 100


def activation(config: Config):
    """The activation that the configuration names."""
    return config.choose("hidden_act", "gelu", ACTIVATIONS)


def num_labels(config: Config) -> int:
    """The number of classes.

    Raises:
        ValueError: if the configuration contradicts itself.
    """
    labels = config.options.get("id2label")
    count = config.size("num_labels", len(labels) if isinstance(labels, dict) and labels else 2)
    if isinstance(labels, dict) and labels and len(labels) != count:
        raise ValueError(f"{config.source}: num_labels={count}, and id2label names {len(labels)} classes")
    return count


def segformer(config: Config) -> nn.Module:
    """SegformerForSemanticSegmentation: logits at the size of the images."""
    config.only(patch_sizes=(7, 3, 3, 3), strides=(4, 2, 2, 2), reshape_last_stage=True, num_encoder_blocks=4)
    check_class(config, "SegformerForSemanticSegmentation")
    encoder = MixTransformer(
        depths=config.sizes("depths", (2, 2, 2, 2), 4, _DEEPEST),
        embed_dims=config.sizes("hidden_sizes", (32, 64, 160, 256), 4),
        num_heads=config.sizes("num_attention_heads", (1, 2, 5, 8), 4),
        sr_ratios=config.sizes("sr_ratios", (8, 4, 2, 1), 4),
        mlp_ratios=config.sizes("mlp_ratios", (4, 4, 4, 4), 4),
        act=activation(config),
        epsilon=1e-5,  # torch's default: transformers does not use the configuration's layer_norm_eps
        drop_path=config.get("drop_path_rate", 0.1),
    )
    decoder = SegFormerDecoder(
        config.size("decoder_hidden_size", 256), dropout=config.get("classifier_dropout_prob", 0.1)
    )
    return SegmentationModel(encoder, decoder, SegmentationHead(num_labels(config), 1, Bilinear))


def check_class(config: Config, *supported: str) -> None:
    """Checks the class that wrote a configuration, if it names one.

    Raises:
        ValueError: if it is another class: a classifier, or a bare encoder.
    """
    names = config.options.get("architectures")
    if isinstance(names, list) and names and not set(supported) & set(map(str, names)):
        raise config.unsupported("architectures", names, " or ".join(supported))
