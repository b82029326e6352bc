"""Damage to the structure of pictures: the chunks of PNG and WebP files, the tags of TIFF, the segments of JPEG."""

import functools
import random
import struct
import zlib

from benchmarks.hostile_changes import WORDS, damaged

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
                fields[field] = rng.choice(WORDS) % (2**32 if field < 2 else 17)
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
                new = rng.choice((*_TAG_VALUES.get(chosen, ()), rng.choice(WORDS)))
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
