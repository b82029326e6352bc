"""Resizing of samples on the host, and the sizes in padded batches."""

import itertools

import numpy as np
import pytest

from densezoo.data import Resize, ScaleJitter, eval_batches, fields, train_batches
from densezoo.messages import as_flags

RNG = np.random.default_rng(0)


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def nearest_by_loops(array, size):
    result = np.empty((*size, *array.shape[2:]), array.dtype)
    for y, x in np.ndindex(*size):
        v, u = (2 * y + 1) * array.shape[0] // (2 * size[0]), (2 * x + 1) * array.shape[1] // (2 * size[1])
        result[y, x] = array[v, u]
    return result


def linear_by_loops(array, size):
    """Triangles around half-pixel centres, as wide as a pixel of the coarser picture."""
    result = np.zeros((*size, *array.shape[2:]))
    scales = [max(1.0, before / after) for before, after in zip(array.shape, size, strict=False)]
    for y, x in np.ndindex(*size):
        v, u = (y + 0.5) * array.shape[0] / size[0], (x + 0.5) * array.shape[1] / size[1]
        total = 0.0
        for row, column in np.ndindex(*array.shape[:2]):
            weight = max(0.0, 1 - abs(row + 0.5 - v) / scales[0]) * max(0.0, 1 - abs(column + 0.5 - u) / scales[1])
            result[y, x] += weight * array[row, column]
            total += weight
        result[y, x] /= total
    return result


@pytest.mark.parametrize("size", [(7, 11), (3, 4), (5, 6), (4, 12), (25, 2)])
def test_resizing_follows_its_definition(size):
    image = RNG.random((5, 6, 3)).astype(np.float32)
    labels = RNG.integers(9, size=(5, 6)).astype(np.int32)
    np.testing.assert_allclose(fields.Image().resize(image, size), linear_by_loops(image, size), atol=1e-5)
    np.testing.assert_array_equal(fields.LabelMap().resize(labels, size), nearest_by_loops(labels, size))
    depth = labels.astype(np.float32)
    np.testing.assert_array_equal(fields.ScalarMap().resize(depth, size), nearest_by_loops(depth, size))
    mean = fields.ScalarMap(linear=True).resize(depth, size)
    np.testing.assert_allclose(mean, linear_by_loops(depth, size), atol=1e-5)


def test_sizes_by_sides():
    assert Resize(shortest=100)(50, 75) == (100, 150)
    assert Resize(longest=100)(75, 50) == (100, 67)
    assert Resize(shortest=800, longest=1333)(480, 640) == (800, 1067)
    assert Resize(shortest=800, longest=1333)(200, 640) == (417, 1333)
    assert Resize(longest=10)(1, 1000) == (1, 10)
    for sides in ({}, {"shortest": 0}):
        with pytest.raises(ValueError, match="expected shortest or longest"):
            Resize(**sides)
    with (
        as_flags({"shortest": "--shortest"}),
        pytest.raises(ValueError, match=r"^--shortest 0; expected --shortest or"),
    ):
        Resize(shortest=0)
    with as_flags({"scales": "--scale-jitter"}), pytest.raises(ValueError, match=r"--scale-jitter 2\.0 0\.1; expected"):
        ScaleJitter((8, 8), (2.0, 0.1))


