"""Nothing in a pickle is executed; torch's files are read."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import enum
import io
import os
import pathlib
import pickle
import random
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from densezoo.weights._unpickle import Opaque, Storage, Tensor, UnpickleError, unpickle

STOP = b"."
HOOKS = b"ccollections\nOrderedDict\n)R"


def plain(value):
    """The opcodes that create a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(kind=b"ctorch\nFloatStorage\n", key="0", numel=6, view=b""):
    return b"(" + plain("storage") + kind + plain(key) + plain("cpu") + plain(numel) + view + b"tQ"


def tensor(offset=0, size=(2, 3), stride=(3, 1), run=None):
    arguments = plain(offset) + plain(size) + plain(stride) + plain(False) + HOOKS
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (run or storage()) + arguments + b"tR"


def read(opcodes):
    return unpickle(io.BytesIO(opcodes + STOP))


def test_reads_a_dictionary_of_tensors():
    opcodes = b"\x80\x02" + HOOKS + b"(" + plain("w") + tensor(offset=1) + plain("n") + plain(3) + b"u"
    opcodes += plain({"_metadata": {"": {"version": 2}}}) + b"b"
    run = Storage("0", np.dtype(np.float32), 6)
    assert read(opcodes) == {"w": Tensor(run, np.dtype(np.float32), 1, (2, 3), (3, 1)), "n": 3}


