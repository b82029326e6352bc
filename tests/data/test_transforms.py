import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo.data import transforms

KEY = jax.random.key(0)
SAMPLES = 24


def make_batch(height=5, width=7, channels=3, samples=SAMPLES):
    """Images with unique pixels, and maps that contain the pixels' numbers."""
    pixels = np.arange(samples * height * width).reshape(samples, height, width)
    image = np.repeat(pixels[..., None], channels, 3) + np.linspace(0, 0.5, channels)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "image_after": jnp.asarray(image + 0.25, jnp.float32),
        "mask": jnp.asarray(pixels % 256, jnp.int32),
        "instances": jnp.asarray(pixels + height * width, jnp.int32),  # none belongs to a row of boxes
        "depth": jnp.asarray(pixels, jnp.float32),
    }


def with_boxes(batch, box=(1.0, 2.0, 4.0, 3.0)):
    samples = batch["image"].shape[0]
    boxes = jnp.asarray([[box, (0.0, 0.0, 0.0, 0.0)]] * samples, jnp.float32)
    return {**batch, "boxes": boxes, "labels": jnp.asarray([[3, -1]] * samples, jnp.int32), "weight": jnp.ones(samples)}


def assert_same_geometry(result, batch, move):
    """Every image and map of sample i equals `move(array, i)`."""
    for name in ("image", "image_after", "mask", "instances", "depth"):
        for i in range(SAMPLES):
            np.testing.assert_array_equal(result[name][i], move(np.asarray(batch[name][i]), i), err_msg=f"{name} {i}")
        assert result[name].dtype == batch[name].dtype


def box_of(region):
    """The box around the nonzero pixels, by a loop over all pixels."""
    points = [(x, y) for (y, x), value in np.ndenumerate(region) if value]
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


@functools.cache
def jitted(name, *arguments):
    return jax.jit(getattr(transforms, name)(*arguments))


# --- flips, turns, crops ---


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True), (False, False)])
def test_random_flip_mirrors_samples(horizontal, vertical):
    batch = with_boxes(make_batch())
    result = jax.jit(transforms.random_flip(horizontal=horizontal, vertical=vertical))(KEY, batch)
    seen = set()
    for i in range(SAMPLES):
        first = int(result["instances"][i, 0, 0]) % 35
        seen.add(first)
        flips = {0: (), 6: (1,), 28: (0,), 34: (0, 1)}[first]
        for name in ("image", "image_after", "mask", "instances", "depth"):
            np.testing.assert_array_equal(result[name][i], np.flip(np.asarray(batch[name][i]), flips))
        region = np.zeros((5, 7))
        region[2:3, 1:4] = 1
        np.testing.assert_array_equal(result["boxes"][i, 0], box_of(np.flip(region, flips)))
        np.testing.assert_array_equal(result["boxes"][i, 1], np.zeros(4))
    expected = {0} | ({6} if horizontal else set()) | ({28} if vertical else set())
    assert seen == expected | ({34} if horizontal and vertical else set())
    np.testing.assert_array_equal(result["labels"], batch["labels"])
    np.testing.assert_array_equal(result["weight"], batch["weight"])


def test_random_flip_moves_boxes_without_labels():
    batch = {"image": jnp.zeros((8, 5, 7, 1)), "boxes": jnp.asarray([[[1.0, 2.0, 4.0, 3.0]]] * 8)}
    boxes = np.asarray(jitted("random_flip")(KEY, batch)["boxes"])
    assert {tuple(box) for box in boxes[:, 0].tolist()} == {(1, 2, 4, 3), (3, 2, 6, 3)}


def test_random_rot90_turns_samples():
    batch = with_boxes(make_batch(6, 6))
    result = jitted("random_rot90")(KEY, batch)
    seen = set()
    for i in range(SAMPLES):
        sample = np.asarray(batch["instances"][i])
        turn = next(k for k in range(4) if np.array_equal(np.rot90(sample, k), result["instances"][i]))
        seen.add(turn)
        for name in ("image", "image_after", "mask", "depth"):
            np.testing.assert_array_equal(result[name][i], np.rot90(np.asarray(batch[name][i]), turn))
        region = np.zeros((6, 6))
        region[2:3, 1:4] = 1
        np.testing.assert_array_equal(result["boxes"][i, 0], box_of(np.rot90(region, turn)))
        np.testing.assert_array_equal(result["boxes"][i, 1], np.zeros(4))
    assert seen == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"random_rot90 got images of 5x7; expected square"):
        jitted("random_rot90")(KEY, make_batch())


