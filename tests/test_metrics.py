"""Counts compared with NumPy loops, scores with hand-computed values, and sums beyond int32 and float32."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from densezoo import metrics
from densezoo.metrics import BoundaryCounts, Counts, Tally

IGNORE = 255
CLASSES = 3


def numbers(counts):
    """The four tallies as int64 arrays."""
    return [np.asarray(getattr(counts, name)) for name in counts.__dataclass_fields__]


@functools.cache
def jitted(function, **options):
    return jax.jit(functools.partial(function, num_classes=CLASSES, ignore_index=IGNORE, **options))


def scenes():
    """Predictions and labels of odd size, with an image for each difficult case."""
    rng = np.random.default_rng(0)
    labels = np.zeros((8, 7, 11), np.int32)
    labels[0] = np.kron(rng.integers(0, CLASSES, (3, 4)), np.ones((3, 3)))[:7, :11]
    labels[1, 3, 5] = 1  # one pixel
    labels[2, :3, :4] = 1  # touches two borders
    labels[2, :, 10] = 2  # a column at the border
    labels[3, 2:5, 2:8] = 1
    labels[4] = 2  # everywhere
    labels[5] = rng.integers(0, CLASSES, (7, 11))
    labels[5][rng.random((7, 11)) < 0.3] = IGNORE
    labels[6, :, :5] = 1
    labels[6, 2:6, 3:7] = IGNORE  # covers a part of the contour
    labels[7] = IGNORE
    predictions = np.roll(labels, (1, 1), (1, 2)) % CLASSES
    predictions[3] = 0  # empty
    predictions[6] = np.where(labels[6] == IGNORE, np.where(np.arange(7)[:, None] < 4, 2, 0), labels[6])  # no contours
    predictions[5] = rng.integers(0, CLASSES, (7, 11))
    return predictions.astype(np.int32), labels


def loop_confusion(predictions, labels):
    counts = np.zeros((4, CLASSES), np.int64)
    for p, t in zip(predictions.ravel(), labels.ravel(), strict=True):
        for c in range(CLASSES):
            if t != IGNORE:
                counts[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[p == c, t == c], c] += 1
    return counts


def test_confusion_counts_equal_a_loop():
    predictions, labels = scenes()
    expected = loop_confusion(predictions, labels)
    np.testing.assert_array_equal(numbers(jitted(metrics.confusion_counts)(predictions, labels)), expected)
    # a tree of sums, because any split of the data must give the same result
    parts = [jitted(metrics.confusion_counts)(predictions[i : i + 1], labels[i : i + 1]) for i in range(8)]
    np.testing.assert_array_equal(numbers(sum(parts, start=Counts.zeros(CLASSES))), expected)
    together = jax.vmap(jitted(metrics.confusion_counts))(predictions[:, None], labels[:, None])
    np.testing.assert_array_equal(np.sum(numbers(together), axis=1), expected)


def test_a_label_outside_the_classes_makes_a_false_positive():
    counts = jitted(metrics.confusion_counts)(jnp.array([1, 1]), jnp.array([7, IGNORE]))
    np.testing.assert_array_equal(numbers(counts), [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), ()])
@pytest.mark.parametrize("classes", [3, 5])
def test_labels_of_any_shape(shape, classes):
    labels = jnp.asarray(np.resize([0, 1, 2, 2, 1, -1], shape))
    counts = metrics.confusion_counts(labels, labels, num_classes=classes)
    expected = [np.sum(np.asarray(labels) == each) for each in range(classes)]
    np.testing.assert_array_equal(numbers(counts)[0], expected)


@pytest.mark.parametrize("classes", [19, 300])
def test_many_classes_take_no_memory_and_count_right(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, classes + 2, (2, 64, 64)).astype(np.int32)  # among them labels outside the classes
    predictions = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, classes, labels.shape))
    count = jax.jit(functools.partial(metrics.confusion_counts, num_classes=classes, ignore_index=3))
    compiled = count.lower(predictions.astype(np.int32), labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 20 * labels.size * 4  # some arrays of pixels
    boundary = jax.jit(functools.partial(metrics.boundary_counts, num_classes=classes, ignore_index=3))
    temporary = boundary.lower(predictions.astype(np.int32), labels).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 20 * labels.size * 4
    tp, fp, fn, tn = numbers(count(predictions.astype(np.int32), labels))
    counted = labels != 3
    for each in (0, 3, 7, classes - 1):
        true, predicted = (labels == each) & counted, (predictions == each) & counted
        expected = [(true & predicted).sum(), (predicted & ~true).sum(), (true & ~predicted).sum()]
        assert [tp[each], fp[each], fn[each]] == expected
        assert tn[each] == counted.sum() - sum(expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_small_integers(dtype):
    predictions, labels = scenes()
    labels = np.where(labels == IGNORE, -1, labels).astype(dtype)
    ignore = int(labels[7, 0, 0])  # 255 as uint8, -1 as int8
    f = jax.jit(lambda p, t: metrics.confusion_counts(p, t, num_classes=CLASSES, ignore_index=ignore))
    got = numbers(f(predictions.astype(np.uint8), labels))
    np.testing.assert_array_equal(got, loop_confusion(*scenes()))


def test_scores_by_hand():
    # class 0: 6 right, 1 wrongly given, 2 missed; class 1: only predicted; class 2: only labelled; class 3: nowhere
    counts = Counts(*(Tally.of(jnp.array(row)) for row in ([6, 0, 0, 0], [1, 2, 0, 0], [2, 0, 1, 0], [0, 7, 8, 9])))
    nan = np.nan
    np.testing.assert_allclose(metrics.iou(counts), [6 / 9, 0, 0, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.dice(counts), [12 / 15, 0, 0, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.precision(counts), [6 / 7, 0, nan, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.recall(counts), [6 / 8, nan, 0, nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.accuracy(counts), [6 / 9, 7 / 9, 8 / 9, 1], rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_iou(counts), 6 / 9 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_dice(counts), 12 / 15 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics.pixel_accuracy(counts), 6 / 9, rtol=1e-6)
    np.testing.assert_allclose(metrics.class_mean(metrics.recall(counts)), 6 / 8 / 2, rtol=1e-6)


def test_scores_of_nothing_are_nan():
    for score in (metrics.iou, metrics.precision, metrics.mean_iou, metrics.accuracy, metrics.pixel_accuracy):
        assert np.all(np.isnan(score(Counts.zeros(2))))
    assert np.all(np.isnan(metrics.boundary_f_score(BoundaryCounts.zeros(2))))


def test_predict():
    logits = jnp.array([[-1.0, 0.0, 1.0, 1e30, -1e30]], jnp.float32)[..., None]
    np.testing.assert_array_equal(metrics.predict(logits), [[0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(metrics.predict(logits, threshold=0.7), [[0, 0, 1, 1, 0]])
    several = jnp.array([[0.1, 0.3, 0.2], [5.0, 1.0, 2.0]], jnp.bfloat16)
    labels = jax.jit(metrics.predict)(several)
    np.testing.assert_array_equal(labels, [1, 0])
    assert labels.dtype == jnp.int32


def test_tally_is_exact_beyond_32_bits():
    """A batch of 64 images of 2048 x 2048, less one pixel, a hundred times: inexact in float32 and uint32."""
    batch = 64 * 2048**2 - 1
    tally = Tally.of(jnp.array([batch, 1, 2**32 - 1], jnp.uint32))
    np.testing.assert_array_equal(np.asarray(tally), [batch, 1, 2**32 - 1])

    total = jax.jit(lambda t: jax.lax.fori_loop(0, 100, lambda _, s: s + t, Tally.of(jnp.zeros(3, jnp.uint32))))(tally)
    expected = 100 * np.array([batch, 1, 2**32 - 1], np.int64)
    np.testing.assert_array_equal(np.asarray(total), expected)
    np.testing.assert_allclose(total.value, expected, rtol=2e-7)
    # leaf by leaf, as psum adds: the same number, and `+` carries later
    leaves = functools.reduce(functools.partial(jax.tree.map, operator.add), [tally] * 100)
    np.testing.assert_array_equal(np.asarray(leaves), expected)
    np.testing.assert_array_equal(np.asarray(leaves + total), 2 * expected)
    assert np.all(np.asarray((leaves + total).low) < 2**16)


def test_counts_cross_shape_evaluation_and_scan():
    predictions, labels = scenes()
    f = jitted(metrics.confusion_counts)
    assert jax.eval_shape(f, predictions, labels).tp.low.shape == (CLASSES,)
    total, _ = jax.lax.scan(lambda sums, x: (sums + f(*x), None), Counts.zeros(CLASSES), (predictions, labels))
    np.testing.assert_array_equal(numbers(total), loop_confusion(predictions, labels))


def loop_contour(labels, counted, c):
    """Pixels of class c with a counted 4-neighbour of another class."""
    height, width = labels.shape
    contour = set()
    for y, x in np.ndindex(height, width):
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if labels[y, x] != c or not counted[y, x] or not (0 <= v < height and 0 <= u < width):
                continue
            if counted[v, u] and labels[v, u] != c:
                contour.add((y, x))
    return contour


def near(a, b, tolerance):
    return sum(any(math.dist(p, q) <= tolerance for q in b) for p in a)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 4])
def test_boundary_counts_equal_a_loop(tolerance):
    predictions, labels = scenes()
    expected = np.zeros((4, CLASSES), np.int64)
    for p, t in zip(predictions, labels, strict=True):
        for c in range(CLASSES):
            predicted, true = loop_contour(p, t != IGNORE, c), loop_contour(t, t != IGNORE, c)
            expected[:, c] += (
                near(predicted, true, tolerance),
                len(predicted),
                near(true, predicted, tolerance),
                len(true),
            )
    counts = jitted(metrics.boundary_counts, tolerance=tolerance)(predictions, labels)
    np.testing.assert_array_equal(numbers(counts), expected)
    np.testing.assert_array_equal(numbers(counts + BoundaryCounts.zeros(CLASSES)), expected)
    matched, predicted, matched_true, true = expected
    right, found = matched / predicted, matched_true / true
    np.testing.assert_allclose(metrics.boundary_f_score(counts), 2 * right * found / (right + found), rtol=1e-6)


def test_boundary_conventions():
    """The border of the image is not a contour for the F score, but it is one for the bands."""
    whole = jnp.full((1, 7, 11), 1, jnp.int32)
    contour = jitted(metrics.boundary_counts, tolerance=2)(whole, whole)
    np.testing.assert_array_equal(np.asarray(contour.true), [0, 0, 0])
    assert np.all(np.isnan(metrics.boundary_f_score(contour)))
    band = jitted(metrics.boundary_band_counts, distance=1)(whole, whole)
    np.testing.assert_array_equal(np.asarray(band.tp), [0, 7 * 11 - 5 * 9, 0])

    # a square of 3 x 3 in the corner: its contour is the 5 pixels that face the inside
    corner = whole.at[:, :3, :3].set(2)
    contour = jitted(metrics.boundary_counts, tolerance=2)(corner, corner)
    np.testing.assert_array_equal(np.asarray(contour.true), [0, 6, 5])
    np.testing.assert_array_equal(metrics.boundary_f_score(contour), [np.nan, 1, 1])
    # found by nobody: a contour on one side only is worth 0
    np.testing.assert_array_equal(
        metrics.boundary_f_score(jitted(metrics.boundary_counts, tolerance=2)(whole, corner)), [np.nan, 0, 0]
    )


def loop_band(labels, counted, c, distance):
    """Pixels of class c with another class, or the outside, in the square around them."""
    height, width = labels.shape
    band = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(height, width):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                outside = not (0 <= v < height and 0 <= u < width)
                band[y, x] |= outside or (counted[v, u] and labels[v, u] != c)
    return band & (labels == c) & counted


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_boundary_band_counts_equal_a_loop(distance):
    predictions, labels = scenes()
    expected = np.zeros((4, CLASSES), np.int64)
    for p, t in zip(predictions, labels, strict=True):
        for c in range(CLASSES):
            counted = t != IGNORE
            a, b = loop_band(p, counted, c, distance), loop_band(t, counted, c, distance)
            expected[:, c] += [np.sum(m & counted) for m in (a & b, a & ~b, ~a & b, ~a & ~b)]
    counts = jitted(metrics.boundary_band_counts, distance=distance)(predictions, labels)
    np.testing.assert_array_equal(numbers(counts), expected)
    tp, fp, fn, _ = expected
    np.testing.assert_allclose(metrics.boundary_iou(counts), tp / (tp + fp + fn), rtol=1e-6)


def test_boundary_metrics_under_vmap():
    predictions, labels = scenes()
    for f in (jitted(metrics.boundary_counts, tolerance=2), jitted(metrics.boundary_band_counts, distance=2)):
        together = numbers(jax.vmap(f)(predictions[:, None], labels[:, None]))
        np.testing.assert_array_equal(np.sum(together, axis=1), numbers(f(predictions, labels)))


@pytest.fixture
def no_shape_checks():
    """As for users: outside the tests, only the functions themselves check shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_shape_checks")
