"""Each kind of field, on the host and on the device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo.data import eval_batches, fields, train_batches, transforms

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def take(source, count, **arguments):
    iterator = train_batches(source, **arguments)(0)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


@pytest.mark.parametrize(
    ("name", "kind", "group"),
    [
        ("image", fields.Image, ""),
        ("image_before", fields.Image, "_before"),
        ("image2", fields.Image, "2"),
        ("images", fields.Kind, ""),
        ("image_id", fields.Kind, ""),
        ("mask_2", fields.LabelMap, "_2"),
        ("change", fields.LabelMap, ""),
        ("depth", fields.ScalarMap, ""),
        ("normals_left", fields.VectorMap, "_left"),
        ("instances", fields.InstanceMap, ""),
        ("boxes_2", fields.Boxes, "_2"),
        ("labels_2", fields.Labels, "_2"),
        ("size", fields.Kind, ""),
        ("weight", fields.Kind, ""),
    ],
)
def test_names_give_kinds(name, kind, group):
    assert type(fields.kind_of(name)) is kind and fields.group_of(name) == group


def test_the_longest_name_counts(monkeypatch):
    monkeypatch.setitem(fields.KINDS, "mask_soft", fields.ScalarMap(linear=True))
    assert fields.kind_of("mask_soft_2") == fields.ScalarMap(linear=True)
    assert fields.kind_of("mask_softer") == fields.LabelMap()


# --- types ---


def test_types_in_batches():
    def convert(name, array):
        return fields.kind_of(name).convert(name, np.asarray(array))

    for name, dtype in (("mask", np.uint8), ("mask", bool), ("mask", np.int64), ("mask", float), ("instances", ">u2")):
        converted = convert(name, np.ones((2, 2), dtype))
        assert converted.dtype == np.int32 and (converted == 1).all()
    for array in ([[0.5]], [[np.nan]], [[2.0**40]], [[2**40]]):
        with pytest.raises(ValueError, match=r"mask of type .* not 32-bit whole numbers"):
            convert("mask", array)
    depth = convert("depth", np.array([[1000, 0]], np.uint16))
    assert depth.dtype == np.float32 and depth.tolist() == [[1000.0, 0.0]]
    assert convert("depth", [[np.nan, np.inf, 2.0]]).tolist() == [[0.0, 0.0, 2.0]]
    normals = convert("normals", [[[np.nan, 0.0, 1.0], [0.0, 0.6, 0.8]]])
    np.testing.assert_array_equal(normals, np.array([[[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]], np.float32))
    assert convert("boxes", np.ones((1, 4), int)).dtype == np.float32
    kept = fields.ScalarMap(fill=np.nan).convert("x", np.array([[np.inf, 1.0]]))
    np.testing.assert_array_equal(kept, np.array([[np.nan, 1.0]], np.float32))


# --- vectors ---


def surface(width=8):
    """A smooth height map over a square, for one sample."""
    a, b, c = RNG.random(3) + 0.5
    rows, columns = np.mgrid[:width, :width] / width
    return a * np.sin(3 * rows * b + columns) + c * rows * columns


def normals_of(height, y_up):
    """The unit normals of a surface, from finite differences."""
    down, right = np.gradient(height)
    normals = np.stack([-right, down if y_up else -down, np.ones_like(right)], -1)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


@pytest.mark.parametrize("y_up", [False, True])
@pytest.mark.parametrize("turn", [False, True])
def test_normals_stay_those_of_the_surface(monkeypatch, y_up, turn):
    monkeypatch.setitem(fields.KINDS, "normals", fields.VectorMap(y_up=y_up))
    depths = np.stack([surface() for _ in range(24)])
    normals = np.stack([normals_of(depth, y_up) for depth in depths])
    batch = {"depth": jnp.asarray(depths, jnp.float32), "normals": jnp.asarray(normals, jnp.float32)}
    step = transforms.random_rot90() if turn else transforms.random_flip(vertical=True)
    result = jax.jit(step)(KEY, batch)
    assert (np.asarray(result["depth"]) != batch["depth"]).any(axis=(1, 2)).sum() > 10
    for depth, found in zip(np.asarray(result["depth"]), result["normals"], strict=True):
        np.testing.assert_allclose(found, normals_of(depth, y_up), atol=1e-4)


def test_resized_normals_have_length_one_and_holes_stay():
    normals = normals_of(surface(16), False).astype(np.float32)
    normals[4:12, 4:12] = 0
    kind = fields.VectorMap()
    for size in ((32, 24), (8, 8), (16, 16)):
        lengths = np.linalg.norm(kind.resize(normals, size), axis=-1)
        assert ((np.abs(lengths - 1) < 1e-5) | (lengths == 0)).all() and (lengths == 0).any()
    result = transforms.random_scale((1.5, 1.5))(KEY, {"normals": jnp.asarray(normals)[None]})["normals"]
    lengths = np.linalg.norm(result, axis=-1)
    assert ((np.abs(lengths - 1) < 1e-5) | (lengths == 0)).all()
    outside = transforms.random_scale((0.5, 0.5))(KEY, {"normals": jnp.asarray(normals)[None]})["normals"]
    assert (np.abs(outside).sum(-1) == 0).sum() >= 256 - 64


class Flows:
    """Samples with a flow that moves every pixel by one tenth of the picture's height and width."""

    sizes = ((10, 20),) * 3

    def __len__(self):
        return 3

    def __getitem__(self, index):
        flow = np.broadcast_to(np.array([2.0, 1.0]), (10, 20, 2))
        return {"image": np.zeros((10, 20, 1), np.uint8), "flow": flow}


