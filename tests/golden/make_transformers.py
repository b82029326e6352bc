"""Golden outputs of transformers' models from small configurations. Needs transformers 5.24 and torch.

python tests/golden/make_transformers.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import seeded
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file
from torch.nn import functional

FOLDER = Path(__file__).parent
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def write(case, model, size, quick=False):
    """Writes `case`.npz: the configuration, names and shapes of the weights in the file, and the NHWC output."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shapes = {name: array.shape for name, array in load_file(f"{folder}/model.safetensors").items()}
        arrays = {name: seeded.array(name, shape) for name, shape in shapes.items()}
        save_file(arrays, f"{folder}/model.safetensors", metadata={"format": "pt"})
        model = type(model).from_pretrained(folder).eval()
        config = json.loads(Path(folder, "config.json").read_text())
    shape = (1, *size, 3)
    with torch.inference_mode():
        outputs = model(pixel_values=torch.from_numpy(seeded.array("image", shape).transpose(0, 3, 1, 2).copy()))
        # As in the image processors, whose results have the image's size.
        if "logits" in outputs:
            y = functional.interpolate(outputs.logits, size=size, mode="bilinear", align_corners=False)
        else:
            y = functional.interpolate(outputs.predicted_depth[:, None], size=size, mode="bicubic", align_corners=False)
    y = np.ascontiguousarray(y.numpy().transpose(0, 2, 3, 1))
    described = {"config": json.dumps(config), "shapes": json.dumps(shapes), "quick": quick}
    np.savez_compressed(FOLDER / f"transformers_{case}.npz", image_shape=shape, output_y=y, **described)
    print(f"{case}: {y.shape}, largest magnitude {np.abs(y).max():.3g}")


if __name__ == "__main__":
    labels = {"num_labels": 2}
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
    config = tf.SegformerConfig(
        **sizes, num_attention_heads=[1, 2, 3, 4], mlp_ratios=[2, 4, 3, 4], decoder_hidden_size=16, **labels
    )
    write("segformer", tf.SegformerForSemanticSegmentation(config), (65, 47), quick=True)

    fields = {"hidden_size": 12, "auxiliary_channels": 8, **labels}
    backbone = tf.ConvNextConfig(**sizes, out_features=STAGES)
    model = tf.UperNetForSemanticSegmentation(tf.UperNetConfig(backbone_config=backbone, **fields))
    write("upernet_convnext", model, (70, 45))
    # Windows of 3 divide no map evenly, and the coarsest map is smaller than a window.
    backbone = tf.SwinConfig(
        embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4], window_size=3, out_features=STAGES
    )
    model = tf.UperNetForSemanticSegmentation(tf.UperNetConfig(backbone_config=backbone, **fields))
    write("upernet_swin", model, (70, 45))

    vit = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 40}
    vit |= {"backbone_out_indices": [0, 2, 3, 4], "image_size": 64, "fusion_hidden_size": 12}
    neck = {"neck_hidden_sizes": [8, 12, 16, 20]}
    # An odd grid of patches, and pixels beyond the last patch: transformers' DPT takes squares only.
    write("dpt", tf.DPTForDepthEstimation(tf.DPTConfig(**vit, **neck)), (83, 83))
    write(
        "dpt_segmentation", tf.DPTForSemanticSegmentation(tf.DPTConfig(**vit, **neck, **labels)), (83, 83), quick=True
    )
    config = tf.DPTConfig(**vit, **neck, readout_type="add", use_batch_norm_in_fusion_residual=True)
    write("dpt_add", tf.DPTForDepthEstimation(config), (64, 64))

    dino = {"image_size": 70, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
    dino |= {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    fields = {"fusion_hidden_size": 8, "reassemble_hidden_size": 16, **neck}
    config = tf.DepthAnythingConfig(backbone_config=tf.Dinov2Config(**dino), **fields)
    write("depth_anything", tf.DepthAnythingForDepthEstimation(config), (75, 61), quick=True)
    config.depth_estimation_type, config.max_depth = "metric", 20
    write("depth_anything_metric", tf.DepthAnythingForDepthEstimation(config), (56, 70))
    config = tf.DPTConfig(
        backbone_config=tf.Dinov2Config(**dino), add_projection=True, use_bias_in_fusion_residual=False, **neck
    )
    write("dpt_dinov2", tf.DPTForDepthEstimation(config), (75, 61))
