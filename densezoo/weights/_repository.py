"""The files of a repository of the Hugging Face hub, or of a folder laid out like one."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import Any

from densezoo.extras import require

Repository = str | os.PathLike[str]
"""owner/name, or a folder."""


def read_json(repository: Repository, name: str, revision: str | None) -> dict[str, Any]:
    """The contents of a JSON file of the repository.

    Raises:
        FileNotFoundError: if the file cannot be had.
        ValueError: if it does not contain a dictionary.
    """
    path = file_of(repository, (name,), revision)
    try:
        contents = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} is not the configuration of a model: it contains a {type(contents).__name__}")
    return contents


def read_optional_json(repository: Repository, name: str, revision: str | None) -> dict[str, Any] | None:
    """As `read_json`; None if there is no such file."""
    try:
        return read_json(repository, name, revision)
    except FileNotFoundError:
        return None


def file_of(repository: Repository, names: Sequence[str], revision: str | None) -> File:
    """The first of the files that exists: in a folder, in the cache, or on the hub.

    Raises:
        FileNotFoundError: if there is none, no such repository, or no network access.
    """
    folder = File(repository)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"the folder {folder} has no {' and no '.join(names)}")
        return found
    if not isinstance(repository, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise FileNotFoundError(f"expected a repository as owner/name, or a folder that exists; got {repository}")
    hub = require("huggingface_hub", instead="or pass a folder with the files of the repository")
    missing = require("huggingface_hub.errors").EntryNotFoundError
    reasons = []
    for name in names:
        try:
            return File(hub.hf_hub_download(repository, name, revision=revision))
        except (OSError, ValueError, missing) as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise FileNotFoundError(f"cannot get {' or '.join(names)} of {repository}: {reasons[0]}")


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Adds the source of the values to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


class Config:
    """The options of a configuration. Messages name the file and the option.

    Args:
        options: the options by name.
        source: the file and, for an inner configuration, the option with it.
    """

    def __init__(self, options: Mapping[str, Any], source: str):
        self.options, self.source = options, source

    def get(self, name: str, default: Any) -> Any:
        """An option of the type of its default; absent ones and null are the default.

        Raises:
            ValueError: if it is of another type, or not finite.
        """
        value = self.options.get(name)
        if value is None:
            return default
        if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
            return tuple(Config({name: item}, self.source).get(name, default[0]) for item in value)
        kind = type(default)
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            value, fits = float(value), True
        if not fits or (kind is int and not abs(value) < 2**31) or (kind is float and not abs(value) < float("inf")):
            expected = "list" if isinstance(default, (tuple, list)) else kind.__name__
            raise ValueError(f"{self.source}: expected {name} to be of type {expected}, got {str(value)[:100]!r}")
        return value

    def size(self, name: str, default: int, most: int = 2**20) -> int:
        """An option that is a number of things, at least 1.

        Raises:
            ValueError: if it is none.
        """
        return self.sizes(name, (default,), most=most)[0]

    def sizes(self, name: str, default: Sequence[int], count: int | None = None, most: int = 2**20) -> tuple[int, ...]:
        """An option that is a list of numbers of things; a single number stands for a list of it.

        Raises:
            ValueError: if there are not `count` of them, or one is not in 1..most.
        """
        value = self.options.get(name)
        single = isinstance(value, int) and not isinstance(value, bool)
        numbers: tuple[Any, ...] = (value,) * (count or 1) if single else self.get(name, tuple(default))
        if not numbers or count not in (None, len(numbers)) or not 1 <= min(numbers) <= max(numbers) <= most:
            many = "numbers" if count is None else f"{count} numbers"
            raise ValueError(f"{self.source}: expected {name} to be {many} in 1..{most}, got {str(value)[:100]}")
        return numbers

    def choose(self, name: str, default: str, choices: Mapping[str, Any]) -> Any:
        """The entry of `choices` that an option names.

        Raises:
            ValueError: if it names no entry.
        """
        value = self.get(name, default)
        if value not in choices:
            raise self.unsupported(name, value, f"{', '.join(map(repr, choices))}")
        return choices[value]

    def only(self, **supported: Any) -> None:
        """Checks options for which there is a single supported value; absent ones have it.

        Raises:
            ValueError: if one has another value.
        """
        for name, value in supported.items():
            came = self.options.get(name)
            came = tuple(came) if isinstance(came, list) else came
            if came is not None and came != value:
                raise self.unsupported(name, came, repr(value))

    def unsupported(self, name: str, value: Any, supported: str) -> ValueError:
        """The error for an option that densezoo does not have."""
        return ValueError(
            f"{self.source}: {name}={str(value)[:100]!r} is not supported, because densezoo's model would compute"
            f" something else; supported: {supported}"
        )

    def inner(self, name: str) -> "Config":
        """The configuration inside of an option; empty if absent.

        Raises:
            ValueError: if it is not a dictionary.
        """
        value = self.options.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{self.source}: expected {name} to be a dictionary, got {str(value)[:100]!r}")
        return Config(value, f"{self.source}, {name}")


def model_config(repository: Repository, revision: str | None) -> tuple[Config, str]:
    """The configuration of a model and its folder, which is that of the U-Net in a pipeline of diffusers.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no dictionary, or a pipeline has no U-Net.
    """
    try:
        return Config(read_json(repository, "config.json", revision), f"the config.json of {repository}"), ""
    except FileNotFoundError:
        options = read_optional_json(repository, "unet/config.json", revision)
        if options is None:
            pipeline = read_optional_json(repository, "model_index.json", revision)
            if pipeline is None:
                raise
            name, parts = pipeline.get("_class_name"), [name for name, x in pipeline.items() if isinstance(x, list)]
            raise ValueError(
                f"{repository} is a {name} of diffusers without a unet; it has {parts}: densezoo reads pipelines with a"
                " UNet2DModel"
            ) from None
    return Config(options, f"the unet/config.json of {repository}"), "unet/"
