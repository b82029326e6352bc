"""Models of transformers by name: their configurations, and how to create them. Imports neither jax nor torch."""

import importlib
from typing import Any

TRANSFORMERS = "transformers"
"""The name of the family in `--models`, such as `transformers:depth_anything_small`."""

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
}
"""The configurations of published models."""


def make(name: str) -> Any:
    """Creates transformers' model with random weights: NCHW images -> NCHW logits or depth of the images' size.

    Its state_dict has the names of the published files.

    Raises:
        KeyError: if there is no such configuration.
    """
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
