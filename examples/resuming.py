"""The options of a training run, kept in its folder: checked and completed when the run is resumed."""

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from densezoo.files import replace
from densezoo.messages import option

T = TypeVar("T")

# Options that may change in a resumed run: the number of steps, which the schedule follows, and options that do not
# affect the training.
FREE = (
    "steps",
    "evaluate_every",
    "eval_batch_size",
    "checkpoint_every",
    "out",
    "resume",
    "data",
    "limit_val",
    "tensorboard",
    "mesh",
    "distributed",
)
# Options that a resumed run does not take over, because it may be on other devices.
OF_MACHINE = ("mesh", "distributed")


def options_of(arguments: Any) -> dict[str, Any]:
    """All options as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(arguments), default=str))


def write_options(path: Path, arguments: Any) -> None:
    """Writes all options to a file."""
    replace(path, lambda temporary: temporary.write_text(json.dumps(options_of(arguments), indent=2) + "\n"))


def read_options(path: Path) -> dict[str, Any]:
    """Reads the options of a run."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{path} does not contain the options of a run, which --resume needs: {error}") from error
    if not isinstance(options, dict) or "steps" not in options:
        raise ValueError(f"{path} does not contain the options of a run, which --resume needs")
    return options


def check_out(arguments: Any) -> None:
    """Checks that --out has no other run, and that a resumed run has the same model and options."""
    out = arguments.out
    if not (out / "log.jsonl").exists() and not (out / "last").exists():
        return
    if not arguments.resume:
        raise FileExistsError(f"{out} contains a run: continue it with --resume, or choose another --out")
    if not (out / "options.json").is_file():
        raise ValueError(f"{out} contains a run of an older densezoo, which cannot be continued: choose another --out")
    options, before = options_of(arguments), read_options(out / "options.json")
    if options["steps"] != before["steps"]:
        print(f"the schedule now spans {options['steps']} steps, before {before['steps']}", file=sys.stderr)
    changed = {name: value for name, value in options.items() if name not in FREE}
    if text := differences(before, changed):
        raise ValueError(f"{out} contains a run with other options, so it cannot be continued exactly: {text}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names the options that differ, with both values."""
    return "; ".join(
        f"{option(name)} was {before.get(name)}, is {now[name]}" for name in now if now[name] != before.get(name)
    )


def options_of_run(arguments: type[T], given: Sequence[str]) -> T | None:
    """The options of the run that a command line resumes, as its defaults; None if it resumes none.

    Args:
        arguments: the script's options, a dataclass with `out` and `resume`.
        given: the arguments on the command line.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(arguments)}  # pyright: ignore
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=defaults["out"])
    parser.add_argument("--resume", action="store_true")
    found, _ = parser.parse_known_args(given)
    path = found.out / "options.json"
    if not found.resume or not path.is_file():
        return None
    kinds = typing.get_type_hints(arguments)
    kept = {name: value for name, value in read_options(path).items() if name in defaults and name not in OF_MACHINE}
    options = {name: _parsed(value, kinds[name]) for name, value in kept.items()}
    return arguments(**options | {"out": found.out, "resume": True})


def _parsed(value: Any, kind: Any) -> Any:
    """A JSON value as an option of this type."""
    if isinstance(value, list):
        return tuple(value)
    of_path = kind is Path or Path in typing.get_args(kind)
    return Path(value) if of_path and isinstance(value, str) else value