def test_a_field_of_the_users_own(monkeypatch):
    with pytest.raises(ValueError, match=r"field flow of shape .*KINDS\[.flow.\]"):
        train_batches(Flows(), batch_size=2)
    monkeypatch.setitem(fields.KINDS, "flow", fields.VectorMap(components=2, length="pixels", fill=np.nan))
    (batch,) = take(Flows(), 1, batch_size=3, resize=(20, 10), crop_size=(30, 8))
    flow = batch["flow"]
    inside = ~np.isnan(flow).any(-1)
    assert flow.shape == (3, 30, 8, 2) and inside.sum() == 3 * 20 * 8
    np.testing.assert_allclose(flow[inside], np.broadcast_to([1.0, 2.0], (480, 2)), rtol=1e-6)
    (batch,) = eval_batches(Flows(), batch_size=4, multiple=16)
    assert np.isnan(batch["flow"][0, 10:]).all() and np.isnan(batch["flow"][3]).all()
    flow = jnp.asarray(Flows()[0]["flow"], jnp.float32)[None]
    zoomed = np.asarray(transforms.random_scale((2.0, 2.0))(KEY, {"flow": flow})["flow"])
    np.testing.assert_allclose(zoomed, np.broadcast_to([4.0, 2.0], (1, 10, 20, 2)), rtol=1e-5)
    mirrored = np.asarray(transforms.random_flip()(KEY, {"flow": jnp.repeat(flow, 8, axis=0)})["flow"])
    assert set(mirrored[..., 0].ravel().tolist()) == {2.0, -2.0} and (mirrored[..., 1] == 1).all()
    with pytest.raises(ValueError, match=r"flow of shape \(1, 4, 4, 3\); expected 2 components"):
        transforms.random_flip()(KEY, {"flow": jnp.zeros((1, 4, 4, 3))})


# --- several labels per pixel ---


def test_masks_of_several_labels_move_with_the_picture():
    mask = RNG.integers(2, size=(6, 6, 6, 3)).astype(np.int32)
    batch = {"image": jnp.asarray(mask, jnp.float32), "mask": jnp.asarray(mask)}
    step = transforms.compose(transforms.random_flip(), transforms.random_rot90(), transforms.random_crop(4))
    result = jax.jit(step)(KEY, batch)
    np.testing.assert_array_equal(result["mask"], np.asarray(result["image"]))
    shrunk = transforms.random_scale((0.5, 0.5), ignore_index=-1)(KEY, batch)["mask"]
    assert (np.asarray(shrunk) == -1).sum() == 6 * (36 - 9) * 3 and shrunk.dtype == jnp.int32
    (padded,) = eval_batches([{"mask": mask[0]}], batch_size=2, multiple=8)
    assert (padded["mask"][0, 6:] == 255).all() and (padded["mask"][1] == 255).all()
    np.testing.assert_array_equal(padded["mask"][0, :6, :6], mask[0])


# --- instances ---


