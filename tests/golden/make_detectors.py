"""Golden outputs, detections and losses of torchvision 0.28's detectors, all of them made small.

Needs torch and torchvision: python tests/golden/make_detectors.py.
"""

import json
import sys
from functools import partial

import numpy as np
import seeded
import torch
from reference import FOLDER
from torch import nn
from torchvision.models import detection, mobilenet_v3_large
from torchvision.models.detection import backbone_utils, fcos, mask_rcnn, retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, RPNHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import boxes as box_ops
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

# torchvision takes the scales of regions from the image without padding, which is wrong for some small images.
CLASSES, FEATURES, SIZE = 4, 32, (53, 70)
OBJECTS = [
    {"boxes": [[3.0, 4.0, 41.5, 38.0], [30.0, 2.0, 69.0, 44.0], [10.0, 20.0, 22.0, 33.0]], "labels": [1, 3, 2]},
    {"boxes": [[20.0, 5.0, 60.0, 30.0]], "labels": [3]},
]
NONE = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0)}
roi_align = sys.modules["torchvision.ops.roi_align"]  # the module, which its function hides

# Where there are few boxes, torchvision moves those of each class apart in place of comparing the classes. That rounds
# the corners.
box_ops._batched_nms_coordinate_trick = box_ops._batched_nms_vanilla


def nms(boxes, scores, threshold):
    """As torchvision's compiled operation: the overlap of two boxes without area, 0 / 0, suppresses neither."""
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[~(box_ops.box_iou(boxes[best][None], boxes[order])[0] > threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


box_ops.nms = nms


def interpolate(features, image, y, x, ymask, xmask, plain=roi_align._bilinear_interpolate):
    """RoIAlign as compiled by torchvision: samples outside the map are 0, where the Python form repeats the edge."""
    inside = [(z >= -1) & (z <= side) for z, side in zip((y, x), features.shape[2:], strict=True)]
    values = plain(features, image, y, x, ymask, xmask)
    return values * inside[0][:, None, :, None, :, None] * inside[1][:, None, None, :, None, :]


roi_align._bilinear_interpolate = interpolate


def pyramid(first, extra, norm=None):
    """A ResNet with one block per stage, and an FPN with few channels."""
    body = ResNet(BasicBlock, [1, 1, 1, 1])
    layers = range(first, 5)
    channels = [64 * 2 ** (layer - 1) for layer in layers]
    names = {f"layer{layer}": str(index) for index, layer in enumerate(layers)}
    return backbone_utils.BackboneWithFPN(body, names, channels, FEATURES, extra, norm)


# Images are neither normalised nor resized.
OPTIONS = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": SIZE[0], "max_size": SIZE[1]}
# Everything is drawn, so that the draw does not matter.
REGIONS = OPTIONS | {
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 100,
    "rpn_batch_size_per_image": 4096,
    "box_batch_size_per_image": 1024,
    "box_detections_per_img": 20,
}


def small_retinanet(v2):
    backbone = pyramid(2, LastLevelP6P7(512 if v2 else FEATURES, FEATURES))
    head = retinanet.RetinaNetHead(FEATURES, 9, CLASSES, partial(nn.GroupNorm, 32) if v2 else None)
    if v2:
        head.regression_head._loss_type = "giou"
    return detection.RetinaNet(backbone, CLASSES, head=head, detections_per_img=50, **OPTIONS)


def small_fcos():
    backbone = pyramid(2, LastLevelP6P7(FEATURES, FEATURES))
    return fcos.FCOS(backbone, CLASSES, detections_per_img=50, **OPTIONS)


def small_rcnn(masks, v2):
    norm = nn.BatchNorm2d if v2 else None
    fields = {}
    if v2:
        fields["rpn_head"] = RPNHead(FEATURES, 3, 2)
        fields["box_head"] = FastRCNNConvFCHead((FEATURES, 7, 7), [FEATURES] * 4, [1024], norm)
    if masks:
        fields["mask_head"] = mask_rcnn.MaskRCNNHeads(FEATURES, [FEATURES] * 4, 1, norm)
        fields["mask_predictor"] = mask_rcnn.MaskRCNNPredictor(FEATURES, FEATURES, CLASSES)
    fields["box_predictor"] = FastRCNNPredictor(1024, CLASSES)
    make = detection.MaskRCNN if masks else detection.FasterRCNN
    return make(pyramid(1, LastLevelMaxPool(), norm), **fields, **REGIONS)


def small_mobilenet():
    body = mobilenet_v3_large(norm_layer=nn.BatchNorm2d)
    backbone = backbone_utils._mobilenet_extractor(body, True, 6)
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    return detection.FasterRCNN(backbone, CLASSES, rpn_anchor_generator=anchors, **REGIONS)


MODELS = {
    "retinanet": lambda: small_retinanet(False),
    "retinanet_v2": lambda: small_retinanet(True),
    "fcos": small_fcos,
    "faster_rcnn": lambda: small_rcnn(False, False),
    "faster_rcnn_v2": lambda: small_rcnn(False, True),
    "mask_rcnn": lambda: small_rcnn(True, False),
    "mask_rcnn_v2": lambda: small_rcnn(True, True),
    "faster_rcnn_mobilenet": small_mobilenet,
}
# Seeded weights find an object at every anchor. The weights of the last layers are scaled so that their outputs
# have about this deviation, and the biases of classes are reduced.
DEVIATIONS = {
    "head.classification_head.cls_logits": 1.5,
    "head.regression_head.bbox_reg": 0.3,
    "head.regression_head.bbox_ctrness": 1.0,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 1.0,
}
SHIFTS = {"head.classification_head.cls_logits.bias": -3.0}


def load(model, arrays):
    model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})