def test_random_crop_cuts_windows():
    batch = with_boxes(make_batch())
    result = jitted("random_crop", (3, 4))(KEY, batch)
    corners = [divmod(int(result["instances"][i, 0, 0]) % 35, 7) for i in range(SAMPLES)]
    assert len(set(corners)) > 5
    assert {top for top, _ in corners} == {0, 1, 2} and {left for _, left in corners} == {0, 1, 2, 3}
    assert_same_geometry(result, batch, lambda array, i: array[corners[i][0] :, corners[i][1] :][:3, :4])
    for i, (top, left) in enumerate(corners):
        region = np.zeros((5, 7))
        region[2:3, 1:4] = 1
        rest = region[top : top + 3, left : left + 4]
        if rest.sum() >= 0.25 * region.sum():
            np.testing.assert_array_equal(result["boxes"][i, 0], box_of(rest))
            assert result["labels"][i].tolist() == [3, -1]
        else:
            np.testing.assert_array_equal(result["boxes"][i, 0], np.zeros(4))
            assert result["labels"][i].tolist() == [-1, -1]
    whole = jitted("random_crop", (5, 7))(KEY, make_batch())
    np.testing.assert_array_equal(whole["image"], make_batch()["image"])


def test_boxes_that_are_mostly_cut_off_are_dropped():
    batch = with_boxes(make_batch(1, 8), (0.0, 0.0, 5.0, 1.0))
    result = jitted("random_crop", (1, 4))(KEY, batch)
    lefts = [int(result["instances"][i, 0, 0]) % 8 for i in range(SAMPLES)]
    assert {3, 4} & set(lefts) and {0, 1} & set(lefts)
    for i, left in enumerate(lefts):
        kept = 5 - left >= 0.25 * 5
        assert result["labels"][i, 0] == (3 if kept else -1)
        expected = (0, 0, min(5 - left, 4), 1) if kept else (0, 0, 0, 0)
        assert tuple(result["boxes"][i, 0].tolist()) == expected


# --- zoom ---


def zoom_by_loops(image, labels, zoom, shift, ignore_index):
    """Zooms one sample pixel by pixel: output centre -> input position -> four neighbours."""
    height, width, _ = image.shape
    drawn, numbers = np.empty_like(image), np.empty_like(labels)
    for y, x in itertools.product(range(height), range(width)):
        v, u = (y + 0.5 - shift[0]) / zoom, (x + 0.5 - shift[1]) / zoom
        if not (0 <= v < height and 0 <= u < width):
            drawn[y, x], numbers[y, x] = image.mean((0, 1)), ignore_index
            continue
        numbers[y, x] = labels[int(v), int(u)]
        total = 0.0
        for row, column in itertools.product(
            (np.floor(v - 0.5), np.floor(v + 0.5)), (np.floor(u - 0.5), np.floor(u + 0.5))
        ):
            weight = (1 - abs(v - 0.5 - row)) * (1 - abs(u - 0.5 - column))
            total += weight * image[int(np.clip(row, 0, height - 1)), int(np.clip(column, 0, width - 1))]
        drawn[y, x] = total
    return drawn, numbers


