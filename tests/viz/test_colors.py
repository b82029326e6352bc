import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import viz
from densezoo.viz.colors import IGNORED


def lab(rgb):
    """CIE L*a*b* under D65, a different measure than the palette's."""
    x = np.asarray(rgb) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def without_red_cones(rgb):
    """The vision of a protanope by Vienot et al. 1999, a different simulation than the palette's."""
    linear = (np.asarray(rgb) / 255) ** 2.2
    seen = linear @ np.array([[0.11238, 0.11238, 0.00401], [0.88762, 0.88762, -0.00401], [0.0, 0.0, 1.0]])
    return 255 * seen.clip(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("eyes", [np.asarray, without_red_cones])
def test_colours_can_be_told_apart(eyes):
    colours = np.concatenate([viz.palette(16), [IGNORED]])
    seen = lab(eyes(colours))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e9 * np.eye(17)
    assert distance.min() > (20 if eyes is np.asarray else 15)  # 2.3 is just noticeable.


def test_palette():
    assert viz.palette(1).tolist() == [[0, 0, 0]]
    assert viz.palette(256).dtype == np.uint8 and len(np.unique(viz.palette(256), axis=0)) == 256
    np.testing.assert_array_equal(viz.palette(30)[:12], viz.palette(12))
    viz.palette(3)[:] = 9  # The next caller has its own.
    assert viz.palette(3)[0].tolist() == [0, 0, 0]
    # After 256, all colours except the background's black repeat.
    many = viz.palette(600)
    np.testing.assert_array_equal(many[:256], viz.palette(256))
    np.testing.assert_array_equal(many[256:511], many[1:256])
    assert many[1:].any(axis=1).all()
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n={n}"):
            viz.palette(n)


def test_images_of_all_kinds():
    ramp = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(viz.to_rgb(ramp), np.repeat(ramp[..., None], 3, -1))
    assert viz.to_rgb(np.full((2, 2, 1), 0.5, np.float32)).tolist() == [[[128] * 3] * 2] * 2
    assert viz.to_rgb(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    assert viz.to_rgb(jnp.array([[1.005, -0.005]])).tolist() == [[[255] * 3, [0] * 3]]
    # Two channels: the first. Four or more: the first three.
    assert viz.to_rgb(np.dstack([ramp, 0 * ramp])).tolist() == np.repeat(ramp[..., None], 3, -1).tolist()
    many = np.arange(2 * 2 * 5, dtype=np.uint8).reshape(2, 2, 5)
    np.testing.assert_array_equal(viz.to_rgb(many), many[..., :3])


def test_other_ranges_are_stretched():
    values = np.linspace(-3, 5, 101)[None]
    expected = np.clip((np.arange(101) - 1) / 98, 0, 1) * 255
    for x in (values, values * 1000 - 7, (values * 1000 + 4000).round().astype(np.uint16)):
        np.testing.assert_allclose(viz.to_rgb(x)[0, :, 0], expected, atol=0.51)
    # All channels are scaled equally, so a colour keeps its hue.
    image = np.stack([values, values / 2, values / 4], -1)
    seen = viz.to_rgb(image).astype(int)
    assert (seen[0, -1, 0] > seen[0, -1, 1] > seen[0, -1, 2]) and (seen[0, 0, 0] < seen[0, 0, 1] < seen[0, 0, 2])


def test_images_that_are_constant_or_not_finite():
    assert viz.to_rgb(np.full((2, 2), 7.0)).tolist() == [[[0] * 3] * 2] * 2
    assert viz.to_rgb(np.full((2, 2), np.nan)).max() == 0
    assert viz.to_rgb(np.array([[0.0, 1.0, np.nan, np.inf]]))[0, :, 0].tolist() == [0, 255, 0, 0]
    stretched = viz.to_rgb(np.array([[-5.0, 5.0, np.nan]]))[0, :, 0]
    assert stretched.tolist() == [0, 255, 0]
    for shape in ((2, 2, 3, 1), (4,), (0, 2)):
        with pytest.raises(ValueError, match="expected one image"):
            viz.to_rgb(np.zeros(shape))


def test_colorize():
    mask = jnp.array([[0, 2], [1, 255]])
    colours = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    found = viz.colorize(mask, colours, ignore_index=255)
    assert found.dtype == np.uint8
    assert found.tolist() == [[[1, 2, 3], [7, 8, 9]], [[4, 5, 6], list(IGNORED)]]
    np.testing.assert_array_equal(viz.colorize(mask[:1])[0], viz.palette(3)[[0, 2]])
    assert viz.colorize(np.array([[True, False]])).tolist() == [viz.palette(2)[::-1].tolist()]


def test_colorize_errors():
    colours = viz.palette(3)
    with pytest.raises(ValueError, match=r"label 255, but the palette has colours for 0\.\.2.*ignore_index"):
        viz.colorize(np.array([[0, 255]]), colours)
    with pytest.raises(ValueError, match="label -1"):
        viz.colorize(np.array([[0, -1]]), colours)
    with pytest.raises(TypeError, match=r"float32.*argmax"):
        viz.colorize(np.zeros((2, 2), np.float32), colours)
    with pytest.raises(ValueError, match=r"\(2, 2, 3\).*argmax"):
        viz.colorize(np.zeros((2, 2, 3), np.float32), colours)
    with pytest.raises(ValueError, match="a palette is uint8"):
        viz.colorize(np.zeros((2, 2), int), np.zeros((3, 3)))


def test_overlay():
    image, mask = np.full((1, 3, 3), 100, np.uint8), np.array([[0, 1, 255]])
    colours = np.array([[0, 0, 0], [200, 100, 50]], np.uint8)
    found = viz.overlay(image, mask, alpha=0.25, palette=colours, ignore_index=255)
    assert found.dtype == np.uint8
    assert found[0].tolist() == [[75, 75, 75], [125, 100, 88], [100, 100, 100]]
    np.testing.assert_array_equal(viz.overlay(image, mask, alpha=0, palette=colours, ignore_index=255), image)
    with pytest.raises(ValueError, match="alpha"):
        viz.overlay(image, mask, alpha=1.5)
    with pytest.raises(ValueError, match=r"\(1, 2\) pixels and the image \(1, 3\)"):
        viz.overlay(image, mask[:, :2])
