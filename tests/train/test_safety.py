"""Interruptions at any moment, damaged files, concurrent runs: no data is lost, and messages are precise."""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from densezoo.train import fit, read_facts, restore_state
from densezoo.train.checkpoint import CheckpointWriter, newest_checkpoint


def steps_of(records):
    return [record["step"] for record in records]


def test_a_resumed_log_averages_the_same_steps(new_state, quick, batch_of, tmp_path):
    def train_step(state, batch):
        state, metrics = quick(state, batch)
        return state, metrics | {"odd": jnp.where(state.step == 4, jnp.inf, 1.0)}

    options = {"log_every": 4, "checkpoint_every": 3, "progress": False}
    _, expected = fit(new_state(), train_step, [batch_of()], steps=8, **options)
    for stop in range(1, 8):
        directory = tmp_path / str(stop)

        def batches(done, stop=stop):
            for step in itertools.count(done + 1):
                if step == stop and done == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch_of()

        with pytest.raises(KeyboardInterrupt, match=f"after step {stop}"):
            fit(new_state(), train_step, batches, steps=8, directory=directory, **options)
        assert read_facts(directory) == {"step": stop}
        _, history = fit(new_state(), train_step, batches, steps=8, directory=directory, resume=True, **options)
        for name in ("step", "loss", "odd"):
            assert [record[name] for record in history] == [record[name] for record in expected], stop


def test_a_resumed_run_goes_on_from_a_whole_checkpoint(new_state, quick, batch_of, tmp_path, caplog):
    options = {"directory": tmp_path, "checkpoint_every": 2, "log_every": 1, "progress": False}
    fit(new_state(), quick, [batch_of()], steps=4, **options)
    newest = newest_checkpoint(tmp_path, "last")
    (newest / "manifest.ocdbt").write_bytes(b"")
    state, history = fit(new_state(), quick, [batch_of()], steps=6, resume=True, **options)
    assert int(state.step) == 6 and [record["loss"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert f"{newest} cannot be read" in caplog.text and "0001-step-2" in caplog.text
    names = sorted(path.name for path in (tmp_path / "last").iterdir())
    assert names == ["0002-step-4", "0002-step-4.damaged", "0003-step-6"]


def test_a_best_state_that_was_not_written_is_written_on_resume(new_state, quick, batch_of, tmp_path, monkeypatch):
    """If a run stops anywhere between an evaluation and its end, the resumed run equals an uninterrupted one."""
    scores = {2: 0.5, 4: 0.9, 6: 0.7}
    exported = []
    options = {
        "evaluate": lambda state: {"iou": scores[int(state.step)]},
        "evaluate_every": 2,
        "best": "iou",
        "on_best": lambda state: exported.append(int(state.step)),
        "progress": False,
    }

    class Killed(BaseException):
        pass

    def stop_at_best(save):
        def stopping(self, state, facts):
            if "score" in facts and facts["step"] == 4:
                raise Killed
            save(self, state, facts)

        return stopping

    def stop_at_export(state):
        exported.append(int(state.step))
        if int(state.step) == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointWriter, "save", stop_at_best(CheckpointWriter.save))
        fit(new_state(), quick, [batch_of()], steps=6, directory=tmp_path / "a", **options)
    assert read_facts(tmp_path / "a", "best")["step"] == 2
    with pytest.raises(Killed):
        fit(
            new_state(), quick, [batch_of()], steps=6, directory=tmp_path / "b", **options | {"on_best": stop_at_export}
        )
    for run in ("a", "b"):
        exported.clear()
        fit(new_state(), quick, [batch_of()], steps=6, directory=tmp_path / run, resume=True, **options)
        assert read_facts(tmp_path / run, "best") == {"step": 4, "name": "iou", "score": 0.9}
        assert int(restore_state(tmp_path / run, new_state(), "best").step) == 4
        assert exported == [4]

    # Also from the checkpoint before the last, and where `best` was damaged after it was complete.
    shutil.rmtree(tmp_path / "a" / "best")
    newest = next((tmp_path / "b" / "best").iterdir())
    (newest / "_METADATA").write_text("{")
    for run in ("a", "b"):
        fit(new_state(), quick, [batch_of()], steps=6, directory=tmp_path / run, resume=True, **options)
        assert read_facts(tmp_path / run, "best")["step"] == 4


def test_a_best_state_that_is_gone_is_told(new_state, quick, batch_of, tmp_path, caplog):
    scores = {2: 0.9, 4: 0.5, 6: 0.6, 8: 0.7}
    options = {"evaluate": lambda state: {"iou": scores[int(state.step)]}, "evaluate_every": 2, "best": "iou"}
    options |= {"directory": tmp_path, "progress": False}
    fit(new_state(), quick, [batch_of()], steps=6, **options)
    shutil.rmtree(tmp_path / "best")
    fit(new_state(), quick, [batch_of()], steps=8, resume=True, **options)
    assert "of step 2 with iou 0.9, is lost" in caplog.text
    assert read_facts(tmp_path, "best")["step"] == 8  # The best of those that exist.


def test_an_evaluation_that_was_cut_off_is_done_on_resume(new_state, quick, batch_of, tmp_path):
    def failing(state):
        if int(state.step) == 2:
            raise RuntimeError("out of memory")
        return {"iou": 0.5}

    options = {"evaluate_every": 2, "best": "iou", "directory": tmp_path, "progress": False}
    with pytest.raises(RuntimeError):
        fit(new_state(), quick, [batch_of()], steps=4, evaluate=failing, **options)
    _, history = fit(
        new_state(), quick, [batch_of()], steps=4, evaluate=lambda state: {"iou": 0.5}, resume=True, **options
    )
    assert steps_of(record for record in history if "scores" in record) == [2, 4]


TRAINS = """
import sys, time
from pathlib import Path
from densezoo.train.process import only_run
with only_run(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_directory(new_state, quick, batch_of, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=f"in use by another run.*process {other.pid} on"):
                fit(new_state(), quick, [batch_of()], steps=2, directory=tmp_path, resume=resume, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.communicate()
    fit(new_state(), quick, [batch_of()], steps=2, directory=tmp_path, progress=False)  # Killed, and released.

    def again(state):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            fit(new_state(), quick, [batch_of()], steps=3, directory=tmp_path, resume=True, progress=False)
        return {}

    fit(new_state(), quick, [batch_of()], steps=3, directory=tmp_path, resume=True, evaluate=again, progress=False)


def test_a_file_system_without_locks(new_state, quick, batch_of, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    state, _ = fit(new_state(), quick, [batch_of()], steps=1, directory=tmp_path, progress=False)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"step": 1}\n\xff\xfe', "UTF-8"),
        (b'{"step": 1}\nnothing\n{"step": 2}\n', "line 2 is not a record"),
        (b'{"loss": 1}\n', "line 1 is not a record"),
    ],
)
def test_a_damaged_log_is_named_and_kept(new_state, quick, batch_of, tmp_path, content, message):
    fit(new_state(), quick, [batch_of()], steps=2, directory=tmp_path, progress=False)
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"log.jsonl.*{message}"):
        fit(new_state(), quick, [batch_of()], steps=3, directory=tmp_path, resume=True, progress=False)
    assert (tmp_path / "log.jsonl").read_bytes() == content