def crowd(count=24, suffix=""):
    """Samples of 8x8 with an instance of 4x4 in each of two corners; the second one's box is twice as wide."""
    ids = np.zeros((count, 8, 8), np.int32)
    ids[:, :4, :4], ids[:, 4:, 4:] = 1, 2
    boxes = np.zeros((count, 3, 4), np.float32)
    boxes[:, 0], boxes[:, 1] = (0, 0, 4, 4), (0, 4, 8, 8)
    labels = np.broadcast_to(np.array([5, 6, -1], np.int32), (count, 3))
    return {f"instances{suffix}": ids, f"boxes{suffix}": boxes, f"labels{suffix}": labels}


def check_instances(ids, boxes, labels):
    """An instance removed from one of the three fields is removed from all; returns which of the two are present."""
    present = {k for k in (1, 2) if (ids == k).any()}
    assert {k for k in (1, 2) if labels[k - 1] >= 0} == present and labels[2] == -1
    for k in (1, 2):
        if k in present:
            assert boxes[k - 1, 2] > boxes[k - 1, 0] and labels[k - 1] == 4 + k
        else:
            np.testing.assert_array_equal(boxes[k - 1], 0)
    return frozenset(present)


@pytest.mark.parametrize("suffix", ["", "_after"])
@pytest.mark.parametrize("step", [transforms.random_crop(3), transforms.random_scale((2.2, 2.6))])
def test_instances_leave_ids_boxes_and_labels_alike(suffix, step):
    batch = {name: jnp.asarray(array) for name, array in crowd(suffix=suffix).items()}
    result = jax.jit(step)(KEY, {**batch, "image": jnp.zeros((24, 8, 8, 1))})
    seen = {
        check_instances(*(np.asarray(result[f"{name}{suffix}"][i]) for name in ("instances", "boxes", "labels")))
        for i in range(24)
    }
    assert {frozenset(), frozenset({1})} <= seen  # the box of 2 covers all of the left, where it has no pixel


def test_crops_of_the_pipeline_drop_the_same():
    source = [{"image": np.zeros((8, 8, 1), np.uint8), **{name: array[0] for name, array in crowd(1).items()}}]
    batches = take(source, 60, batch_size=1, crop_size=3)
    seen = {check_instances(*(batch[name][0] for name in ("instances", "boxes", "labels"))) for batch in batches}
    assert {frozenset(), frozenset({1}), frozenset({2})} <= seen
    alone = take(source, 60, batch_size=1, crop_size=3, fields=("boxes", "image"))
    for batch, other in zip(batches, alone, strict=True):
        np.testing.assert_array_equal(batch["boxes"], other["boxes"])


def test_values_of_instances_follow_and_unknown_ids_stay(monkeypatch):
    monkeypatch.setitem(fields.KINDS, "crowds", fields.Rows())
    ids = np.zeros((1, 1, 6), np.int32)
    ids[0, 0] = [1, 0, 9, -2, 3, 3]
    boxes = np.array([[[0, 0, 1, 1], [2, 0, 4, 1], [4, 0, 6, 1]]], np.float32)  # the second is not on the map
    labels = np.array([[7, 6, 8]], np.int32)
    batch = {"instances": ids, "boxes": boxes, "labels": labels, "crowds": np.ones((1, 3), np.int32)}
    batch = {name: jnp.asarray(np.repeat(array, 16, axis=0)) for name, array in batch.items()}
    result = jax.jit(transforms.random_crop((1, 4)))(KEY, batch)
    kinds = {tuple(row) for row in np.asarray(result["instances"])[:, 0].tolist()}
    assert kinds == {(1, 0, 9, -2), (0, 9, -2, 3), (9, -2, 3, 3)}
    assert (result["labels"][:, 1] == 6).all()
    np.testing.assert_array_equal(result["crowds"] == 1, np.asarray(result["labels"]) >= 0)


def test_boxes_that_move_by_a_turn_keep_their_empty_rows():
    boxes = jnp.asarray([[[1.0, 2.0, 4.0, 3.0], [0.0, 0.0, 0.0, 0.0]]] * 16)
    result = jax.jit(transforms.random_rot90())(KEY, {"image": jnp.zeros((16, 6, 6, 1)), "boxes": boxes})
    np.testing.assert_array_equal(result["boxes"][:, 1], np.zeros((16, 4)))
    assert len(np.unique(np.asarray(result["boxes"][:, 0]), axis=0)) == 4


def test_instances_without_labels_just_move():
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "instances": jnp.asarray(crowd(4)["instances"])}
    assert transforms.random_crop(4)(KEY, batch)["instances"].shape == (4, 4, 4)
