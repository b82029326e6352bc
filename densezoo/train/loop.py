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

from densezoo.messages import option
from densezoo.train.checkpoint import UNLOGGED, CheckpointWriter, checkpoint_of_step, newest_checkpoint
from densezoo.train.log import Log, Meter, Record, display
from densezoo.train.process import failing_alone, only_run, stop_signals, stop_together
from densezoo.train.restore import DamagedCheckpoint, read_facts, restore, restore_newest
from densezoo.train.state import TrainState
from densezoo.train.step import Batch
from densezoo.train.stream import stream_of

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

    Steps are dispatched asynchronously: while the device computes a step, the host reads the metrics of the previous
    step and fetches the next batch. Checkpoints are written in the background. On Ctrl-C or SIGTERM, the current step
    is completed and saved (a second Ctrl-C stops immediately).

    Args:
        state: the initial state. The train step donates it, so use the returned state afterwards.
        train_step: `(state, batch) -> (state, metrics)`, from `make_train_step`.
        batches: an iterable of batches, such as a PyTorch `DataLoader`, whose tensors are converted to NumPy arrays. It
            is iterated repeatedly if possible. For runs that resume exactly, pass a function from the number of
            completed steps to an iterator over the following batches.
        steps: number of steps of the whole training, including those before a resume.
        evaluate: `evaluate(state)` returns the scores, a dict of floats. It must not donate the state.
        evaluate_every: steps between evaluations. There is always one after the last step.
        best: name of the score to maximise. The state with the highest score is kept as the `best` checkpoint.
        directory: directory for the checkpoints (`last`, `best`) and the log (`log.jsonl`). None writes nothing.
        resume: whether to continue the run in `directory` from its last checkpoint, or start if it has none.
        checkpoint_every: steps between checkpoints. There is always one before an evaluation and after the last step.
        log_every: steps between log records.
        on_best: called with the state whenever it reaches the highest score so far, for instance to export it. It must
            not donate the state.
        on_record: called with each new record of the history when it is written, for instance to send it to TensorBoard
            or Weights & Biases. Only called in the first process.
        progress: whether to show on stderr after which step a resumed run continues, and a progress line (plain lines
            if stderr is not a terminal).

    Returns:
        The trained state and the history, whose records are also the lines of `log.jsonl`. Every `log_every` steps, a
        record `{"step", "loss", "grad_norm", ...}` contains the means of the metrics since the previous record (None
        if a mean is not finite), `images_per_second`, and for the whole run `input_wait`, the fraction of time in which
        the device was idle because the host waited for a batch, and `recompilations`, the number of recompilations of
        the step (both exclude the first step and evaluations). An evaluation adds a record `{"step", "scores"}`.

    Raises:
        FileExistsError: if `directory` holds a run and `resume` is False.
        BlockingIOError: if another process trains in `directory`.
        FloatingPointError: if the loss or the gradient norm is not finite. The last checkpoint is older.
        KeyboardInterrupt: after Ctrl-C. SystemExit is raised after SIGTERM. The last step is saved.
        OSError: if a checkpoint cannot be written.
        ValueError: if the batches end too early, or the checkpoint belongs to another model.

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
            raise ValueError(f"{option(f'{name}_every')} must be a number of steps, at least 1; got {every}")
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
                    f"{directory} holds a run: continue it with {option('resume', True)}, or choose another"
                    f" {option('directory')}"
                )
            if newest_checkpoint(directory, "last"):
                state, facts = restore_newest(directory, state)
            best_score = _best_on_disk(directory, best)

        done = int(state.step)
        if done > steps:
            raise ValueError(
                f"{option('steps', steps)} is the length of the whole training, of which {done} steps are done already"
            )
        saved = done if facts else 0
        log = Log(directory, done)
        meter = Meter(facts.get(UNLOGGED, {}))
        stream = stream_of(batches, done)
        unread: tuple[int, Any, int] | None = None  # Step, metrics that may not be computed yet, number of images
        exhausted = False
        writers: dict[str, CheckpointWriter] = {}
        if directory is not None:
            writers = {"last": CheckpointWriter(directory, "last", keep=2), "best": CheckpointWriter(directory, "best")}
            for writer in writers.values():
                stack.callback(writer.close)
        stack.enter_context(failing_alone())
        signals = stack.enter_context(stop_signals())
        stopping, stop = stop_together(), 0
        show = stack.enter_context(display(progress and jax.process_index() == 0, done, steps))

        def write(step: int, record: Record) -> None:
            record = log.write({"step": step} | record)
            show(step, record)
            if on_record is not None and jax.process_index() == 0:
                on_record(record)

        def read() -> None:
            """Waits for the metrics of the dispatched step, checks and logs them."""
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
                # A best state that is still being written is also kept in `last` until it is complete.
                writers["best"].wait()
                unlogged = meter.unlogged
                writers["last"].save(state, {"step": done} | ({UNLOGGED: unlogged} if unlogged else {}))
                saved = done

        def keep_best(state: TrainState, score: float) -> None:
            nonlocal best_score
            best_score = score
            if on_best is not None:  # Before it is saved, so that a run that is killed meanwhile repeats both.
                with meter.paused():
                    on_best(state)
            if writers:
                writers["best"].save(state, {"step": int(state.step), "name": best, "score": score})

        def keep_lost_best() -> None:
            """Saves the best state so far if the previous run was stopped before it could."""
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
            save_last()  # Keeps the training so far if the evaluation fails.
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
                score()  # The previous run was stopped between a step and its evaluation.
            while done < steps and not (stop := stopping(signals)):
                try:
                    with meter.waiting(unread):
                        batch = next(stream, None)
                except Exception:  # For example, a file that cannot be read.
                    if jax.process_count() == 1:  # Several processes can only save together.
                        save_last()
                    raise
                if batch is None:
                    exhausted = True
                    break
                if state.layout is not None:
                    batch = state.layout.batch(batch)
                with meter.stepping():
                    state, metrics = train_step(state, batch)
                done += 1
                meter.dispatched(metrics)
                read()  # The previous step, while the device computes this one.
                unread = done, metrics, len(jax.tree.leaves(batch)[0])
                if done % checkpoint_every == 0:
                    save_last()
                if due(done):
                    score()
        except KeyboardInterrupt:
            if signals:  # The second signal.
                raise
            stop = signal.SIGINT
        save_last()
    if not stop and signals:  # in the last step
        stop = signals[0]
    if stop:
        if stop == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        goes_on = "" if directory is None else f"; {option('resume', True)} continues from there"
        raise KeyboardInterrupt(f"stopped after step {done}{goes_on}")
    if exhausted:
        raise ValueError(
            f"the batches ended after step {done} of {steps}: pass an iterable that can be iterated repeatedly (a "
            "list, a loader; not a generator), or a function whose iterator does not end"
        )
    return state, log.history


