"""Reads the pickle in a torch checkpoint without executing any of it.

Python's unpickler makes objects by calling whatever a file names. Nothing here is called on a file's behalf: this is a
loop over the few opcodes that a dictionary of tensors needs. A name in the file stays a name, which may only be one of
the tables below, and what it stands for is a record that says where in the file a tensor lies. Every other name and
every other opcode is an error.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np


class UnpickleError(ValueError):
    """The pickle holds more than tensors in plain containers."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global name that the file mentions; only a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the file: `numel` of them from `offset`, in the storage named `key`.

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


_DTYPES = _names(
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
_STORAGE_DTYPES: dict[Name, np.dtype | None] = {Name("torch.storage", "UntypedStorage"): None}
for _module in ("torch", "torch.cuda"):
    _STORAGE_DTYPES |= _names(
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
_PARAMETER = Name("torch.nn.parameter", "Parameter")


def _ordered_dict(pairs: list | tuple = ()) -> dict:
    result: dict = {}
    for key, value in pairs:
        _set_item(result, key, value)
    if pairs:
        # Python 2 wrote a list for one dictionary. Emptied, it cannot be multiplied into as many as the file likes.
        _check(type(pairs) is list, "it has a dictionary made of something else than a list of pairs")
        pairs.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype | None = None) -> Tensor:
    _check(isinstance(storage, Storage), "it has a tensor without a storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise ValueError("it has a tensor without a type")
    _check(type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 64, "a tensor has no shape")
    _check(all(map(_is_size, (offset, *size, *stride))), "a tensor's offset, size and stride are not whole numbers")
    return Tensor(storage, dtype, offset, size, stride)


def _tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    _check(not metadata, "it has a lazily negated or conjugated tensor")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
    _check(isinstance(dtype, Name) and dtype in _DTYPES and not metadata, "it has a tensor of an unknown type")
    return _tensor(storage, offset, size, stride, _DTYPES[dtype])


def _parameter(data, *_) -> Tensor:
    _check(isinstance(data, Tensor), "it has a parameter without a tensor")
    return data


def _size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    _check(type(sizes) is tuple, "it has a size that is not a tuple")
    return sizes


def _device(kind: str, index: int | None = None) -> str:
    _check(type(kind) is str and len(kind) < 32, "it has a device without a name")
    return kind


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _check(right: bool, wrong: str) -> None:
    # These messages do not show values: lists within lists, each twice in the next, would fill the memory.
    if not right:
        raise ValueError(wrong)


# What the file may ask for, and the record that it gets.
_RECORDS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("torch", "Size"): _size,
    Name("torch", "device"): _device,
}
_KNOWN = {*_RECORDS, *_DTYPES, *_STORAGE_DTYPES, _PARAMETER}


def unpickle(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle from a stream in memory and stops right behind it.

    Args:
        stream: the bytes, all of them in memory.
        storages: is filled with the storages that the pickle mentions.

    Returns:
        Dicts, lists, tuples, numbers and strings, with a `Tensor` record for every tensor.

    Raises:
        UnpickleError: the pickle asks for anything that the tables above do not have.
        ValueError: the pickle is damaged.
    """
    try:
        return _run(stream, {} if storages is None else storages)
    except UnpickleError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, Warning) as error:
        raise ValueError(f"the pickle in it is damaged ({error})") from error


def _run(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(arg)
            case "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(arg)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                _container(stack, list).append(item)
            case "APPENDS":
                items = since_mark()
                _container(stack, list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_item(_container(stack, dict), key, value)
            case "SETITEMS":
                items = since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set_item(_container(stack, dict), key, value)
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                module, _, name = arg.partition(" ")
                stack.append(_name(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "REDUCE":
                args, name = stack.pop(), stack.pop()
                _check(isinstance(name, Name) and name in _RECORDS, "it calls something that is not a function")
                _check(type(args) is tuple, "it calls a function without arguments")
                stack.append(_RECORDS[name](*args))
            case "NEWOBJ":
                # Parameters of torch before 0.4: the tensor comes as an argument or in the state.
                args, name = stack.pop(), stack.pop()
                _check(name == _PARAMETER and type(args) is tuple, "it makes an object that is not a parameter")
                stack.append(_parameter(*args) if args else _PARAMETER)
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if target == _PARAMETER:
                    _check(type(state) is tuple, "it has a parameter without a tensor")
                    stack[-1] = _parameter(*state)
                else:
                    # A state_dict's `_metadata`, or whether a parameter trains: neither is needed.
                    _check(type(target) in (dict, Tensor), "it sets the state of something that has none")
            case "BINPERSID":
                storage = _storage(stack.pop())
                storages.setdefault(storage.key, storage)
                stack.append(storage)
            case other:
                raise UnpickleError(
                    f"the pickle in it uses {other}, which no dictionary of tensors needs; nothing was executed"
                )
    raise ValueError("it has no end")


def _name(module: Any, name: Any) -> Name:
    _check(type(module) is str and type(name) is str, "it names a global by something that is not text")
    found = Name(module, name)
    if found not in _KNOWN:
        raise UnpickleError(
            f"the pickle in it asks for {str(found)[:200]}, which does not belong in a dictionary of tensors;"
            " nothing was executed"
        )
    return found


def _container(stack: list[Any], kind: type) -> Any:
    _check(type(stack[-1]) is kind, f"it fills a {type(stack[-1]).__name__} as if it were a {kind.__name__}")
    return stack[-1]


def _set_item(target: dict, key: Any, value: Any) -> None:
    # A tuple of tuples of tuples would be hashed through and through, which a file could make take forever.
    _check(type(key) in (str, int, float, bool, bytes, type(None)), "a dictionary's key is not a name or a number")
    target[key] = value


def _storage(identity: Any) -> Storage:
    _check(type(identity) is tuple and len(identity) in (5, 6) and identity[0] == "storage", "it refers to no storage")
    _, name, key, _, numel, *view = list[Any](identity)
    _check(isinstance(name, Name) and name in _STORAGE_DTYPES and _is_size(numel), "a storage has no type or size")
    _check(type(key) in (str, int), "a storage has no key")
    storage = Storage(str(key), _STORAGE_DTYPES[name], numel)
    if view and view[0] is not None:
        _, offset, size = view[0]
        _check(_is_size(offset) and _is_size(size) and offset + size <= numel, "a part of a storage lies outside of it")
        storage = dataclasses.replace(storage, numel=size, offset=offset)
    return storage
