"""Files of `torch.save`, written without torch, and damage to their pickles and archives."""

import io
import itertools
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from typing import Any

import numpy as np

from benchmarks.hostile_changes import WORDS, damaged

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
                    value = rng.choice(WORDS)
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


_STORAGES = {"float32": b"Float", "int64": b"Long", "bfloat16": b"BFloat16", "bool": b"Bool"}


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def _tensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle that `torch.save` writes, without torch."""
    body = b"\x80\x02}("
    for key, (name, array) in enumerate(arrays.items()):
        kind = b"ctorch\n" + _STORAGES[array.dtype.name] + b"Storage\n"
        storage = b"(" + _plain("storage") + kind + _plain(str(key)) + _plain("cpu") + _plain(array.size) + b"tQ"
        strides = tuple(stride // array.itemsize for stride in array.strides)
        view = _plain(0) + _plain(array.shape) + _plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
        body += _plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"
    return body + b"u."


def zipped(arrays: dict[str, np.ndarray]) -> bytes:
    """A file of `torch.save`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", _tensors(arrays))
        archive.writestr("weights/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"weights/data/{key}", array.tobytes())
        archive.writestr("weights/version", b"3\n")
    return file.getvalue()


def legacy(arrays: dict[str, np.ndarray]) -> bytes:
    """A file of `torch.save` before torch 1.6."""
    start = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps([str(key) for key in range(len(arrays))], 2)
    storages = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    return start + _tensors(arrays) + keys + storages
