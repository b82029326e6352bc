"""Reads checkpoint files: .safetensors, and .pth or .pt without torch and without executing anything in them."""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from densezoo.weights._containers import NoWeights, open_containers
from densezoo.weights._shards import folder_file, read_index
from densezoo.weights._unpickle import Storage, Tensor, UnpickleError, unpickle

_CONVERT = (
    'If you trust the file, convert it where torch is installed: torch.save(model.state_dict(), "weights.pth"), or'
    ' safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)
_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NATIVE = "densezoo"
"""The metadata key under which a file of `dz.save` describes its model."""

_LONGEST_HEADER = 100_000_000  # the limit of safetensors
# Signatures of an archive's first entry, and of an empty one. "PK" alone could be the length of a safetensors header.
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
# The start of files of `torch.save` before torch 1.6: a pickled magic number, then the protocol 1001.
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
# Exceptions of zipfile and numpy for corrupted archives.
_DAMAGED = (ValueError, OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile)


def read_checkpoint(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint. Does not need torch or execute anything in the file.

    Enclosing dictionaries (`{"state_dict": ..., "epoch": ...}`) are opened, and objects that are not tensors skipped.

    Args:
        path: a .safetensors file, or a file of `torch.save` in the old or new format. The contents determine the
            format, not the name. Or the index of a checkpoint in several files (`model.safetensors.index.json`,
            `pytorch_model.bin.index.json`), or a folder with one of these or a single `model.safetensors` or
            `pytorch_model.bin`.
        entry: selects one of several copies of the weights: a key of the file's dictionary, such as "state_dict_ema",
            or a prefix of the names, such as "teacher" for `teacher.conv1.weight`.

    Returns:
        Arrays by name. They are read-only, because tensors may share memory; use `array.copy()` to change them.

    Raises:
        FileNotFoundError: if the file, or one that an index lists, is missing.
        ValueError: if the file is damaged or of another kind, if it contains no dictionary of tensors or several
            different ones, or if it has no such `entry`.

    Example:
        >>> import tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> path = tempfile.mkdtemp() + "/weights.safetensors"
        >>> save_file({"conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}, path)
        >>> {name: array.shape for name, array in read_checkpoint(path).items()}
        {'conv1.weight': (8, 3, 3, 3)}
    """
    return read_with_metadata(path, entry)[0]


def read_with_metadata(
    path: str | os.PathLike[str], entry: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Like `read_checkpoint`, and also returns the metadata that `dz.save` wrote, or None for any other file."""
    path = folder_file(Path(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, expected a checkpoint")
    if path.name.endswith(".index.json"):
        return read_index(path, lambda shard: _read(shard, None)[0], entry), None
    return _read(path, entry)


def _read(path: Path, entry: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    with path.open("rb") as file:
        start = file.read(512)
    try:
        if start.startswith(_ZIP_STARTS):
            return _read_zip(path, entry), None
        if start.startswith(_LEGACY_START):
            return _read_legacy(path.read_bytes(), entry), None
        if start[8:9] == b"{" or (path.suffix == ".safetensors" and _explain(start) is None):
            data = path.read_bytes()
            return dict(open_containers(_read_safetensors(data), entry)), _metadata(data)
    except UnpickleError as error:
        raise ValueError(f"{path}: {error}. {_CONVERT}") from error
    except NoWeights as error:
        raise ValueError(f"{path}: {error}") from error
    except (*_DAMAGED, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it may be damaged or truncated: {error}") from error
    reason = _explain(start) or "its contents are neither safetensors nor those of torch.save"
    raise ValueError(f"{path} is not a checkpoint: {reason}")


def _metadata(data: bytes) -> dict[str, Any] | None:
    """The metadata of a safetensors file, if `dz.save` wrote it."""
    length = int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][NATIVE])
        if isinstance(metadata["format"], int) and isinstance(metadata["version"], str) and "model" in metadata:
            return metadata
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    return None


def is_storable(dtype: Any) -> bool:
    """Whether safetensors supports this dtype."""
    return dtype in map(np.dtype, _SAFETENSORS_DTYPES.values())


def _explain(start: bytes) -> str | None:
    """Describes the kind of a file from its first bytes, if they are recognisable."""
    text = start.lstrip().lower()
    if not start:
        return "it is empty"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, so the download was probably refused or redirected; open the address in a browser"
    if start[:1] == b"\x80":
        return f"it is a plain pickle, and unpickling could run arbitrary code. {_CONVERT}"
    if start[257:262] == b"ustar":
        return f"it is a tar archive, perhaps of a torch before 0.1.12. {_CONVERT}"
    if not any(byte < 9 or 13 < byte < 32 for byte in start):
        return f"it is text that begins with {start.strip()[:40].decode('utf-8', 'replace')!r}"
    return None


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    # Not safetensors.numpy, which does not support bfloat16.
    arrays = {}
    for name, view in safetensors.deserialize(data):
        if view["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} is of type {view['dtype']}; there are: {', '.join(_SAFETENSORS_DTYPES)}")
        arrays[name] = _decode(view["data"], _SAFETENSORS_DTYPES[view["dtype"]]).reshape(view["shape"])
    return arrays


def _read_zip(path: Path, entry: str | None) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        names = [PurePosixPath(name).name for name in entries]
        if "constants.pkl" in names:
            raise ValueError(f"it is a TorchScript archive. {_CONVERT}")
        if names.count("data.pkl") != 1:
            raise ValueError(f"it is a zip archive with {names.count('data.pkl')} entries data.pkl, expected one")
        root = next(name for name in entries if PurePosixPath(name).name == "data.pkl").removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries.values()):
            raise ValueError("it has compressed or encrypted entries, which torch.save does not write")
        # Uncompressed entries without overlaps cannot expand to more than the file's size.
        if sum(info.file_size for info in entries.values()) > path.stat().st_size:
            raise ValueError("its entries claim to be larger than the file")

        def read(name: str) -> bytes:
            if root + name not in entries:
                raise ValueError(f"the entry {name} is missing in it")
            data = archive.read(entries[root + name])
            if len(data) != entries[root + name].file_size:
                raise ValueError(f"the entry {name} is cut off")
            return data

        order = read("byteorder").decode("ascii", "replace") if root + "byteorder" in entries else "little"
        if order not in ("little", "big"):
            raise ValueError(f"its byte order is {order!r}, expected 'little' or 'big'")
        contents = unpickle(io.BytesIO(read("data.pkl")))
        return _resolve(contents, entry, lambda storage: read(f"data/{storage.key}"), order)


def _read_legacy(data: bytes, entry: str | None) -> dict[str, np.ndarray]:
    """The format of torch before 1.6: pickles one after the other, then the storages one after the other."""
    stream = io.BytesIO(data)
    _, protocol, system = (unpickle(stream) for _ in range(3))
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        # Do not show the value: nested tuples, each contained twice in the next, would fill the memory as text.
        raise ValueError(f"it has another version of torch's old format, expected {_LEGACY_PROTOCOL}")
    mentioned: dict[str, Storage] = {}
    contents, keys = unpickle(stream, mentioned), unpickle(stream)
    if not isinstance(keys, list) or not all(type(key) is str and key in mentioned for key in keys):
        raise ValueError("its list of storages does not fit its tensors")
    order = "little" if system.get("little_endian", True) else "big"
    starts: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        numel = int.from_bytes(data[position : position + 8], "little")
        dtype = mentioned[key].dtype
        size = numel * (1 if dtype is None else dtype.itemsize)
        if position + 8 + size > len(data):
            raise ValueError(f"the storage {key} is cut off")
        starts[key] = (position + 8, size)
        position += 8 + size

    def read(storage: Storage) -> memoryview:
        if storage.key not in starts:
            raise ValueError(f"the storage {storage.key} is missing in it")
        start, size = starts[storage.key]
        return memoryview(data)[start : start + size]

    return _resolve(contents, entry, read, order)


def _resolve(
    contents: Any, entry: str | None, read: Callable[[Storage], bytes | memoryview], order: str
) -> dict[str, np.ndarray]:
    weights = open_containers(contents, entry)
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    storages: dict[tuple[str, Any], np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        cached = (storage.key, tensor.dtype)
        if cached not in storages:
            storages[cached] = _decode(read(storage), tensor.dtype, order)
        numbers = storages[cached]
        if storage.dtype is not None and storage.offset + storage.numel > len(numbers):
            raise ValueError(f"{name} lies in a storage of {storage.numel} numbers, of which {len(numbers)} are there")
        arrays[name] = _view(name, tensor, numbers[storage.offset :][: storage.numel])
    return arrays


def _decode(data: bytes | bytearray | memoryview, dtype: Any, order: str = "little") -> np.ndarray:
    dtype = np.dtype(dtype)
    words = np.frombuffer(memoryview(data).toreadonly(), f"{'<' if order == 'little' else '>'}u{dtype.itemsize}")
    return words.astype(f"=u{dtype.itemsize}", copy=False).view(dtype)


def _view(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The tensor as a strided view, after checking that all of it lies within its storage."""
    count = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if count and (last >= len(numbers) or count > len(numbers)):
        raise ValueError(
            f"{name} of size {tensor.size}, stride {tensor.stride} and offset {tensor.offset} does not lie within its"
            f" storage of {len(numbers)} numbers"
        )
    if not count:
        return np.empty(tensor.size, tensor.dtype)
    strides = tuple(step * tensor.dtype.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.size, strides, writeable=False)
