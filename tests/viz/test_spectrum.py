import numpy as np
import pytest

from densezoo import viz
from densezoo.viz.spectrum import lattice_energy, power_spectrum

ROWS, COLUMNS = np.mgrid[:48, :48]


def wave(u, v):
    """A map of one frequency, in cycles per pixel."""
    return np.cos(2 * np.pi * (u * ROWS + v * COLUMNS))[None, :, :, None]


def test_a_wave_is_where_its_frequency_is():
    power = power_spectrum(wave(1 / 4, -1 / 8) + 100)
    peaks = {(int(i) - 24, int(j) - 24) for i, j in np.argwhere(power > power.max() / 2)}
    assert peaks == {(12, -6), (-12, 6)}


@pytest.mark.parametrize(
    ("frequency", "stride", "share"),
    [
        ((1 / 2, 0), 2, 1),
        ((0, 1 / 2), 2, 1),
        ((1 / 2, 1 / 2), 2, 1),
        ((1 / 2 - 1 / 16, 1 / 16), 2, 1),  # a slow wave, repeated around a harmonic
        ((1 / 16, 1 / 16), 2, 0),  # the slow wave itself
        ((1 / 2, 3 / 8), 2, 0.6),  # on the border of a band
        ((1 / 4, 1 / 2), 2, 0),  # between two harmonics
        ((1 / 4, 0), 4, 1),
        ((1 / 4, 1 / 2), 4, 1),
        ((3 / 8, 0), 4, 0),
        ((1 / 8, 3 / 8), 8, 1),
        ((1 / 3, 0), 3, 1),
        ((1 / 2, 0), 3, 0),
    ],
)
def test_share_of_a_wave(frequency, stride, share):
    # The window spreads a wave over three entries of the spectrum, so that on a border a part of it is out.
    assert lattice_energy(wave(*frequency), stride) == pytest.approx(share, abs=0.3 if share == 0.6 else 1e-3)


def test_share_of_a_sum_is_the_share_of_its_energy():
    slow, board = wave(1 / 24, 0), wave(1 / 2, 1 / 2)
    # A cosine has half the energy of the board, whose values are -1 and 1.
    assert lattice_energy(slow + board, 2) == pytest.approx(1 / 1.5, abs=1e-3)
    assert lattice_energy(3 * slow + board + 7, 2) == pytest.approx(1 / 5.5, abs=1e-3)
    assert lattice_energy(np.concatenate([slow, board], -1), 2) == pytest.approx(1 / 1.5, abs=1e-3)
    assert lattice_energy(np.concatenate([slow, board]), 2) == pytest.approx(1 / 1.5, abs=1e-3)


@pytest.mark.parametrize("stride", [2, 4])
def test_white_noise_has_the_share_of_the_area(stride):
    noise = np.random.default_rng(0).standard_normal((1, 256, 256, 2))
    assert lattice_energy(noise, stride) == pytest.approx((stride**2 - 1) / (4 * stride**2), abs=0.03)


def test_flat_maps_have_none():
    flat = np.full((1, 32, 32, 1), 3.0, np.float32)
    assert lattice_energy(flat, 2) == 0
    board = np.float32(3e-7) * ((ROWS + COLUMNS) % 2)[None, :, :, None]
    assert lattice_energy(3 + board, 2) == 0  # float32's rounding
    assert lattice_energy(3 + 1e4 * board, 2) > 0.99


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="stride must be at least 2 pixels, got 1"):
        lattice_energy(wave(0, 0), 1)
    with pytest.raises(ValueError, match="4 strides are needed"):
        lattice_energy(wave(0, 0), 16)
    with pytest.raises(ValueError, match="NHWC"):
        power_spectrum(wave(0, 0)[0])


def test_picture():
    board, slow = wave(1 / 2, 1 / 2)[0, :, :, 0], wave(1 / 24, 0)[0, :, :, 0]
    figure = viz.spectra({"x2": {"one": board, "two": slow}, "x4": {"one": slow, "two": board}}, {"x2": 2, "x4": 4})
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["one", "two", "100.0 %", "0.0 %", "", "", "0.0 %", "100.0 %"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), board)
    assert [len(axes.patches) for axes in figure.axes] == [0, 0, 8, 8, 0, 0, 24, 24]
    with pytest.raises(ValueError, match="the same columns"):
        viz.spectra({"x2": {"one": board}, "x4": {}}, {"x2": 2, "x4": 4})
