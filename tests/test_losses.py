"""Every loss, compared with a NumPy loop in float64 and PyTorch's numbers, and at the limits of floats."""

import functools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import losses

IGNORE = 255
SHAPE = (2, 5, 7)  # every test uses it, so that each loss is compiled once for one channel and once for four
WEIGHTS = {1: (0.5, 2.0), 4: (0.5, 1.0, 2.0, 4.0)}


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def pixels(logits, labels):
    """The counted pixels: logits of all classes (two for one channel), label, image, row, column."""
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != IGNORE:
            row = logits[b, y, x].astype(np.float64)
            yield np.array([0.0, row[0]]) if len(row) == 1 else row, labels[b, y, x], (b, y, x)


def loop_cross_entropy(logits, labels, smoothing=0.1):
    weights = WEIGHTS[logits.shape[-1]]
    cost = total = 0.0
    for row, label, _ in pixels(logits, labels):
        log_p = log_softmax(row)
        for j, weight in enumerate(weights):
            cost -= weight * log_p[j] * ((1 - smoothing) * (j == label) + smoothing / len(weights))
        total += weights[label]
    return cost / total


def loop_focal(logits, labels, gamma=1.5, alpha=0.25):
    costs = []
    for row, label, _ in pixels(logits, labels):
        for j in [1] if logits.shape[-1] == 1 else range(4):
            p = 1 / (1 + np.exp(-row[j]))
            p_t, a_t = (p, alpha) if label == j else (1 - p, 1 - alpha)
            costs.append(-a_t * (1 - p_t) ** gamma * np.log(p_t))
    return np.mean(costs)


def loop_overlap(logits, labels, alpha, beta, gamma=1.0, smooth=0.0, log_loss=False):
    costs = []
    for j in [1] if logits.shape[-1] == 1 else range(4):
        tp = fp = fn = 0.0
        for row, label, _ in pixels(logits, labels):
            p = np.exp(log_softmax(row))[j]
            tp, fp, fn = (tp + p, fp, fn + 1 - p) if label == j else (tp, fp + p, fn)
        score = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)
        costs.append(0.0 if j not in labels else -np.log(score) if log_loss else 1 - score)
    return np.mean(costs) ** gamma


