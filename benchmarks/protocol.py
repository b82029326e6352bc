"""The protocol with a process of another interpreter: one JSON object per line in each direction, arrays in files.

{"do": "sample", "form": "torch", "calls": 3} is answered by {"ok": {"seconds": 0.12}} or {"error": "why not"}.
This file imports neither jax nor densezoo, so that an interpreter without them can use it.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


class PeerError(Exception):
    """A worker failed; the message is one line with the reason."""


def serve(commands: Mapping[str, Callable[..., Any]], requests: Iterable[str], answers: IO[str]) -> None:
    """Answers requests until there are no more.

    Args:
        commands: by name, functions that take the request's other fields and return JSON values.
        requests: lines.
        answers: file for the answers.
    """
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": commands[request.pop("do")](**request)}
        except Exception as error:  # whatever the libraries raise: the other side decides how to handle it
            answer = {"error": first_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def serve_process(make: Callable[[Path], Mapping[str, Callable[..., Any]]], argv: Sequence[str]) -> None:
    """Runs a worker program. `argv` is the folder for arrays and, optionally, a module to import first.

    Output of libraries goes to stderr, because the protocol uses stdout.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, *setup = argv
    for module in setup:
        importlib.import_module(module)
    serve(make(Path(folder)), sys.stdin, answers)


class Worker:
    """A worker process; `with` ends it.

    Args:
        command: the program; the folder for arrays is appended to it, then `setup`.
        setup: a module that the worker imports before anything else.

    Raises:
        OSError: if there is no such program.

    Attributes:
        folder: folder for arrays, deleted with the worker.
    """

    def __init__(self, command: Sequence[str], setup: str | None = None):
        self._temporary = tempfile.TemporaryDirectory(prefix="densezoo-peer-")
        self.folder = Path(self._temporary.name)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = (self.folder / "stderr").open("w+")
        try:
            self._process = subprocess.Popen(
                [*command, str(self.folder), *([setup] if setup else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                # Not the working directory, which may contain another package of the same name.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
            )
        except OSError:
            self._log.close()
            self._temporary.cleanup()
            raise

    def ask(self, do: str, **fields: Any) -> Any:
        """Sends a request and returns the answer.

        Raises:
            PeerError: if the worker returns an error, or has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            raise PeerError(f"the worker ended with code {code}" + (f": {said[-1]}" if said else ""))
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["ok"]

    def send(self, name: str, array: Any) -> str:
        """Writes an array to a file for the worker; returns its path."""
        path = self.folder / f"{name}.npy"
        np.save(path, np.asarray(array))
        return str(path)

    def close(self) -> None:
        """Ends the process and deletes its folder."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._temporary.cleanup()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def first_line(error: BaseException) -> str:
    """An exception in one line: its class, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
