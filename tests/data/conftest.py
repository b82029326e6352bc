"""Fixtures that several tests of data share."""

import runpy
from pathlib import Path

import pytest

pictures = runpy.run_path(str(Path(__file__).with_name("pictures.py")))
noise, save = pictures["noise"], pictures["save"]


@pytest.fixture
def folder(tmp_path):
    """Two pairs of grey images with masks of the classes 0 and 1."""
    for name in ("b", "a"):
        save(tmp_path / "images" / f"{name}.png", noise(6, 8))
        save(tmp_path / "masks" / f"{name}.png", noise(6, 8) % 2)
    return tmp_path
