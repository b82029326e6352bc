"""The worker process: its protocol, and the benchmarks with a fake one, or the real one if torch is installed."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import densezoo as dz
from benchmarks import machine, models, options, protocol, resident, upsampling
from benchmarks.protocol import PeerError, Worker

FAKE = [sys.executable, str(Path(__file__).with_name("fake_peers.py"))]
LIMITS = {"copy_bandwidth": 1e10, "copy_bandwidth_by_mib": {"4": 1e10}, "matmul_peak": {"float32": 1e11}}


@pytest.fixture
def beside_a_fake(monkeypatch, tmp_path):
    """Runs a benchmark with the fake worker; returns the exit code and the result."""
    monkeypatch.setattr(options, "Worker", lambda command, setup: Worker(FAKE, setup))
    monkeypatch.setattr(options, "PAUSE", 0.0)
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    for module in (models, upsampling):
        monkeypatch.setattr(module, "measure_limits", lambda quick: LIMITS)

    def run(module, *argv):
        argv = ("--quick", "--rounds", "2", "--max-seconds", "0.1", "--out", str(tmp_path), *argv)
        code = options.run_command(module.main, module.Arguments, argv)
        files = list(tmp_path.glob("*.json"))
        return code, json.loads(files[0].read_text()) if files else None

    return run


def tiny_model(pair, arguments, shape, impl, dtype):
    return dz.create_model("unet", dz.PlainEncoder((4, 8)), arguments.num_classes, impl=impl)


@pytest.fixture
def tiny(monkeypatch):
    for module in ("networks", "models"):
        monkeypatch.setattr(f"benchmarks.{module}.make_model", tiny_model)


def test_requests_are_answered_in_turn_and_errors_are_one_line():
    def broken():
        raise ValueError("first\nsecond")

    lines = [json.dumps(request) for request in ({"do": "add", "a": 1, "b": 2}, {"do": "broken"}, {"do": "unknown"})]
    answers = io.StringIO()
    protocol.serve({"add": lambda a, b: a + b, "broken": broken}, lines, answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert found == [{"ok": 3}, {"error": "ValueError: first"}, {"error": "KeyError: 'unknown'"}]


def test_a_worker_keeps_its_stdout_for_answers_and_its_end_is_said():
    with Worker(FAKE) as worker:
        assert worker.ask("sample", form="torch", calls=1) == {"seconds": 0.5}
        assert np.load(worker.send("x", np.arange(3))).tolist() == [0, 1, 2]
        with pytest.raises(PeerError, match="ended with code 3: out of memory"):
            worker.ask("die")
    assert not worker.folder.exists()


def test_another_package_in_the_working_directory_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from benchmarks.protocol import serve_process; serve_process(lambda f: {'a': int}, sys.argv[1:])"
    )
    with Worker([sys.executable, "-c", code]) as worker:
        assert worker.ask("a") == 0


def test_the_worker_needs_no_jax():
    code = "import sys; import benchmarks.peers; sys.exit(any(name in sys.modules for name in ('jax', 'densezoo')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=protocol.ROOT, check=False).returncode == 0


def test_models_beside_peers(beside_a_fake, tiny, capsys):
    argv = ("--models", "unet:resnet18", "--shapes", "1x32x32", "--against", "all")
    code, result = beside_a_fake(models, *argv)
    assert code == 0 and result["machine"]["versions"]["torch"] == "9.9+fake"
    rows = {row["form"]: row for row in result["rows"]}
    assert list(rows) == ["densezoo", "torch", "torch.compile", "torch.compile, frozen", "openvino", "onnxruntime"]
    assert rows["onnxruntime"]["left_out"] == "ImportError: no such runtime" and "ratios" not in rows["onnxruntime"]
    assert rows["torch"]["milliseconds"]["median"] == 500 and rows["torch"]["error"] < 1e-3
    assert rows["torch"]["compile_seconds"] is None and rows["openvino"]["compile_seconds"] == 3.0
    assert set(rows["densezoo"]["ratios"]) == {"torch", "torch.compile", "torch.compile, frozen", "openvino"}
    assert "onnxruntime is skipped: ImportError: no such runtime" in capsys.readouterr().err


def test_what_is_there_is_not_measured_again(beside_a_fake, tiny, monkeypatch):
    argv = ("--models", "unet:resnet18", "--shapes", "1x32x32", "--against", "torch")
    _, first = beside_a_fake(models, *argv)
    monkeypatch.setattr(models, "measure", lambda *_, **__: pytest.fail("measured again"))
    code, second = beside_a_fake(models, *argv)
    assert code == 0 and second["rows"] == first["rows"]
    with pytest.raises(pytest.fail.Exception):
        beside_a_fake(models, *argv, "--again")


def test_a_peer_that_differs_stops_its_model_and_not_the_next(beside_a_fake, tiny, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_WRONG", "torch")
    argv = ("--models", "unet:resnet18", "fpn:resnet18", "--shapes", "1x32x32", "--against", "torch")
    code, result = beside_a_fake(models, *argv)
    assert code == 1 and "unet:resnet18 1x32x32, torch: the output differs" in capsys.readouterr().err
    assert [(row["model"], row["form"]) for row in result["rows"]] == [
        ("fpn:resnet18", "densezoo"),
        ("fpn:resnet18", "torch"),
    ]
    assert result["rows"][1]["left_out"].startswith("KeyError")


def test_kernels_beside_peers(beside_a_fake):
    argv = ("--kernels", "nearest_x2", "--shapes", "1x4x4x2", "--against", "torch")
    code, result = beside_a_fake(upsampling, *argv)
    assert code == 0
    rows = [row for row in result["rows"] if row["form"] == "torch"]
    assert [row["mode"] for row in rows] == ["forward", "forward+backward"]
    assert all(max(row["errors"].values()) < 1e-6 and row["milliseconds"]["median"] == 500 for row in rows)


def test_torch_compile_stands_for_all_its_forms():
    chosen = options.Options(against=("torch.compile",))
    assert chosen.forms(models.PEERS) == ["torch.compile", "torch.compile, frozen"]
    assert options.Options(against=("torch",)).forms(models.PEERS) == ["torch"]


def test_the_peak_of_memory_starts_again():
    try:
        resident.forget_peak()
    except OSError:
        pytest.skip("this system does not count so")
    block = np.ones(32 * 2**20 // 8)
    before = resident.resident_bytes("VmHWM")
    assert block.sum() > 0
    del block
    assert before - resident.forget_peak() > 24 * 2**20
    assert resident.resident_bytes("VmHWM") < before - 24 * 2**20


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_the_real_worker_times_a_kernel():
    with Worker([sys.executable, "-m", "benchmarks.peers"]) as worker:
        x = worker.send("input0", np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2))
        g = worker.send("cotangent", np.ones((1, 4, 4, 2), np.float32))
        asked = {"kernel": "nearest_x2", "inputs": [(x, "float32")], "cotangent": (g, "float32"), "platform": "cpu"}
        worker.ask("kernel", form="torch", backward=True, **asked)
        written = worker.ask("output", form="torch")
        assert np.load(written["gradients"][0]).tolist() == np.full((1, 2, 2, 2), 4.0).tolist()
        assert worker.ask("sample", form="torch", calls=2)["seconds"] > 0
