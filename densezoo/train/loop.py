"""The training loop: steps, evaluation, checkpoints, a log and a progress line."""

import contextlib
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densezoo.train.checkpoint import UNLOGGED, CheckpointWriter, checkpoint_of_step, newest_checkpoint
from densezoo.train.log import Log, Meter, Record, display
from densezoo.train.process import only_run, stop_signals
from densezoo.train.restore import DamagedCheckpoint, read_facts, restore, restore_newest
from densezoo.train.state import TrainState
from densezoo.train.step import Batch

_log = logging.getLogger(__name__)


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]],
    batches: Iterable[Batch] | Callable[[int], Iterator[Batch]],
    *,
    steps: int,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    best: str | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 500,
    log_every: int = 10,
    on_best: Callable[[TrainState], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    progress: bool = True,
) -> tuple[TrainState, list[Record]]:
    """Trains until `state.step == steps`.

    Steps are dispatched without waiting: while the device computes one, the host reads the metrics of the one before
    and fetches the next batch. Checkpoints are written in the background. On Ctrl-C or SIGTERM the step at hand is
    finished and saved (a second Ctrl-C stops at once).

    Args:
        state: where to start; the train step donates it, so use the returned one afterwards.
        train_step: `(state, batch) -> (state, metrics)`, from `make_train_step`.
        batches: an iterable of batches, gone through again when it ends (if it can be), such as a PyTorch `DataLoader`,
            whose tensors become NumPy arrays; or, for a resumed run that continues exactly, a function from the number
            of steps done to an iterator over the batches from there on.
        steps: number of steps of the whole training, those before a resume included.
        evaluate: `evaluate(state)` gives a dict of floats, the scores. It must not donate the state.
        evaluate_every: steps between evaluations; there is always one after the last step.
        best: name of the score to maximise: the state that reaches the highest is kept as the `best` checkpoint.
        directory: where checkpoints (`last`, `best`) and the log (`log.jsonl`) go; None writes nothing.
        resume: continue the run in `directory` from its last checkpoint; start at the beginning if it has none.
        checkpoint_every: steps between checkpoints; there is always one before an evaluation and after the last step.
        log_every: steps between log records.
        on_best: called with the state whenever it reaches the highest score so far, for instance to export it. It must
            not donate the state.
        on_record: called with each new record of the history when it is written, for instance to send it to TensorBoard
            or Weights & Biases; on the first process alone.
        progress: show a progress line on stderr (plain lines where stderr is not a terminal).

    Returns:
        The trained state, and the history: the records that are also the lines of `log.jsonl`. Every `log_every` steps
        a record `{"step", "loss", "grad_norm", ...}` has the means of the metrics since the one before (None for a
        mean that is not finite), `images_per_second`, and for the run so far `input_wait`, the share of the time in
        which the host waited for a batch while the device had nothing left to do, and `recompilations`, the number of
        times the step was compiled again (both without the first step; evaluation does not count as time). An
        evaluation adds a record `{"step", "scores"}`.

    Raises:
        FileExistsError: if `directory` holds a run and `resume` is False.
        BlockingIOError: if another process trains in `directory`.
        FloatingPointError: if loss or gradient norm is not finite. The last checkpoint is from before that.
        KeyboardInterrupt: after Ctrl-C; SystemExit after SIGTERM. The last step is saved.
        OSError: if a checkpoint cannot be written.
        ValueError: if the batches end too early, or the checkpoint is of another model.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from densezoo.train import create_state, make_train_step
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, images, *, train=False):
        ...         return nn.Conv(1, (3, 3))(images)
        >>> batch = {"image": jnp.ones((2, 8, 8, 3)), "target": jnp.ones((2, 8, 8, 1))}
        >>> state = create_state(Net(), optax.sgd(0.01), jax.random.key(0), batch["image"])
        >>> step = make_train_step(lambda apply, batch, key: jnp.mean((apply(batch["image"]) - batch["target"]) ** 2))
        >>> state, history = fit(state, step, [batch], steps=4, log_every=2, progress=False)
        >>> [record["step"] for record in history], history[1]["loss"] < history[0]["loss"]
        ([2, 4], True)
    """
    for name, every in (("evaluate", evaluate_every), ("checkpoint", checkpoint_every), ("log", log_every)):
        if every is not None and every < 1:
            raise ValueError(f"{name}_every must be a number of steps, at least 1; got {every}")
    if evaluate is None and (best is not None or evaluate_every is not None):
        raise ValueError("best and evaluate_every need evaluate=, a function from the state to a dict of scores")
    if directory is None and resume:
        raise ValueError("resume=True needs directory=, where the run is")
    directory = None if directory is None else Path(directory).resolve()
    with contextlib.ExitStack() as stack:
        facts: Mapping[str, Any] = {}
        best_score = -math.inf
        if directory is not None:
            stack.enter_context(only_run(directory))
            if not resume and _holds_run(directory):
                raise FileExistsError(
                    f"{directory} holds a run: continue it with resume=True, or choose another directory"
                )
            if newest_checkpoint(directory, "last"):
                state, facts = restore_newest(directory, state)
            best_score = _best_on_disk(directory, best)

        done = int(state.step)
        if done > steps:
            raise ValueError(
                f"steps={steps} is the length of the whole training, of which {done} steps are done already"
            )
        saved = done if facts else 0
        log = Log(directory, done)
        meter = Meter(facts.get(UNLOGGED, {}))
        stream = _stream(batches, done)
        unread: tuple[int, Any, int] | None = None  # Step, metrics still on their way from the device, number of images
        exhausted = False
        writers: dict[str, CheckpointWriter] = {}
        if directory is not None:
            writers = {"last": CheckpointWriter(directory, "last", keep=2), "best": CheckpointWriter(directory, "best")}
            for writer in writers.values():
                stack.callback(writer.close)
        signals = stack.enter_context(stop_signals())
        show = stack.enter_context(display(progress and jax.process_index() == 0, done, steps))

        def write(step: int, record: Record) -> None:
            record = log.write({"step": step} | record)
            show(step, record)
            if on_record is not None and jax.process_index() == 0:
                on_record(record)

        def read() -> None:
            """Waits for the metrics that are on their way; checks and logs them."""
            nonlocal unread
            if unread is None:
                return
            (step, metrics, images), unread = unread, None
            values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm") if name in values):
                for writer in writers.values():
                    writer.wait()
                raise FloatingPointError(_not_finite(step, values, directory))
            meter.completed(values, images)
            if step % log_every == 0 or step == steps:
                write(step, meter.record())

        def save_last() -> None:
            nonlocal saved
            read()  # A state that is not finite is never saved.
            if done > saved and writers:
                # A best state that is still being written is also in `last`, until it is whole.
                writers["best"].wait()
                unlogged = meter.unlogged
                writers["last"].save(state, {"step": done} | ({UNLOGGED: unlogged} if unlogged else {}))
                saved = done

        def keep_best(state: TrainState, score: float) -> None:
            nonlocal best_score
            best_score = score
            if on_best is not None:  # Before it is saved: a run that is killed meanwhile does both again.
                with meter.paused():
                    on_best(state)
            if writers:
                writers["best"].save(state, {"step": int(state.step), "name": best, "score": score})

        def keep_lost_best() -> None:
            """Saves the best state so far if the run was stopped before it could."""
            scored = [r for r in log.history if "scores" in r and r["scores"].get(best) is not None]
            first_best = max(scored, key=lambda record: record["scores"][best], default=None)
            if first_best is None or not first_best["scores"][best] > best_score or directory is None:
                return
            step, score = first_best["step"], first_best["scores"][best]
            path = checkpoint_of_step(directory, "last", step)
            try:
                kept = state if step == done else restore(path, state)[0] if path else None
            except DamagedCheckpoint:
                kept = None
            if kept is None:
                _log.warning("the best state of %s, of step %d with %s %.4g, is lost", directory, step, best, score)
            else:
                keep_best(kept, score)

        def score() -> None:
            save_last()  # Whatever goes wrong in an evaluation, the training up to it is kept.
            assert evaluate is not None
            with meter.paused():
                scores = {name: float(value) for name, value in evaluate(state).items()}
            write(done, {"scores": scores})
            if best is not None and _score(scores, best) > best_score:
                keep_best(state, scores[best])

        def due(step: int) -> bool:
            """Whether there is an evaluation after this step."""
            return evaluate is not None and (step == steps or bool(evaluate_every and step % evaluate_every == 0))

        try:
            if best is not None and facts:
                keep_lost_best()
            if due(done) and (facts or done == steps) and not _scored(log.history, done):
                score()  # Stopped between a step and its evaluation.
            while done < steps and not signals:
                try:
                    with meter.waiting(unread):
                        batch = next(stream, None)
                except Exception:  # A file that cannot be read, say.
                    save_last()
                    raise
                if batch is None:
                    exhausted = True
                    break
                with meter.stepping():
                    state, metrics = train_step(state, batch)
                done += 1
                meter.dispatched(metrics)
                read()  # The step before: the device is busy with this one meanwhile.
                unread = done, metrics, len(jax.tree.leaves(batch)[0])
                if done % checkpoint_every == 0:
                    save_last()
                if due(done):
                    score()
        except KeyboardInterrupt:
            if signals:  # The second one.
                raise
            signals.append(signal.SIGINT)
        save_last()
    if signals:
        if signals[0] == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(f"stopped after step {done}")
    if exhausted:
        raise ValueError(
            f"the batches ended after step {done} of {steps}: give an iterable that can be gone through again (a list, "
            "a loader; not a generator), or a function whose iterator does not end"
        )
    return state, log.history


