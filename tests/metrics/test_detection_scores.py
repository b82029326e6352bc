"""Average precision compared with pycocotools, and panoptic quality with values computed by hand."""

import contextlib
import io
import math

import numpy as np
import pytest

from densezoo import metrics

SIDE = 120
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def random_case(seed, *, ties=False, crowds=False, objects=6, pictures=5):
    """Objects and detections near them, some of another class, some without an object."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, pictures + 1):
        for _ in range(rng.integers(0, objects)):  # some pictures have none
            corner, sides = rng.uniform(0, 60, 2), rng.uniform(4, 58, 2)
            box = [*corner, *sides]
            mask = np.zeros((SIDE, SIDE), bool)
            x, y = np.floor(corner).astype(int)
            mask[y : y + int(sides[1]), x : x + int(sides[0])] = True
            category = int(rng.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": int(crowds and rng.random() < 0.3),
                    "segmentation": metrics.encode_mask(mask),
                }
            )
            for _ in range(rng.integers(0, 4)):
                shift = rng.integers(-6, 7, 2)
                moved = np.roll(mask, tuple(shift), (1, 0))
                score = rng.choice([0.25, 0.5]) if ties else rng.random()
                other = category if rng.random() < 0.8 else int(rng.integers(1, 4))
                found = [*(corner + shift), *(sides * rng.uniform(0.9, 1.1, 2))]
                results.append(
                    {"image_id": image, "category_id": other, "bbox": list(map(float, found)), "score": float(score)}
                    | {"segmentation": metrics.encode_mask(moved)}
                )
    images = [{"id": number, "height": SIDE, "width": SIDE} for number in range(1, pictures + 1)]
    categories = [{"id": number, "name": f"kind{number}"} for number in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def pycocotools_scores(dataset, results, kind, limits=(32, 96)):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
        least, most = (side**2 for side in limits)
        evaluation.params.areaRng = [[0, 1e10], [0, least], [least, most], [most, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value < 0 else value for value in evaluation.stats[:9]]


@pytest.mark.parametrize("case", [{}, {"ties": True}, {"crowds": True}, {"ties": True, "crowds": True, "objects": 12}])
@pytest.mark.parametrize("masks", [False, True])
def test_average_precision_equals_pycocotools(case, masks):
    for seed in range(3):
        dataset, results = random_case(seed, **case)
        ours = metrics.average_precision(dataset, results, masks=masks)
        names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
        theirs = pycocotools_scores(dataset, results, "segm" if masks else "bbox")
        np.testing.assert_allclose([ours[name] for name in names], theirs, rtol=0, atol=1e-6)
        assert 0 < ours["ap"] < 1


def test_sizes_have_other_limits():
    dataset, results = random_case(1, objects=12)
    ours = metrics.average_precision(dataset, results, size_limits=(16.0, 34.0))
    theirs = pycocotools_scores(dataset, results, "bbox", (16, 34))[3:6]
    sizes = ["ap_small", "ap_medium", "ap_large"]
    np.testing.assert_allclose([ours[name] for name in sizes], theirs, rtol=0, atol=1e-6)
    assert ours["ap_medium"] != metrics.average_precision(dataset, results)["ap_medium"]
    with pytest.raises(ValueError, match=r"size_limits must be two increasing numbers .* \(34.0, 16.0\)"):
        metrics.average_precision(dataset, results, size_limits=(34.0, 16.0))


def test_average_precision_of_nothing():
    dataset, results = random_case(0)
    assert metrics.average_precision(dataset, [])["ap"] == 0
    empty = metrics.average_precision(dataset | {"annotations": []}, results)
    assert math.isnan(empty["ap"]) and math.isnan(empty["ap_kind1"])
    assert set(empty) == set(metrics.average_precision(dataset, results))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "result 0 is of image 99"),
        ({"category_id": 0}, "category 0"),
        ({"score": math.nan}, "score nan"),
        ({"bbox": [0.0, math.inf, 1.0, 1.0]}, "inf"),
    ],
)
def test_wrong_results_are_named(change, message):
    dataset, results = random_case(0)
    with pytest.raises(ValueError, match=message):
        metrics.average_precision(dataset, [results[0] | change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "annotation 0, with the id 1, is of image 99"),
        ({"category_id": 0}, "category 0; the dataset has"),
        ({"bbox": [0.0, math.nan, 1.0, 1.0]}, r"annotation 0, with the id 1, has the box \[0.0, nan"),
        ({"id": 2}, "annotation 1 has the id 2 of an earlier one"),
    ],
)
def test_wrong_annotations_are_named(change, message):
    dataset, results = random_case(0)
    dataset["annotations"][0] |= change
    with pytest.raises(ValueError, match=message):
        metrics.average_precision(dataset, results)


def test_a_source_without_a_file_scores_its_own_objects_with_one():
    from densezoo.data import DigitScenes

    scenes = DigitScenes(3, size=(48, 48), digits=(1, 3))
    dataset = metrics.coco_dataset(scenes)
    results = []
    for index in range(3):
        sample = scenes[index]
        masks = np.stack([sample["instances"] == row + 1 for row in range(3)])
        results += metrics.coco_results(index + 1, sample["boxes"], np.ones(3), sample["labels"], masks=masks)
    assert len(results) == sum(int((scenes[index]["labels"] >= 0).sum()) for index in range(3))
    for masks in (False, True):
        assert metrics.average_precision(dataset, results, masks=masks)["ap"] == pytest.approx(1.0)


def test_panoptic_quality_by_hand():
    truth = np.array([[1, 1, 1, 1, 2, 2, 0, 0, 3, 3]])
    classes = {1: 0, 2: 0, 3: 1}
    # 1 is found with 3 of 4 pixels, 2 with another class, and 8 is mostly where nothing counts.
    predicted = np.array([[5, 5, 5, 6, 7, 7, 8, 8, 8, 9]])
    found = {5: 0, 6: 0, 7: 1, 8: 1, 9: 1}
    counts = metrics.panoptic_counts(predicted, found, truth, classes, 3)
    np.testing.assert_allclose(counts.matched, [1, 0, 0])
    np.testing.assert_allclose(counts.overlap, [0.75, 0, 0])
    np.testing.assert_allclose(counts.missed, [1, 1, 0])
    np.testing.assert_allclose(counts.spurious, [1, 2, 0])  # 6; 7 and 9, whose IoU is 0.5 alone
    np.testing.assert_allclose(counts.quality, [0.75 / 2, 0, np.nan])
    np.testing.assert_allclose(counts.quality, counts.recognition * counts.segmentation)
    twice = counts + counts
    np.testing.assert_allclose(twice.quality, counts.quality)
    # As a crowd, 3 is nothing to find and nothing to miss.
    crowd = metrics.panoptic_counts(predicted, found, truth, {1: 0, 2: 0}, 3, crowds={3: 1})
    np.testing.assert_allclose(crowd.missed, [1, 0, 0])
    np.testing.assert_allclose(crowd.spurious, [1, 1, 0])
    with pytest.raises(ValueError, match=r"segments \[9\] have no class"):
        metrics.panoptic_counts(predicted, {5: 0, 6: 0, 7: 1, 8: 1}, truth, classes, 3)


def test_panoptic_quality_leaves_out_what_does_not_count():
    # Of the 6 pixels predicted, 3 are in the true segment of 4 and 3 are where nothing counts: 3 / (3 + 4 - 3).
    truth, predicted = np.array([[1, 1, 1, 1, 0, 0, 0]]), np.array([[5, 5, 5, 0, 5, 5, 5]])
    counts = metrics.panoptic_counts(predicted, {5: 0}, truth, {1: 0}, 1)
    np.testing.assert_allclose([counts.overlap, counts.missed, counts.spurious], [[0.75], [0], [0]])
    # A crowd only excuses predictions of its own class.
    for label, spurious in ((0, [1, 0]), (1, [0, 0])):
        counts = metrics.panoptic_counts(np.array([[9, 9]]), {9: label}, np.array([[3, 3]]), {}, 2, crowds={3: 1})
        np.testing.assert_array_equal(counts.spurious, spurious)
