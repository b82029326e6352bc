"""Measures and draws checkerboards: a map's energy at the frequencies of a sampling lattice."""

import textwrap
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densezoo.viz.figures import wrapped

PANEL = 1.25
"""Width of a panel in inches."""
RANGE = 6
"""Dynamic range of a spectrum's picture, in powers of ten."""
CAPTION = (
    "Below each map is its power spectrum: frequency 0 in the centre, half a cycle per pixel at the edges, six powers"
    " of ten from black to white. White frames mark the frequencies of the upsampling lattice; the percentage is the"
    " share of the map's energy (squared deviation from its mean) within them. In a map that should be smooth, this"
    " share is the checkerboard."
)


def power_spectrum(maps: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "h w"]:
    """Mean power of the maps' variation by spatial frequency, with frequency 0 in the centre.

    The mean of each channel of each map is subtracted, and the rest is multiplied by a Hann window, so that the jump
    between opposite borders adds nothing at high frequencies.

    Args:
        maps: NHWC.

    Returns:
        |FFT|**2, averaged over maps and channels; row i is for `numpy.fft.fftshift(numpy.fft.fftfreq(h))[i]` cycles per
        pixel.

    Raises:
        ValueError: if `maps` is not NHWC or is empty.
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"expected NHWC maps with no empty axis, got shape {maps.shape}: for one map, pass map[None]")
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in maps.shape[1:3]))
    waves = np.fft.fft2((maps - maps.mean((1, 2), keepdims=True)) * window[None, :, :, None], axes=(1, 2))
    return np.fft.fftshift((np.abs(waves) ** 2).mean((0, 3)))


def lattice_energy(maps: Float[np.ndarray, "b h w c"], stride: int) -> float:
    """The share of the maps' energy at the frequencies of a lattice of `stride` pixels, as a measure of checkerboards.

    Upsampling by s repeats its input's spectrum around every harmonic (m / s, n / s) of the lattice, m and n from 0 to
    s - 1, and then attenuates the copies around all harmonics except (0, 0). What remains of them is the checkerboard.
    So the result is the power within 1 / (4 s) of a harmonic other than (0, 0), along both axes, over the total power.
    The mean of a map counts in neither; see `power_spectrum`.

    The measure suits smooth maps: it is 0 for a map without detail finer than 4 s pixels. White noise has
    (s**2 - 1) / (4 s**2) of its energy there, and sharp edges have some too, so compare maps of the same content.

    Args:
        maps: NHWC; the energies of all maps and channels are added.
        stride: s, the lattice's spacing in pixels.

    Returns:
        A number from 0 to 1; 0 for maps that do not vary beyond rounding errors.

    Raises:
        ValueError: if `stride` is less than 2, or the maps are smaller than 4 strides or not NHWC.

    Example:
        >>> rows, columns = np.mgrid[:32, :32]
        >>> board = ((rows + columns) % 2).astype(float)[None, :, :, None]
        >>> wave = np.sin(2 * np.pi * rows / 32)[None, :, :, None]
        >>> round(lattice_energy(board, 2), 3), round(lattice_energy(wave, 2), 3)
        (1.0, 0.0)

    References:
        Odena et al., Deconvolution and checkerboard artifacts, 2016. https://distill.pub/2016/deconv-checkerboard
    """
    if stride < 2:
        raise ValueError(f"stride must be at least 2 pixels, got {stride}")
    power = power_spectrum(maps)
    if min(power.shape) < 4 * stride:
        raise ValueError(f"maps of {power.shape} pixels are too small for a lattice of {stride}: 4 strides are needed")
    return float(power[_harmonics(power.shape, stride)].sum() / power.sum()) if _varies(maps) else 0.0


def _varies(maps: np.ndarray) -> bool:
    """Whether a map varies by more than float32's rounding of a constant."""
    spread = np.std(np.asarray(maps, np.float64), axis=(1, 2))
    return bool((spread > 1e-5 * np.abs(maps).max()).any())