def test_errors_say_what_to_do():
    labels = jnp.zeros((1, 4, 4), jnp.int32)
    with pytest.raises(
        ValueError, match=r"predictions \(1, 4, 4, 3\) and labels \(1, 4, 4\) differ.*predict\(logits\)"
    ):
        metrics.confusion_counts(jnp.zeros((1, 4, 4, 3)), labels, num_classes=3)
    with pytest.raises(TypeError, match="predictions are float32"):
        metrics.confusion_counts(jnp.zeros((1, 4, 4)), labels, num_classes=3)
    with pytest.raises(TypeError, match="labels are float32"):
        metrics.confusion_counts(labels, jnp.zeros((1, 4, 4)), num_classes=3)
    with pytest.raises(ValueError, match=r"\(4, 4\): expected \(b, h, w\)"):
        metrics.boundary_counts(labels[0], labels[0], num_classes=3)
    with pytest.raises(ValueError, match="tolerance is -1: expected at least 0"):
        metrics.boundary_counts(labels, labels, num_classes=3, tolerance=-1)
    with pytest.raises(ValueError, match="distance is 0: expected at least 1"):
        metrics.boundary_band_counts(labels, labels, num_classes=3, distance=0)


def test_the_confusion_matrix_counts_every_pair_of_classes():
    # Six classes, so that they are counted by adding and not by comparing; labels outside them do not count.
    rng = np.random.default_rng(0)
    for classes in (2, 6):
        labels = rng.integers(-1, classes + 1, (2, 5, 7)).astype(np.int32)
        labels[0, 0] = IGNORE
        predictions = rng.integers(0, classes, labels.shape).astype(np.int32)
        expected = np.zeros((classes, classes), int)
        for true, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
            if 0 <= true < classes:
                expected[true, predicted] += 1
        options = {"num_classes": classes, "ignore_index": IGNORE}
        count = jax.jit(functools.partial(metrics.confusion_matrix, **options))
        matrix = count(predictions, labels)
        np.testing.assert_array_equal(np.asarray(matrix + matrix), 2 * expected)
