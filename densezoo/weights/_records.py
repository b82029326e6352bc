"""The objects that a torch checkpoint's pickle may request, and their records; nothing in the file is called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np


class UnpickleError(ValueError):
    """The pickle requests something that does not belong beside weights."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global name in the file; nothing is looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Opaque:
    """An object of the file that is neither a tensor nor a plain container: only the name of its class or function."""

    name: Name

    def __str__(self) -> str:
        return f"an object of {str(self.name)[:100]}"


@dataclasses.dataclass(frozen=True)
class Storage:
    """A range of numbers in the file: `numel` of them from `offset`, in the storage named `key`.

    `dtype` is None for an untyped storage, whose `numel` counts bytes.
    """

    key: str
    dtype: np.dtype | None
    numel: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage."""

    storage: Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _names(module: str, **dtypes: Any) -> dict[Name, np.dtype]:
    return {Name(module, name): np.dtype(dtype) for name, dtype in dtypes.items()}


DTYPES = _names(
    "torch",
    float64=np.float64,
    float32=np.float32,
    float16=np.float16,
    bfloat16=ml_dtypes.bfloat16,
    float8_e4m3fn=ml_dtypes.float8_e4m3fn,
    float8_e5m2=ml_dtypes.float8_e5m2,
    int64=np.int64,
    int32=np.int32,
    int16=np.int16,
    int8=np.int8,
    uint64=np.uint64,
    uint32=np.uint32,
    uint16=np.uint16,
    uint8=np.uint8,
    bool=np.bool_,
)
STORAGE_DTYPES: dict[Name, np.dtype | None] = {Name("torch.storage", "UntypedStorage"): None}
for _module in ("torch", "torch.cuda"):
    STORAGE_DTYPES |= _names(
        _module,
        DoubleStorage=np.float64,
        FloatStorage=np.float32,
        HalfStorage=np.float16,
        BFloat16Storage=ml_dtypes.bfloat16,
        LongStorage=np.int64,
        IntStorage=np.int32,
        ShortStorage=np.int16,
        CharStorage=np.int8,
        ByteStorage=np.uint8,
        BoolStorage=np.bool_,
    )
PARAMETER = Name("torch.nn.parameter", "Parameter")


def _ordered_dict(pairs: list | tuple = ()) -> dict:
    result: dict = {}
    for key, value in pairs:
        set_item(result, key, value)
    if pairs:
        # Python 2 wrote a list for one dictionary. Clearing it prevents the file from multiplying it.
        check(type(pairs) is list, "it has a dictionary made of something else than a list of pairs")
        pairs.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None) -> Tensor:
    check(isinstance(storage, Storage), "it has a tensor without a storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise ValueError("it has a tensor without a type")
    check(type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 64, "a tensor has no shape")
    check(all(map(_is_size, (offset, *size, *stride))), "a tensor's offset, size and stride are not whole numbers")
    return Tensor(storage, dtype, offset, size, stride)


def _tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    check(not metadata, "it has a lazily negated or conjugated tensor")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
    check(isinstance(dtype, Name) and dtype in DTYPES and not metadata, "it has a tensor of an unknown type")
    return _tensor(storage, offset, size, stride, DTYPES[dtype])


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Tensor:
    """A tensor of a subclass, or with attributes: `function(*args)` creates the tensor."""
    check(function in TENSORS and type(args) is tuple, "it has a tensor of an unknown kind")
    return TENSORS[function](*args)


def _attribute(owner: Any, name: Any) -> Opaque:
    """A member of an enumeration."""
    check(isinstance(owner, (Name, Opaque)) and type(name) is str, "it asks for an attribute of something else")
    return owner if isinstance(owner, Opaque) else Opaque(owner)


def parameter(data, *_) -> Tensor:
    check(isinstance(data, Tensor), "it has a parameter without a tensor")
    return data


def _size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    check(type(sizes) is tuple, "it has a size that is not a tuple")
    return sizes


def _device(kind: str, index: int | None = None) -> str:
    check(type(kind) is str and len(kind) < 32, "it has a device without a name")
    return kind


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def check(right: bool, wrong: str) -> None:
    # These messages show no values: lists within lists, each twice in the next one, would exhaust memory.
    if not right:
        raise ValueError(wrong)


TENSORS: dict[Name, Callable[..., Tensor]] = {
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): parameter,
}
# The names that the file may request, and their records.
RECORDS: dict[Name, Callable[..., Any]] = TENSORS | {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("collections", "defaultdict"): lambda default=None: {},
    Name("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    Name("builtins", "getattr"): _attribute,
    Name("__builtin__", "getattr"): _attribute,
    Name("torch", "Size"): _size,
    Name("torch", "device"): _device,
}
KNOWN = {*RECORDS, *DTYPES, *STORAGE_DTYPES, PARAMETER}
# These would not be executed either, but a file that requests them was made to run code, so the user should know.
PROGRAMS = {
    *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "ctypes", "importlib", "runpy", "pty", "code"),
    *("io", "_io", "pickle", "_pickle", "webbrowser", "builtins", "__builtin__"),
}
BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"),
    *("slice", "str", "tuple", "type"),
)


def set_item(target: dict, key: Any, value: Any) -> None:
    # Hashing a tuple of tuples of tuples visits everything, which a file could make take forever. Weights have no such
    # names, so these entries are skipped.
    if type(key) in (str, int, float, bool, bytes, type(None)):
        target[key] = value
    else:
        check(type(key) in (tuple, Name, Opaque), "a dictionary's key is not a name or a number")


def storage_of(identity: Any) -> Storage:
    check(type(identity) is tuple and len(identity) in (5, 6) and identity[0] == "storage", "it refers to no storage")
    _, name, key, _, numel, *view = list[Any](identity)
    check(isinstance(name, Name) and name in STORAGE_DTYPES and _is_size(numel), "a storage has no type or size")
    check(type(key) in (str, int), "a storage has no key")
    storage = Storage(str(key), STORAGE_DTYPES[name], numel)
    if view and view[0] is not None:
        _, offset, size = view[0]
        check(_is_size(offset) and _is_size(size) and offset + size <= numel, "a part of a storage lies outside of it")
        storage = dataclasses.replace(storage, numel=size, offset=offset)
    return storage
