"""Identifies the encoder of the zoo that a set of weights belongs to, by the number of arrays and values.

The counts of every encoder are in `fingerprints.json`, because counting takes a minute. To write it:
`python -c "from densezoo.weights._fingerprints import write; write()"`.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path as File

from densezoo.encoders import ENCODERS
from densezoo.naming import NEVER_NEEDED, Naming
from densezoo.weights._parameters import Path, shapes_of, stem_path

FILE = File(__file__).with_name("fingerprints.json")
_CLASSIFIERS = r"(fc|_fc|classifier|head|last_linear)\..*"
Shape = tuple[int, ...]
Fingerprint = tuple[int, int]
"""Number of arrays, and of their values without the first convolution, which depends on the images' channels."""


def fingerprint(shapes: Iterable[Shape], stem: Shape) -> Fingerprint:
    """Counts the arrays of an encoder; `stem` is the shape of its first kernel."""
    sizes = [math.prod(shape) for shape in shapes]
    return len(sizes), sum(sizes) - math.prod(stem)


def names_of(shapes: Mapping[Path, Shape], stem: Path | None) -> list[str]:
    """The names of the encoders whose arrays have these shapes."""
    if stem is None or stem not in shapes:
        return []
    counts = fingerprint(shapes.values(), shapes[stem])
    return [name for name in known() if known()[name] == counts and name in ENCODERS]


def identify(shapes: Mapping[str, Shape]) -> list[str]:
    """The encoders of the zoo whose weights a checkpoint contains, alone or inside a larger model; largest first.

    Several encoders may have the same weights, or may differ only in arrays that `ignored` excludes.
    """

    @functools.cache
    def within(prefix: str, ignored: str) -> list[Shape]:
        pattern = re.compile(f"{NEVER_NEEDED}|{ignored}" if ignored else NEVER_NEEDED)
        return [s for name, s in shapes.items() if name.startswith(prefix) and not pattern.fullmatch(name)]

    def looks_like(naming: Naming, stem: str, counts: Fingerprint) -> bool:
        found = naming.find(stem)
        kernel = f"{found[0]}.weight" if found else ""
        if kernel not in shapes:
            return False
        # `ignored` may contain names that only some members of a family have.
        choices = (naming.ignored, "", re.escape(naming.prefix) + _CLASSIFIERS)
        return any(fingerprint(within(naming.prefix, ignored), shapes[kernel]) == counts for ignored in choices)

    names = []
    for name, counts in known().items():
        encoder = ENCODERS[name]()
        stem = encoder.stem
        if stem and any(looks_like(naming, stem, counts) for naming in encoder.reference_names()):
            names.append(name)
    return sorted(names, key=lambda name: known()[name], reverse=True)


@functools.cache
def known() -> dict[str, Fingerprint]:
    """The counts of the zoo's encoders, by name."""
    return {name: tuple(counts) for name, counts in json.loads(FILE.read_text()).items() if name in ENCODERS}


def write() -> None:
    """Writes `fingerprints.json` for the encoders with a known first convolution."""
    lines = []
    for name in sorted(ENCODERS):
        encoder = ENCODERS[name]()
        shapes = {path: array.shape for path, array in shapes_of(encoder, 3).items()}
        stem = stem_path(encoder)
        if stem in shapes:
            lines.append(f"{json.dumps(name)}: {json.dumps(fingerprint(shapes.values(), shapes[stem]))}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
