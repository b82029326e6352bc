"""Golden outputs of torchvision's operations for detection.

Needs it and torch: python tests/golden/make_detection_ops.py.
"""

import numpy as np
import seeded
import torch
from reference import FOLDER
from torchvision.models.detection import _utils, anchor_utils, image_list, roi_heads
from torchvision.ops import MultiScaleRoIAlign, boxes, ciou_loss, diou_loss, giou_loss, roi_align


def random_boxes(name: str, count: int, height: int, width: int) -> torch.Tensor:
    """Boxes of all sizes, some of which extend beyond the picture."""
    corners = torch.from_numpy(np.random.default_rng(len(name)).random((count, 2, 2)).astype(np.float32))
    corners = (corners * 1.2 - 0.1) * torch.tensor([width, height])
    return torch.cat([corners.min(1).values, corners.max(1).values], 1)


def maps(name: str, height: int, width: int) -> torch.Tensor:
    """Seeded NHWC maps as NCHW ones."""
    return torch.from_numpy(seeded.array(name, (2, height, width, 3)).transpose(0, 3, 1, 2).copy())


def anchors() -> dict[str, torch.Tensor]:
    """Two maps of a 65x96 image, three sizes whose halves are rounded both ways."""
    generator = anchor_utils.AnchorGenerator(((31, 45.5, 64), (63, 80, 101)), ((0.5, 1.0, 2.0),) * 2)
    features = [torch.zeros(1, 1, 9, 12), torch.zeros(1, 1, 5, 6)]
    images = image_list.ImageList(torch.zeros(1, 3, 65, 96), [(65, 96)])
    return {"anchors": generator(images, features)[0]}


def coding() -> dict[str, torch.Tensor]:
    """Encoded boxes, and decoded boxes whose deltas exceed the clamp."""
    a, b = random_boxes("a", 20, 60, 90), random_boxes("bb", 20, 60, 90)
    deltas = torch.from_numpy(seeded.array("deltas", (20, 4))) * 8
    coder, linear = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), _utils.BoxLinearCoder(normalize_by_size=True)
    return {
        "a": a,
        "b": b,
        "deltas": deltas,
        "iou": boxes.box_iou(a, b),
        "giou": 1 - giou_loss.generalized_box_iou_loss(a, b),
        "diou": 1 - diou_loss.distance_box_iou_loss(a, b),
        "ciou": 1 - ciou_loss.complete_box_iou_loss(a, b),
        "encoded": coder.encode_single(a, b),
        "decoded": coder.decode_single(deltas, b),
        "distances": linear.encode(b, a),  # the anchors first
        "from_distances": linear.decode(deltas, b),
        "clipped": boxes.clip_boxes_to_image(a, (50, 70)),
    }


def matching() -> dict[str, torch.Tensor]:
    """The box that each anchor is matched with, without and with low-quality matches; two anchors tie."""
    iou = boxes.box_iou(random_boxes("objects", 5, 60, 90), random_boxes("anchors", 40, 60, 90))
    iou[:, 7] = iou[:, 8]
    matchers = {"matches": (0.3, 0.2, False), "matches_low": (0.6, 0.3, True)}
    return {"match_iou": iou} | {name: _utils.Matcher(*options)(iou.clone()) for name, options in matchers.items()}


def suppression() -> dict[str, torch.Tensor]:
    """The boxes kept among 120 boxes of three classes."""
    candidates, scores = random_boxes("candidates", 120, 60, 90), torch.from_numpy(seeded.array("scores", (120,)))
    labels = torch.arange(120) % 3
    kept = boxes._batched_nms_vanilla(candidates, scores, labels, 0.3)
    return {"candidates": candidates, "scores": scores, "kept": kept, "kept_all": boxes.nms(candidates, scores, 0.3)}


def regions() -> dict[str, torch.Tensor]:
    """RoIAlign of two maps of 13x17 pixels, with gradients, and of a pyramid.

    All samples lie less than a pixel beyond the maps: torchvision's two implementations differ on those further away.
    """
    limits = torch.tensor([133.0, 103.0] * 2)
    regions = [random_boxes(name, 6, 100, 130).clamp(min=-3).minimum(limits) for name in ("first image", "second")]
    pyramid = {str(n): maps(f"level{n}", -(-26 // 2**n), -(-34 // 2**n)) for n in range(3)}
    results = {"boxes": torch.stack(regions)}
    for aligned in (False, True):
        for ratio in (2, 0):
            x = maps("features", 13, 17).requires_grad_()
            y = roi_align(x, regions, (3, 5), 1 / 8, ratio, aligned)
            (gradient,) = torch.autograd.grad((y * y).sum(), x)
            results[f"roi_{aligned:d}_{ratio}"] = y.detach().permute(0, 2, 3, 1).reshape(2, 6, 3, 5, 3)
            results[f"roi_gradient_{aligned:d}_{ratio}"] = gradient.permute(0, 2, 3, 1)
    pooler = MultiScaleRoIAlign(list(pyramid), 3, 2, canonical_scale=60, canonical_level=3)
    y = pooler(pyramid, regions, [(104, 130), (100, 136)])
    return results | {"multiscale": y.permute(0, 2, 3, 1).reshape(2, 6, 3, 3, 3)}


def pasting() -> dict[str, torch.Tensor]:
    """Masks of 7x7 in a picture of 33x41."""
    masks, where = torch.from_numpy(seeded.array("masks", (6, 7, 7))).sigmoid(), random_boxes("where", 6, 33, 41)
    where[0] = torch.tensor([4.0, 3.0, 18.0, 24.0])
    return {
        "masks": masks,
        "where": where,
        "pasted": roi_heads.paste_masks_in_image(masks[:, None], where, (33, 41))[:, 0],
    }


if __name__ == "__main__":
    results = anchors() | coding() | matching() | suppression() | regions() | pasting()
    np.savez_compressed(FOLDER / "detection_ops.npz", **{name: x.numpy() for name, x in results.items()})
    for name, x in results.items():
        print(name, tuple(x.shape))