def _harmonics(shape: tuple[int, ...], stride: int) -> Bool[np.ndarray, "h w"]:
    """Which entries of a centred spectrum are near a harmonic of the lattice other than (0, 0)."""
    near, zero = [], []
    for side in shape:
        # In cycles per stride, so that harmonics are integers.
        frequency = np.fft.fftshift(np.fft.fftfreq(side)) * stride
        near.append(np.abs(frequency - np.round(frequency)) <= 0.25 + 1e-9)
        zero.append(np.round(frequency) % stride == 0)
    return np.outer(*near) & ~np.outer(*zero)


def spectra(rows: Mapping[str, Mapping[str, Float[np.ndarray, "h w"]]], strides: Mapping[str, int]) -> Figure:
    """Draws maps, and below each its spectrum, with framed lattice frequencies and their share of the energy.

    A caption explains the picture. Every map is scaled from its minimum to its maximum, unless it varies only by
    rounding errors ("flat"). Every spectrum is logarithmic over six powers of ten below its maximum. Frequency 0 is in
    the centre and half a cycle per pixel at the edges.

    Args:
        rows: maps by row name and column name; all rows have the same columns.
        strides: the stride of the lattice, by row name.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if there are no maps, rows differ in their columns, or a row has no stride.

    Example:
        >>> board = np.indices((16, 16)).sum(0) % 2.0
        >>> figure = spectra({"2x": {"nearest": board, "bilinear": board}}, {"2x": 2})
    """
    columns = list(next(iter(rows.values()), {}))
    if not columns or any(list(row) != columns for row in rows.values()) or set(rows) != set(strides):
        got = {name: list(row) for name, row in rows.items()}
        raise ValueError(f"expected rows with the same columns, and a stride for each row; got {got}, {dict(strides)}")
    width = PANEL * len(columns) + 0.6
    caption = wrapped(CAPTION, width, 10)
    height = (2 * PANEL + 0.25) * len(rows) + 0.5 + 0.18 * (caption.count("\n") + 1)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.supxlabel(caption, fontsize=10, x=0.01, ha="left", multialignment="left")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)  # pyright: ignore
    axes = figure.subplots(2 * len(rows), len(columns), squeeze=False)
    for number, (row, maps) in enumerate(rows.items()):
        for column, name in enumerate(columns):
            above, below = axes[2 * number, column], axes[2 * number + 1, column]
            x = np.asarray(maps[name], np.float64)
            flat = not _varies(x[None, :, :, None])
            low, high = (x.mean() - 1, x.mean() + 1) if flat else (x.min(), x.max())
            above.imshow(x, cmap="gray", interpolation="nearest", vmin=low, vmax=high)
            _draw_spectrum(below, x[None, :, :, None], strides[row], flat)
            if number == 0:
                above.set_title(name.replace("_", "\n", 1), fontsize=11)
        axes[2 * number, 0].set_ylabel(textwrap.fill(row, 14), fontsize=10)
        axes[2 * number + 1, 0].set_ylabel("spectrum,\n% in frames", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def _draw_spectrum(axes, x: np.ndarray, stride: int, flat: bool) -> None:
    power = np.zeros(x.shape[1:3]) if flat else power_spectrum(x)
    share = lattice_energy(x, stride)
    floor = max(power.max(), 1e-30) * 10.0**-RANGE
    # Pixels are centred on their frequencies. An even side has the frequency -1/2 but not 1/2.
    low, high = (
        [np.fft.fftshift(np.fft.fftfreq(n))[end] + sign / (2 * n) for n in power.shape]
        for end, sign in ((0, -1), (-1, 1))
    )
    extent = (low[1], high[1], high[0], low[0])
    axes.imshow(np.log10(np.maximum(power, floor)), cmap="magma", interpolation="nearest", extent=extent)
    half = 1 / (4 * stride)
    for m, n in np.ndindex(stride + 1, stride + 1):
        u, v = m / stride - (stride // 2) / stride, n / stride - (stride // 2) / stride
        if (u, v) != (0, 0):
            axes.add_patch(
                Rectangle((u - half, v - half), 2 * half, 2 * half, fill=False, edgecolor="white", linewidth=0.4)
            )
    axes.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
    axes.set_title("flat" if flat else f"{100 * share:.1f} %", fontsize=10, pad=2)
