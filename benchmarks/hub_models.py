"""Models of transformers and diffusers: their configurations, and how to create them. Imports neither jax nor torch."""

import importlib
from typing import Any

TRANSFORMERS = "transformers"
"""The name of the family in `--models`, such as `transformers:depth_anything_small`."""
DIFFUSERS = "diffusers"
"""Likewise, such as `diffusers:ddpm_cifar10`."""
TIME = 500
"""The time of a diffusion network, which then takes nothing but images."""

_DINOV2_SMALL = {
    "model_type": "dinov2",
    "image_size": 518,
    "patch_size": 14,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_hidden_layers": 12,
    "out_indices": [3, 6, 9, 12],
    "reshape_hidden_states": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # depth-anything/Depth-Anything-V2-Small-hf
    "depth_anything_small": {
        "model_type": "depth_anything",
        "backbone_config": _DINOV2_SMALL,
        "reassemble_hidden_size": 384,
        "neck_hidden_sizes": [48, 96, 192, 384],
        "fusion_hidden_size": 64,
    },
    # facebook/dpt-dinov2-small-nyu: of DPT's models, the one with a ViT-S
    "dpt_dinov2_small": {
        "model_type": "dpt",
        "architectures": ["DPTForDepthEstimation"],
        "backbone_config": _DINOV2_SMALL,
        "neck_hidden_sizes": [48, 96, 192, 384],
        "add_projection": True,
        "use_bias_in_fusion_residual": False,
    },
    # nvidia/segformer-b0-finetuned-ade-512-512
    "segformer_b0": {"model_type": "segformer", "num_labels": 150},
    # google/ddpm-cifar10-32
    "ddpm_cifar10": {
        "_class_name": "UNet2DModel",
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    },
}
"""The configurations of published models."""


def make(name: str) -> Any:
    """Creates a model with random weights: NCHW images -> NCHW logits, depth or noise of the images' size.

    Its state_dict has the names of the published files.

    Raises:
        KeyError: if there is no such configuration.
    """
    if "_class_name" in CONFIGS[name]:
        return _of_diffusers(CONFIGS[name])
    tf: Any = importlib.import_module("transformers")
    loading: Any = importlib.import_module("transformers.core_model_loading")
    torch: Any = importlib.import_module("torch")
    options = {key: value for key, value in CONFIGS[name].items() if key != "architectures"}
    if "backbone_config" in options:
        options["backbone_config"] = tf.AutoConfig.for_model(**options["backbone_config"])
    config = tf.AutoConfig.for_model(**options)
    depth = options["model_type"] != "segformer"
    auto = tf.AutoModelForDepthEstimation if depth else tf.AutoModelForSemanticSegmentation

    class Whole(torch.nn.Module):
        old_exporter = False  # torch's older exporter to ONNX crashes now and then on a ViT

        def __init__(self):
            super().__init__()
            self.model = auto.from_config(config)

        def forward(self, images: Any) -> Any:
            outputs = self.model(images)
            maps = outputs.predicted_depth[:, None] if depth else outputs.logits
            if maps.shape[2:] == images.shape[2:]:
                return maps
            mode = "bicubic" if depth else "bilinear"
            return torch.nn.functional.interpolate(maps, images.shape[2:], mode=mode, align_corners=False)

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return loading.revert_weight_conversion(self.model, self.model.state_dict(*args, **kwargs))

    return Whole()


def _of_diffusers(config: dict[str, Any]) -> Any:
    torch: Any = importlib.import_module("torch")
    diffusers: Any = importlib.import_module("diffusers")

    class AtTime(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = getattr(diffusers, config["_class_name"])(
                **{name: value for name, value in config.items() if name[0] != "_"}
            )

        def forward(self, images: Any) -> Any:
            return self.model(images, TIME).sample

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return self.model.state_dict(*args, **kwargs)

    return AtTime()
