import itertools
import pickle
import socket

import numpy as np
import pytest

from densezoo.data import DigitScenes, _scene_parts


@pytest.fixture(scope="module")
def source():
    return DigitScenes(60, size=(72, 80), digits=(2, 4), scales=(2.0, 3.5))


@pytest.fixture(scope="module")
def items(source):
    return list(source)


def test_fields_have_their_shapes_and_types(items):
    for item in items:
        assert {name: (array.shape, array.dtype) for name, array in item.items()} == {
            "image": ((72, 80, 3), np.uint8),
            "mask": ((72, 80), np.int32),
            "instances": ((72, 80), np.int32),
            "boxes": ((4, 4), np.float32),
            "labels": ((4,), np.int32),
            "depth": ((72, 80), np.float32),
        }


def test_scenes_depend_on_their_number_and_the_seed_alone(source, items):
    again = DigitScenes(1000, size=(72, 80), digits=(2, 4), scales=(2.0, 3.5))
    for index in (31, 5, 31):
        for name, array in again[index].items():
            np.testing.assert_array_equal(array, items[index][name])
    for name, array in source[-1].items():
        np.testing.assert_array_equal(array, items[59][name])
    for options in ({"seed": 1}, {"split": "val"}):
        other = DigitScenes(60, size=(72, 80), digits=(2, 4), scales=(2.0, 3.5), **options)
        assert not np.array_equal(other[5]["image"], items[5]["image"])
    assert len({item["image"].tobytes() for item in items}) == 60
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[3]["image"], items[3]["image"])
    assert len(source) == 60 and source.sizes == ((72, 80),) * 60 and "seed=0" in repr(source)
    for index in (60, -61):
        with pytest.raises(IndexError, match="of 60"):
            source[index]


def test_all_targets_agree(items):
    for item in items:
        count = int((item["labels"] >= 0).sum())
        assert 1 <= count <= 4 and (item["labels"][:count] >= 0).all() and (item["labels"][count:] == -1).all()
        assert item["labels"].max() <= 9
        assert sorted(np.unique(item["instances"])) == list(range(count + 1))
        for k in range(4):
            rows, columns = np.nonzero(item["instances"] == k + 1)
            if k >= count:
                np.testing.assert_array_equal(item["boxes"][k], 0)
                continue
            extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_array_equal(item["boxes"][k], extent)
            assert (item["mask"][rows, columns] == item["labels"][k] + 1).all()
            assert len(np.unique(item["depth"][rows, columns])) == 1
        np.testing.assert_array_equal(item["mask"] == 0, item["instances"] == 0)


def test_depth_follows_scale(items):
    background = 1.5 * 3.5 / 2.0
    for item in items:
        np.testing.assert_allclose(item["depth"][item["instances"] == 0], background)
        depths = [item["depth"][item["instances"] == k].mean() for k in range(1, int((item["labels"] >= 0).sum()) + 1)]
        assert all(1 - 1e-5 <= depth <= 3.5 / 2.0 + 1e-5 for depth in depths)
        assert (np.diff(depths) <= 1e-5).all()


def test_every_digit_stays_visible():
    # As large as the scene allows, so that they can hardly avoid each other.
    crowded = DigitScenes(40, size=(48, 48), digits=(4, 4), scales=(3.0, 3.0), min_visible=0.7)
    alone = DigitScenes(1, size=(48, 48), digits=(1, 1), scales=(3.0, 3.0))
    least = dict.fromkeys(range(10), np.inf)
    for label, drawing in zip(alone._labels, alone._drawings[0], strict=True):
        least[int(label)] = min(least[int(label)], (drawing[0] >= 128).sum())
    overlaps = 0
    for item in crowded:
        for k in range(int((item["labels"] >= 0).sum())):
            visible = (item["instances"] == k + 1).sum()
            assert visible >= 0.7 * least[int(item["labels"][k])]
        overlaps += any(
            max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
            for a, b in itertools.combinations(item["boxes"], 2)
        )
    assert overlaps > 10


def test_digits_stand_out():
    for item in DigitScenes(30, size=(64, 64), digits=(1, 1), contrast=0.35):
        luminance = item["image"] @ np.array([0.299, 0.587, 0.114]) / 255
        left, top, right, bottom = item["boxes"][0].astype(int)
        inside = item["mask"][top:bottom, left:right] > 0
        region = luminance[top:bottom, left:right]
        assert region[inside].mean() > region[~inside].mean() + 0.15


def test_splits_share_neither_digits_nor_photographs():
    pictures = {
        split: {name for names in places.values() for name in names} for split, places in _scene_parts.PICTURES.items()
    }
    assert not pictures["train"] & pictures["val"]
    sizes = (2.0, 2.0)
    drawn = {split: _scene_parts.digits_of(split, sizes)[2][0] for split in pictures}
    assert len(drawn["train"]) + len(drawn["val"]) == 1797 and len(drawn["val"]) < 360
    kept = {split: {drawing.tobytes() for drawing in drawings} for split, drawings in drawn.items()}
    assert not kept["train"] & kept["val"]
    for split in pictures:
        assert np.bincount(_scene_parts.digits_of(split, sizes)[0]).min() >= 34


def test_every_digit_occurs():
    labels = np.concatenate([item["labels"] for item in DigitScenes(60, size=(48, 48), digits=(3, 5), scales=(2, 2))])
    assert set(labels.tolist()) >= set(range(10))


def test_scenes_may_be_larger_than_the_photographs():
    item = DigitScenes(1, size=(700, 40))[0]
    assert item["image"].shape == (700, 40, 3) and item["image"].std() > 3


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _scene_parts.digits_of.cache_clear()
    _scene_parts.pictures_of.cache_clear()
    assert DigitScenes(1, split="val")[0]["image"].shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 0}, "num_scenes=0"),
        ({"split": "test"}, "split='test'; expected 'train' or 'val'"),
        ({"seed": -1}, "seed=-1"),
        ({"digits": (0, 2)}, r"digits=\(0, 2\)"),
        ({"digits": (3, 2)}, r"digits=\(3, 2\)"),
        ({"scales": (4.0, 2.0)}, r"scales=\(4\.0, 2\.0\)"),
        ({"contrast": 0.9}, r"contrast=0\.9"),
        ({"min_visible": 0.0}, r"min_visible=0\.0"),
        ({"size": (96, 39)}, r"size=\(96, 39\) has no room .* expected 40 pixels or more"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**{"num_scenes": 1, **arguments})


def test_a_picture_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(_scene_parts.PICTURES, "val", {"skimage": ("nothing.png",)})
    _scene_parts.pictures_of.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: the installed scikit-image has no such picture"):
        DigitScenes(1, split="val")