def loop_lovasz(logits, labels, per_image=False):
    """By the definition: an error's weight is its increment of the Jaccard loss."""
    if per_image:
        return np.mean([loop_lovasz(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
    binary = logits.shape[-1] == 1
    costs = []
    for j in [1] if binary else range(4):
        errors = []
        for row, label, _ in pixels(logits, labels):
            hinge, linear = (
                max(0.0, 1 - row[1] * (1 if label == j else -1)),
                abs((label == j) - np.exp(log_softmax(row))[j]),
            )
            errors.append((hinge if binary else linear, label == j))
        positives = sum(target for _, target in errors)
        if not positives and not binary:
            continue
        cost = previous = missed = wrong = 0.0
        for error, target in sorted(errors, reverse=True):
            missed, wrong = missed + target, wrong + (not target)
            jaccard = 1 - (positives - missed) / (positives + wrong)
            cost, previous = cost + error * (jaccard - previous), jaccard
        costs.append(cost)
    return np.mean(costs)


def loop_boundary_weights(labels, w0, sigma, radius):
    _, height, width = labels.shape
    edges = set()
    for b, y, x in np.ndindex(labels.shape):
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if not (0 <= v < height and 0 <= u < width) or IGNORE in (labels[b, y, x], labels[b, v, u]):
                continue
            if labels[b, y, x] != labels[b, v, u]:
                edges.add((b, y, x))
    weights = np.zeros(labels.shape)
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != IGNORE:
            d = min((math.hypot(y - v, x - u) for c, v, u in edges if c == b), default=np.inf)
            weights[b, y, x] = 1 + (w0 * np.exp(-(d**2) / (2 * sigma**2)) if d <= radius else 0)
    return weights


def loop_boundary(logits, labels):
    weights = loop_boundary_weights(labels, 10.0, 1.5, 3)
    costs = sum(-weights[where] * log_softmax(row)[label] for row, label, where in pixels(logits, labels))
    return costs / weights.sum()


# name -> (loss(logits, labels, ignore_index), its loop)
CASES = {
    "cross_entropy": (
        lambda x, y, i: losses.cross_entropy(
            x, y, ignore_index=i, label_smoothing=0.1, class_weights=WEIGHTS[x.shape[-1]]
        ),
        loop_cross_entropy,
    ),
    "focal": (lambda x, y, i: losses.focal_loss(x, y, ignore_index=i, gamma=1.5, alpha=0.25), loop_focal),
    "dice": (
        lambda x, y, i: losses.dice_loss(x, y, ignore_index=i, smooth=1.0),
        functools.partial(loop_overlap, alpha=0.5, beta=0.5, smooth=1.0),
    ),
    "jaccard": (
        lambda x, y, i: losses.jaccard_loss(x, y, ignore_index=i, log_loss=True),
        functools.partial(loop_overlap, alpha=1.0, beta=1.0, log_loss=True),
    ),
    "tversky": (
        lambda x, y, i: losses.tversky_loss(x, y, ignore_index=i, alpha=0.3, beta=0.7, gamma=0.75),
        functools.partial(loop_overlap, alpha=0.3, beta=0.7, gamma=0.75),
    ),
    "lovasz": (lambda x, y, i: losses.lovasz_loss(x, y, ignore_index=i), loop_lovasz),
    "lovasz_per_image": (
        lambda x, y, i: losses.lovasz_loss(x, y, ignore_index=i, per_image=True),
        functools.partial(loop_lovasz, per_image=True),
    ),
    "boundary": (
        lambda x, y, i: losses.boundary_weighted_cross_entropy(x, y, ignore_index=i, sigma=1.5, radius=3),
        loop_boundary,
    ),
}
each = pytest.mark.parametrize(("name", "classes"), [(name, classes) for name in CASES for classes in (1, 4)])


@functools.cache
def value_and_grad(name):
    return jax.jit(jax.value_and_grad(functools.partial(CASES[name][0], i=IGNORE)))


def example(classes):
    """Logits, and labels with ignored pixels; class 2 of four is absent."""
    rng = np.random.default_rng(classes)
    labels = rng.choice([0, 1] if classes == 1 else [0, 1, 3], SHAPE).astype(np.int32)
    labels[:, :3, 2:] = labels[:, :1, 2:3]  # a region, so that some pixels are not at a boundary
    labels[rng.random(SHAPE) < 0.2] = IGNORE
    return rng.normal(size=(*SHAPE, classes)).astype(np.float32) * 2, labels


@each
def test_equals_a_loop(name, classes):
    logits, labels = example(classes)
    value, gradient = value_and_grad(name)(logits, labels)
    np.testing.assert_allclose(value, CASES[name][1](logits, labels), rtol=3e-6)
    np.testing.assert_array_equal(gradient[labels == IGNORE], 0)
    assert np.count_nonzero(gradient) > 0


@each
def test_gradient(name, classes):
    logits, labels = example(classes)
    f = value_and_grad(name)

    @jax.custom_vjp  # so that the numbers below come from the one compiled function
    def loss(x):
        return f(x, labels)[0]

    loss.defvjp(lambda x: f(x, labels), lambda gradient, g: (g * gradient,))
    check_grads(loss, (logits,), order=1, modes=["rev"], eps=3e-3, rtol=2e-2, atol=2e-3)


@each
def test_extreme_logits_are_finite(name, classes):
    _, labels = example(classes)
    extreme = np.random.default_rng(0).choice([1e30, -1e30, 0.0, 1.0], (*SHAPE, classes)).astype(np.float32)
    for logits in (extreme, np.full_like(extreme, 1e30), np.full_like(extreme, -1e30)):
        value, gradient = value_and_grad(name)(logits, labels)
        assert np.isfinite(value) and value >= 0
        assert np.all(np.isfinite(gradient))


@each
def test_a_nan_is_not_hidden(name, classes):
    logits, labels = example(classes)
    for wrong in (labels, np.where(labels == IGNORE, IGNORE, 0)):  # with one channel, the second has no foreground
        one = np.where(np.arange(logits.size).reshape(logits.shape) == 0, np.float32(np.nan), logits)
        assert wrong[0, 0, 0] != IGNORE
        for x in (one, np.full_like(logits, np.nan)):
            assert np.isnan(value_and_grad(name)(x, wrong)[0])


@each
def test_one_huge_logit(name, classes):
    """Three times the largest float32 is infinite, so no sum over classes may reach it, whatever the target."""
    logits, labels = example(classes)
    for huge in (3e38, -3e38):
        for index in range(classes):
            x = logits.copy()
            x[0, 0, 0, index] = huge
            value, gradient = value_and_grad(name)(x, labels)
            # class weights, and weights at boundaries, may make the cost of a wrong one infinite, but not NaN
            assert not np.isnan(value) and np.all(np.isfinite(gradient)), (huge, index)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_one_huge_logit(smoothing):
    logits, labels = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0, 2].set(3e38), jnp.zeros((1, 2, 2), jnp.int32)
    value, gradient = jax.value_and_grad(losses.cross_entropy)(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(value, 3e38 / 4 * (1 - smoothing / 3), rtol=1e-6)
    target = np.array([1 - smoothing * 2 / 3, smoothing / 3, smoothing / 3])
    np.testing.assert_allclose(gradient[0, 0, 0], (np.array([0, 0, 1]) - target) / 4, atol=1e-6)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7)])
