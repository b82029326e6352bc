"""Outputs, detections and losses equal torchvision's, in golden files of `tests/golden/make_detectors.py`."""

import functools
import json
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import densezoo as dz

GOLDEN = Path(__file__).parents[1] / "golden"
seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
CASES = [path.stem.removeprefix("detector_") for path in sorted(GOLDEN.glob("detector_*.npz"))]
QUICK = ("retinanet", "mask_rcnn_v2")
SIZE = (53, 70)
NAMES = {
    "classification": "classification",
    "bbox_regression": "box",
    "bbox_ctrness": "centerness",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "region_class",
    "loss_box_reg": "region_box",
    "loss_mask": "mask",
}
BOXES = np.zeros((2, 3, 4), np.float32)
BOXES[0] = [[3.0, 4.0, 41.5, 38.0], [30.0, 2.0, 69.0, 44.0], [10.0, 20.0, 22.0, 33.0]]
BOXES[1, 0] = [20.0, 5.0, 60.0, 30.0]
LABELS = np.array([[1, 3, 2], [3, -1, -1]], np.int32)


def small(name, **fields):
    if "mobilenet" in name:
        return dz.create_model(name, num_classes=4, **fields)
    return dz.create_model(name, dz.ResNet((1, 1, 1, 1), dz.BasicBlock), 4, features=32, **fields)


def instances_of(boxes, labels):
    """A map in which later objects are on top of earlier ones."""
    maps = np.zeros((len(boxes), *SIZE), np.int32)
    for image, (rows, kinds) in enumerate(zip(boxes, labels, strict=True)):
        for number, (x0, y0, x1, y1) in enumerate(np.round(rows).astype(int)):
            if kinds[number] >= 0:
                maps[image, y0:y1, x0:x1] = number + 1
    return maps


@functools.cache
def golden_of(name):
    golden = np.load(GOLDEN / f"detector_{name}.npz")
    arrays = {key: seeded(key, tuple(shape)) for key, shape in json.loads(str(golden["shapes"])).items()}
    for key, factor in json.loads(str(golden["factors"])).items():
        arrays[key] = arrays[key] * np.float32(factor)
    for key, shift in json.loads(str(golden["shifts"])).items():
        arrays[key] = arrays[key] + np.float32(shift)
    model = small(name)
    if isinstance(model, dz.RCNN):
        model = model.clone(proposals=(100, 100))
    return golden, model, arrays, dz.weights.from_torch(model, arrays)


def close(ours, reference, tolerance=1e-4):
    assert ours.shape == reference.shape
    error = np.abs(np.asarray(ours) - reference).max() / max(np.abs(reference).max(), 1e-9)
    print(f"{error:.1e}")
    return error < tolerance


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.parity) for n in CASES])
def test_outputs_and_detections_are_those_of_torchvision(name):
    golden, model, _, variables = golden_of(name)
    images = seeded("image", (2, *SIZE, 3))

    @jax.jit
    def run(variables, images):
        found = dz.detect(model, variables, images, max_detections=20 if isinstance(model, dz.RCNN) else 50)
        return model.apply(variables, images), found

    outputs, found = run(variables, images)
    outputs = outputs.anchors if isinstance(model, dz.RCNN) else outputs
    here = {"logits": "logits", "cls_logits": "logits", "deltas": "deltas", "bbox_regression": "deltas"}
    if name == "fcos":
        here = {"cls_logits": "logits", "bbox_regression": "distances", "bbox_ctrness": "centerness"}
    for key in golden.files:
        if key.startswith("head_"):
            ours = np.asarray(getattr(outputs, here[key.removeprefix("head_")]))
            ours = ours.reshape(*ours.shape[:2], -1)
            ours = np.concatenate([ours[:, ::13], ours.mean(1, keepdims=True)], 1)
            assert close(ours, golden[key], 2e-5)
    for image in range(2):
        valid = np.asarray(found.valid[image])
        boxes, scores, labels = (golden[f"found{image}_{key}"] for key in ("boxes", "scores", "labels"))
        assert valid.sum() == len(scores) > 3
        assert np.array_equal(np.asarray(found.labels[image])[valid], labels)
        assert np.abs(np.asarray(found.scores[image])[valid] - scores).max() < 1e-4
        assert np.abs(np.asarray(found.boxes[image])[valid] - boxes).max() < 1e-2
        if found.masks is not None:
            pasted = dz.ops.paste_masks(found.masks[image], found.boxes[image], SIZE, threshold=None)
            assert np.abs(np.asarray(pasted.mean((1, 2)))[valid] - golden[f"found{image}_masks"]).max() < 1e-4


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.parity) for n in CASES])
def test_losses_are_those_of_torchvision(name):
    golden, model, _, variables = golden_of(name)
    if isinstance(model, dz.RCNN):
        model = model.clone(candidates=(2000, 2000))
    # So many that nothing is left to chance.
    task = dz.tasks.Detection(4, masks=name.startswith("mask"), anchor_samples=4096, region_samples=1024)

    @jax.jit
    def run(variables, batch):
        apply = functools.partial(model.apply, variables)
        return task.loss(apply, batch, jax.random.key(0))

    for kind, images in (("some", [0, 1]), ("one", [0]), ("none", [])):
        labels = np.where(np.isin([[0], [1]], images), LABELS, -1)
        batch = {"image": seeded("image", (2, *SIZE, 3)), "boxes": BOXES, "labels": labels}
        total, parts = run(variables, batch | {"instances": instances_of(BOXES, labels)})
        expected = {key: golden[f"loss_{kind}_{key}"] for key in NAMES if f"loss_{kind}_{key}" in golden.files}
        assert parts.keys() == {NAMES[key] for key in expected}
        for key, value in expected.items():
            np.testing.assert_allclose(parts[NAMES[key]], value, rtol=2e-4, atol=1e-6, err_msg=f"{kind} {key}")
        np.testing.assert_allclose(total, sum(expected.values()), rtol=2e-4)


@pytest.mark.parametrize("name", [n for n in CASES if n != "faster_rcnn_mobilenet"])
def test_weights_go_back_by_the_same_names(name):
    _, model, arrays, variables = golden_of(name)
    back = dz.weights.to_torch(model, variables)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


OLD = [
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"head\.conv\.(\d)\.0\.", lambda match: f"head.conv.{2 * int(match[1])}."),  # RetinaNet's towers
    (r"(fpn.*blocks\.\d)\.0\.", r"\1."),
    (r"mask_head\.(\d)\.0", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}"),
]


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_names_before_torchvision_0_13_are_read(name):
    _, model, arrays, variables = golden_of(name)
    renamed = {}
    for key, array in arrays.items():
        for pattern, replacement in OLD:
            key = re.sub(pattern, replacement, key)
        renamed[key] = array
    assert renamed.keys() != arrays.keys()
    jax.tree.map(np.testing.assert_array_equal, dz.weights.from_torch(model, renamed), variables)
