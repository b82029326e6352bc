"""What both sides of benchmarks.detector_accuracy read, and that it repeats no finished run."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import detector_accuracy as benchmark
from densezoo.data import InstanceFolder, Resize
from densezoo.tasks import Detection
from densezoo.train import Recipe


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "instances"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(3):
            instances = np.zeros((50, 70), np.uint8)
            instances[10:40, 5 + number : 25] = 1
            instances[20:45, 40:60] = 2
            picture = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / part / "images" / f"{number}.png")
            Image.fromarray(instances).save(tmp_path / part / "instances" / f"{number}.png")
    return tmp_path


def test_both_sides_read_the_same_flipped_batches(data):
    train, val = (InstanceFolder(data / part) for part in ("train", "val"))
    recipe, task = Recipe(crop_size=32, batch_size=2, steps=4), Detection(2, masks=True, first_label=1)
    setting = benchmark.Setting(task, "resnet18", recipe, train, val, Resize(shortest=40))
    first, second = (list(setting.batches()) for _ in range(2))
    assert len(first) == len(second) == 4
    for a, b in zip(first, second, strict=True):
        assert set(a) == {"image", "boxes", "labels", "instances", "size"}
        assert all(np.array_equal(a[name], b[name]) for name in a)
    values = np.concatenate([batch["image"] for batch in first])
    assert values.min() < -1 and values.max() > 1  # normalised


def test_a_finished_run_is_not_repeated(data, tmp_path, monkeypatch, capsys):
    runs = []

    def train(setting):
        runs.append(setting.recipe.seed)
        return dict.fromkeys(("box_ap50", "box_ap", "mask_ap50", "mask_ap"), setting.recipe.seed / 10), [1.0]

    monkeypatch.setattr(benchmark, "train_here", train)
    given = {"data": data, "frameworks": ("densezoo",), "out": tmp_path / "runs.jsonl"}
    for seeds, steps in (((1,), 3), ((1, 2), 3), ((1,), 4)):
        benchmark.main(benchmark.Arguments(**given, seeds=seeds, steps=steps))
    assert runs == [1, 2, 1]
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["recipe"]["steps"] for line in lines] == [3, 3, 4]
    assert "| 0.150 (0.100, 0.200) |" in capsys.readouterr().out


def test_the_step_follows_the_recipe(data, monkeypatch):
    given = {}

    def make_train_step(loss, **options):
        given.update(options)
        return lambda state, batch: (state, {"loss": 2.0})

    monkeypatch.setattr(benchmark, "make_train_step", make_train_step)
    monkeypatch.setattr(benchmark, "create_state", lambda *_, **options: given.update(options))
    monkeypatch.setattr(benchmark.Setting, "scores", lambda *_: {})
    source, task = InstanceFolder(data / "train"), Detection(2, masks=True, first_label=1)
    recipe = Recipe(crop_size=32, batch_size=2, steps=2, accumulate=2, ema_decay=0.9)
    setting = benchmark.Setting(task, "resnet18", recipe, source, source, Resize(shortest=40))
    assert benchmark.train_here(setting) == ({}, [2.0, 2.0])
    assert given == {"accumulate": 2, "ema_decay": 0.9}
    with pytest.raises(ValueError, match="--accumulate and --ema-decay"):
        benchmark.main(benchmark.Arguments(data=data, out=data / "runs.jsonl", ema_decay=0.9))


def test_losses_are_summarised_by_tenths():
    assert benchmark.tenths(list(map(float, range(20)))) == [0.5 + 2 * part for part in range(10)]
    assert benchmark.tenths([1.0, 3.0]) == [1.0, 3.0]
