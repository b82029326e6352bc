"""Tiles beside one pass: a small picture is measured, and rows become tables and a picture."""

import dataclasses

import pytest

from benchmarks import tiling
from benchmarks.record import append_line, read_lines


@pytest.fixture
def arguments(tmp_path):
    parts = ("tiling", "tiling-memory")
    (tmp_path / "deploy.md").write_text("\n".join(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->" for name in parts))
    return tiling.Arguments(
        networks=("segnet", "pspnet"),
        side=90,
        max_pixels=8000,
        sides=(),
        whole_sides=(),
        classes=(2,),
        out=tmp_path / "out.jsonl",
        docs=tmp_path / "deploy.md",
        plot=tmp_path / "memory.png",
    )


@pytest.mark.filterwarnings("ignore:pspnet is designed for:UserWarning")
def test_measures_once_and_reports(arguments, monkeypatch):
    tiling.main(arguments)
    segnet, pspnet = read_lines(arguments.out)
    assert segnet["difference"] < 1e-5 and min(segnet["one_pass"], segnet["tiles"]) >= 0
    assert "decoder/pooling" in pspnet["reason"]

    peaks = {100: {"gib": 0.5, "seconds": 1.0}, 200: {"gib": 0.625, "seconds": 4.0}}
    monkeypatch.setattr(tiling, "compare", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr(tiling, "measured_apart", lambda side, classes, max_pixels: peaks[side])
    tiling.main(dataclasses.replace(arguments, sides=(100, 200), whole_sides=(100,), classes=(2, 7), classes_side=200))
    monkeypatch.setattr(tiling, "measured_apart", lambda *_: pytest.fail("it was measured"))
    tiling.main(dataclasses.replace(arguments, sides=(100, 200), classes=(2,)))

    append_line(arguments.out, {"network": "unet", "difference": 2.5e-7, "one_pass": 0.2, "tiles": 0.3})
    tiling.main(dataclasses.replace(arguments, report=True))
    text = arguments.docs.read_text()
    assert "old" not in text and arguments.plot.stat().st_size > 1000
    assert "| `unet` | 2.5e-07 | 0.20 | 0.30 | 1.50 |" in text and "| `pspnet` | reads the whole picture |" in text
    assert "| 100 | 2 | 0.50 | 0.50 | 1 |" in text and "| 200 | 2 | 0.62 |  | 4 |" in text
