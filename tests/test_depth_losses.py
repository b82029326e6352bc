"""Losses and scores of depth and normals, compared with plain NumPy formulas."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from densezoo import losses, metrics

RNG = np.random.default_rng(0)
SHAPE = (3, 9, 11)
PREDICTED = RNG.uniform(0.5, 5, SHAPE).astype(np.float32)
DEPTH = RNG.uniform(0.5, 5, SHAPE).astype(np.float32)
HOLES = RNG.random(SHAPE) < 0.3
HOLES[2] = True  # an image without any measurement
DEPTH[HOLES] = RNG.choice(np.array([0, -1, np.inf, -np.inf, np.nan], np.float32), HOLES.sum())
NORMALS = RNG.normal(size=(*SHAPE, 3)).astype(np.float32)
TURNED = RNG.normal(size=(*SHAPE, 3)).astype(np.float32)
BY_NAME = {
    "silog": losses.silog_loss,
    "l1": losses.depth_l1_loss,
    "gradient": losses.gradient_matching_loss,
    "log_gradient": functools.partial(losses.gradient_matching_loss, log=True, scales=2),
    "ssi": losses.scale_shift_invariant_loss,
}


def pairs(index):
    """The valid predictions and depths of an image."""
    valid = ~HOLES[index]
    return PREDICTED[index][valid].astype(float), DEPTH[index][valid].astype(float)


def numpy_gradients(difference, valid, scales):
    """The sum of MegaDepth and MiDaS, over every pair of neighbours."""
    total = 0.0
    for scale in range(scales):
        step = 2**scale
        r, counts, cost = difference[:, ::step, ::step], valid[:, ::step, ::step], 0.0
        for image, i, j in np.ndindex(r.shape):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < r.shape[1] and m < r.shape[2] and counts[image, i, j] and counts[image, k, m]:
                    cost += abs(r[image, k, m] - r[image, i, j])
        total += cost / counts.sum()
    return total


def test_depth_losses_are_those_of_the_papers():
    found = {name: float(jax.jit(loss)(PREDICTED, DEPTH)) for name, loss in BY_NAME.items()}
    logs = [np.log(y) - np.log(z) for y, z in map(pairs, range(2))]
    expected = {"silog": np.mean([np.mean(d**2) - 0.5 * np.mean(d) ** 2 for d in logs])}
    expected["l1"] = np.mean(np.concatenate([np.abs(y - z) for y, z in map(pairs, range(2))]))
    expected["gradient"] = numpy_gradients(PREDICTED - DEPTH, ~HOLES, 4)
    logarithms = np.where(HOLES, 0, np.log(PREDICTED) - np.log(np.where(HOLES, 1, DEPTH)))
    expected["log_gradient"] = numpy_gradients(logarithms, ~HOLES, 2)
    aligned = np.zeros(SHAPE)
    for index in range(2):
        scale, shift = np.polyfit(*pairs(index), 1)
        aligned[index] = scale * PREDICTED[index] + shift - DEPTH[index]
    squares = np.mean(aligned[~HOLES] ** 2)
    expected["ssi"] = 0.5 * squares + 0.5 * numpy_gradients(aligned, ~HOLES, 4)
    for name in BY_NAME:
        assert found[name] == pytest.approx(expected[name], rel=2e-5), name


def test_cosine_loss_and_angles():
    truth = np.where(HOLES[..., None], 0, NORMALS)
    truth[0, 0, 0] = np.nan
    valid = ~HOLES
    valid[0, 0, 0] = False
    a, b = TURNED[valid].astype(float), NORMALS[valid].astype(float)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert float(jax.jit(losses.cosine_loss)(TURNED, truth)) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    angles = np.degrees(np.arccos(cosines))
    count = jax.jit(metrics.angle_counts)
    scores = (count(TURNED[:1], truth[:1]) + count(TURNED[1:2], truth[1:2]) + count(TURNED[2:], truth[2:])).scores()
    assert scores["mean_angle"] == pytest.approx(angles.mean(), rel=1e-5)
    assert scores["median_angle"] == pytest.approx(np.median(angles), abs=1.0)
    for name, limit in (("within_11", 11.25), ("within_22", 22.5), ("within_30", 30)):
        assert scores[name] == pytest.approx(np.mean(angles < limit)), name
    fine = np.stack([np.full(2001, 0.01), np.zeros(2001), np.linspace(0, 0.2, 2001) - 1], -1)[None, None]
    fine = fine.astype(np.float32)
    exact = np.degrees(
        np.arctan2(0.01, -fine[..., 2].astype(float))
    )  # small angles, of which the arc cosine loses digits
    straight = np.broadcast_to(np.array([0, 0, -1], np.float32), fine.shape)
    assert count(fine, straight).scores()["mean_angle"] == pytest.approx(exact.mean(), rel=1e-5)


@pytest.mark.parametrize("name", [*BY_NAME, "cosine"])
def test_holes_have_no_gradient_and_nan_comes_through(name):
    loss = losses.cosine_loss if name == "cosine" else BY_NAME[name]
    predicted = (TURNED if name == "cosine" else PREDICTED).copy()
    truth = np.where(HOLES[..., None], np.nan, NORMALS) if name == "cosine" else DEPTH
    function = jax.jit(jax.value_and_grad(loss))
    value, gradient = map(np.asarray, function(predicted, truth))
    predicted[HOLES] = np.nan
    hidden, same = map(np.asarray, function(predicted, truth))
    assert hidden == value
    np.testing.assert_array_equal(gradient, same)
    assert (gradient[HOLES] == 0).all()
    assert np.isfinite(gradient).all()
    assert (gradient[~HOLES] != 0).mean() > 0.8
    empty, none = map(np.asarray, function(predicted, np.zeros_like(truth)))
    assert empty == 0
    assert (none == 0).all()
    predicted[tuple(np.argwhere(~HOLES)[0])] = np.nan
    assert np.isnan(function(predicted, truth)[0])


def test_depth_scores_are_means_over_images_with_measurements():
    sums = jax.jit(metrics.depth_sums)
    scores = (sums(PREDICTED[:1], DEPTH[:1]) + sums(PREDICTED[1:], DEPTH[1:])).scores()
    rows = []
    for y, z in map(pairs, range(2)):
        ratio = np.maximum(y / z, z / y)
        rows.append(
            {
                "abs_rel": np.mean(np.abs(y - z) / z),
                "sq_rel": np.mean((y - z) ** 2 / z),
                "rmse": np.sqrt(np.mean((y - z) ** 2)),
                "log10": np.mean(np.abs(np.log10(y / z))),
                **{f"delta{n}": np.mean(ratio < 1.25**n) for n in (1, 2, 3)},
            }
        )
    for name in rows[0]:
        assert scores[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-5), name
    assert np.isnan(sums(PREDICTED[2:], DEPTH[2:]).scores()["rmse"])


def test_depth_scores_after_alignment_and_within_limits():
    inverse = (3 / np.where(HOLES, 1, DEPTH) - 7).astype(np.float32)  # the truth but for scale and shift of the inverse
    align = jax.jit(lambda y, z: metrics.depth_sums(y, z, align=True, inverse=True))
    assert align(inverse, DEPTH).scores()["abs_rel"] < 1e-5
    assert align(PREDICTED, DEPTH).scores()["abs_rel"] > 0.1
    sums = jax.jit(lambda y, z: metrics.depth_sums(y, z, largest=2.0))
    broken = PREDICTED.copy()
    broken[tuple(np.argwhere(~HOLES & (DEPTH <= 2))[0])] = np.nan
    for name, score in sums(broken, DEPTH).scores().items():
        assert np.isnan(score), name
    near = sums(PREDICTED, DEPTH).scores()
    errors = [np.abs(np.minimum(y, 2) - z)[z <= 2] / z[z <= 2] for y, z in map(pairs, range(2))]
    assert near["abs_rel"] == pytest.approx(np.mean([error.mean() for error in errors]), rel=1e-5)


def test_shapes_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: only the function checks
    with pytest.raises(ValueError, match=r"outputs\[..., 0\]"):
        losses.silog_loss(jnp.ones((1, 2, 3)), jnp.ones((1, 3, 2)))