class Corners:
    """Pictures of several sizes, dark except for their lower right quarter, with its mask and box."""

    sizes = ((8, 12), (12, 8), (16, 24))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        height, width = self.sizes[index]
        mask = np.zeros((height, width), np.uint8)
        mask[height // 2 :, width // 2 :] = 1
        box = np.array([[width / 2, height / 2, width, height], [0, 0, 0, 0]], np.float32)
        image = 255 * np.repeat(mask[..., None], 3, -1)
        return {"image": image, "mask": mask, "instances": mask, "boxes": box, "labels": np.array([4, -1])}


def check_corner(image, mask, boxes, size):
    height, width = size
    expected = np.zeros((height, width), np.int32)
    expected[height // 2 :, width // 2 :] = 1
    np.testing.assert_array_equal(mask[:height, :width], expected)
    np.testing.assert_array_equal(boxes, [[width / 2, height / 2, width, height], [0, 0, 0, 0]])
    assert ((image[:height, :width, 0] > 0.5) == (expected == 1)).all()


def test_samples_are_resized_with_all_their_fields():
    for batch in take(train_batches(Corners(), batch_size=3, resize=(20, 10))(0), 2):
        assert batch["image"].shape == (3, 20, 10, 3) and batch["mask"].dtype == batch["labels"].dtype == np.int32
        np.testing.assert_array_equal(batch["instances"], batch["mask"])
        for image, mask, boxes in zip(batch["image"], batch["mask"], batch["boxes"], strict=True):
            check_corner(image, mask, boxes, (20, 10))


def test_evaluation_resizes_before_it_pads():
    batches = eval_batches(Corners(), batch_size=2, multiple=16, resize=Resize(shortest=20, longest=24))
    found = []
    for batch in batches:
        for image, mask, boxes, size in zip(batch["image"], batch["mask"], batch["boxes"], batch["size"], strict=True):
            if size.any():
                found.append(tuple(size.tolist()))
                check_corner(image, mask, boxes, found[-1])
                assert (mask == 255).sum() == mask.size - size.prod()
    assert sorted(found) == [(16, 24), (16, 24), (24, 16)]
    for make in (train_batches, eval_batches):
        with pytest.raises(ValueError, match=r"resize=\(0, 3\); expected a pair"):
            make(Corners(), batch_size=1, resize=(0, 3))
    with pytest.raises(ValueError, match=r"2 sizes, from \(16, 24\) to \(24, 16\)"):
        train_batches(Corners(), batch_size=2, resize=Resize(longest=24))


def test_sizes_in_training_on_request():
    names = ("image", "mask", "size")
    batches = take(train_batches(Corners(), batch_size=3, crop_size=(14, 10), fields=names)(0), 4)
    for batch in batches:
        for image, mask, size in zip(batch["image"], batch["mask"], batch["size"].tolist(), strict=True):
            assert size in ([8, 10], [12, 8], [14, 10])
            assert (mask[: size[0], : size[1]] != 255).all() and (mask == 255).sum() == 140 - size[0] * size[1]
            np.testing.assert_array_equal(image[size[0] :], np.broadcast_to(image[size[0] - 1], image[size[0] :].shape))
    assert "size" not in take(train_batches(Corners(), batch_size=3, crop_size=8)(0), 1)[0]
    (whole,) = take(train_batches(Corners(), batch_size=3, resize=(6, 6), fields=names)(0), 1)
    assert whole["size"].tolist() == [[6, 6]] * 3


def test_scale_jitter_draws_sizes_for_training_and_fits_for_evaluation():
    from densezoo.data import DigitScenes, ScaleJitter, eval_batches, train_batches

    jitter = ScaleJitter((40, 60), (0.5, 2.0))
    rng = np.random.default_rng(0)
    drawn = np.array([jitter.draw(20, 20, rng) for _ in range(200)])
    assert drawn.min() in range(20, 24) and drawn.max() in range(74, 81)
    assert jitter(20, 20) == (40, 40) and jitter(20, 40) == (30, 60)
    scenes = DigitScenes(4, size=(40, 60), scales=(1.5, 2.0), digits=(1, 2))
    options = {"resize": jitter, "batch_size": 4}
    batches = train_batches(scenes, crop_size=(40, 60), fields=("image", "boxes", "labels", "size"), **options)
    first, again = next(batches(0)), next(batches(0))
    assert len({tuple(size) for size in first["size"].tolist()}) > 1
    assert (first["size"] <= [40, 60]).all()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    edges = first["boxes"].max(1)
    assert (edges[:, 2] <= first["size"][:, 1]).all() and (edges[:, 3] <= first["size"][:, 0]).all()
    assert next(iter(eval_batches(scenes, **options)))["size"].tolist() == [[40, 60]] * 4
    with pytest.raises(ValueError, match="scales"):
        ScaleJitter((4, 4), (0.0, 1.0))
