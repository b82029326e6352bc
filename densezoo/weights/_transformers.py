"""The configurations of transformers' models -> densezoo's models."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from densezoo.blocks import BatchNorm, Bilinear, LayerNorm
from densezoo.decoders import DPTDecoder, SegFormerDecoder, UPerNetDecoder
from densezoo.encoders import ConvNeXt, MixTransformer, Swin, ViT
from densezoo.heads import DPTDepthHead, DPTHead, SegmentationHead
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

DEEPEST = 1000  # layers; no published model has more than 100
_LARGEST_FACTOR = 64  # of the size of a map; published models have 4


def activation(config: Config) -> Callable[[jax.Array], jax.Array]:
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
    dims = config.sizes("hidden_sizes", (32, 64, 160, 256), 4)
    heads = config.sizes("num_attention_heads", (1, 2, 5, 8), 4)
    _check_heads(config, dims, heads)
    encoder = MixTransformer(
        depths=config.sizes("depths", (2, 2, 2, 2), 4, DEEPEST),
        embed_dims=dims,
        num_heads=heads,
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


def dpt(config: Config) -> nn.Module:
    """DPTForDepthEstimation and DPTForSemanticSegmentation over a ViT or a DINOv2."""
    architecture = check_class(config, "DPTForDepthEstimation", "DPTForSemanticSegmentation")
    if config.get("is_hybrid", False):
        raise config.unsupported("is_hybrid", True, "False, a DPT without convolutional backbone")
    config.only(head_in_index=-1)
    backbone = config.options.get("backbone_config")
    encoder = _vit(config) if backbone is None else dinov2(config.inner("backbone_config"))
    readout = config.choose("readout_type", "project", {"project": "cat", "add": "add", "ignore": "ignore"})
    if readout == "cat":
        config.only(hidden_act="gelu")
    segments = architecture == "DPTForSemanticSegmentation"
    norm_fusions = config.get("use_batch_norm_in_fusion_residual", False)
    fields = _neck(config, (96, 192, 384, 768), 256) | {
        "readout": readout,
        "norm_fusions": norm_fusions,
        "norm": BatchNorm if segments or norm_fusions else None,
        "fusion_bias": config.get("use_bias_in_fusion_residual", not norm_fusions),
        "double": True,
        "output": segments,
        "dropout": config.get("semantic_classifier_dropout", 0.1) if segments else 0.0,
    }
    if segments:
        head = DPTHead(num_labels(config), upsample=Bilinear, double=True)
    else:
        projection = 256 if config.get("add_projection", False) else None
        head = DPTDepthHead(projection=projection, double=True)
    return SegmentationModel(encoder, DPTDecoder(**fields), head)


def depth_anything(config: Config) -> nn.Module:
    """DepthAnythingForDepthEstimation of V1 and V2, relative or metric."""
    check_class(config, "DepthAnythingForDepthEstimation")
    config.only(head_in_index=-1)
    if config.options.get("backbone_config") is None:
        raise ValueError(f"{config.source} has no backbone_config, which describes the encoder")
    encoder = dinov2(config.inner("backbone_config"))
    patch_size = config.size("patch_size", 14)
    if (encoder.patch_size, encoder.embed_dim) != (patch_size, config.size("reassemble_hidden_size", 384)):
        raise ValueError(
            f"{config.source}: patch_size and reassemble_hidden_size are not those of its backbone_config, which are"
            f" {encoder.patch_size} and {encoder.embed_dim}"
        )
    fields = _neck(config, (48, 96, 192, 384), 64) | {
        "readout": "ignore",
        "norm": None,
        "output": False,
        "dropout": 0.0,
    }
    head = DPTDepthHead(
        hidden=config.size("head_hidden_size", 32),
        patch_size=patch_size,
        act=config.choose("depth_estimation_type", "relative", {"relative": nn.relu, "metric": nn.sigmoid}),
        max_depth=config.get("max_depth", 1.0),
    )
    return SegmentationModel(encoder, DPTDecoder(**fields), head)


def _neck(config: Config, hidden: Sequence[int], fused: int) -> dict[str, Any]:
    """The fields of the decoder that DPT and Depth Anything have in common."""
    hidden = config.sizes("neck_hidden_sizes", hidden)
    factors = config.get("reassemble_factors", (4.0, 2.0, 1.0, 0.5))
    whole = all(1 / _LARGEST_FACTOR <= x <= _LARGEST_FACTOR and max(x, 1 / x) % 1 == 0 for x in factors)
    if len(factors) != len(hidden) or not whole:
        supported = f"{len(hidden)} whole numbers up to {_LARGEST_FACTOR}, or their inverses"
        raise config.unsupported("reassemble_factors", factors, supported)
    return {
        "intermediate_features": hidden,
        "features": config.size("fusion_hidden_size", fused),
        "factors": factors,
        "first_lateral": False,
    }


def _vit(config: Config) -> ViT:
    """The encoder that DPT's own configuration describes."""
    indices = config.get("backbone_out_indices", (2, 5, 8, 11))
    return ViT(
        **_common(config, 384, 16, tuple(index + 1 for index in indices)),
        mlp_features=config.size("intermediate_size", 3072),
        epsilon=config.get("layer_norm_eps", 1e-12),
        resample="bilinear",
    )


