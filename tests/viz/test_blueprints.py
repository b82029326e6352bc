"""The script examples/blueprints.py."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "blueprints.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.syspath_prepend(SCRIPT.parent)  # As Python does for a script.
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_it_prints_and_draws(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch, "--out", tmp_path, "--models", "unet", "segnet", "--encoder", "plain", "--image-size", 64)
    out = capsys.readouterr().out
    assert "unpools with the saved" in out and "https://arxiv.org/abs/1505.04597" in out
    assert "adds 1x1 lateral" not in out
    assert out.endswith(f"wrote {tmp_path / 'architectures.png'}\n")
    assert (tmp_path / "architectures.png").read_bytes().startswith(b"\x89PNG")


def test_quick_draws_three_families(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "--out", tmp_path, "--quick")
    assert (tmp_path / "architectures.png").is_file()
    assert "unpools" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--models", "unett"), "error: unknown model 'unett'; did you mean 'unet'"),
        (("--encoder", "resnet35"), "error: unknown encoder 'resnet35'"),
        (("--models", "segnet", "--encoder", "resnet18"), "error: segnet does not work with this encoder"),
        (("--models",), "error: expected at least one model"),
    ],
)
def test_user_errors_are_one_message(monkeypatch, capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--out", tmp_path, *arguments)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())