def _scored(history: list[Record], step: int) -> bool:
    return any(record["step"] == step and "scores" in record for record in history)


def _holds_run(directory: Path) -> bool:
    log = directory / "log.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any(newest_checkpoint(directory, w) for w in ("last", "best"))


def _best_on_disk(directory: Path, best: str | None) -> float:
    """The score of the `best` checkpoint, which is to be one of the same name; -inf if there is none that is whole."""
    if best is None or newest_checkpoint(directory, "best") is None:
        return -math.inf
    try:
        facts = read_facts(directory, "best")
    except DamagedCheckpoint as error:
        _log.warning("%s", error)
        return -math.inf
    if facts["name"] != best:
        raise ValueError(f"{directory} keeps the state with the best {facts['name']!r}; it cannot go on with {best!r}")
    return facts["score"]


def _stream(batches: Iterable[Batch] | Callable[[int], Iterator[Batch]], done: int) -> Iterator[Batch]:
    if not isinstance(batches, Iterable):
        yield from map(_as_arrays, batches(done))
        return
    while True:
        passes = iter(batches)
        empty = True
        for batch in passes:
            empty = False
            yield _as_arrays(batch)
        if empty or passes is batches:  # An iterator cannot be gone through again.
            return


def _as_arrays(batch: Batch) -> Batch:
    """The batch, with NumPy arrays in place of what JAX does not take, such as the tensors of a PyTorch DataLoader."""

    def convert(path: Any, x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic | jax.Array) or not hasattr(x, "__array__"):
            return x
        try:
            return np.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one with a gradient
            kind = f"{type(x).__module__}.{type(x).__name__}"
            raise TypeError(
                f"batch{jax.tree_util.keystr(path)} is a {kind} that NumPy cannot read: {error} Give NumPy arrays, for"
                " instance by the loader's collate_fn"
            ) from error

    return jax.tree_util.tree_map_with_path(convert, batch)


def _not_finite(step: int, values: Mapping[str, float], directory: Path | None) -> str:
    what = ", ".join(f"{name} {values[name]}" for name in ("loss", "grad_norm") if name in values)
    kept = newest_checkpoint(directory, "last") if directory is not None else None
    return (
        f"training stopped at step {step}: {what}. "
        + (f"The last good state is in {kept}. " if kept else "")
        + "Often the learning rate is too high (try a tenth, or clip_norm=1.0 in make_optimizer); else look for labels "
        "outside the classes, batches in which every label is ignored, or images that are not finite."
    )


def _score(scores: Mapping[str, float], name: str) -> float:
    if name not in scores:
        raise ValueError(f"best={name!r} is not among the scores {sorted(scores)}")
    return scores[name]  # Nothing is greater than the best so far by being nan.
