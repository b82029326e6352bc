"""torchvision's side of benchmarks.detector_accuracy. Importing this imports torchvision."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torchvision.models import detection  # pyright: ignore[reportMissingImports]
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # pyright: ignore[reportMissingImports]

import densezoo as dz


def make_model(setting: Any, **options: Any) -> Any:
    """The model of torchvision, for images that are resized and normalised already."""
    backbone = resnet_fpn_backbone(
        backbone_name=setting.encoder, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    given = {"box_batch_size_per_image": setting.task.region_samples} | options
    still = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    model = detection.MaskRCNN(backbone, setting.task.num_classes, **still, **given)
    # torchvision's own `_skip_resize` only acts in training.
    model.transform.resize = lambda image, target=None: (image, target)
    # The masks as the network gives them, not yet in the image: the scores paste those of both sides.
    model.transform.postprocess = lambda found, *_: found
    return model


def train(setting: Any) -> tuple[dict[str, float], list[float]]:
    """Trains as `detector_accuracy.train_here` does; returns the scores and the loss of each step."""
    recipe, task = setting.recipe, setting.task
    torch.manual_seed(recipe.seed)
    model = make_model(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, cycle_momentum=False
    )
    losses = []
    for batch in setting.batches():
        optimizer.zero_grad(set_to_none=True)
        loss: Any = sum(model(*inputs_of(batch)).values())
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    with torch.inference_mode():
        scores = setting.scores(lambda batch: task.measure(lambda *_, **__: detections_of(model, batch), batch))
    return scores, losses


def inputs_of(batch: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """A batch as torchvision's models take it: images without padding, and targets without empty rows."""
    arrays = {name: np.array(value) for name, value in batch.items()}
    images, targets = [], []
    for row, (height, width) in enumerate(arrays["size"]):
        boxes, labels = arrays["boxes"][row], arrays["labels"][row]
        rows = np.flatnonzero((labels >= 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        instances = arrays["instances"][row, :height, :width]
        targets.append(
            {
                "boxes": torch.from_numpy(boxes[rows].astype(np.float32)),
                "labels": torch.from_numpy(labels[rows].astype(np.int64) + 1),
                "masks": torch.from_numpy((instances == rows[:, None, None] + 1).astype(np.uint8)),
            }
        )
        images.append(torch.from_numpy(arrays["image"][row, :height, :width].transpose(2, 0, 1).copy()))
    return images, targets


def detections_of(model: Any, batch: Mapping[str, Any]) -> dz.Detections:
    """The detections of torchvision's model in an image, as `dz.detect` gives them."""
    (found,) = model(inputs_of(batch)[0])
    arrays = {name: value.numpy() for name, value in found.items()}
    count = len(arrays["scores"])

    def rows(x: np.ndarray) -> Any:
        return np.concatenate([x, np.zeros((100 - count, *x.shape[1:]), x.dtype)])[None]

    valid = rows(np.ones(count, bool))
    labels = rows(arrays["labels"].astype(np.int32))
    return dz.Detections(rows(arrays["boxes"]), rows(arrays["scores"]), labels, valid, rows(arrays["masks"][:, 0]))


def compare_start(setting: Any) -> dict[str, Any]:
    """Compares torchvision's losses and initial weights with densezoo's.

    The losses are those of one batch with torchvision's weights, where the losses' samples are so large that nothing is
    left to chance. Of the weights that each side draws, the ratio of standard deviations is compared.

    Raises:
        ValueError: if losses differ by more than 0.1 %, or a standard deviation by more than 20 %.
    """
    # Crops without padding: torchvision takes anchors in the padding for background, densezoo leaves them out.
    full = dataclasses.replace(setting.recipe, crop_size=min(setting.resize.shortest or 0, *setting.recipe.crop))
    batch = next(dataclasses.replace(setting, recipe=full).batches())
    every, proposals = 10**6, 100
    task = dataclasses.replace(setting.task, anchor_samples=every, region_samples=4 * proposals, region_positives=0.5)
    torch.manual_seed(0)
    peer = make_model(
        setting,
        rpn_batch_size_per_image=every,
        box_batch_size_per_image=4 * proposals,
        box_positive_fraction=0.5,
        rpn_post_nms_top_n_train=proposals,
    )
    model = setting.model().clone(proposals=(proposals, proposals))
    theirs = {name: x.numpy() for name, x in peer.state_dict().items()}
    loaded = dz.weights.from_torch(model, theirs)
    drawn = jax.jit(model.init)(jax.random.key(0), batch["image"][:1])
    spreads = {}
    pairs = zip(jax.tree.leaves_with_path(loaded["params"]), jax.tree.leaves(drawn["params"]), strict=True)
    for (path, there), here in pairs:
        if there.size >= 500 and float(there.std()) > 0:
            spreads[jax.tree_util.keystr(path)] = float(here.std() / there.std())

    def apply(*inputs: Any, **options: Any) -> Any:
        return model.apply(loaded, *inputs, train=True, mutable=["batch_stats"], **options)[0]

    ours = jax.jit(lambda batch: task.loss(apply, batch, jax.random.key(0)))(batch)[1]
    with torch.no_grad():
        losses = {name: float(value) for name, value in peer(*inputs_of(batch)).items()}
    names = {
        "objectness": "loss_objectness",
        "proposal_box": "loss_rpn_box_reg",
        "region_class": "loss_classifier",
        "region_box": "loss_box_reg",
        "mask": "loss_mask",
    }
    both = {name: (float(ours[name]), losses[names[name]]) for name in names}
    result = {"losses": both, "spreads": (min(spreads.values()), max(spreads.values())), "parameters": len(spreads)}
    if not all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5) for a, b in both.values()):
        raise ValueError(f"the losses differ at equal weights: {result}")
    if wrong := {path: ratio for path, ratio in spreads.items() if not 0.8 < ratio < 1.25}:
        raise ValueError(f"the initial weights differ in their standard deviation, ours over torchvision's: {wrong}")
    return result