def dinov2(config: Config) -> ViT:
    """Dinov2Model, with registers or without, on its own or as a backbone."""
    with_registers = config.choose("model_type", "", {"dinov2": False, "dinov2_with_registers": True})
    depth = config.size("num_hidden_layers", 12, DEEPEST)
    fields = _common(config, 224, 16 if with_registers else 14, _levels(config, depth)) | {
        "mlp_features": int(config.size("hidden_size", 768) * config.get("mlp_ratio", 4.0)),
        "epsilon": config.get("layer_norm_eps", 1e-6),
        "registers": config.size("num_register_tokens", 4) if with_registers else 0,
        "layer_scale": config.get("layerscale_value", 1.0),
        "norm_maps": config.get("apply_layernorm", True),
        "drop_path": config.get("drop_path_rate", 0.0),
        "resample": "antialiased" if with_registers else "bicubic",
    }
    if config.get("use_swiglu_ffn", False):
        # Two thirds of the channels, for as many weights, rounded up to a multiple of 8.
        fields |= {"gated": True, "act": nn.silu, "mlp_features": -(-int(fields["mlp_features"] * 2 / 3) // 8) * 8}
    return ViT(**fields)


def _levels(config: Config, depth: int) -> tuple[int, ...]:
    """The blocks whose results a backbone returns: by number, by name, or the last one."""
    names = config.get("out_features", ("",))
    numbers = [re.fullmatch(r"stage(\d{1,4})", name) for name in names]
    if config.options.get("out_indices") is not None:
        return tuple(index % (depth + 1) if index < 0 else index for index in config.get("out_indices", (0,)))
    if config.options.get("out_features") is None:
        return (depth,)
    return tuple(int(number[1]) if number else 0 for number in numbers)


def _common(config: Config, image_size: int, patch_size: int, levels: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a ViT that all configurations name alike."""
    depth = config.size("num_hidden_layers", 12, DEEPEST)
    if not levels or list(levels) != sorted(set(levels)) or not 1 <= levels[0] <= levels[-1] <= depth:
        raise ValueError(
            f"{config.source}: expected out_indices to be ascending numbers among the {depth} blocks; got, counted"
            f" from 1, {levels}"
        )
    dim, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    if dim % heads:
        raise ValueError(f"{config.source}: num_attention_heads={heads} does not divide hidden_size={dim}")
    image, patch = config.sizes("image_size", (image_size,)), config.sizes("patch_size", (patch_size,))
    if len({*image}) > 1 or len({*patch}) > 1 or image[0] < patch[0]:
        raise config.unsupported("image_size", image, f"squares of at least a patch, {patch}")
    return {
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "patch_size": patch[0],
        "grid": image[0] // patch[0],
        "levels": levels,
        "act": activation(config),
        "qkv_bias": config.get("qkv_bias", True),
        "pad": False,
    }


def upernet(config: Config) -> nn.Module:
    """UperNetForSemanticSegmentation over a ConvNeXt or a Swin. Its auxiliary head is left out."""
    check_class(config, "UperNetForSemanticSegmentation")
    inner = config.inner("backbone_config")
    encoder, epsilon = inner.choose("model_type", "", {"convnext": (_convnext, 1e-6), "swin": (_swin, 1e-5)})
    decoder = UPerNetDecoder(
        config.size("hidden_size", 512),
        config.sizes("pool_scales", (1, 2, 3, 6)),
        feature_norm=partial(LayerNorm, epsilon=epsilon),
    )
    return SegmentationModel(encoder(inner), decoder, SegmentationHead(num_labels(config), 1, Bilinear))


def _convnext(config: Config) -> ConvNeXt:
    _check_stages(config)
    config.only(patch_size=4, num_stages=4)
    scale = config.get("layer_scale_init_value", 1e-6)
    return ConvNeXt(
        depths=config.sizes("depths", (3, 3, 9, 3), 4, DEEPEST),
        dims=config.sizes("hidden_sizes", (96, 192, 384, 768), 4),
        layer_scale=scale if scale > 0 else None,
        act=activation(config),
        drop_path=config.get("drop_path_rate", 0.0),
    )


def _swin(config: Config) -> Swin:
    _check_stages(config)
    config.only(patch_size=4, use_absolute_embeddings=False)
    dim, heads = config.size("embed_dim", 96), config.sizes("num_heads", (3, 6, 12, 24), 4)
    encoder = Swin(
        depths=config.sizes("depths", (2, 2, 6, 2), 4, DEEPEST),
        embed_dim=dim,
        num_heads=heads,
        window_size=config.size("window_size", 7, 64),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        qkv_bias=config.get("qkv_bias", True),
        epsilon=config.get("layer_norm_eps", 1e-5),
        whole_windows=True,
        act=activation(config),
        drop_path=config.get("drop_path_rate", 0.1),
    )
    _check_heads(config, [dim * 2**stage for stage in range(4)], heads)
    return encoder


def _check_heads(config: Config, dims: Sequence[int], heads: Sequence[int]) -> None:
    """Raises a ValueError if the attention heads of a stage do not divide its channels."""
    if any(dim % count for dim, count in zip(dims, heads, strict=True)):
        raise ValueError(f"{config.source}: attention heads {tuple(heads)} must divide the channels {tuple(dims)}")


def _check_stages(config: Config) -> None:
    """Raises a ValueError if the backbone does not return the maps of all four stages."""
    names, indices = config.options.get("out_features"), config.options.get("out_indices")
    if names is None and indices is None:
        raise config.unsupported("out_features", None, "the four stages")
    config.only(out_features=("stage1", "stage2", "stage3", "stage4"), out_indices=(1, 2, 3, 4))


def check_class(config: Config, *supported: str) -> str:
    """Checks the class that wrote a configuration, and returns it; the first one if the configuration names none.

    Raises:
        ValueError: if it is another class: a classifier, or a bare encoder.
    """
    names = config.get("architectures", ("",)) if config.options.get("architectures") else supported
    found = [name for name in supported if name in names]
    if not found:
        raise config.unsupported("architectures", names, " or ".join(supported))
    return found[0]
