import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo.train import fit, load_variables, read_facts, restore_state
from densezoo.train.checkpoint import newest_checkpoint


@pytest.fixture
def stream(batch_of):
    """Endless batches from a step on."""

    def batches(done):
        while True:
            yield batch_of(done)
            done += 1

    return batches


def lines(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def steps_of(history):
    return [record["step"] for record in history]


def test_training_is_the_steps_one_after_the_other(new_state, train_step, stream, leaves, tmp_path):
    expected, batches = new_state(), stream(0)
    losses = []
    for _ in range(5):
        expected, metrics = train_step(expected, next(batches))
        losses.append(float(metrics["loss"]))
    state, history = fit(
        new_state(), train_step, stream, steps=5, log_every=2, checkpoint_every=2, directory=tmp_path, progress=False
    )
    for name, x in leaves(expected).items():
        np.testing.assert_array_equal(leaves(state)[name], x, err_msg=name)
    assert steps_of(history) == [2, 4, 5]
    means = [np.mean(losses[:2]), np.mean(losses[2:4]), losses[4]]
    np.testing.assert_allclose([record["loss"] for record in history], means, rtol=1e-6)
    assert {"grad_norm", "images_per_second", "input_wait", "recompilations"} < set(history[0])
    assert history == lines(tmp_path)
    assert read_facts(tmp_path) == {"step": 5}
    np.testing.assert_array_equal(
        load_variables(tmp_path, "last")["params"]["head"]["kernel"], state.ema_variables["params"]["head"]["kernel"]
    )


def test_a_list_is_gone_through_again_and_an_iterator_is_not(new_state, quick, batch_of, tmp_path):
    state, _ = fit(new_state(), quick, [batch_of(0), batch_of(1)], steps=5, progress=False)
    assert int(state.step) == 5
    with pytest.raises(ValueError, match="ended after step 2 of 5: pass an iterable that can be iterated repeatedly"):
        fit(new_state(), quick, iter([batch_of(0), batch_of(1)]), steps=5, directory=tmp_path, progress=False)
    assert read_facts(tmp_path) == {"step": 2}  # What was done is kept.
    with pytest.raises(ValueError, match="ended after step 0"):
        fit(new_state(), quick, [], steps=5, progress=False)


class Tensor:
    """An array like a DataLoader's: neither JAX nor NumPy, but convertible by NumPy unless it is on a GPU."""

    def __init__(self, values, device="cpu"):
        self.values, self.device = values, device

    def __array__(self, dtype=None, copy=None):
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        return self.values


def test_tensors_become_arrays(new_state, train_step, batch_of, leaves):
    expected, _ = fit(new_state(), train_step, [batch_of(0)], steps=2, progress=False)
    batch = {name: Tensor(values) for name, values in batch_of(0).items()}
    for batches in ([batch], lambda done: iter([batch, batch])):
        state, _ = fit(new_state(), train_step, batches, steps=2, progress=False)
        np.testing.assert_array_equal(leaves(state.params)["['head']['kernel']"], expected.params["head"]["kernel"])
    with pytest.raises(TypeError, match=r"batch\['image'\] is a .*Tensor that NumPy cannot read.*collate_fn"):
        fit(new_state(), train_step, [{"image": Tensor(0, "cuda")}], steps=1, progress=False)


def test_metrics_are_read_one_step_late(new_state, batch_of):
    """The loop only reads step n's metrics after dispatching step n + 1."""
    events = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def __array__(self, *args, **kwargs):
            events.append(f"read {self.step}")
            return np.float32(self.step)

        def __float__(self):
            return float(np.asarray(self))

    def train_step(state, batch):
        step = int(state.step) + 1
        events.append(f"dispatch {step}")
        return state.replace(step=jnp.int32(step)), {"loss": Metric(step)}

    fit(new_state(), train_step, [batch_of()], steps=3, log_every=1, progress=False)
    order = list(dict.fromkeys(events))
    assert order == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3"]


def test_evaluation_and_the_best_checkpoint(new_state, quick, batch_of, tmp_path):
    scores = {2: 0.5, 4: 0.9, 6: float("nan"), 7: 0.6}

    def evaluate(state):
        return {"iou": np.float32(scores[int(state.step)]), "loss": 1}

    options = {"evaluate": evaluate, "evaluate_every": 2, "best": "iou", "directory": tmp_path, "progress": False}
    _, history = fit(new_state(), quick, [batch_of()], steps=7, checkpoint_every=3, **options)
    evaluations = [record for record in history if "scores" in record]
    assert steps_of(evaluations) == [2, 4, 6, 7]  # Also after the last step.
    np.testing.assert_allclose(evaluations[1]["scores"]["iou"], 0.9, rtol=1e-6)
    assert evaluations[2]["scores"]["iou"] is None  # JSON has no nan, and nan is not the best.
    best = read_facts(tmp_path, "best")
    assert (best["step"], best["name"]) == (4, "iou")
    assert int(restore_state(tmp_path, new_state(), "best").step) == 4
    assert read_facts(tmp_path) == {"step": 7}

    scores |= {8: 0.8, 10: 0.95}  # A resumed run knows the best so far.
    fit(new_state(), quick, [batch_of()], steps=8, resume=True, **options)
    assert read_facts(tmp_path, "best")["step"] == 4
    fit(new_state(), quick, [batch_of()], steps=10, resume=True, **options)
    assert read_facts(tmp_path, "best")["step"] == 10
    with pytest.raises(ValueError, match=r"best 'iou'.*'dice'"):
        fit(new_state(), quick, [batch_of()], steps=12, resume=True, **(options | {"best": "dice"}))


def test_a_failing_evaluation_or_batch_loses_no_steps(new_state, quick, batch_of, tmp_path):
    def failing(state):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(new_state(), quick, [batch_of(0)], steps=3, evaluate=failing, directory=tmp_path / "a", progress=False)
    assert int(restore_state(tmp_path / "a", new_state()).step) == 3

    def batches(done):
        yield batch_of(0)
        yield batch_of(1)
        raise OSError("a file is gone")

    with pytest.raises(OSError, match="a file is gone"):
        fit(new_state(), quick, batches, steps=3, directory=tmp_path / "b", progress=False)
    assert int(restore_state(tmp_path / "b", new_state()).step) == 2


def test_a_run_that_is_complete_is_evaluated_if_it_was_not(new_state, quick, batch_of, tmp_path):
    fit(new_state(), quick, [batch_of(0)], steps=3, directory=tmp_path, progress=False)
    options = {"directory": tmp_path, "resume": True, "progress": False, "evaluate": lambda state: {"score": 0.5}}
    _, history = fit(new_state(), quick, [batch_of(0)], steps=3, **options)
    assert [record["scores"] for record in history if "scores" in record] == [{"score": 0.5}]
    _, history = fit(new_state(), quick, [batch_of(0)], steps=3, **options)
    assert len([record for record in history if "scores" in record]) == 1
    with pytest.raises(ValueError, match="3 steps are done already"):
        fit(new_state(), quick, [batch_of(0)], steps=2, **options)


def test_an_unknown_score_is_an_error(new_state, quick, batch_of):
    with pytest.raises(ValueError, match=r"best='dice' is not among the scores \['iou'\]"):
        fit(new_state(), quick, [batch_of()], steps=1, evaluate=lambda _: {"iou": 1.0}, best="dice", progress=False)


def test_a_directory_with_a_run_is_not_overwritten(new_state, quick, batch_of, tmp_path):
    with pytest.raises(ZeroDivisionError):  # A run that fails at once leaves nothing that is in the way.
        fit(new_state(), lambda state, batch: 1 / 0, [batch_of()], steps=2, directory=tmp_path, progress=False)
    fit(new_state(), quick, [batch_of()], steps=2, directory=tmp_path, progress=False)
    before = lines(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        fit(new_state(), quick, [batch_of()], steps=4, directory=tmp_path, progress=False)
    assert lines(tmp_path) == before and read_facts(tmp_path) == {"step": 2}


def test_resuming(new_state, quick, batch_of, tmp_path):
    started = []

    def batches(done):
        started.append(done)
        while True:
            yield batch_of()

    options = {"directory": tmp_path / "run", "resume": True, "log_every": 1, "progress": False}
    fit(new_state(), quick, batches, steps=3, **options)  # Nothing there yet: from the beginning.
    with (tmp_path / "run" / "log.jsonl").open("a") as log:  # Killed after these, before the next checkpoint.
        log.write('{"step": 4, "loss": 77.0}\n{"step": 5, "lo')
    state, history = fit(new_state(seed=4), quick, batches, steps=5, **options)
    assert started == [0, 3] and int(state.step) == 5
    assert steps_of(history) == [1, 2, 3, 4, 5] and history == lines(tmp_path / "run")
    assert history[3]["loss"] == 4.0
    state, history = fit(new_state(), quick, batches, steps=5, **options)  # Nothing left to do.
    assert int(state.step) == 5 and steps_of(history) == [1, 2, 3, 4, 5]


def test_every_record_is_given_on(new_state, quick, batch_of, tmp_path):
    records = []
    options = {"log_every": 1, "directory": tmp_path, "on_record": records.append, "progress": False}
    options |= {"evaluate": lambda state: {"iou": 0.5}}
    _, history = fit(new_state(), quick, [batch_of()], steps=2, **options)
    assert records == history and [("scores" in record) for record in records] == [False, False, True]
    records.clear()
    _, history = fit(new_state(), quick, [batch_of()], steps=3, resume=True, **options)
    assert records == history[3:] and len(records) == 2  # Only the new ones.


def test_a_loss_that_is_not_finite_stops_the_run(new_state, quick, batch_of, tmp_path):
    def train_step(state, batch):
        state, metrics = quick(state, batch)
        return state, metrics | {"grad_norm": jnp.where(state.step == 5, jnp.inf, 1.0)}

    with pytest.raises(FloatingPointError, match=r"(?s)step 5: loss 5\.0, grad_norm inf.*0002-step-4.*learning rate"):
        fit(new_state(), train_step, [batch_of()], steps=9, checkpoint_every=2, directory=tmp_path, progress=False)
    assert read_facts(tmp_path) == {"step": 4}


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_saves_and_stops(new_state, quick, batch_of, tmp_path, number, error):
    before = signal.getsignal(number)

    def batches(done):
        yield batch_of()
        yield batch_of()
        os.kill(os.getpid(), number)
        while True:
            yield batch_of()

    with pytest.raises(error) as stopped:
        fit(new_state(), quick, batches, steps=100, directory=tmp_path, progress=False)
    assert read_facts(tmp_path) == {"step": 3}  # The step at hand is finished.
    assert signal.getsignal(number) is before
    if number == signal.SIGTERM:
        assert stopped.value.code == 143


def test_a_second_ctrl_c_stops_at_once(new_state, quick, batch_of, tmp_path):
    def batches(done):
        yield batch_of()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")

    with pytest.raises(KeyboardInterrupt):
        fit(new_state(), quick, batches, steps=100, directory=tmp_path, progress=False)
    assert newest_checkpoint(tmp_path, "last") is None


def test_fit_runs_in_a_thread(new_state, quick, batch_of):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(new_state(), quick, [batch_of()], steps=2, progress=False))
    )
    thread.start()
    thread.join()
    assert int(results[0][0].step) == 2


