"""A test run of the GPU session's limits part, and the table of its files; .ci/run runs the whole session."""

import json

import pytest

from benchmarks import gpu, gpu_jax, machine
from benchmarks.record import SCHEMA


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)


def test_limits_are_measured_and_become_a_table(tmp_path, capsys):
    assert gpu.main(["--quick", "--part", "limits", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert path.name == "limits.json" and content["status"] == "done" and content["notes"] == []
    assert [(row["what"], row["dtype"]) for row in content["rows"]] == [
        ("copy", "bfloat16"),
        ("matmul", "bfloat16"),
        ("copy", "float32"),
        ("matmul", "float32"),
        ("matmul, precision highest", "float32"),
    ]
    # A copy reads and writes each byte; a product adds and multiplies.
    assert content["rows"][0]["bytes"] == 2 * 2**20 and content["rows"][1]["flops"] == 2 * 256**3
    capsys.readouterr()
    assert gpu.main(["--table", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "a test run with tiny shapes" in text and "| copy bfloat16 | - | jax |" in text


def test_the_table_has_shares_of_the_limits_and_marks_what_was_stopped(tmp_path):
    def row(milliseconds, **fields):
        times = {"median": milliseconds, "min": milliseconds}
        return fields | {"form": "auto", "dtype": "bfloat16", "milliseconds": times, "ratios": {}}

    head = {"schema": SCHEMA, "quick": False, "seconds": 3.0}
    limits = head | {"status": "done", "notes": [], "rows": [row(1.0, what="copy", bytes=3e9)]}
    kernels = head | {"status": "running", "notes": ["bilinear_x2: no memory"]}
    kernels["rows"] = [row(2.0, kernel="nearest_x2", mode="forward", shape=[16, 8, 8, 4], bytes=3e9)]
    for name, content in (("limits", limits), ("kernels", kernels)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    text = gpu.table(tmp_path)
    assert "### kernels (3 s, stopped before its end)" in text and "- bilinear_x2: no memory" in text
    # Half the bandwidth of the copy, at 3e9 bytes in 2 ms.
    assert "| nearest_x2 bfloat16 forward | 16x8x8x4 | auto | 2 | - | 1.5 | - | 0.5 | - |" in text


def test_a_part_that_fails_says_so_in_its_file(tmp_path, monkeypatch):
    def broken(report):
        report.compare({"what": "copy"}, {"one": lambda: 1 / 0, "two": lambda: (lambda: 0, {})})
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(gpu.PARTS, "kernels", broken)
    assert gpu.main(["--quick", "--part", "kernels", "--out", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert content["notes"] == ["copy one: ZeroDivisionError: division by zero", "kernels: RuntimeError: out of"]
    assert [row["form"] for row in content["rows"]] == ["two"] and content["status"] == "done"


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_jax.jax, "default_backend", lambda: "cpu")
    assert gpu.main(["--part", "limits", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "limits.json").read_text())
    assert content["notes"] == ["skipped: this part needs a GPU, but jax only sees cpu"] and content["rows"] == []
