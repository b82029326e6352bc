"""Scores of depth and of surface normals, from sums that add over batches."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from densezoo.metrics._counts import histogram
from densezoo.metrics._tally import Tally
from densezoo.ops.depth import align_scale_shift, measured

_SMALLEST = 1e-3
BINS = 720
"""Bins of the histogram of angles, a quarter of a degree each."""


@struct.dataclass
class DepthSums:
    """Sums over images of each image's scores. `+` adds those of other batches.

    Attributes:
        sums: (7,) float32; in the order of `DepthSums.names`.
        images: the number of images that have valid pixels.
    """

    sums: Float[Array, " 7"]
    images: Tally

    names = ("abs_rel", "sq_rel", "rmse", "log10", "delta1", "delta2", "delta3")

    def __add__(self, other: "DepthSums") -> "DepthSums":
        """Adds the sums of other images."""
        return DepthSums(self.sums + other.sums, self.images + other.images)

    def scores(self) -> dict[str, float]:
        """The mean of each score over the images; NaN without images."""
        images = int(np.asarray(self.images))
        means = np.asarray(self.sums) / images if images else np.full(len(self.names), np.nan)
        return {name: float(mean) for name, mean in zip(self.names, means, strict=True)}


def depth_sums(
    predictions: Float[Array, "b h w"],
    depth: Float[Array, "b h w"],
    *,
    align: bool = False,
    inverse: bool = False,
    smallest: float = _SMALLEST,
    largest: float | None = None,
) -> DepthSums:
    """Computes the usual scores of depth for each image, and sums them over the images.

    With y the prediction and z the true depth of the valid pixels of one image: `abs_rel` mean(|y - z| / z), `sq_rel`
    mean((y - z)^2 / z), `rmse` sqrt(mean((y - z)^2)), `log10` mean(|log10 y - log10 z|), and `delta1` to `delta3`, the
    shares of pixels with max(y / z, z / y) < 1.25, 1.25^2, 1.25^3. Means over images follow, as in the evaluations of
    KITTI and NYU.

    Args:
        predictions: depths, or with `inverse` inverse depths; clipped to `smallest` and `largest`. NaN stays NaN.
        depth: the true depth; holes (0, negative, infinite, NaN), and depths outside `smallest` and `largest`, do not
            count.
        align: whether predictions are only known up to a scale and a shift, which are then fitted to the true (inverse)
            depth of each image by least squares, as in MiDaS.
        inverse: whether predictions are inverse depths.
        smallest: smallest depth.
        largest: largest depth; None for no limit.

    Returns:
        Sums, whose `scores()` are the means.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> depth = jnp.array([[[1.0, 2.0, 4.0, jnp.nan]]])
        >>> scores = depth_sums(jnp.array([[[1.0, 2.0, 5.0, 3.0]]]), depth).scores()
        >>> round(scores["abs_rel"], 4), round(scores["rmse"], 4), round(scores["delta1"], 4)
        (0.0833, 0.5774, 0.6667)
        >>> depth_sums(3 / depth + 1, depth, align=True, inverse=True).scores()["delta1"]
        1.0
    """
    if predictions.shape != depth.shape:
        raise ValueError(f"predictions {predictions.shape} and depth {depth.shape} must have one shape (b, h, w)")
    highest = jnp.inf if largest is None else largest
    valid = measured(depth) & (depth >= smallest) & (depth <= highest)
    z = jnp.where(valid, depth.astype(jnp.float32), 1)
    y = jnp.where(valid, predictions.astype(jnp.float32), 1)
    if align:
        y = align_scale_shift(y, 1 / z if inverse else z, valid)
    if inverse:
        y = 1 / jnp.where(y <= 0, 1e-12, y)  # behind infinity: clipped to the largest depth below
    y = jnp.clip(y, smallest, highest)
    ratio = jnp.maximum(y / z, z / y)
    within = [jnp.where(jnp.isnan(ratio), jnp.nan, (ratio < 1.25**n).astype(jnp.float32)) for n in (1, 2, 3)]
    log10 = jnp.abs(jnp.log10(y) - jnp.log10(z))
    parts = jnp.stack([jnp.abs(y - z) / z, (y - z) ** 2 / z, (y - z) ** 2, log10, *within])
    pixels = valid.sum((1, 2))
    means = jnp.where(valid[None], parts, 0).sum((2, 3)) / jnp.maximum(pixels, 1).astype(jnp.float32)[None]
    means = means.at[2].set(jnp.sqrt(means[2]))
    return DepthSums(means.sum(1), Tally.of((pixels > 0).sum()))


@struct.dataclass
class AngleCounts:
    """A histogram of the angles between predicted and true normals, and their sum. `+` adds those of other batches.

    Attributes:
        bins: (720,) numbers of pixels in each quarter of a degree.
        total: the sum of the angles in degrees, float32.
    """

    bins: Tally
    total: Float[Array, ""]

    def __add__(self, other: "AngleCounts") -> "AngleCounts":
        """Adds the counts of other pixels."""
        return AngleCounts(self.bins + other.bins, self.total + other.total)

    def scores(self) -> dict[str, float]:
        """Angles in degrees over all pixels; NaN without pixels.

        Returns:
            `mean_angle`; `median_angle`, interpolated within its bin and thus exact to a quarter of a degree;
            `within_11`, `within_22` and `within_30`, the shares of pixels below 11.25, 22.5 and 30 degrees.
        """
        bins = np.asarray(self.bins)
        pixels = bins.sum()
        if not pixels:
            return dict.fromkeys(("mean_angle", "median_angle", "within_11", "within_22", "within_30"), float("nan"))
        below = np.concatenate([[0], bins.cumsum()]) / pixels
        place = int(np.searchsorted(below, 0.5))  # the bin that ends here contains the median
        part = (0.5 - below[place - 1]) / (below[place] - below[place - 1])
        shares = {f"within_{int(degrees)}": float(below[round(4 * degrees)]) for degrees in (11.25, 22.5, 30)}
        mean = float(np.asarray(self.total)) / int(pixels)
        return {"mean_angle": mean, "median_angle": float(place - 1 + part) / 4, **shares}


def angle_counts(predictions: Float[Array, "b h w 3"], normals: Float[Array, "b h w 3"]) -> AngleCounts:
    """Counts the angles between predicted and true normals.

    Args:
        predictions: vectors of any length. One of zero length counts as 90 degrees; NaN makes the mean NaN, and counts
            as 180 degrees in the histogram.
        normals: the true vectors; zeros, and vectors with an infinite or NaN component, do not count.

    Returns:
        Counts, whose `scores()` are the mean and median angle, and shares of pixels.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> truth = jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), (1, 1, 3, 3))
        >>> counts = angle_counts(jnp.array([[[[0, 0, -2.0], [0, -1.0, -1.0], [0, 0, 1.0]]]]), truth)
        >>> {name: round(score, 2) for name, score in counts.scores().items()}
        {'mean_angle': 75.0, 'median_angle': 45.12, 'within_11': 0.33, 'within_22': 0.33, 'within_30': 0.33}
    """
    if predictions.shape != normals.shape:
        raise ValueError(f"predictions {predictions.shape} and normals {normals.shape} must have one shape")
    valid = jnp.isfinite(normals).all(-1) & (normals != 0).any(-1)
    a, b = (jnp.where(valid[..., None], array, 0).astype(jnp.float32) for array in (predictions, normals))
    # The arc tangent, because the arc cosine loses all digits of small angles in float32.
    cross, dot = jnp.cross(a, b), (a * b).sum(-1)
    sine = jnp.sqrt((cross * cross).sum(-1))
    angles = jnp.where((sine == 0) & (dot == 0), 90.0, jnp.degrees(jnp.arctan2(sine, dot)))
    wrong = jnp.isnan(angles)
    bins = jnp.clip(jnp.where(wrong, BINS - 1, angles * (BINS // 180)).astype(jnp.int32), 0, BINS - 1)
    counts = histogram(jax.lax.select(valid, bins, jnp.full_like(bins, BINS)), BINS)
    return AngleCounts(Tally.of(counts), jnp.where(valid, angles, 0).sum())