@pytest.mark.parametrize("classes", [1, 4])
def test_nothing_costs_nothing(shape, classes, per_image):
    logits, labels = jnp.zeros((*shape, classes)), jnp.zeros(shape, jnp.int32)
    for name, loss in losses.LOSSES.items():
        options = {"per_image": per_image} if name == "lovasz" else {}
        value, gradient = jax.value_and_grad(functools.partial(loss, **options))(logits, labels)
        assert value == 0 and gradient.shape == logits.shape, name


# a class that is impossible for every pixel and not in the labels, which leaves two classes
RULED_OUT = {
    "cross_entropy": ({}, {}),
    "class_weights": ({"class_weights": (1.0, 2.0, 3.0)}, {"class_weights": (1.0, 2.0)}),
    # a smoothed target has a part of every class; one of weight zero changes only the size of the others' parts
    "weight_zero": (
        {"class_weights": (1.0, 2.0, 0.0), "label_smoothing": 0.3},
        {"class_weights": (1.0, 2.0), "label_smoothing": 0.2},
    ),
}


@pytest.mark.parametrize("name", RULED_OUT)
def test_cross_entropy_with_a_class_ruled_out(name):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4, 3)).astype(np.float32), rng.integers(0, 2, (2, 3, 4)).astype(np.int32)
    logits[..., 2] = -np.inf
    with_third, without = RULED_OUT[name]
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(losses.cross_entropy, **with_third)))(logits, labels)
    rows = [(log_softmax(row.astype(np.float64)), label) for row, label, _ in pixels(logits[..., :2], labels)]
    weights, smoothing = without.get("class_weights", (1.0, 1.0)), with_third.get("label_smoothing", 0.0)
    cost = sum(
        -weights[label] * (1 - smoothing) * log_p[label] - smoothing / 3 * np.dot(weights, log_p)
        for log_p, label in rows
    )
    np.testing.assert_allclose(value, cost / sum(weights[label] for _, label in rows), rtol=1e-6)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[..., 2] == 0)


def values_and_gradients(*cases):
    """The value and the gradient for each (loss, logits, labels), in one program."""
    programs = [jax.value_and_grad(loss) for loss, _, _ in cases]
    compiled = jax.jit(lambda arguments: [program(*each) for program, each in zip(programs, arguments, strict=True)])
    return compiled([(logits, labels) for _, logits, labels in cases])


def test_a_class_ruled_out_by_its_logit():
    cross_entropy, focal, partial = losses.cross_entropy, losses.focal_loss, functools.partial
    logits = jnp.array([0.0, 1.0, -jnp.inf]).reshape(1, 1, 1, 3)
    own, other = jnp.full((1, 1, 1), 2), jnp.zeros((1, 1, 1), int)
    weightless = {"class_weights": (1.0, 1.0, 0.0)}
    infinite, of_boundary, smoothed, of_focal, without, focal_without, positives = values_and_gradients(
        (cross_entropy, logits, own),
        (losses.boundary_weighted_cross_entropy, logits, own),
        (partial(cross_entropy, label_smoothing=0.1), logits, other),
        (focal, logits, own),
        (partial(cross_entropy, **weightless), logits, own),
        (partial(focal, **weightless), logits, own),
        (partial(focal, alpha=0.0), logits, own),  # for the positives, one of which would have an infinite loss
    )
    for value, gradient in (infinite, of_boundary):
        assert value == jnp.inf and np.all(np.isfinite(gradient))
    assert smoothed[0] == of_focal[0] == jnp.inf  # the first as in PyTorch
    assert without[0] == 0 and focal_without[0] < 1 and positives[0] < 1

    gammas = (0.0, 0.5, 2.0)
    found = values_and_gradients(*((partial(focal, gamma=gamma), logits, other) for gamma in gammas))
    for gamma, (value, gradient) in zip(gammas, found, strict=True):
        costs = [0.5**gamma * np.log(2), (1 / (1 + np.exp(-1))) ** gamma * np.log1p(np.e), 0.0]
        np.testing.assert_allclose(value, np.mean(costs), rtol=1e-6)
        assert np.all(np.isfinite(gradient))

    two = jnp.array([0.0, -jnp.inf]).reshape(1, 1, 1, 2)
    for value, gradient in values_and_gradients(
        *((loss, two, other) for loss in (losses.dice_loss, losses.jaccard_loss, losses.lovasz_loss))
    ):
        assert value == 0 and not np.isnan(gradient).any()
    one, labels = jnp.array([-jnp.inf, 1.0]).reshape(1, 1, 2, 1), jnp.array([[[0, 1]]])
    for name, (value, gradient) in zip(
        losses.LOSSES, values_and_gradients(*((loss, one, labels) for loss in losses.LOSSES.values())), strict=True
    ):
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
    assert values_and_gradients((losses.lovasz_loss, one, 1 - labels))[0][0] == jnp.inf