@pytest.mark.parametrize("zoom", [0.6, 1.0, 1.7])
def test_random_scale_zooms_about_a_random_centre(zoom):
    height, width = 9, 11
    rng = np.random.default_rng(0)
    # The first two maps, fine ramps along each axis, show the sample's new position.
    batch = with_boxes(
        {
            "image": jnp.asarray(rng.random((SAMPLES, height, width, 3)), jnp.float32),
            "mask": jnp.asarray(rng.integers(5, size=(SAMPLES, height, width)), jnp.int32),
            "instances": jnp.ones((SAMPLES, height, width), jnp.int32),
        },
        (2.0, 3.0, 8.0, 7.0),
    )
    result = jitted("random_scale", (zoom, zoom))(KEY, batch)
    shifts = []
    for i in range(SAMPLES):
        box = np.asarray(result["boxes"][i, 0])
        # At least one side of the box is inside; with the zoom, it determines the shift.
        low, high = np.array([2.0, 3.0]) * zoom, np.array([8.0, 7.0]) * zoom
        shift = np.where(box[:2] > 0, box[:2] - low, box[2:] - high)
        shifts.append(tuple(np.round(shift, 4)))
        drawn, numbers = zoom_by_loops(
            np.asarray(batch["image"][i]), np.asarray(batch["mask"][i]), zoom, shift[::-1], 255
        )
        np.testing.assert_allclose(result["image"][i], drawn, atol=1e-4)
        agree = np.asarray(result["mask"][i]) == numbers  # ties between two pixels fall either way
        assert agree.mean() > 0.95
        np.testing.assert_array_equal(result["instances"][i] == 0, result["mask"][i] == 255)
        spare = np.array([width, height]) * (1 - zoom)
        assert (shift >= np.minimum(spare, 0) - 1e-3).all() and (shift <= np.maximum(spare, 0) + 1e-3).all()
    assert len(set(shifts)) == (1 if zoom == 1.0 else SAMPLES)
    if zoom == 1.0:
        np.testing.assert_allclose(result["image"], batch["image"], atol=1e-6)
        np.testing.assert_array_equal(result["mask"], batch["mask"])


def test_random_scale_draws_zooms_over_the_range():
    batch = {"image": jnp.ones((200, 4, 4, 1)), "boxes": jnp.asarray([[[1.0, 1.0, 2.0, 2.0]]] * 200)}
    batch["labels"] = jnp.zeros((200, 1), jnp.int32)
    boxes = np.asarray(jitted("random_scale", (0.5, 1.0))(KEY, batch)["boxes"])
    zooms = boxes[:, 0, 2] - boxes[:, 0, 0]
    assert zooms.min() >= 0.499 and zooms.max() <= 1.001
    np.testing.assert_allclose(np.quantile(zooms, [0.05, 0.5, 0.95]), [0.518, 0.707, 0.966], atol=0.06)


def test_random_scale_fills_with_the_given_index():
    batch = {"image": jnp.full((2, 8, 8, 1), 3.0), "mask": jnp.ones((2, 8, 8), jnp.int32)}
    batch |= {"change": batch["mask"], "depth": jnp.ones((2, 8, 8))}
    result = jax.jit(transforms.random_scale((0.5, 0.5), ignore_index=-1))(KEY, batch)
    np.testing.assert_allclose(result["image"], 3.0, rtol=1e-6)
    assert (np.asarray(result["mask"]) == -1).sum() == 2 * (64 - 16)
    np.testing.assert_array_equal(result["change"], result["mask"])
    np.testing.assert_array_equal(result["depth"] == 0, result["mask"] == -1)


# --- colours ---


def jitter_by_loops(image, bright, contrasted, saturated):
    luma = np.array([0.299, 0.587, 0.114])
    image = image * bright
    mean = (image @ luma).mean() if image.shape[-1] == 3 else image.mean()
    image = mean + (image - mean) * contrasted
    if image.shape[-1] == 3:
        grey = (image @ luma)[..., None]
        image = grey + (image - grey) * saturated
    return image


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_color_jitter_follows_its_definition(channels):
    rng = np.random.default_rng(0)
    images = rng.random((4, 6, 5, channels)).astype(np.float32)
    jitter = jax.jit(transforms.color_jitter(brightness=0.4, contrast=0.6, saturation=0.8))
    result = np.asarray(jitter(KEY, {"image": jnp.asarray(images)})["image"])
    # The factors are drawn in the order of the arguments, for the first image field.
    factors = np.asarray(jax.random.uniform(jax.random.fold_in(KEY, 0), (3, 4), minval=-1.0))
    factors = 1 + factors * np.array([[0.4], [0.6], [0.8]])
    for i in range(4):
        np.testing.assert_allclose(result[i], jitter_by_loops(images[i], *factors[:, i]), rtol=1e-4, atol=1e-5)


