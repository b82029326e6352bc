"""Random damage to files: of bytes, and of the structure of a format, with its lengths and checksums made right again.

Damaged bytes mostly fail at the first check of a format. Changes of structure get past it: they replace the values of
JSON, the tags of a TIFF file, the chunks of a PNG file, the opcodes of a pickle.
"""

import ast
import copy
import functools
import io
import itertools
import json
import math
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes, random.Random], bytes]
"""Returns a changed copy of a file's content."""

_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b'"a"', b"[]", b"{}", b"true", b"0.5")
_WORDS = (0, 1, 2, 3, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
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
                word = rng.choice(_WORDS) % 256**size
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


# --- arrays and pictures ---

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


_CHUNKS = (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"gAMA", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND", b"pHYs")


def png_file(content: bytes, rng: random.Random) -> bytes:
    """The chunks of a PNG file. Changed pixels are compressed again."""
    chunks, position = [], 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(rng.randint(1, 2)):
        index = rng.randrange(len(chunks))
        kind, data = chunks[index]
        match rng.randrange(8):
            case 0:
                chunks.insert(rng.randrange(len(chunks) + 1), (kind, data))
            case 1 if len(chunks) > 1:
                del chunks[index]
            case 2:  # a large text or profile in few bytes
                new = rng.choice(_CHUNKS)
                filler = b"a\0\0" + _zeros(10 ** rng.randint(1, 8))
                chunks.insert(index, (new, rng.choice((rng.randbytes(rng.choice((0, 1, 6, 300))), filler))))
            case 3 | 4 if any(kind == b"IDAT" and _decompressed(data) for kind, data in chunks):
                found = [n for n, (kind, data) in enumerate(chunks) if kind == b"IDAT" and _decompressed(data)]
                pixels = damaged(_decompressed(chunks[found[0]][1]), rng)
                chunks[found[0]] = b"IDAT", zlib.compress(pixels)
            case 5 if chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
                fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
                field = rng.randrange(7)
                fields[field] = rng.choice(_WORDS) % (2**32 if field < 2 else 17)
                chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *fields)
            case _:
                chunks[index] = kind, damaged(data, rng) if data else rng.randbytes(4)
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    ]
    return content[:8] + b"".join(parts)


@functools.cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


def _decompressed(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 100_000)
    except zlib.error:
        return b""


_TAG_VALUES = {
    254: (0, 1, 2),
    256: (0, 1, 5, 14, 16, 300, 2**16, 2**31),
    257: (0, 1, 5, 9, 16, 300, 2**16, 2**31),
    258: (0, 1, 2, 4, 7, 8, 12, 16, 24, 32, 64, 128),
    259: (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 33003, 34712, 34887, 34925, 34926, 34933, 34934, 50000, 50001, 50002),
    262: (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32803, 32844, 32845, 34892),
    266: (1, 2),
    274: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    277: (0, 1, 2, 3, 4, 5, 300, 65535),
    278: (0, 1, 4, 9, 10, 2**16, 2**32 - 1),
    284: (0, 1, 2, 3),
    317: (0, 1, 2, 3, 34892, 34893, 34894, 34895),
    322: (0, 1, 15, 16, 32, 2**12, 2**16, 2**31),
    323: (0, 1, 15, 16, 32, 2**12, 2**16, 2**31),
    338: (0, 1, 2),
    339: (0, 1, 2, 3, 4, 5, 6),
    32997: (0, 1, 2, 2**16),
    32998: (0, 1, 16, 2**16),
}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}


