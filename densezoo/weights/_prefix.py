"""Finds the prefix that wrappers add to the names of a checkpoint: `module.`, a Lightning attribute, and so on."""

import warnings
from collections.abc import Collection, Iterable, Sequence

from densezoo.messages import shortened

_WRAPPERS = ("module", "_orig_mod", "model", "net", "network")
"""Preferred prefixes if several fit: those of wrappers and most training scripts."""

Expected = Sequence[Collection[str]]
"""The names of a part of the model, one collection for each naming."""


def prefix_of(names: Iterable[str], parts: Iterable[Expected], source: str) -> str:
    """The prefix without which most names of a checkpoint match the model's; "" if none helps.

    Any prefix is possible, as long as at least half of the names of a part follow it.

    Args:
        names: names in the checkpoint.
        parts: the names that the model's parts expect.
        source: source of the checkpoint, for messages.

    Raises:
        ValueError: if several prefixes match, and none is a conventional one.
    """
    parts = [expected for expected in parts if any(expected)]
    found: dict[str, list[list[set[str]]]] = {}
    for name in names:
        pieces = name.split(".")
        for cut in range(min(len(pieces), 12)):
            suffix = ".".join(pieces[cut:])
            for number, expected in enumerate(parts):
                for naming, known in enumerate(expected):
                    if suffix in known:
                        prefix = "".join(f"{piece}." for piece in pieces[:cut])
                        sets = found.setdefault(prefix, [[set() for _ in each] for each in parts])
                        sets[number][naming].add(name)
    fitting = {}
    for prefix, sets in found.items():
        best = [max(range(len(each)), key=lambda naming, each=each: len(each[naming])) for each in sets]
        halves = [2 * len(sets[part][naming]) >= len(parts[part][naming]) for part, naming in enumerate(best)]
        if not prefix or any(halves):
            fitting[prefix] = set().union(*(sets[part][naming] for part, naming in enumerate(best)))
    most = max(map(len, fitting.values()), default=0)
    rivals: list[str] = []
    # Shorter prefixes first: `encoder.` may also belong to the names, and is then not a separate set of arrays.
    for prefix in sorted(fitting, key=lambda prefix: (-len(fitting[prefix]), len(prefix))):
        if 10 * len(fitting[prefix]) >= 9 * most and all(fitting[prefix].isdisjoint(fitting[r]) for r in rivals):
            rivals.append(prefix)
    if not rivals:
        return ""
    if len(rivals) == 1:
        return rivals[0]
    rivals.sort(key=len)
    usual = [prefix for prefix in rivals if all(piece in _WRAPPERS for piece in prefix.split(".")[:-1])]
    listed = shortened([repr(prefix.removesuffix(".")) for prefix in rivals], ", ")
    other = next(prefix for prefix in rivals if prefix and prefix not in usual[:1]).removesuffix(".")
    choose = f"choose by entry={other!r}"
    if not usual:
        raise ValueError(f"{source} has the weights of the model behind each of {listed}: {choose}")
    warnings.warn(
        f"{source} has the weights of the model behind each of {listed}; {usual[0].removesuffix('.')!r} is taken. For"
        f" the others: {choose}",
        stacklevel=4,
    )
    return usual[0]
