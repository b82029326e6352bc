"""Reads the pickle in a torch checkpoint without executing it.

Python's unpickler creates objects by calling whatever a file names. This reader calls nothing that a file names. It is
a loop over the few opcodes that a dictionary of tensors needs. Names in the tables below become records of where a
tensor is stored in the file. Any other object, such as the options of a training script, becomes an `Opaque` record
that only keeps its class's name. Names that can run code, and opcodes that torch does not write, are errors.
"""

import pickletools
from typing import Any, BinaryIO

from densezoo.weights._records import (
    BUILTINS,
    KNOWN,
    PARAMETER,
    PROGRAMS,
    RECORDS,
    Name,
    Opaque,
    Storage,
    Tensor,
    UnpickleError,
    check,
    parameter,
    set_item,
    storage_of,
)

__all__ = ["Opaque", "Storage", "Tensor", "UnpickleError", "unpickle"]

_SET = Opaque(Name("builtins", "set"))


def unpickle(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle from a stream in memory and stops right after it.

    Args:
        stream: the bytes, all of them in memory.
        storages: is filled with the storages in the pickle.

    Returns:
        Dicts, lists, tuples, numbers and strings, with a `Tensor` record for every tensor and an `Opaque` one for every
        other object. Dictionary entries whose keys are neither text nor numbers are skipped.

    Raises:
        UnpickleError: if the pickle requests code or an unknown kind of tensor, or uses an opcode that torch does not
          write.
        ValueError: if the pickle is damaged.
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
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(arg)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(arg)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
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
            case "EMPTY_SET":
                stack.append(_SET)
            case "FROZENSET":
                since_mark()
                stack.append(_SET)
            case "ADDITEMS":
                since_mark()
                check(isinstance(stack[-1], Opaque), "it fills something that is not a set")
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                if not isinstance(stack[-1], Opaque):
                    _container(stack, list).append(item)
            case "APPENDS":
                items = since_mark()
                if not isinstance(stack[-1], Opaque):
                    _container(stack, list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                if not isinstance(stack[-1], Opaque):
                    set_item(_container(stack, dict), key, value)
            case "SETITEMS":
                items = since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if not isinstance(stack[-1], Opaque):
                        set_item(_container(stack, dict), key, value)
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
                check(type(args) is tuple, "it calls a function without arguments")
                if isinstance(name, Name) and name in RECORDS:
                    stack.append(RECORDS[name](*args))
                else:
                    stack.append(_opaque(name, "it calls something that is not a function"))
            case "NEWOBJ" | "NEWOBJ_EX":
                if opcode.name == "NEWOBJ_EX":
                    check(type(stack.pop()) is dict, "it makes an object without arguments")
                args, name = stack.pop(), stack.pop()
                check(type(args) is tuple, "it makes an object without arguments")
                if name == PARAMETER and opcode.name == "NEWOBJ":
                    # Before torch 0.4, the tensor is an argument or in the state.
                    stack.append(parameter(*args) if args else PARAMETER)
                else:
                    stack.append(_opaque(name, "it makes an object of something that is not a class"))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if target == PARAMETER:
                    check(type(state) is tuple, "it has a parameter without a tensor")
                    stack[-1] = parameter(*state)
                else:
                    # A state_dict's `_metadata`, or whether a parameter is trained: neither is needed.
                    check(type(target) in (dict, Tensor, Opaque), "it sets the state of something that has none")
            case "BINPERSID":
                storage = storage_of(stack.pop())
                storages.setdefault(storage.key, storage)
                stack.append(storage)
            case other:
                raise UnpickleError(f"the pickle in it uses {other}, which torch does not write; nothing was executed")
    raise ValueError("it has no end")


def _name(module: Any, name: Any) -> Name:
    check(type(module) is str and type(name) is str, "it names a global by something that is not text")
    found = Name(module, name)
    package = module.partition(".")[0]
    harmless = package not in PROGRAMS or (package in ("builtins", "__builtin__") and name in BUILTINS)
    # The other functions in torch's `_utils` create kinds of tensors that are not supported.
    if found not in KNOWN and (not harmless or module == "torch._utils"):
        raise UnpickleError(
            f"the pickle in it asks for {str(found)[:200]}, which does not belong beside weights; nothing was executed"
        )
    return found


def _opaque(name: Any, wrong: str) -> Opaque:
    """The record of an object that is created by `name`, a class, a function or another object."""
    if isinstance(name, Opaque):
        return name
    check(isinstance(name, Name) and name not in KNOWN, wrong)
    return Opaque(name)


def _container(stack: list[Any], kind: type) -> Any:
    check(type(stack[-1]) is kind, f"it fills a {type(stack[-1]).__name__} as if it were a {kind.__name__}")
    return stack[-1]
