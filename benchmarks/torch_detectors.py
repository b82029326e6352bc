"""torchvision's detectors for benchmarks.detectors. Importing this imports torchvision."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torchvision.models import detection  # pyright: ignore[reportMissingImports]

from benchmarks import runtimes
from benchmarks.seeded import PEAK, STEPS, WEIGHT_DECAY

NAMES = {
    "retinanet": "retinanet_resnet50_fpn",
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
    "mask_rcnn": "maskrcnn_resnet50_fpn",
}
DEVIATIONS = {
    "head.classification_head.cls_logits": 1.0,
    "head.regression_head.bbox_reg": 0.3,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 1.0,
}
"""The standard deviations that the outputs of these layers get, from one end of the network to the other."""
DETECTIONS = (50, 90)
"""The number of detections in the first image is between these two."""


def make_model(name: str, classes: int, seed: int, images: np.ndarray) -> Any:
    """A detector with seeded weights that finds a usual number of objects in an image.

    Its batch norms get the statistics of the image. It neither resizes nor normalises images, and it does not paste its
    masks into the image, so that it computes what `dz.compile` with `method="detect"` does.

    Raises:
        KeyError: there is no such detector.
        ValueError: no bias gives that number of objects.
    """
    torch.manual_seed(seed)
    options = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    model = getattr(detection, NAMES[name])(weights=None, weights_backbone=None, num_classes=classes, **options)
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda results, *_: results
    x = tensors_of(images)
    with torch.inference_mode():
        _fit_norms(model, x)
        for layer, deviation in DEVIATIONS.items():
            if _has(model, layer):
                _scale(model, layer, deviation, x)
        _fit_count(model, x)
    return model.eval()


def tensors_of(images: np.ndarray) -> list[Any]:
    """The images of a batch as torchvision takes them."""
    return [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]


def make_call(form: str, model: Any, images: np.ndarray) -> Callable[[], Any]:
    """A call that detects objects in images.

    The compiled forms compile the backbone and the heads, that is everything with parameters. torch.compile splits the
    rest, which depends on values, into many small graphs.
    """
    frozen = form.endswith("frozen")
    placed = runtimes.place(model, torch.device("cpu"), "float32")
    if form != "torch":
        for part in ("backbone", "head", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head"):
            if _has(placed, part):
                owner, _, attribute = part.rpartition(".")
                module = placed.get_submodule(part)
                compiled = runtimes.compile_model(module, torch.device("cpu"), frozen=frozen)
                setattr(placed.get_submodule(owner), attribute, compiled)
    x = tensors_of(images)

    def call() -> Any:
        with torch.inference_mode():
            return placed(x)

    config: Any = importlib.import_module("torch._inductor.config")
    with config.patch(freezing=frozen):
        call()
    return call


def arrays_of(results: Any) -> list[np.ndarray]:
    """The detections in the first image: boxes, scores, labels and, if there are some, masks."""
    return [results[0][key].numpy() for key in ("boxes", "scores", "labels", "masks") if key in results[0]]


def losses_of(model: Any, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> float:
    """The sum of the losses in training mode, with every anchor and proposal in them."""
    whole = copy.deepcopy(model).train()
    stages = [getattr(whole, name) for name in ("rpn", "roi_heads") if _has(whole, name)]
    for sampler in (stage.fg_bg_sampler for stage in stages):
        sampler.batch_size_per_image = 10**6
        sampler.positive_fraction = 0.5
    with torch.no_grad():
        return float(sum(whole(tensors_of(images), _targets(boxes, labels)).values()))


def make_step(model: Any, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    """A call that does one train step in eager mode and gives the sum of the losses.

    Args:
        model: is trained.
        images: a batch.
        boxes: (b, n, 4), the same number of objects in each image.
        labels: (b, n), of which 0 is the background.
    """
    placed = runtimes.place(model, torch.device("cpu"), "float32").train()
    optimizer = torch.optim.AdamW(placed.parameters(), lr=PEAK, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, cycle_momentum=False)
    x, targets = tensors_of(images), _targets(boxes, labels)

    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss: Any = sum(placed(x, targets).values())
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    return call


def _targets(boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    pairs = zip(boxes, labels, strict=True)
    return [{"boxes": torch.from_numpy(box), "labels": torch.from_numpy(label).long()} for box, label in pairs]


def _has(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _fit_norms(model: Any, images: list[Any]) -> None:
    """Sets the statistics of the batch norms to those of the images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model.backbone(torch.stack(images))
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1


def _scale(model: Any, layer: str, deviation: float, images: list[Any]) -> None:
    """Multiplies a layer's weights, so that its outputs have about this standard deviation."""
    seen = []
    module = model.get_submodule(layer)
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    model(images)
    hook.remove()
    there = torch.cat([(x - x.mean()).flatten() for x in seen]).std().item()
    module.weight.mul_(deviation / there)


def _fit_count(model: Any, images: list[Any]) -> None:
    """Shifts the biases of the classes until a usual number of objects is found."""
    single = _has(model, "head")
    layer = model.get_submodule(
        "head.classification_head.cls_logits" if single else "roi_heads.box_predictor.cls_score"
    )
    given = layer.bias.clone()
    low, high = -15.0, 15.0
    for _ in range(20):
        shift = (low + high) / 2
        layer.bias.copy_(given)
        if single:
            layer.bias.add_(shift)
        else:
            layer.bias[0] -= shift  # the background's
        count = len(model(images)[0]["scores"])
        if DETECTIONS[0] <= count <= DETECTIONS[1]:
            return
        low, high = (shift, high) if count < DETECTIONS[0] else (low, shift)
    raise ValueError(f"no bias gives {DETECTIONS[0]} to {DETECTIONS[1]} detections")