def calibrate(model, arrays, images):
    """Scales the arrays; returns the factor of each."""
    factors = {}
    for name, deviation in DEVIATIONS.items():
        if name + ".weight" not in arrays:
            continue
        if name == "head.regression_head.bbox_reg" and isinstance(model, fcos.FCOS):
            deviation = 2.0
        seen = []
        load(model, arrays)
        hook = model.get_submodule(name).register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        with torch.inference_mode():
            model(images)
        hook.remove()
        there = torch.cat([x.flatten() for x in seen]).std().item()
        factors[name + ".weight"] = 2.0 ** round(np.log2(deviation / there))
        arrays[name + ".weight"] = arrays[name + ".weight"] * np.float32(factors[name + ".weight"])
    load(model, arrays)
    return factors


def targets_of(objects, masks):
    targets = []
    for each in objects:
        boxes = torch.tensor(np.asarray(each["boxes"]), dtype=torch.float32)
        target = {"boxes": boxes, "labels": torch.tensor(np.asarray(each["labels"]), dtype=torch.int64)}
        if masks:
            # A later object hides those before it, as in a map of instances.
            instances = np.zeros(SIZE, np.int64)
            for number, (x0, y0, x1, y1) in enumerate(np.round(boxes.numpy()).astype(int)):
                instances[y0:y1, x0:x1] = number + 1
            target["masks"] = torch.from_numpy(
                np.stack([instances == n + 1 for n in range(len(boxes))] or [np.zeros((0, *SIZE))]).astype(np.uint8)
            ).reshape(-1, *SIZE)
        targets.append(target)
    return targets


def write(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    arrays = {key: seeded.array(key, shape) for key, shape in shapes.items()}
    shifts = {key: shift for key, shift in SHIFTS.items() if key in arrays}
    for key, shift in shifts.items():
        arrays[key] = arrays[key] + np.float32(shift)
    model.eval()
    picture = seeded.array("image", (2, *SIZE, 3))
    images = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in picture]
    factors = calibrate(model, arrays, images)
    masks = name.startswith("mask")
    stored = {}
    with torch.inference_mode():
        batch, _ = model.transform(images)
        maps = model.backbone(batch.tensors)
        if "rcnn" in name:
            logits, deltas = model.rpn.head(list(maps.values()))
            flat = [x.permute(0, 2, 3, 1).reshape(2, -1, 1) for x in logits]
            boxes = [x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in deltas]
            heads = {"logits": torch.cat(flat, 1), "deltas": torch.cat(boxes, 1)}
        else:
            heads = model.head(list(maps.values()))
        for key, value in heads.items():
            stored[f"head_{key}"] = torch.cat([value[:, ::13], value.mean(1, keepdim=True)], 1).numpy()
        for index, found in enumerate(model(images)):
            for key in ("boxes", "scores", "labels"):
                stored[f"found{index}_{key}"] = found[key].numpy()
            if masks:
                stored[f"found{index}_masks"] = found["masks"].numpy()[:, 0].mean((1, 2))
                # Those of the head itself, which are not pasted.
            print(name, index, len(found["scores"]), found["scores"][:3].tolist(), found["scores"][-2:].tolist())
    for kind, objects in (("some", OBJECTS), ("one", [OBJECTS[0], NONE]), ("none", [NONE, NONE])):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            losses = model([x.clone() for x in images], targets_of(objects, masks))
        for key, value in losses.items():
            stored[f"loss_{kind}_{key}"] = value.numpy()
        print(name, kind, {key: round(float(value), 5) for key, value in losses.items()})
    made = {"shapes": shapes, "factors": factors, "shifts": shifts}
    made = {key: json.dumps(value) for key, value in made.items()}
    np.savez_compressed(FOLDER / f"detector_{name}.npz", **made, **stored)


if __name__ == "__main__":
    for case in sys.argv[1:] or MODELS:
        write(case)
