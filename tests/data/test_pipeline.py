import itertools
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import DigitScenes, ImageMaskFolder, eval_batches, train_batches


class Numbers:
    """Samples whose pixels all equal the sample's number, with a text and a number for each sample."""

    def __init__(self, count, height=4, width=6, channels=1, sizes=None):
        self.shapes = sizes or [(height, width)] * count
        self.channels = channels
        self.reads = []

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        self.reads.append(int(index))
        shape = self.shapes[index]
        return {
            "image": np.full((*shape, self.channels), index, np.float32),
            "mask": np.full(shape, index, np.uint8),
            "name": f"sample {index}",
            "number": np.int64(index),
        }


class Pixels:
    """Samples in which every pixel contains its position: row, column and sample are the channels."""

    def __init__(self, count, height, width):
        self.count, self.height, self.width = count, height, width

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rows, columns = np.mgrid[: self.height, : self.width]
        image = np.stack([rows, columns, np.full_like(rows, index)], -1).astype(np.float32)
        place = (rows * self.width + columns).astype(np.int32)
        return {"image": image, "image_after": image, "mask": place, "instances": place + 1, "depth": rows / 2.0}


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def numbers(batches):
    return [batch["number"].tolist() for batch in batches]


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# --- training ---


def test_every_epoch_visits_every_sample_once_in_a_new_order():
    drawn = np.array(numbers(take(train_batches(Numbers(7), batch_size=1)(0), 35))).reshape(5, 7)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == list(range(7))
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_may_be_larger_than_the_source(count):
    drawn = np.concatenate(numbers(take(train_batches(Numbers(count), batch_size=8)(0), 6)))
    assert drawn.shape == (48,) and (np.bincount(drawn) == 48 // count).all()


def test_batches_have_the_types_of_a_train_step():
    (batch,) = take(train_batches(Numbers(7, channels=2), batch_size=3)(0), 1)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((3, 4, 6, 2), np.float32),
        "mask": ((3, 4, 6), np.int32),
        "number": ((3,), np.int32),
    }
    for name in ("image", "mask"):
        assert (batch[name].reshape(3, -1) == batch["number"][:, None]).all()
    (batch,) = take(train_batches(Numbers(7), batch_size=3, fields=("image",))(0), 1)
    assert list(batch) == ["image"]


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_a_resumed_run_sees_the_same_batches(num_threads):
    batches = train_batches(Pixels(5, 7, 9), batch_size=3, crop_size=(4, 5), seed=3, num_threads=num_threads)
    whole = take(batches(0), 9)
    assert_equal(take(batches(4), 5), whole[4:])
    again = train_batches(Pixels(5, 7, 9), batch_size=3, crop_size=(4, 5), seed=3, num_threads=2, prefetch=1)
    assert_equal(take(again(4), 5), whole[4:])
    other = take(train_batches(Pixels(5, 7, 9), batch_size=3, crop_size=(4, 5), seed=4)(0), 9)
    assert not all(np.array_equal(one["image"], two["image"]) for one, two in zip(whole, other, strict=True))


def test_seeds_do_not_repeat_each_others_epochs():
    def epochs(seed):
        drawn = np.array(numbers(take(train_batches(Numbers(9), batch_size=9, seed=seed)(0), 6)))
        return {tuple(epoch) for epoch in drawn.tolist()}

    assert not epochs(0) & epochs(1)


def test_shards_make_up_the_whole_batch():
    whole = take(train_batches(Pixels(5, 7, 9), batch_size=6, crop_size=4, seed=1)(2), 4)
    for count in (2, 3):
        parts = [
            take(train_batches(Pixels(5, 7, 9), batch_size=6, crop_size=4, seed=1, shard=(index, count))(2), 4)
            for index in range(count)
        ]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_equal(joined, whole)


