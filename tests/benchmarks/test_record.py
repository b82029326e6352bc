import csv
import json
import os

import pytest

from benchmarks import record
from benchmarks.timing import Timing

MACHINE = {
    "platform": "gpu",
    "device_kind": "NVIDIA H100 80GB HBM3",
    "cores": 16,
    "malloc": "default",
    "versions": {"jax": "0.10.2", "torch": None},
}


def test_names_say_mode_device_dtype_and_versions():
    assert record.file_stem("models", "bfloat16", MACHINE) == "models-gpu_nvidia-h100-80gb-hbm3-bfloat16-jax0.10.2"
    cpu = MACHINE | {"platform": "cpu", "device_kind": "AMD EPYC(TM) 9", "versions": {"jax": "1", "torch": "2.1+cpu"}}
    assert record.file_stem("a", "float32", cpu) == "a-cpu_amd-epyc-tm-9_16c-float32-jax1-torch2.1-malloc_default"
    assert record.file_stem("a", "float32", cpu | {"malloc": "hugetlb"}).endswith("torch2.1")


def result(rows):
    return {"mode": "upsampling", "dtype": "float32", "machine": MACHINE, "rows": rows}


def test_json_and_csv_have_the_rows(tmp_path):
    timings = {"auto": Timing((0.001, 0.002, 0.003), 4), "torch": Timing((0.002, 0.002, 0.002), 5)}
    rows = [
        {"form": form, "shape": [4, 8, 8, 2]} | record.timing_fields(timings, form, ("torch", "jax"))
        for form in timings
    ]
    path = record.write(tmp_path / "new", result(rows))
    assert path.name == "upsampling-gpu_nvidia-h100-80gb-hbm3-float32-jax0.10.2.json"
    back = record.read(path)
    assert back["schema"] == 1 and back["rows"] == rows and back["machine"] == MACHINE
    auto, torch = back["rows"]
    assert auto["milliseconds"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "min": 1.0}
    assert auto["ratios"] == {"torch": {"median": 1.0, "q1": 0.75, "q3": 1.25, "min": 0.5, "of_minima": 0.5}}
    assert torch["ratios"] == {} and torch["calls"] == 5 and auto["samples_milliseconds"] == [1.0, 2.0, 3.0]
    with path.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["shape"] == "4x8x8x2" and lines[0]["milliseconds.q3"] == "2.5"
    assert lines[0]["ratios.torch.median"] == "1.0" and lines[1]["ratios.torch.median"] == ""


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = record.write(tmp_path, result([]))
    before = path.read_text()

    def fail(source, target):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        record.write(tmp_path, result([{"form": "auto"}]))
    assert path.read_text() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json"]


def test_values_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write(tmp_path, result([{"x": float("nan")}]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [("{", "no result"), ("[]", "no result"), ('{"schema": 7}', "schema 7")])
def test_other_files_are_named(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        record.read(path)


def test_fits_go_by_series():
    rows = [
        {"kernel": "k", "series": series, "pixels": pixels, "milliseconds": {"median": ms}, "peak_bytes": 8 * pixels}
        for series, pixels, ms in (
            ("pixels", 1, 1.0),
            ("pixels", 4, 16.0),
            ("batch", 1, 1.0),
            ("batch", 8, 8.0),
        )
    ]
    rows.append({"kernel": "k", "series": "pixels", "pixels": 16, "skipped": "needs too much"})
    first, second = record.fits_of(rows, ("kernel",))
    assert (first["series"], second["series"]) == ("pixels", "batch")
    assert (first["time_exponent"], first["memory_exponent"]) == pytest.approx((2.0, 1.0))
    assert second["time_exponent"] == pytest.approx(1.0)
    assert "| k | pixels | 2 | 2.00 | 1.00 |" in record.fits_text([first, second])
    assert record.fits_text([]) == ""


def test_a_row_is_one_line(tmp_path):
    path = record.write(tmp_path, result([{"a": 1, "b": {"c": 2}}, {"a": 3}]))
    lines = path.read_text().splitlines()
    assert json.loads(lines[-4].strip().rstrip(",")) == {"a": 1, "b": {"c": 2}}
