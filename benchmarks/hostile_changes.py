"""Random damage to files: of bytes, and of the structure of a format, with its lengths and checksums made right again.

Damaged bytes mostly fail at the first check of a format. Changes of structure get past it: they replace the values of
JSON, the tags of a TIFF file, the chunks of a PNG file, the opcodes of a pickle (`hostile_formats`, `hostile_torch`).
"""

import ast
import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes, random.Random], bytes]
"""Returns a changed copy of a file's content."""

_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b'"a"', b"[]", b"{}", b"true", b"0.5")
WORDS = (0, 1, 2, 3, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
# Text that stands for JSON which `json.dumps` cannot write.
_RAW = {
    '"@deep 90@"': "[" * 90 + "]" * 90,
    '"@deep 900@"': '{"a":' * 900 + "1" + "}" * 900,
    '"@deep 50000@"': "[" * 50_000,
    '"@digits@"': "9" * 5000,
}
_VALUES = (
    *(
        0,
        1,
        2,
        3,
        -1,
        255,
        2**16,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**63,
        2**64,
        10**40,
        10**400,
        0.5,
        -0.5,
        1e-320,
        1e308,
    ),
    *(math.inf, -math.inf, math.nan, None, True, False, [], {}, [[]], [0], [0, 0], [-1, 2**40], {"a": 1}, [None, "a"]),
    *("", "a", "0", "../a.png", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, *(text.strip('"') for text in _RAW)),
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four random changes of bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 2, 4, 8, 64)))
        match rng.randrange(9):
            case 0:
                data[start:stop] = rng.randbytes(stop - start)
            case 1:
                data[start:stop] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (stop - start)
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop] * rng.choice((1, 2, 50))
            case 4:
                del data[start:]
            case 5:
                data[start:start] = rng.randbytes(stop - start)
            case 6:
                other = rng.randrange(len(data) + 1)
                data[start:stop] = data[other : other + stop - start]
            case 7:  # in text, a number becomes something else
                digits = [n for n, byte in enumerate(data) if 48 <= byte < 58]
                if digits:
                    first = last = rng.choice(digits)
                    while last < len(data) and 48 <= data[last] < 58:
                        last += 1
                    data[first:last] = rng.choice(_NUMBERS)
            case 8:  # an aligned word of a header
                size = rng.choice((2, 4))
                start = size * rng.randrange(1 + min(len(data), 256) // size)
                word = rng.choice(WORDS) % 256**size
                if start + size <= len(data):
                    data[start : start + size] = word.to_bytes(size, rng.choice(("little", "big")))
    return bytes(data)


# --- JSON ---


def json_text(text: str, rng: random.Random) -> str:
    """JSON with one to three values replaced, moved, repeated or removed."""
    root = [json.loads(text)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_value(root, rng)
    changed = json.dumps(root[0] if root else None)
    for marker, raw in _RAW.items():
        changed = changed.replace(marker, raw)
    return changed


def json_file(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON."""
    return json_text(content.decode(), rng).encode()


def json_lines(content: bytes, rng: random.Random) -> bytes:
    """A file with JSON in every line."""
    lines = content.decode().splitlines()
    for index in rng.sample(range(len(lines)), rng.randint(1, min(2, len(lines)))):
        lines[index] = json_text(lines[index], rng)
    return "\n".join([*lines, ""]).encode()


def _change_value(root: list[Any], rng: random.Random) -> None:
    places = list(_places(root))
    if not places:
        return
    inside, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, list):
            inside.insert(key, inside[key])
        case 1 | 2:  # a value from elsewhere
            other, name = rng.choice(places)
            inside[key] = json.loads(json.dumps(other[name]))
        case 3 if isinstance(inside[key], int | float) and abs(inside[key]) < 1e300:
            inside[key] = rng.choice(
                (-inside[key], inside[key] + 1, 2 * inside[key], inside[key] / 3, inside[key] * 1e6)
            )
        case 3 if isinstance(inside[key], str):
            text = inside[key]
            inside[key] = rng.choice((text + text, text[:-1], text.swapcase(), text[::-1], f"../{text}", text * 1000))
        case 4:
            inside[key] = [inside[key]]
        case 5 if isinstance(inside, dict):
            inside[rng.choice(("a", "", *inside))] = inside.pop(key)
        case _:
            inside[key] = copy.deepcopy(rng.choice(_VALUES))


def _places(value: Any) -> Any:
    """Every list or dictionary in a value with each of its keys."""
    for key in range(len(value)) if isinstance(value, list) else value:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def safetensors_file(content: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file, or JSON in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header, arrays = json.loads(content[8 : 8 + length]), content[8 + length :]
    texts = header.get("__metadata__", {})
    if texts and rng.random() < 0.75:
        name = rng.choice(list(texts))
        texts[name] = json_text(texts[name], rng) if texts[name][:1] in ("{", "[") else str(rng.choice(_VALUES))[:5000]
        text = json.dumps(header).encode()
    else:
        text = json_text(json.dumps(header), rng).encode()
    return len(text).to_bytes(8, "little") + text + arrays


# --- arrays ---

_DTYPES = ("<f4", ">f4", "<f8", "<f2", "|u1", "<i8", "|b1", "<c8", "|O", "|V8", "|S4", "<U2", "<M8[s]", "<f16", "", "x")
_SHAPES = ((), (0,), (0, 0), (9, 14), (14, 9), (9, 14, 3), (126,), (2**31, 2**31), (2**63, 2), (-1, 14), (1,) * 64)
_HEADERS = ("(" * 300, "-" * 9000, "[" * 9000, "{" * 150 + "}" * 150, "1" * 9000, "'\\ud800'", "{'descr': __import__}")


def npy_file(content: bytes, rng: random.Random) -> bytes:
    """The header of a .npy file."""
    length = int.from_bytes(content[8:10], "little")
    header, numbers = ast.literal_eval(content[10 : 10 + length].decode()), content[10 + length :]
    match rng.randrange(6):
        case 0:
            header["descr"] = rng.choice((*_DTYPES, [("a", "<f4")], [("a", "<f4", (2**31,))], 3, None))
        case 1:
            header["shape"] = rng.choice((*_SHAPES, 9, None, (9.0, 14.0), ("9", "14"), (True, 126)))
        case 2:
            header["descr"], header["shape"] = rng.choice(_DTYPES[:7]), rng.choice(_SHAPES)
        case 3:
            header["fortran_order"] = rng.choice((True, 1, None, "x"))
        case 4:
            header.pop(rng.choice(list(header)))
        case 5:
            numbers = damaged(numbers, rng)
    text = (repr(header) if rng.random() < 0.9 else rng.choice(_HEADERS)).encode() + b"\n"
    version = rng.choice((1, 1, 1, 2, 3))
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + numbers
