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
        {"kernel": "k", "mode": "forward", "form": form, "shape": [4, 8, 8, 2]}
        | record.timing_fields(timings, form, ("torch", "jax"))
        for form in timings
    ]
    results = record.ResultFile(tmp_path / "new", result([]))
    results.put(rows)
    assert results.path.name == "upsampling-gpu_nvidia-h100-80gb-hbm3-float32-jax0.10.2.json"
    back = record.read(results.path)
    assert back["schema"] == 2 and back["rows"] == rows and back["machine"] == MACHINE
    auto, torch = back["rows"]
    assert auto["milliseconds"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "min": 1.0}
    assert auto["ratios"] == {"torch": {"median": 1.0, "q1": 0.75, "q3": 1.25, "min": 0.5, "of_minima": 0.5}}
    assert torch["ratios"] == {} and torch["calls"] == 5 and auto["samples_milliseconds"] == [1.0, 2.0, 3.0]
    with results.path.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["shape"] == "4x8x8x2" and lines[0]["milliseconds.q3"] == "2.5"
    assert lines[0]["ratios.torch.median"] == "1.0" and lines[1]["ratios.torch.median"] == ""


def row(model, form, side=8, **fields):
    return {"model": model, "mode": "inference", "shape": [1, side, side], "form": form, **fields}


def test_a_comparison_replaces_its_older_self_and_no_other(tmp_path):
    first = record.ResultFile(tmp_path, result([]))
    first.put([row("a", "densezoo", x=1), row("a", "torch", x=2)])
    first.put([row("a", "densezoo", 16, x=3)])
    again = record.ResultFile(tmp_path, result([]))
    again.put([row("a", "densezoo", x=4)])
    assert [(r["shape"][1], r["form"], r["x"]) for r in again.rows] == [(16, "densezoo", 3), (8, "densezoo", 4)]
    assert record.read(again.path)["rows"] == again.rows


def test_a_comparison_is_there_if_all_its_forms_are(tmp_path):
    results = record.ResultFile(tmp_path, result([]))
    results.put([row("a", "densezoo"), row("a", "torch", left_out="not there")])
    results = record.ResultFile(tmp_path, result([]))
    assert results.has(("a", "inference", (1, 8, 8)), ["torch"])
    assert not results.has(("a", "inference", (1, 8, 8)), ["densezoo", "openvino"])
    assert not results.has(("a", "inference", (1, 16, 16)), ["densezoo"])


def test_the_fastest_of_several_counts():
    assert record.ratio_to({"ratios": {"a": {"median": 2.0}, "b": {"median": 0.5}}}, "a", "b", "c") == 2.0
    assert record.ratio_to({"ratios": {}}, "a") is None


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = record.write(tmp_path / "x.json", result([]))
    before = path.read_text()

    def fail(source, target):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        record.write(path, result([{"form": "auto"}]))
    assert path.read_text() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json"]


def test_values_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write(tmp_path / "x.json", result([{"x": float("nan")}]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [("{", "a result"), ("[]", "a result"), ('{"schema": 7}', "schema 7")])
def test_other_files_are_named(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        record.read(path)


def test_a_row_is_one_line(tmp_path):
    path = record.write(tmp_path / "x.json", result([{"a": 1, "b": {"c": 2}}, {"a": 3}]))
    lines = path.read_text().splitlines()
    assert json.loads(lines[-4].strip().rstrip(",")) == {"a": 1, "b": {"c": 2}}


def test_another_machine_of_a_kind_has_its_own_files():
    assert record.file_stem("a", "float32", MACHINE | {"label": "May 2026"}).endswith("-may-2026")