@each
def test_ignored_pixels(name, classes):
    logits, labels = example(classes)
    logits_with_nan = np.where(labels[..., None] == IGNORE, np.float32(np.nan), logits)
    for got, expected in zip(
        value_and_grad(name)(logits_with_nan, labels), value_and_grad(name)(logits, labels), strict=True
    ):
        np.testing.assert_array_equal(got, expected)

    labels_of_one = labels.copy()
    labels_of_one[1] = IGNORE
    value, gradient = value_and_grad(name)(logits, labels_of_one)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))

    value, gradient = value_and_grad(name)(logits_with_nan, np.full_like(labels, IGNORE))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0)


@each
def test_labels_outside_the_classes_give_nan(name, classes):
    logits, labels = example(classes)
    for wrong in (max(classes, 2), -1):
        labels_with_one_wrong = labels.copy()
        labels_with_one_wrong[0, 0, 0] = wrong
        assert np.isnan(value_and_grad(name)(logits, labels_with_one_wrong)[0])


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_computed_in_float32(name):
    logits, labels = example(4)
    logits = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = value_and_grad(name)(logits, labels)
    expected, _ = value_and_grad(name)(logits.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["lovasz_per_image", "boundary"])
def test_vmap(name):
    logits, labels = example(1)
    values = jax.vmap(value_and_grad(name))(jnp.stack([logits, -logits]), jnp.stack([labels, labels]))[0]
    expected = [value_and_grad(name)(x, labels)[0] for x in (logits, -logits)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


# from torch 2.13 and segmentation_models_pytorch 0.6 in float64 (Lovasz in float32), with the arguments of CASES
PYTORCH = {
    ("cross_entropy", 1): 1.0323384010236967,
    ("focal", 1): 0.3285733210668334,
    ("dice", 1): 0.37054021733251385,
    ("jaccard", 1): 0.8024042764620011,
    ("tversky", 1): 0.5189956998186334,
    ("lovasz", 1): 1.6641947031021118,
    ("lovasz_per_image", 1): 1.664548635482788,
    ("cross_entropy", 4): 2.880742913102818,
    ("focal", 4): 0.5524177054864898,
    ("dice", 4): 0.6941934263717076,
    ("jaccard", 4): 1.9153247848793609,
    ("tversky", 4): 0.799897045186656,
    ("lovasz", 4): 0.8180345296859741,
    ("lovasz_per_image", 4): 0.8177839517593384,
}


@pytest.mark.parametrize(("name", "classes"), PYTORCH)
def test_equals_pytorch(name, classes):
    logits = 3 * np.sin(1.7 * np.arange(280)).reshape(*SHAPE, 4)[..., :classes].astype(np.float32)
    labels = (np.arange(70) * 7 // 4 % 5).reshape(SHAPE).astype(np.int32)
    labels = np.where(labels == 4, IGNORE, np.minimum(labels, max(classes, 2) - 1))
    np.testing.assert_allclose(value_and_grad(name)(logits, labels)[0], PYTORCH[name, classes], rtol=3e-6)


@pytest.mark.parametrize("loss", [losses.dice_loss, losses.focal_loss])
def test_class_weights_of_the_means_over_classes(loss):
    weighted = jax.jit(lambda weights: loss(*map(jnp.asarray, example(4)), class_weights=weights, ignore_index=IGNORE))
    alone = [weighted(row) for row in np.eye(4, dtype=np.float32)]
    np.testing.assert_allclose(weighted(jnp.array([1.0, 2, 3, 4])), np.dot([0.1, 0.2, 0.3, 0.4], alone), rtol=1e-6)
    assert weighted(jnp.zeros(4)) == 0


def test_focal_gradient_at_certainty():
    """A power below one has an infinite slope at zero, which must not reach the gradient here."""
    labels = jnp.ones((1, 1, 2), jnp.int32)
    logits = jnp.array([200.0, -200.0]).reshape(1, 1, 2, 1)
    for gamma in (0.0, 0.5):
        gradient = jax.jit(jax.grad(functools.partial(losses.focal_loss, gamma=gamma)))(logits, labels)
        np.testing.assert_allclose(gradient.ravel(), [0.0, -0.5], atol=1e-6)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky"])
def test_no_labels_and_no_mistakes_cost_nothing(name):
    """The power of gamma 0.75, whose slope at zero is infinite, does not make the gradient NaN either."""
    logits, labels = example(1)
    right = np.where(labels == 1, np.float32(1e4), np.float32(-1e4))[..., None]
    for case in ((logits, np.zeros_like(labels)), (right, labels)):
        value, gradient = value_and_grad(name)(*case)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_lovasz_hinge_without_foreground_is_the_largest_error():
    logits, labels = example(1)
    value, gradient = value_and_grad("lovasz")(logits, np.zeros_like(labels))
    np.testing.assert_allclose(value, 1 + logits.max(), rtol=1e-6)
    np.testing.assert_array_equal(gradient, logits == logits.max())


@pytest.mark.parametrize("classes", [1, 4])
def test_lovasz_shares_the_gradient_of_equal_errors(classes):
    _, labels = example(classes)
    scores = np.array([0.5] if classes == 1 else [0, 0, 0, 3], np.float32)  # the background's errors are first
    logits = np.broadcast_to(scores, (*SHAPE, classes))
    value, gradient = value_and_grad("lovasz")(logits, labels)
    np.testing.assert_allclose(value, loop_lovasz(logits, labels), rtol=1e-6)
    for label in np.unique(labels):
        same = gradient[labels == label]
        np.testing.assert_array_equal(same, np.broadcast_to(same[0], same.shape))
    if classes == 1:  # all are mistakes, so their weights add to a Jaccard loss of 1
        np.testing.assert_allclose(np.abs(gradient).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("radius", [1, 3, 9])
def test_boundary_weights(radius):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 0, 0, 0, 0, 0, 0, 1, IGNORE], (2, 9, 6)).astype(np.int32)
    labels[1] = 3  # no boundary anywhere
    f = functools.partial(losses.boundary_weights, w0=4.0, sigma=2.0, radius=radius, ignore_index=IGNORE)
    weights = jax.jit(f)(labels)
    np.testing.assert_allclose(weights, loop_boundary_weights(labels, 4.0, 2.0, radius), rtol=1e-6)


def test_boundary_weights_add_to_class_weights():
    """Equation 2 of the U-Net paper: class weight plus boundary weight."""
    labels = jnp.array([[[0, 0, 1]]])
    logits = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    costs = np.log1p(np.exp([1.0, 2.0, -3.0]))
    weights = np.array([2, 2, 5]) + 10 * np.exp(-np.array([1, 0, 0]) / 2)
    f = functools.partial(losses.boundary_weighted_cross_entropy, sigma=1.0, class_weights=[2.0, 5.0])
    np.testing.assert_allclose(jax.jit(f)(logits, labels), np.sum(weights * costs) / np.sum(weights), rtol=1e-6)


@pytest.fixture
def no_shape_checks():
    """As for users: outside the tests, only the functions themselves check shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_shape_checks")
def test_errors_say_what_to_do():
    logits, labels = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 3\) and labels \(1, 4, 5\) do not match"):
        losses.cross_entropy(logits, jnp.zeros((1, 4, 5), jnp.int32))
    with pytest.raises(ValueError, match="not one-hot"):
        losses.lovasz_loss(logits, jnp.zeros((1, 4, 4, 3), jnp.int32))
    with pytest.raises(TypeError, match="logits are int32"):
        losses.dice_loss(labels[..., None], labels)
    with pytest.raises(TypeError, match="labels are float32"):
        losses.focal_loss(logits, labels.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"class_weights have shape \(2,\): expected \(3,\)"):
        losses.dice_loss(logits, labels, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="one channel"):
        losses.tversky_loss(logits[..., :1], labels, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="one channel"):
        losses.focal_loss(logits[..., :1], labels, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="radius is 0"):
        losses.boundary_weights(labels, radius=0)


def test_a_label_of_255_is_not_the_ignored_minus_one():
    # -1 as uint8 is 255: compared in that type, the label that is no class would be left out in silence.
    labels = jnp.array([[[0, 255]]], jnp.uint8)
    assert jnp.isnan(losses.cross_entropy(jnp.zeros((1, 1, 2, 2)), labels, ignore_index=-1))
    assert jnp.isfinite(losses.cross_entropy(jnp.zeros((1, 1, 2, 2)), labels, ignore_index=255))