def tiff_file(content: bytes, rng: random.Random) -> bytes:
    """The tags of a TIFF file's first page; the list of tags is written at the end of the file."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    number, link, entry, header = ("Q", "Q", "HHQ8s", 8) if big else ("H", "I", "HHI4s", 4)
    (offset,) = struct.unpack_from(order + link, content, header)
    (count,) = struct.unpack_from(order + number, content, offset)
    at, size = offset + struct.calcsize(order + number), struct.calcsize(order + entry)
    entries = [list(struct.unpack_from(order + entry, content, at + n * size)) for n in range(count)]
    (following,) = struct.unpack_from(order + link, content, at + count * size)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        index = rng.randrange(len(entries))
        tag, kind, length, value = entries[index]
        match rng.randrange(10):
            case 0 if len(entries) > 1:
                del entries[index]
            case 1:
                entries[index][0] = rng.choice((*_TAG_VALUES, 273, 279, 324, 325, 320, 347, 270, 34735, 42113, 50000))
            case 2:
                entries[index][1] = rng.randrange(20)
            case 3:
                entries[index][2] = rng.choice((0, 1, 2, 3, length + 1, 2 * length, 2**16, 2**28, 2**32 - 1)) % 2**32
            case 4 if length * _TIFF_SIZES.get(kind, 1) > len(value):  # what the value points to
                start = int.from_bytes(value, "little" if order == "<" else "big")
                stop = min(len(data), start + length * _TIFF_SIZES.get(kind, 1))
                if start < stop:
                    place = rng.randrange(start, stop)
                    data[place : place + 4] = rng.choice((rng.randbytes(4), bytes(4), b"\xff\xff\xff\xff", b"\0\0\1\0"))
            case 5:
                following = rng.choice((0, offset, 8, len(content), 2**31))
            case 6:
                data = bytearray(content[: header + 8]) + damaged(bytes(data[header + 8 :]), rng)
            case _:
                chosen = rng.choice((tag, tag, *_TAG_VALUES))
                found = next((each for each in entries if each[0] == chosen), None)
                new = rng.choice((*_TAG_VALUES.get(chosen, ()), rng.choice(_WORDS)))
                width = 4 if new > 65535 else 2
                packed = new.to_bytes(width, "little" if order == "<" else "big").ljust(len(value), b"\0")
                made = [chosen, 4 if width == 4 else 3, 1, packed]
                if found is None:
                    entries.append(made)
                else:
                    found[:] = made
    if len(data) % 2:
        data += b"\0"
    end = len(data) if len(data) < 2**31 else 0
    struct.pack_into(order + link, data, header, end)
    rows = b"".join(struct.pack(order + entry, *each) for each in sorted(entries, key=lambda each: each[0]))
    return bytes(data) + struct.pack(order + number, len(entries)) + rows + struct.pack(order + link, following)


def riff_file(content: bytes, rng: random.Random) -> bytes:
    """The chunks of a WebP file."""
    chunks, position = [], 12
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        chunks.append((content[position : position + 4], content[position + 8 : position + 8 + size]))
        position += 8 + size + size % 2
    index = rng.randrange(len(chunks))
    kind, data = chunks[index]
    match rng.randrange(4):
        case 0:
            new = rng.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF"))
            chunks.insert(rng.randrange(len(chunks) + 1), (new, rng.randbytes(rng.choice((0, 10, 100)))))
        case 1:
            chunks.insert(index, (kind, data))
        case _:
            chunks[index] = kind, damaged(data, rng)
    parts = b"".join(k + len(d).to_bytes(4, "little") + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return b"RIFF" + (4 + len(parts)).to_bytes(4, "little") + b"WEBP" + parts


def jpeg_file(content: bytes, rng: random.Random) -> bytes:
    """The segments of a JPEG file, and its coded pixels."""
    segments, position = [], 2
    while content[position + 1] != 0xDA:
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        segments.append((content[position + 1], content[position + 4 : position + 2 + length]))
        position += 2 + length
    index = rng.randrange(len(segments))
    marker, data = segments[index]
    coded = content[position:]
    match rng.randrange(6):
        case 0:
            del segments[index]
        case 1:
            segments.insert(rng.randrange(len(segments) + 1), (marker, data))
        case 2:
            segments[index] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE)), data
        case 3:
            coded = coded[:12] + damaged(coded[12:], rng)
        case 4:
            coded = damaged(coded, rng)
        case _:
            segments[index] = marker, damaged(data, rng)[:60000]
    parts = b"".join(b"\xff" + bytes([m]) + (len(d) + 2).to_bytes(2, "big") + d for m, d in segments)
    return content[:2] + parts + coded


# --- torch ---

_GLOBALS = (
    *("torch FloatStorage", "torch LongStorage", "torch BFloat16Storage", "torch.storage UntypedStorage", "torch Size"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"),
    *("torch.nn.parameter Parameter", "collections OrderedDict", "collections defaultdict", "builtins getattr"),
    *("torch._utils _rebuild_sparse_tensor", "torch._tensor _rebuild_from_type_v2", "torch device", "torch float16"),
    *("os system", "builtins eval", "builtins set", "numpy dtype", "argparse Namespace", "a.b c"),
)
_OPCODES = b"().0123KJMUXcqhjrtQRsuabelN}])\x85\x86\x87\x88\x89\x8a\x8b\x8f\x90\x91\x93\x94\x95\x81\x92"


def pickle_file(content: bytes, rng: random.Random) -> bytes:
    """The opcodes of pickles that follow one another; what follows them is kept."""
    stream, operations, end = io.BytesIO(content), [], 0
    try:
        while True:
            start = stream.tell()
            found = list(pickletools.genops(stream))
            places = [place for *_, place in found] + [stream.tell()]
            operations += [content[a:b] for a, b in itertools.pairwise(places)]
            end = stream.tell()
            if end == start:
                break
    except Exception:  # behind the last pickle
        pass
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(operations))
        operation = operations[index]
        match rng.randrange(7):
            case 0:
                del operations[index]
            case 1:
                operations.insert(index, operation)
            case 2:
                operations.insert(rng.randrange(len(operations)), rng.choice(operations))
            case 3 if any(each[:1] == b"c" for each in operations):
                index = rng.choice([n for n, each in enumerate(operations) if each[:1] == b"c"])
                operations[index] = b"c" + rng.choice(_GLOBALS).replace(" ", "\n").encode() + b"\n"
            case 3 | 4:  # a number
                numbers = [n for n, each in enumerate(operations) if each[:1] in (b"K", b"M", b"J")]
                if numbers:
                    value = rng.choice(_WORDS)
                    long = value.to_bytes(9, "little", signed=True)
                    operations[rng.choice(numbers)] = rng.choice(
                        (b"\x8a\x09" + long, b"K" + bytes([value % 256]), b"N")
                    )
            case 5:
                operations.insert(index, bytes([rng.choice(_OPCODES)]))
            case 6:
                operations[index] = damaged(operation, rng)
        if not operations:
            break
    return b"".join(operations) + content[end:]


def zip_file(content: bytes, rng: random.Random) -> bytes:
    """The entries of a zip archive, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    compression = zipfile.ZIP_STORED
    index = rng.randrange(len(entries))
    name, data = entries[index]
    match rng.randrange(12):
        case 0:
            del entries[index]
        case 1:
            entries[index] = rng.choice(("data.pkl", "x/data.pkl", "../a", name + "0", "weights/constants.pkl")), data
        case 2:
            compression = zipfile.ZIP_DEFLATED
        case 3:
            entries[index] = name, damaged(data, rng)
        case 4:
            entries.append(entries.pop(index))
        case _:
            index = next(n for n, (name, _) in enumerate(entries) if name.endswith(".pkl"))
            entries[index] = entries[index][0], pickle_file(entries[index][1], rng)
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of two entries with one name
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()