def test_stops_behind_one_pickle_and_collects_storages():
    stream = io.BytesIO(tensor() + STOP + b"rest")
    storages = {}
    unpickle(stream, storages)
    assert stream.read() == b"rest"
    assert list(storages) == ["0"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol(protocol):
    value = {"a": [1, -2, 3.5, None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "ä": {"b": 2**70}, 4: "x"}
    assert unpickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_names_by_stack():
    found = read(tensor(run=storage(kind=plain("torch") + plain("BFloat16Storage") + b"\x93")))
    assert found.dtype == ml_dtypes.bfloat16


def test_old_forms():
    run = Storage("0", np.dtype(np.float32), 6)
    expected = Tensor(run, np.dtype(np.float32), 0, (2, 3), (3, 1))
    old = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + plain(0) + plain((2, 3)) + plain((3, 1)) + b"tR"
    assert read(old) == expected
    parameter = b"ctorch.nn.parameter\nParameter\n"
    assert read(parameter + b"(" + old + b"t\x81" + plain((True, False, {})) + b"b") == expected
    assert read(parameter + b")\x81(" + old + plain(True) + plain(False) + b"Nt" + b"b") == expected
    assert read(b"ctorch._utils\n_rebuild_parameter\n(" + old + plain(True) + HOOKS + b"tR") == expected
    python2 = b"ccollections\nOrderedDict\n(](](U\x01w" + old + b"eetR"
    assert read(python2) == {"w": expected}
    part = read(tensor(offset=0, size=(2,), stride=(1,), run=storage(view=plain(("1", 3, 2)))))
    assert part.storage == Storage("0", np.dtype(np.float32), 2, offset=3)


class Call:
    """Pickles as a call of an arbitrary function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, print, __import__, os.unlink, pickle.loads, open])
def test_calls_nothing(function, protocol, tmp_path):
    marker = tmp_path / "marker"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    with pytest.raises((UnpickleError, ValueError)):
        unpickle(io.BytesIO(pickle.dumps({"w": Call(function, argument)}, protocol)))
    assert not marker.exists()


def test_says_which_name_was_asked_for():
    with pytest.raises(UnpickleError, match=r"asks for builtins\.eval, .* nothing was executed"):
        read(b"cbuiltins\neval\n(" + plain("1") + b"tR")


NAMES = [
    ("collections", "OrderedDict.__init__"),
    ("collections", "OrderedDict.__reduce__.__globals__"),
    ("densezoo.weights._unpickle", "pickletools.sys.modules"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch FloatStorage", "x"),
    ("copyreg", "_reconstructor"),
    ("argparse", "Namespace"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_other_names_stay_names(module, name):
    for mention in (plain(module) + plain(name) + b"\x93", f"c{module}\n{name}\n".encode()):
        for call in (b")R", b")\x81", b")}\x92", b")R" + plain({"a": 1}) + b"b", b")R]K\x01ab", b")R(K\x01K\x02u"):
            found = read(mention + call)
            assert isinstance(found, Opaque) and str(found).startswith("an object of ")


@pytest.mark.parametrize(
    ("module", "name"), [("torch._utils", "_rebuild_tensor_v2.__globals__"), ("builtins", "getattr"), ("os", "system")]
)
def test_names_that_do_not_belong_there(module, name):
    for mention in (plain(module) + plain(name) + b"\x93", f"c{module}\n{name}\n".encode()):
        with pytest.raises((UnpickleError, ValueError)):
            read(mention + b")R")


class Kind(enum.Enum):
    ONE = 1


def opaque_objects():
    """Objects that training scripts store beside the weights."""
    return {
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("out"), nested=argparse.Namespace()),
        "best": np.float64(0.5),
        "mean": np.ones(3, np.float32),
        "date": datetime.datetime(2024, 1, 2),
        "kind": Kind.ONE,
        "tags": {"a", "b"},
        "frozen": frozenset({1}),
        "by_size": {(1, 2): 3},
        "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"a": [1]}),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_beside_the_weights_become_records(protocol):
    found = unpickle(io.BytesIO(pickle.dumps(opaque_objects(), protocol)))
    assert found.pop("by_size") == {} and found.pop("groups") == {"a": [1]}
    assert set(found) | {"by_size", "groups"} == set(opaque_objects())
    for key, record in found.items():
        assert isinstance(record, Opaque), key
    assert str(found["args"]) == "an object of argparse.Namespace"


def test_tensors_with_attributes():
    function = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch._tensor\nTensor\n("
    arguments = storage() + plain(0) + plain((2, 3)) + plain((3, 1)) + plain(False) + HOOKS
    assert read(function + arguments + b"t" + plain({}) + b"tR") == read(tensor())
    with pytest.raises(ValueError, match="unknown kind"):
        read(function.replace(b"torch._utils\n_rebuild_tensor_v2", b"posixpath\njoin") + b"tNtR")


def test_extension_registry_is_not_asked(tmp_path):
    marker = tmp_path / "marker"
    copyreg.add_extension("posix", "system", 200)
    try:
        opcodes = pickle.dumps(Call(os.system, f"touch {marker}"), protocol=2)
        assert b"\x82\xc8" in opcodes  # EXT1 200
        with pytest.raises(UnpickleError, match="EXT1"):
            unpickle(io.BytesIO(opcodes))
    finally:
        copyreg.remove_extension("posix", "system", 200)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("what", "opcodes"),
    [
        ("INST", b"(" + plain("true") + b"ios\nsystem\n"),
        ("OBJ", b"(ccollections\nOrderedDict\no"),
        ("NEWOBJ_EX", b"ccollections\nOrderedDict\n)}\x92"),
        ("PERSID", b"P0\n"),
        ("REDUCE of text", plain("os.system") + b")R"),
        ("REDUCE of a type of storage", b"ctorch\nFloatStorage\n)R"),
        ("REDUCE of a class that may only be made by NEWOBJ", b"ctorch.nn.parameter\nParameter\n)R"),
        ("REDUCE without a tuple", b"ctorch\ndevice\n" + plain(["cpu"]) + b"R"),
        ("NEWOBJ of a function", b"ctorch._utils\n_rebuild_tensor_v2\n)\x81"),
        ("NEWOBJ of a dictionary", b"ccollections\nOrderedDict\n)\x81"),
        ("BUILD on a function", b"ctorch._utils\n_rebuild_tensor_v2\n" + plain({"__code__": 1}) + b"b"),
        ("BUILD on a function, slots", b"ctorch\nSize\n" + plain((None, {"__defaults__": (1,)})) + b"b"),
        ("BUILD on a class", b"ctorch.nn.parameter\nParameter\n" + plain({"__new__": 1}) + b"b"),
        ("BUILD on a list", b"]" + plain({"append": 1}) + b"b"),
        ("SETITEM on a name", b"ctorch\nSize\n" + plain("a") + plain(1) + b"s"),
        ("APPEND on a dictionary", b"}" + plain(1) + b"a"),
        ("a module", b"(" + plain("module") + b"ctorch\nSize\n" + plain("file.py") + plain("code") + b"tQ"),
        ("a storage that is none", b"(" + plain("storage") + b"ctorch\nSize\n" + plain("0") + b"NK\x06tQ"),
        ("a list as a key", b"}]K\x01s"),
        ("nothing on the stack", b"R"),
        ("no mark", b"t"),
        ("an empty memo", b"h\x05"),
    ],
)
def test_refuses(what, opcodes):
    with pytest.raises((UnpickleError, ValueError)):
        read(opcodes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": -1},
        {"size": (2, -3)},
        {"size": (2, 3), "stride": (1,)},
        {"size": (2.0, 3)},
        {"size": [2, 3]},
        {"size": (True, 3)},
        {"size": (2**63, 1)},
        {"size": (1,) * 65, "stride": (1,) * 65},
        {"stride": (-3, 1)},
        {"run": plain(b"123456")},
        {"run": storage(numel=-6)},
        {"run": storage(numel=2**63)},
        {"run": storage(view=plain(("1", 4, 3)))},
        {"run": storage(view=plain(("1", -1, 3)))},
    ],
)
def test_refuses_tensors_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        read(tensor(**wrong))


def test_memory_stays_in_proportion_to_the_file():
    tracemalloc.start()
    # Each list twice in the next: as text, or as a key, this would be 2**60 long.
    doubling = b"]q\x00" + b"".join(b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(60))
    for opcodes in (doubling + plain(1) + b"b", b"}" + doubling + plain(1) + b"s", doubling + b")R", doubling + b"Q"):
        with pytest.raises(ValueError) as error:
            read(opcodes)
        assert len(str(error.value)) < 1000
    # A large place in the memo, and a text that claims 4 GB.
    assert read(plain(1) + b"r\xff\xff\xff\xff") == 1
    with pytest.raises(ValueError):
        read(b"X" + struct.pack("<I", 2**32 - 1) + b"short")
    with pytest.raises(ValueError):
        read(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"short")
    # One list of pairs made into a dictionary again and again.
    pairs = b"](" + b"".join(b"(" + plain(i) + b"Nt" for i in range(1000)) + b"eq\x01"
    result = read(b"](" + pairs + b"ccollections\nOrderedDict\nh\x01\x85R" * 1000 + b"e")
    assert sum(len(item) for item in result[1:]) == 1000
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_damage_is_a_value_error():
    generator = random.Random(0)
    good = HOOKS + b"(" + plain("w") + tensor() + plain("b") + tensor(size=(6,), stride=(1,)) + b"u" + STOP
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with contextlib.suppress(ValueError):
            unpickle(io.BytesIO(bytes(damaged[: generator.randint(1, len(damaged))])))
