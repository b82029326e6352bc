"""Whole models in PyTorch, with densezoo's names and seeded weights. Importing this imports torch, but not jax."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks import hub_models, smp_models
from benchmarks.seeded import PEAK, STEPS, WEIGHT_DECAY, perturbed


class SegNet(nn.Module):
    """SegNet with VGG-11 and batch norms; the encoder has torchvision's names, the decoder densezoo's."""

    widths = (64, 128, 256, 512, 512)
    stage_sizes = (1, 1, 2, 2, 2)

    def __init__(self, classes: int):
        super().__init__()
        features, channels = [], 3
        for width, size in zip(self.widths, self.stage_sizes, strict=True):
            for _ in range(size):
                features += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            features.append(nn.MaxPool2d(2, return_indices=True))
        self.encoder = nn.ModuleDict({"features": nn.ModuleList(features)})
        self.decoder = nn.ModuleDict()
        targets = (*self.widths[-2::-1], self.widths[0])
        for stage, (size, target) in enumerate(zip(reversed(self.stage_sizes), targets, strict=True)):
            for index in range(size):
                width = target if index == size - 1 else channels
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                self.decoder[f"stage{stage}_conv{index}"] = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
                channels = width
        self.segmentation_head = nn.Sequential(nn.Conv2d(channels, classes, 3, padding=1))

    def forward(self, x: Any) -> Any:
        pooled = []
        for layer in self.encoder["features"]:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape
                x, indices = layer(x)
                pooled.append((indices, size))
            else:
                x = layer(x)
        for stage, size in enumerate(reversed(self.stage_sizes)):
            x = unpool(x, *pooled.pop())
            for index in range(size):
                x = self.decoder[f"stage{stage}_conv{index}"](x)
        return self.segmentation_head(x)


def unpool(x: Any, indices: Any, size: Any) -> Any:
    """Max-unpooling by a scatter, because ONNX's exporter does not support torch's own operation."""
    if not torch.onnx.is_in_onnx_export():
        return F.max_unpool2d(x, indices, 2, output_size=list(size[2:]))
    flat = torch.zeros(size[0], size[1], size[2] * size[3], dtype=x.dtype, device=x.device)
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).reshape(size)


def make_hrnet(name: str, classes: int) -> Any:
    """The HRNet of timm with the head of Wang et al. 2019 (figure 4b), which has their code's names."""
    from timm.models.hrnet import HighResolutionNetFeatures, cfg_cls  # pyright: ignore[reportMissingImports]

    class Segmenter(HighResolutionNetFeatures):
        def __init__(self):
            super().__init__(cfg_cls[name], feature_location="", out_indices=(1, 2, 3, 4))
            width = sum(self.stage4_cfg["num_channels"])
            mix = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()
            self.last_layer = nn.Sequential(*mix, nn.Conv2d(width, classes, 1))

        def forward(self, x: Any) -> Any:
            maps = super().forward(x)
            finest = maps[0].shape[2:]
            resized = [F.interpolate(y, finest, mode="bilinear", align_corners=True) for y in maps]
            logits = self.last_layer(torch.cat(resized, 1))
            return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)

    return Segmenter()


def make_model(model: str, encoder: str, classes: int, image_size: tuple[int, int], seed: int) -> Any:
    """Creates a model in float32 and evaluation mode with seeded weights, and without randomness.

    Raises:
        KeyError: if there is no such model or encoder.
        ValueError: if its library rejects the pair.
    """
    torch.manual_seed(seed)
    if (model, encoder) == ("segnet", "vgg11_bn"):
        made = SegNet(classes)
    elif model == "hrnet":
        made = make_hrnet(encoder, classes)
    elif model in (hub_models.TRANSFORMERS, hub_models.DIFFUSERS):
        made = hub_models.make(encoder)
    elif model == smp_models.SIAMESE:
        made = smp_models.make_siamese(encoder, classes)
    else:
        made = smp_models.make(model, encoder, classes, image_size)
    for module in made.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in made.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                x.copy_(torch.from_numpy(perturbed(name, x.numpy(), generator)))
    return made.eval()


def make_step(model: Any, function: Any, images: Any, masks: Any) -> Callable[[], Any]:
    """A call that runs one train step and returns its loss; the gradients remain in the model.

    Args:
        model: the trained model.
        function: the model, or its torch.compile form.
        images: tensor of images.
        masks: tensor of masks, or of noise for a diffusion model.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, cycle_momentum=False)

    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        criterion = F.mse_loss if masks.ndim == 4 else F.cross_entropy
        loss = criterion(function(images), masks)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    return call


def gradient_norm(model: Any) -> float:
    """The norm of the last step's gradient."""
    squares = [float(p.grad.float().square().sum()) for p in model.parameters() if p.grad is not None]
    return float(np.sqrt(sum(squares)))