def test_color_jitter_takes_each_image_on_its_own():
    image = jnp.asarray(np.random.default_rng(0).random((3, 4, 4, 3)), jnp.float32)
    batch = {"image_before": image, "image_after": image, "change": jnp.ones((3, 4, 4), jnp.int32)}
    result = jax.jit(transforms.color_jitter(brightness=0.5))(KEY, batch)
    ratios = np.stack([np.asarray(result[name] / image) for name in ("image_before", "image_after")])
    assert (ratios.std(axis=(2, 3, 4)) < 1e-5).all()
    factors = ratios.mean(axis=(2, 3, 4)).ravel()
    assert len(np.unique(np.round(factors, 5))) == 6 and factors.min() >= 0.5 and factors.max() <= 1.5
    np.testing.assert_array_equal(result["change"], batch["change"])


def test_color_jitter_of_no_strength_changes_nothing():
    batch = make_batch()
    np.testing.assert_array_equal(transforms.color_jitter()(KEY, batch)["image"], batch["image"])


def test_normalize():
    batch = {**make_batch(), "image_after": make_batch()["image"] * 2}
    result = jax.jit(transforms.normalize([1.0, 2.0, 3.0], [2.0, 4.0, 8.0]))(KEY, batch)
    for name in ("image", "image_after"):
        expected = (np.asarray(batch[name]) - np.array([1, 2, 3])) / np.array([2, 4, 8])
        np.testing.assert_allclose(result[name], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["mask"], batch["mask"])
    one = transforms.normalize([1.0], [2.0])(KEY, batch)["image"]
    np.testing.assert_allclose(one, (batch["image"] - 1) / 2)
    with pytest.raises(ValueError, match=r"mean with 2 numbers for image with 3 channels"):
        transforms.normalize([1.0, 2.0], [1.0])(KEY, batch)
    with pytest.raises(ValueError, match=r"those of std positive"):
        transforms.normalize([1.0], [0.0])


# --- all of them ---


@functools.cache
def everything():
    return jax.jit(
        transforms.compose(
            transforms.random_flip(vertical=True),
            transforms.random_rot90(),
            transforms.random_scale((0.7, 1.4)),
            transforms.random_crop(6),
            transforms.color_jitter(brightness=0.2, contrast=0.2, saturation=0.2),
            transforms.normalize([0.5], [0.25]),
        )
    )


def test_the_key_decides_everything():
    batch = with_boxes(make_batch(8, 8, samples=2))
    first, again, other = (everything()(jax.random.key(seed), batch) for seed in (1, 1, 2))
    for name in batch:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["image"], other["image"])
    assert first["image"].shape == (2, 6, 6, 3) and first["mask"].shape == (2, 6, 6)
    assert first["image"].dtype == jnp.float32 and first["mask"].dtype == jnp.int32
    assert batch["image"].shape == (2, 8, 8, 3)


def test_composed_transforms_draw_independently():
    flip = transforms.random_flip()
    batch = make_batch(samples=64)
    once = np.asarray(transforms.compose(flip)(KEY, batch)["instances"][:, 0, 0]) % 35 != 0
    twice = np.asarray(transforms.compose(flip, flip)(KEY, batch)["instances"][:, 0, 0]) % 35 != 0
    assert 10 < once.sum() < 54 and 10 < twice.sum() < 54
    assert transforms.compose()(KEY, batch).keys() == batch.keys()


def test_gradients_pass_through():
    batch = {name: array for name, array in make_batch(8, 8, samples=2).items() if name != "image_after"}
    weights = jnp.asarray(np.random.default_rng(0).random((2, 6, 6, 3)), jnp.float32)

    def loss(image):
        return (everything()(KEY, {**batch, "image": image})["image"] * weights).sum()

    image = jnp.asarray(np.random.default_rng(1).random((2, 8, 8, 3)), jnp.float32)
    check_grads(loss, (image,), 1, ["rev"], rtol=1e-2, atol=1e-2)


def test_bfloat16_stays():
    batch = {"image": make_batch()["image"].astype(jnp.bfloat16)}
    step = transforms.compose(transforms.random_scale((0.7, 1.4)), transforms.color_jitter(contrast=0.2))
    assert jax.eval_shape(step, KEY, batch)["image"].dtype == jnp.bfloat16


