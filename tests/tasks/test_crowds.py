"""Scores during training on a file with crowds and annotated areas, beside pycocotools on the file."""

import contextlib
import functools
import io
import json
import math
import operator

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import densezoo as dz
from densezoo import metrics
from densezoo.data import CocoDetection, eval_batches
from densezoo.tasks import Detection

SIDE, CELL, ROWS = 120, 60, 12
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def random_case(rng):
    """Objects and crowds in the quarters of pictures, and detections near them, many in each crowd."""
    annotations, found = [], {}
    for image in (3, 5, 8, 9):
        rows = []
        for quarter in rng.permutation(4)[: rng.integers(0, 5)]:
            corner = np.array([quarter % 2, quarter // 2]) * CELL + rng.integers(1, 10, 2)
            sides, category = rng.integers(14, 48, 2), int(rng.choice([4, 7]))
            mask = np.zeros((SIDE, SIDE), bool)
            mask[corner[1] : corner[1] + sides[1], corner[0] : corner[0] + sides[0]] = True
            crowd = int(rng.random() < 0.4)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [*map(float, corner), *map(float, sides)],
                    "area": float(rng.choice([mask.sum(), 900, 3000])),  # not always that of the mask
                    "iscrowd": crowd,
                    "segmentation": metrics.encode_mask(mask),
                }
            )
            for _ in range(5 if crowd else 2):
                start = corner + (rng.uniform(0, 0.5, 2) * sides if crowd else rng.integers(-2, 3, 2))
                end = np.minimum(start + (sides / 2 if crowd else sides), SIDE)
                label = category if rng.random() < 0.8 else 11 - category
                rows.append((*start, *end, rng.choice([0.3, 0.6, 0.9]), {4: 1, 7: 2}[label]))
        found[image] = np.array(rows, np.float32).reshape(-1, 6)
    images = [{"id": image, "height": SIDE, "width": SIDE, "file_name": f"{image}.png"} for image in found]
    categories = [{"id": 7, "name": "dog"}, {"id": 4, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def detections(rows):
    rows = np.concatenate([rows, np.zeros((ROWS * 2 - len(rows), 6), np.float32)])
    valid = rows[:, 4] > 0
    masks = np.ones((len(rows), 28, 28), np.float32)
    return rows[:, :4], rows[:, 4], np.where(valid, rows[:, 5], -1).astype(np.int32), valid, masks


def pycocotools_scores(dataset, results, kind):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value < 0 else value for value in evaluation.stats[:9]]


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocotools_on_a_file_with_crowds(tmp_path, seed):
    dataset, found = random_case(np.random.default_rng(seed))
    (tmp_path / "images").mkdir()
    for record in dataset["images"]:
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "images" / record["file_name"])
    (tmp_path / "annotations.json").write_text(json.dumps(dataset))
    task = Detection(3, masks=True, class_names=("background", "cat", "dog"), first_label=1)
    source = CocoDetection(tmp_path)
    fields = (*task.fields, *task.scored_fields, "image_id")

    def measure(batch):
        def apply(images, sizes, method):
            each = [detections(found.get(int(image), np.zeros((0, 6), np.float32))) for image in batch["image_id"]]
            return dz.Detections(*(jnp.asarray(np.stack(arrays)) for arrays in zip(*each, strict=True)))

        return task.measure(apply, batch)

    parts = [measure(batch) for batch in eval_batches(source, batch_size=3, fields=fields, ignore_index=-1)]
    ours = task.scores(functools.reduce(operator.add, parts))

    results = []
    for image, rows in found.items():
        boxes, scores, labels, _, masks = detections(rows)
        pasted = np.asarray(dz.ops.paste_masks(jnp.asarray(masks), jnp.asarray(boxes), (SIDE, SIDE)))
        results += metrics.coco_results(
            image, boxes, scores, np.where(labels > 0, labels - 1, -1), category_ids=source.category_ids, masks=pasted
        )
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        expected = pycocotools_scores(dataset, results, theirs)
        np.testing.assert_allclose([ours[f"{kind}_{name}"] for name in names], expected, rtol=0, atol=1e-6)
        # Without the crowds, what is found there would be wrong.
        plain = [annotation for annotation in dataset["annotations"] if not annotation["iscrowd"]]
        assert len(plain) < len(dataset["annotations"])
        if seed == 0:
            assert pycocotools_scores(dataset | {"annotations": plain}, results, theirs)[0] < expected[0]
