"""Compile times: a tiny model is measured, and such rows are formatted as a table."""

import dataclasses
import json

import pytest

import densezoo as dz
from benchmarks import compilation, machine


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "zoo.md").write_text("<!-- compilation:begin -->\nold\n<!-- compilation:end -->\n")
    return compilation.Arguments(models=("unet:plain",), out=tmp_path / "out.jsonl", docs=tmp_path / "zoo.md")


def test_measures_once_and_reports(arguments, monkeypatch):
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(compilation, "IMAGES", (1, 32, 32, 3))
    tiny = dz.create_model("unet", dz.PlainEncoder((4, 8)), compilation.CLASSES)
    monkeypatch.setattr(compilation.dz, "create_model", lambda name, encoder, classes, remat: tiny)
    for remat in (False, False, True):
        assert compilation.main(dataclasses.replace(arguments, remat=remat)) == 0
    plain, again = map(json.loads, arguments.out.read_text().splitlines())
    assert (plain["encoder"], plain["remat"], again["remat"]) == ("plain", False, True)
    for key in ("inference", "train_step"):
        assert len(plain[key]) == 2 and min(plain[key]) > 0
    assert plain["train_bytes"] > 4 * 32 * 32 and plain["machine"]["cores"] >= 1
    assert compilation.main(dataclasses.replace(arguments, report=True)) == 0
    text = arguments.docs.read_text()
    assert "old" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| unet, plain | "))
    rows = [measured | {"train_bytes": mebibytes * 2**20} for measured, mebibytes in ((again, 50), (plain, 100))]
    assert "| 100 | 50 | jax " in compilation.table(rows) and row.count("|") == 8
    old = rows[0] | {"machine": rows[0]["machine"] | {"versions": {"jax": "0.1"}}}
    assert "| 100 | 50 (jax 0.1) | jax " in compilation.table([old, rows[1]])


def test_names_that_are_not_there_stop_it_before_any_work(arguments):
    with pytest.raises(ValueError, match="unknown model 'unett'"):
        compilation.main(dataclasses.replace(arguments, models=("unet:resnet18", "unett")))
    with pytest.raises(ValueError, match="resnet81"):
        compilation.main(dataclasses.replace(arguments, models=("unet:resnet81",)))
    assert not arguments.out.exists()


def test_a_model_that_cannot_be_made_so_does_not_stop_the_others(arguments, monkeypatch, capsys):
    measured = []

    def measure(name, encoder, remat):
        dz.create_model(name, encoder, remat=remat)
        measured.append(name)
        return {"eval_shape": 1.0, "inference": [1.0, 1.0], "train_step": [1.0, 1.0], "train_bytes": 1}

    monkeypatch.setattr(compilation, "measure", measure)
    assert compilation.main(dataclasses.replace(arguments, models=("segnet", "unet"), remat=True)) == 0
    assert measured == ["unet"] and "segnet, vgg16_bn: neither" in capsys.readouterr().out
