"""Geometry of depth maps, compared with analytic surfaces and with NumPy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops

FOCAL = (20.0, 24.0)
CENTER = (9.0, 7.5)


def rays(height, width):
    x = (np.arange(width) + 0.5 - CENTER[0]) / FOCAL[0]
    y = (np.arange(height) + 0.5 - CENTER[1]) / FOCAL[1]
    return np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1)


def test_normals_are_exact_on_a_plane_and_face_the_camera():
    normal = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])
    depth = -3.0 / (rays(12, 16) @ normal)  # the points with normal . p = -3
    found = jax.jit(lambda d: ops.normals_from_depth(d, FOCAL, CENTER))(depth.astype(np.float32))
    np.testing.assert_allclose(found, np.broadcast_to(normal, found.shape), atol=2e-4)


def test_normals_keep_to_one_surface_at_an_edge_and_leave_holes_alone():
    depth = np.full((2, 8, 10), 2.0, np.float32)
    depth[:, :, 5:] = 9.0  # a wall far behind another one: no pixel may show the slope between them
    depth[0, 2, 7], depth[1, 4, 7], depth[1, 0, 0] = 0, np.nan, np.inf  # none leaves an edge as the only neighbour
    found = np.asarray(jax.jit(lambda d: ops.normals_from_depth(d, FOCAL))(depth))
    holes = ~np.isfinite(depth) | (depth == 0)
    assert (found[holes] == 0).all()
    np.testing.assert_allclose(found[~holes], np.broadcast_to([0, 0, -1.0], found[~holes].shape), atol=0.01)


def test_points_lie_on_the_rays_of_the_pixels():
    depth = np.random.default_rng(0).uniform(1, 5, (2, 6, 7)).astype(np.float32)
    depth[0, 0, 0] = np.nan
    found = ops.points_from_depth(jnp.asarray(depth), FOCAL, CENTER)
    expected = np.nan_to_num(depth)[..., None] * rays(6, 7)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_alignment_is_the_least_squares_fit_of_each_image():
    rng = np.random.default_rng(1)
    values, target = rng.normal(size=(2, 3, 5, 6)).astype(np.float32)
    target += 1000  # a large mean, for which the plain normal equations fail in float32
    valid = rng.random(values.shape) < 0.7
    valid[2] = False
    found = ops.align_scale_shift(jnp.asarray(values), jnp.asarray(target), jnp.asarray(valid))
    for index in range(2):
        x, y = values[index][valid[index]].astype(float), target[index][valid[index]].astype(float)
        scale, shift = np.polyfit(x, y, 1)
        np.testing.assert_allclose(found[index], scale * values[index] + shift, atol=2e-4)
    np.testing.assert_array_equal(found[2], 0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="focal length must be a number of pixels above 0"):
        ops.points_from_depth(jnp.ones((2, 2)), 0.0)