def _scored(history: list[Record], step: int) -> bool:
    return any(record["step"] == step and "scores" in record for record in history)


def _holds_run(directory: Path) -> bool:
    log = directory / "log.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any(newest_checkpoint(directory, w) for w in ("last", "best"))


def _best_on_disk(directory: Path, best: str | None) -> float:
    """The score of the `best` checkpoint, which must have the same name; -inf if there is no complete checkpoint."""
    if best is None or newest_checkpoint(directory, "best") is None:
        return -math.inf
    try:
        facts = read_facts(directory, "best")
    except DamagedCheckpoint as error:
        _log.warning("%s", error)
        return -math.inf
    if facts["name"] != best:
        raise ValueError(f"{directory} keeps the state with the best {facts['name']!r}; cannot continue with {best!r}")
    return facts["score"]


def _not_finite(step: int, values: Mapping[str, float], directory: Path | None) -> str:
    what = ", ".join(f"{name} {values[name]}" for name in ("loss", "grad_norm") if name in values)
    kept = newest_checkpoint(directory, "last") if directory is not None else None
    return (
        f"training stopped at step {step}: {what}. "
        + (f"The last good state is in {kept}. " if kept else "")
        + "Look for labels outside the classes, batches in which every label is ignored, and images that are not"
        f" finite. Otherwise the learning rate is often too high: try a tenth, or {option('clip_norm', 1.0)}."
    )


def _score(scores: Mapping[str, float], name: str) -> float:
    if name not in scores:
        raise ValueError(f"best={name!r} is not among the scores {sorted(scores)}")
    return scores[name]  # NaN is never greater than the best so far.