IMAGES = jnp.zeros((2, 6, 6, 3))
WRONG = [
    (
        {"image": jnp.zeros((6, 6, 3))},
        ValueError,
        r"image of shape \(6, 6, 3\); expected \(batch, height, width, channels\)",
    ),
    ({"image": jnp.zeros((2, 6, 6, 3), jnp.uint8)}, TypeError, r"image of type uint8; expected floats"),
    (
        {"image": IMAGES, "mask": jnp.zeros((2, 36), jnp.int32)},
        ValueError,
        r"mask of shape .* expected \(batch, height, width\) or \(batch, height, width, classes\)",
    ),
    ({"image": IMAGES, "mask": jnp.zeros((2, 5, 6), jnp.int32)}, ValueError, "different sizes"),
    ({"image": IMAGES, "flow": IMAGES}, ValueError, "a field flow of shape .* would not move with them"),
    ({"labels": jnp.zeros((2, 3), jnp.int32)}, ValueError, r"fields \['labels'\]; expected `image` or `mask`"),
]


@pytest.mark.parametrize("step", [transforms.random_flip(), transforms.random_crop(2), transforms.random_scale((1, 2))])
@pytest.mark.parametrize(("batch", "error", "message"), WRONG)
def test_batches_that_do_not_fit(step, batch, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(step, KEY, batch)


@pytest.mark.parametrize("step", [transforms.random_crop(2), transforms.random_scale((1, 2))])
def test_boxes_need_labels_where_they_may_be_dropped(step):
    with pytest.raises(ValueError, match="boxes but no labels"):
        jax.eval_shape(step, KEY, {"image": IMAGES, "boxes": jnp.zeros((2, 1, 4))})


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"random_crop of 9x9 got images of 6x6"):
        transforms.random_crop(9)(KEY, {"image": IMAGES})
    for make, message in (
        (lambda: transforms.random_crop(0), "size=0"),
        (lambda: transforms.random_scale((2, 1)), r"scales=\(2, 1\)"),
        (lambda: transforms.random_scale((0, 1)), r"scales=\(0, 1\)"),
        (lambda: transforms.color_jitter(contrast=1.5), r"contrast=1\.5"),
        (lambda: transforms.normalize([], []), "a number per channel"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("axis", [0, 1])
def test_random_flip_keeps_padded_pictures_at_the_top_left(axis):
    rng = np.random.default_rng(0)
    sizes = np.array([[5, 7], [3, 4], [4, 2], [0, 0]] * 4, np.int32)
    image = rng.random((16, 5, 7, 3)).astype(np.float32)
    instances = rng.integers(0, 3, (16, 5, 7)).astype(np.int32)
    boxes = np.zeros((16, 2, 4), np.float32)
    boxes[:, 0] = [0, 1, 1, 2]
    batch = {"image": image, "instances": instances, "boxes": boxes, "size": sizes}
    flip = transforms.random_flip(horizontal=axis == 1, vertical=axis == 0)
    result = jax.tree.map(np.asarray, jax.jit(flip)(jax.random.key(0), batch))
    np.testing.assert_array_equal(result["size"], sizes)
    mirrored = 0
    for index, (height, width) in enumerate(sizes):
        here = {name: result[name][index][:height, :width] for name in ("image", "instances")}
        before = {name: batch[name][index][:height, :width] for name in ("image", "instances")}
        if height and not np.array_equal(here["image"], before["image"]):
            mirrored += 1
            before = {name: np.flip(array, axis) for name, array in before.items()}
            x0, y0, x1, y1 = boxes[index, 0]
            moved = (x0, height - y1, x1, height - y0) if axis == 0 else (width - x1, y0, width - x0, y1)
            np.testing.assert_array_equal(result["boxes"][index], [moved, (0, 0, 0, 0)])
        for name, array in here.items():
            np.testing.assert_array_equal(array, before[name])
    assert 2 < mirrored < 12


@pytest.mark.parametrize(
    "transform", [transforms.random_rot90(), transforms.random_crop(2), transforms.random_scale((1, 2))]
)
def test_what_moves_pictures_out_of_their_size_refuses_it(transform):
    batch = {"image": jnp.zeros((1, 4, 4, 3)), "size": jnp.array([[4, 4]])}
    with pytest.raises(ValueError, match="`size`"):
        jax.eval_shape(transform, jax.random.key(0), batch)
