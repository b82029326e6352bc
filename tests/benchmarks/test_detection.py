import json

import numpy as np
import pytest

from benchmarks import detection, machine, options


def test_operations_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    few = [
        detection.Case("nms", "forward", (9,), detection.suppress, lambda seed: detection.candidates(9, seed)),
        detection.Case(
            "multiscale_roi_align",
            "forward+backward",
            (3, 2, 2, 4),
            lambda *arrays: detection.align(*arrays, backward=True),
            lambda seed: detection.regions(3, 2, 4, seed),
        ),
    ]
    monkeypatch.setattr(detection, "cases", lambda quick: few)
    argv = ("--quick", "--rounds", "2", "--out", str(tmp_path))
    assert options.run_command(detection.main, options.Options, argv) == 0
    (path,) = tmp_path.glob("detection-quick-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["kernel"], row["shape"], row["form"]) for row in rows] == [
        ("nms", [9], "auto"),
        ("multiscale_roi_align", [3, 2, 2, 4], "auto"),
    ]
    assert all(len(row["samples_milliseconds"]) == 2 and row["compile_seconds"] > 0 for row in rows)
    assert "| nms | 9 | forward |" in capsys.readouterr().out


def test_results_that_differ_are_not_timed():
    suppress, align = detection.cases(quick=True)[0], detection.cases(quick=True)[-1]
    kept = [np.array([4, 2, 0]), np.array([True, True, False])]
    assert detection.check(suppress, kept, [np.array([4, 2])], "cpu") == {"kept": 2}
    with pytest.raises(options.Mismatch, match="keeps 2 boxes, torchvision 3"):
        detection.check(suppress, kept, [np.array([4, 2, 1])], "cpu")
    with pytest.raises(options.Mismatch, match="differs from torchvision"):
        detection.check(align, [np.ones(3)], [np.array([1, 1, 2.0])], "cpu")
