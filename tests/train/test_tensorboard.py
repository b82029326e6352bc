"""Records for TensorBoard, with a stand-in for its writer."""

import sys
import types

import pytest

from densezoo.train import fit, to_tensorboard


def test_every_number_of_a_record_is_written(new_state, quick, batch_of, tmp_path, monkeypatch):
    written, made = {}, []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            made.append((directory, purge_step))

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    write = to_tensorboard(tmp_path)
    assert not made  # a resumed run's first step is only known from the first record
    scores = {"mean_iou": 0.5, "iou_none": float("nan")}
    options = {"steps": 4, "log_every": 2, "evaluate": lambda state: scores, "on_record": write, "progress": False}
    fit(new_state(), quick, [batch_of(0)], **options)
    assert made == [(str(tmp_path), 2)]
    assert written["loss", 2] == 1.5 and written["loss", 4] == 3.5
    assert written["scores/mean_iou", 4] == 0.5
    assert not {name for name, _ in written} & {"step", "scores", "scores/iou_none"}


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "densezoo\[tensorboard\]"'):
        to_tensorboard(tmp_path)