def test_crops_are_random_windows_of_all_maps():
    batches = take(train_batches(Pixels(3, 6, 8), batch_size=4, crop_size=(4, 5))(0), 30)
    corners = set()
    for sample in range(120):
        batch = {name: array[sample % 4] for name, array in batches[sample // 4].items()}
        top, left = batch["image"][0, 0, :2].astype(int)
        corners.add((top, left))
        rows, columns = np.mgrid[top : top + 4, left : left + 5]
        np.testing.assert_array_equal(batch["image"][..., 0], rows)
        np.testing.assert_array_equal(batch["image"][..., 1], columns)
        np.testing.assert_array_equal(batch["image_after"], batch["image"])
        np.testing.assert_array_equal(batch["mask"], rows * 8 + columns)
        np.testing.assert_array_equal(batch["instances"], rows * 8 + columns + 1)
        np.testing.assert_array_equal(batch["depth"], rows / 2)
    assert corners == set(itertools.product(range(3), range(4)))


def test_samples_smaller_than_the_crop_are_padded():
    batches = take(train_batches(Pixels(1, 3, 9), batch_size=1, crop_size=(5, 4), ignore_index=-1)(0), 40)
    tops = set()
    for batch in batches:
        image, mask = batch["image"][0], batch["mask"][0]
        inside = mask[:, 0] >= 0
        assert inside.sum() == 3 and (mask[inside] >= 0).all() and (mask[~inside] == -1).all()
        top = int(np.argmax(inside))
        tops.add(top)
        mirrored = np.abs(np.arange(5) - top)  # rows above the first
        mirrored = np.where(mirrored > 2, 4 - mirrored, mirrored)  # and below the last
        np.testing.assert_array_equal(image[:, :, 0], np.repeat(mirrored[:, None], 4, 1))
        np.testing.assert_array_equal(batch["instances"][0] == 0, mask == -1)
        np.testing.assert_array_equal(batch["depth"][0][~inside], 0)
    assert tops == {0, 1, 2}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_class_255_is_not_taken_for_an_ignored_minus_one(dtype):
    source = [{"image": np.zeros((3, 3, 1), np.uint8), "mask": np.full((3, 3), 255, dtype)}]
    (batch,) = take(train_batches(source, batch_size=1, crop_size=5, ignore_index=-1)(0), 1)
    (padded,) = eval_batches(source, batch_size=2, multiple=4, ignore_index=-1)
    for mask, count in ((batch["mask"][0], 25), (padded["mask"][0], 16)):
        assert mask.dtype == np.int32 and (mask == 255).sum() == 9 and (mask == -1).sum() == count - 9
    assert (padded["mask"][1] == -1).all()


def test_crops_keep_boxes_and_instances_together():
    scenes = DigitScenes(6, size=(48, 48), digits=(2, 3))
    batches = take(train_batches(scenes, batch_size=6, crop_size=(32, 64))(0), 4)
    kept = 0
    for batch in batches:
        assert batch["image"].shape == (6, 32, 64, 3) and batch["boxes"].dtype == np.float32
        for boxes, labels, instances, mask in zip(
            batch["boxes"], batch["labels"], batch["instances"], batch["mask"], strict=True
        ):
            for k in range(len(labels)):
                rows, columns = np.nonzero(instances == k + 1)
                if labels[k] >= 0:
                    kept += 1
                    left, top, right, bottom = boxes[k]
                    assert left <= columns.min() and columns.max() < right <= 64
                    assert top <= rows.min() and rows.max() < bottom <= 32
                    assert (mask[rows, columns] == labels[k] + 1).all()
                else:
                    np.testing.assert_array_equal(boxes[k], 0)
                    assert len(rows) == 0
    assert kept > 20


def test_whole_samples_of_one_size():
    scenes = DigitScenes(6, size=(40, 44), digits=(1, 2))
    (batch,) = take(train_batches(scenes, batch_size=3)(0), 1)
    assert batch["image"].shape == (3, 40, 44, 3) and batch["image"].max() <= 1 and batch["boxes"].shape == (3, 2, 4)
    assert any(np.array_equal(batch["instances"][0], scene["instances"]) for scene in scenes)


def test_16_bit_crops_from_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    pixels = rng.integers(65536, size=(5, 20, 24), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "images" / "a.tif", pixels, photometric="minisblack")
    Image.fromarray((pixels[0] >> 14).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    batches = train_batches(ImageMaskFolder(tmp_path, num_classes=4), batch_size=2, crop_size=8)
    for batch in take(batches(0), 3):
        assert batch["image"].shape == (2, 8, 8, 5) and batch["image"].dtype == np.float32
        stored = np.rint(batch["image"][..., 0] * 65535).astype(int)
        np.testing.assert_array_equal(stored >> 14, batch["mask"])


def test_errors_of_the_source_reach_the_reader():
    class Broken(Numbers):
        def __getitem__(self, index):
            if len(self.reads) > 3:
                raise ValueError("images/b.png: cannot be decoded")
            return super().__getitem__(index)

    for num_threads in (0, 2):
        with pytest.raises(ValueError, match=r"images/b\.png"):
            take(train_batches(Broken(9), batch_size=2, num_threads=num_threads)(0), 9)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_stop_iteration_of_the_source_does_not_end_the_batches(num_threads):
    class Ended(Numbers):
        sizes = ((4, 6),) * 9  # so that no sample is read before the batches are

        def __repr__(self):
            return "Named"

        def __getitem__(self, index):
            if index == 5:
                raise StopIteration
            return super().__getitem__(index)

    for batches in (
        eval_batches(Ended(9), batch_size=2, num_threads=num_threads),
        train_batches(Ended(9), batch_size=3, num_threads=num_threads)(0),
    ):
        with pytest.raises(RuntimeError, match="reading sample 5 of Named raised StopIteration"):
            list(itertools.islice(batches, 9))


def test_threads_end_with_the_iterator():
    before = set(threading.enumerate())
    iterator = train_batches(Numbers(9), batch_size=2, num_threads=3)(0)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_reading_ahead_is_bounded():
    source = Numbers(100)
    iterator = train_batches(source, batch_size=2, num_threads=2, prefetch=3)(0)
    take(iterator, 1)
    assert len(source.reads) <= 1 + 2 * (1 + 4)


# --- evaluation ---

MIXED = [(4, 6), (9, 6), (4, 5), (3, 8), (8, 8), (1, 1), (4, 8)]


def test_every_sample_is_evaluated_once_and_whole():
    batches = eval_batches(Numbers(7, sizes=MIXED), batch_size=2, multiple=4)
    assert len(batches) == 5
    for _ in range(2):
        seen = {}
        for batch in batches:
            assert batch["image"].shape[0] == 2 and batch["image"].shape[:3] == batch["mask"].shape
            for image, mask, number in zip(batch["image"], batch["mask"], batch["number"].tolist(), strict=True):
                if (mask == 255).all():
                    assert not image.any()
                    continue
                assert number not in seen
                height, width = seen[number] = MIXED[number]
                assert mask.shape == (height + -height % 4, width + -width % 4)
                assert (mask[:height, :width] == number).all()
                assert (mask == 255).sum() == mask.size - height * width
                assert (image == number).all()
        assert sorted(seen) == list(range(7))


def test_one_shape_a_batch_and_few_shapes():
    batches = list(eval_batches(Numbers(7, sizes=MIXED), batch_size=4, multiple=4))
    shapes = [batch["mask"].shape for batch in batches]
    assert shapes == [(4, 4, 8), (4, 12, 8), (4, 8, 8), (4, 4, 4)]
    assert batches[0]["number"].tolist() == [0, 2, 3, 6]


def test_sizes_tell_pictures_from_padding():
    batches = list(eval_batches(Numbers(7, sizes=MIXED), batch_size=2, multiple=4, fields=("image", "number")))
    for batch in batches:
        assert batch["size"].shape == (2, 2) and batch["size"].dtype == np.int32
        for image, number, size in zip(batch["image"], batch["number"], batch["size"], strict=True):
            assert tuple(size) == (MIXED[number] if size.any() else (0, 0))
            assert size.any() or not image.any()
    assert sum(int((batch["size"] > 0).all(1).sum()) for batch in batches) == 7


def test_padding_repeats_the_last_row_and_column():
    (batch,) = eval_batches(Pixels(1, 3, 5), batch_size=1, multiple=4, ignore_index=-1)
    rows, columns = np.minimum(np.mgrid[:4, :8], np.array([2, 4])[:, None, None])
    np.testing.assert_array_equal(batch["image"][0, ..., 0], rows)
    np.testing.assert_array_equal(batch["image"][0, ..., 1], columns)
    np.testing.assert_array_equal(batch["mask"][0, :3, :5], np.arange(15).reshape(3, 5))
    assert (batch["mask"] == -1).sum() == 32 - 15 and (batch["instances"] == 0).sum() == 32 - 15


def test_sizes_spare_decoding():
    source = Numbers(7, sizes=MIXED)
    eval_batches(source, batch_size=2)
    assert sorted(source.reads) == [0, *range(7)]
    source = Numbers(7, sizes=MIXED)
    source.sizes = MIXED
    batches = eval_batches(source, batch_size=2, multiple=4)
    assert source.reads == [0]
    assert len(batches) == 5


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_shards_make_up_the_whole(count):
    whole = list(eval_batches(Numbers(7, sizes=MIXED), batch_size=4, multiple=4))
    parts = [
        list(eval_batches(Numbers(7, sizes=MIXED), batch_size=4, multiple=4, shard=(index, count)))
        for index in range(count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_missing_scenes_have_no_labels():
    scenes = DigitScenes(3, size=(40, 40), digits=(1, 2))
    batches = list(eval_batches(scenes, batch_size=2))
    assert len(batches) == 2 and batches[1]["image"].shape == (2, 64, 64, 3)
    assert (batches[1]["labels"][1] == -1).all() and not batches[1]["boxes"][1].any()
    assert (batches[1]["mask"][1] == 255).all() and not batches[1]["instances"][1].any()
    np.testing.assert_array_equal(batches[1]["boxes"][0], scenes[2]["boxes"])


# --- arguments ---


@pytest.mark.parametrize("make", [train_batches, eval_batches])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; expected 1 or more"),
        ({"batch_size": 2, "num_threads": -1}, "num_threads=-1"),
        ({"batch_size": 2, "prefetch": 0}, "prefetch=0"),
        ({"batch_size": 2, "shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"batch_size": 3, "shard": (0, 2)}, "batch_size=3 over 2 shards; expected a multiple of 2"),
        (
            {"batch_size": 2, "fields": ("image", "boxes")},
            "boxes is not in the samples; expected some of image, mask, number",
        ),
        ({"batch_size": 2, "fields": ("name",)}, "name is not numeric"),
    ],
)
def test_arguments_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(Numbers(4), **arguments)


def test_more_arguments_out_of_range():
    for size in (0, (4, 0), (4, 4, 4)):
        with pytest.raises(ValueError, match="crop_size="):
            train_batches(Numbers(4), batch_size=2, crop_size=size)
    with pytest.raises(ValueError, match="seed=-1"):
        train_batches(Numbers(4), batch_size=2, seed=-1)
    with pytest.raises(ValueError, match="start_step=-1"):
        next(train_batches(Numbers(4), batch_size=2)(-1))
    with pytest.raises(ValueError, match="multiple=0"):
        eval_batches(Numbers(4), batch_size=2, multiple=0)
    with pytest.raises(ValueError, match="no samples"):
        train_batches([], batch_size=2)


def test_sizes_and_channels_that_do_not_stack():
    source = Numbers(7, sizes=MIXED)
    with pytest.raises(ValueError, match=r"image has the shapes .* pass crop_size"):
        take(train_batches(source, batch_size=4)(0), 4)
    source.sizes = MIXED
    with pytest.raises(ValueError, match=r"7 sizes, from \(1, 1\) to \(9, 6\).* pass crop_size"):
        train_batches(source, batch_size=4)

    class Coloured(Numbers):
        def __getitem__(self, index):
            self.channels = 1 + index % 2
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"image has the shapes .* one number of channels"):
        take(train_batches(Coloured(4), batch_size=4, num_threads=0)(0), 1)
    boxes = [{"image": np.zeros((4, 4, 1)), "boxes": np.zeros((1, 4))}]
    with pytest.raises(ValueError, match="train_batches got boxes but no labels"):
        take(train_batches(boxes, batch_size=1, crop_size=2, num_threads=0)(0), 1)
    with pytest.raises(ValueError, match="images and maps of one height and width"):
        list(eval_batches([{"image": np.zeros((4, 4, 1)), "mask": np.zeros((4, 5), int)}], batch_size=1))
