"""Signals that stop a training run, in one or several processes, and the lock on its directory."""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM, so that steps are never interrupted. The second signal raises immediately."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python only handles signals in the main thread.
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop_together() -> Callable[[Sequence[int]], int]:
    """Returns a function of the received signals, called before each step: the signal that stops the run, or 0.

    All processes must stop after the same step, even if only one received a signal. With several processes, they
    exchange their signals without waiting, so a signal stops the run one step later.
    """
    if jax.process_count() == 1:
        return lambda signals: signals[0] if signals else 0
    largest, pending = _largest(), None

    def stop(signals: Sequence[int]) -> int:
        nonlocal pending
        before, pending = pending, largest(signals[0] if signals else 0)
        return 0 if before is None else int(before)

    return stop


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """Lets one of several processes that fails end without waiting for the others, after its error is reported.

    At its end, `jax.distributed` would wait for the others for minutes, and they for it. When it has ended, they fail,
    too: the collectives of CPUs notice it at once, others after the heartbeat timeout of `jax.distributed`.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if jax.process_count() > 1:
            atexit.register(_leave)  # Runs before JAX's function, which was registered earlier.
        raise


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _largest() -> Callable[[int], jax.Array]:
    """Returns a function from a number of each process to the largest of them, which returns before it is known."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    each, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    largest = jax.jit(jnp.max, out_shardings=everywhere)

    def of_all(number: int) -> jax.Array:
        own = np.full(jax.local_device_count(), number, np.int32)
        return largest(jax.make_array_from_process_local_data(each, own))

    return of_all


@contextlib.contextmanager
def only_run(directory: Path) -> Iterator[None]:
    """Locks a directory against other runs, with a lock on its file `.lock`.

    The operating system releases the lock whenever the process ends. On Windows, and on file systems without locks,
    nothing is locked. Of several processes, the first one holds the lock, and all raise an error if it cannot.

    Raises:
        BlockingIOError: if another run uses the directory.
    """
    with contextlib.ExitStack() as stack:
        failure: OSError | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_locked(directory))
            except OSError as error:
                failure = error
        if jax.process_count() > 1 and int(_largest()(failure is not None)) and failure is None:
            failure = BlockingIOError(f"the first process cannot lock {directory}; see its error")
        if failure is not None:
            raise failure
        yield


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory."""
    if fcntl is None:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{directory} is in use by another run ({file.read().strip() or 'unknown process'}): wait for it or"
                " stop it, or choose another directory"
            ) from None
        except OSError:  # a file system without locks
            pass
        with contextlib.suppress(OSError):  # on a full disk, the message above cannot name the process
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