@pytest.fixture
def spend(monkeypatch):
    """Advances a clock that otherwise stands still."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    return spend


def test_waiting_for_input_is_measured(new_state, quick, batch_of, spend):
    def step(state, batch):  # Its metrics are ready before the next batch.
        spend(0.01)
        return jax.block_until_ready(quick(state, batch))

    def slow(done):
        while True:
            spend(0.03)
            yield batch_of()

    _, history = fit(new_state(), step, slow, steps=8, progress=False)
    assert history[-1]["input_wait"] == pytest.approx(0.75)
    assert history[-1]["images_per_second"] == pytest.approx(4 / 0.04)
    _, history = fit(new_state(), step, [batch_of()], steps=8, progress=False)  # Batches are available immediately.
    assert history[-1]["input_wait"] == 0
    assert history[-1]["images_per_second"] == pytest.approx(4 / 0.01)


def test_evaluation_is_not_training_time(new_state, quick, batch_of, spend):
    def step(state, batch):
        spend(0.01)
        return quick(state, batch)

    options = {"evaluate": lambda state: spend(5.0) or {}, "evaluate_every": 2, "progress": False}
    _, history = fit(new_state(), step, [batch_of()], steps=6, log_every=6, **options)
    assert history[0]["step"] == 6 or "scores" in history[0]
    record = next(record for record in history if "loss" in record)
    assert record["images_per_second"] == pytest.approx(4 / 0.01)


def test_recompilations_are_counted(new_state, batch_of):
    @jax.jit
    def train_step(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch["image"].mean()}

    same = [batch_of(size=4)] * 3
    _, history = fit(new_state(), train_step, same, steps=3, progress=False)
    assert history[-1]["recompilations"] == 0
    _, history = fit(new_state(), train_step, [*same, batch_of(size=3)], steps=4, progress=False)
    assert history[-1]["recompilations"] == 1


def test_progress_goes_to_stderr_or_nowhere(new_state, quick, batch_of, capsys):
    options = {"steps": 2, "log_every": 1, "evaluate": lambda state: {"iou": 0.25}}
    fit(new_state(), quick, [batch_of()], progress=False, **options)
    assert capsys.readouterr() == ("", "")
    fit(new_state(), quick, [batch_of()], progress=True, **options)
    out, err = capsys.readouterr()
    assert out == "" and "step 2/2  loss 2" in err and "iou 0.25" in err


def test_progress_on_a_terminal_is_one_line(new_state, quick, batch_of, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # Makes rich take any stream for a terminal.
    fit(new_state(), quick, [batch_of()], steps=2, log_every=1, evaluate=lambda state: {"iou": 0.25})
    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err and "iou 0.25" in err and "step 2/2" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 0}, "log_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"best": "iou"}, "evaluate="),
        ({"evaluate_every": 3}, "evaluate="),
        ({"resume": True}, "directory="),
    ],
)
def test_options_are_checked(new_state, quick, batch_of, options, message):
    with pytest.raises(ValueError, match=message):
        fit(new_state(), quick, [batch_of()], steps=1, progress=False, **options)
