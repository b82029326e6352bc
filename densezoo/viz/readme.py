"""The zoo's tables in a Markdown file, from the registry that builds the models.

`python -m densezoo.viz.readme README.md` writes them between the two markers. With `--check` it writes nothing and
exits with 1 if they are out of date.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

from densezoo.files import replace
from densezoo.zoo import blueprints, create_encoder, list_encoders

BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"


@dataclasses.dataclass
class Arguments:
    """Writes the zoo's tables into a Markdown file, between `<!-- zoo:begin -->` and `<!-- zoo:end -->`."""

    file: Annotated[Path, tyro.conf.Positional]
    """The Markdown file."""
    check: bool = False
    """Write nothing; exit with 1 if the tables in the file are out of date."""


def zoo_tables() -> str:
    """The zoo's families and encoders as two Markdown tables.

    Example:
        >>> print(zoo_tables().splitlines()[0])
        | family | what it is | skips | excels at | paper | default encoder |
    """
    families = [
        (f"`{b.name}`", b.description, b.skip_strategy, b.excels_at, _linked(b.paper), _encoder(b.encoder))
        for b in blueprints()
    ]
    groups: dict[tuple[str, str], list[str]] = {}
    for name in list_encoders():
        encoder = create_encoder(name)
        strides = ", ".join(map(str, encoder.reductions))
        groups.setdefault((type(encoder).__name__, strides), []).append(name)
    encoders = [
        (f"`{cls}`", " ".join(f"`{name}`" for name in sorted(names, key=_natural)), strides)
        for (cls, strides), names in groups.items()
    ]
    return "\n\n".join(
        (
            _table(("family", "what it is", "skips", "excels at", "paper", "default encoder"), families),
            _table(("encoder class", "names", "strides of its features"), encoders),
        )
    )


def with_tables(text: str) -> str:
    """Inserts the zoo's tables between the markers of a Markdown text. Replaces previous tables.

    Raises:
        ValueError: if the text does not contain each marker exactly once, the first one first.
    """
    lines = text.splitlines()
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise ValueError(f"expected a line {BEGIN} followed by a line {END}, each exactly once")
    before, after = lines[: lines.index(BEGIN) + 1], lines[lines.index(END) :]
    return "\n".join([*before, zoo_tables(), *after]) + "\n"


def main(arguments: Arguments) -> int:
    """Writes or checks a file; returns the exit status."""
    file = arguments.file
    try:
        text = file.read_text(encoding="utf-8")
        wanted = with_tables(text)
        if arguments.check:
            if text == wanted:
                return 0
            message = f"{file}: the zoo's tables are out of date: run python -m densezoo.viz.readme {file}"
            print(message, file=sys.stderr)
            return 1
        if text != wanted:
            replace(file, lambda temporary: temporary.write_text(wanted, encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    return 0


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _encoder(name: str) -> str:
    return f"`{name}`" if name else "none"


def _linked(paper: str) -> str:
    """Converts `Authors year, address` to a link; semicolons separate several papers."""
    return re.sub(r"([^;\s][^;]*?), (https?://[^\s;]+)", r"[\1](\2)", paper)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts resnet18 before resnet101."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
