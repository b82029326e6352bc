"""Checkpoint files: torch's are read, damaged and malicious ones raise one clear error."""

import argparse
import io
import json
import os
import pickle
import random
import runpy
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from densezoo.weights import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]


def plain(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def tensors(*records):
    """A pickled dictionary {"w0": ..., "w1": ...} of records (key, kind, numel, offset, size, stride)."""
    body = b"\x80\x02}("
    for index, (key, kind, numel, offset, size, stride) in enumerate(records):
        run = (
            b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cuda:0") + plain(numel) + b"tQ"
        )
        arguments = plain(offset) + plain(size) + plain(stride) + plain(False) + b"ccollections\nOrderedDict\n)R"
        body += plain(f"w{index}") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + run + arguments + b"tR"
    return body + b"u."


def write_zip(path, contents, storages=(), compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("anything/data.pkl", contents)
        for key, data in dict(storages).items():
            archive.writestr(f"anything/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(f"anything/{name}", data)
    return path


def refused(path, match=None):
    with pytest.raises(ValueError, match=match) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    return str(error.value)


ONE = ("0", "FloatStorage", 6, 0, (2, 3), (3, 1))
NUMBERS = np.arange(6, dtype="<f4").tobytes()


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "tensors.safetensors"])
def test_reads_what_torch_writes(name):
    base = seeded("base", (2, 3, 4))
    arrays = read_checkpoint(GOLDEN / name)
    expected = {
        "float32": base,
        "permuted": base.transpose(2, 0, 1),
        "strided": base[1:, ::2, 1:3],
        "parameter": base[0],
        "float16": base.astype(np.float16),
        "bfloat16": base.astype(ml_dtypes.bfloat16),
        "float64": base.astype(np.float64),
        "int64": np.arange(5),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert set(arrays) == set(expected)
    assert not any(array.flags.writeable for array in arrays.values() if array.size)
    for key, array in expected.items():
        assert arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(arrays[key], array, strict=True)


def test_reads_untyped_storages():
    expected = seeded("base", (2, 3, 4)).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(read_checkpoint(GOLDEN / "float8.pth")["float8"], expected)


def test_contents_decide_not_the_name(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes((GOLDEN / "tensors.safetensors").read_bytes())
    assert "bfloat16" in read_checkpoint(str(path))


def test_a_safetensors_file_that_begins_like_an_archive(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, path, metadata={"x": "a" * 19194})
    assert path.read_bytes().startswith(b"PK")
    assert list(read_checkpoint(path)) == ["w"]


def test_big_endian(tmp_path):
    path = write_zip(tmp_path / "w.pth", tensors(ONE), {"0": np.arange(6, dtype=">f4").tobytes()}, byteorder="big")
    assert read_checkpoint(path)["w0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    refused(write_zip(tmp_path / "v.pth", tensors(ONE), {"0": NUMBERS}, byteorder="middle"), "byte order")


def test_containers_and_entries(tmp_path):
    inner = tensors(ONE)[2:-1]
    for key in ("state_dict", "model_state_dict", "model"):
        contents = b"\x80\x02}(" + plain("epoch") + plain(3) + plain(key) + inner + b"u."
        assert list(read_checkpoint(write_zip(tmp_path / "w.pth", contents, {"0": NUMBERS}))) == ["w0"]
    alone = plain("generator") + inner
    assert list(read_checkpoint(write_zip(tmp_path / "w.pth", b"\x80\x02}(" + alone + b"u.", {"0": NUMBERS}))) == ["w0"]
    two = b"\x80\x02}(" + alone + plain("discriminator") + inner + b"u."
    path = write_zip(tmp_path / "w.pth", two, {"0": NUMBERS})
    refused(path, "'generator', 'discriminator'; of these, these have some, choose one by entry=")
    assert list(read_checkpoint(path, entry="generator")) == ["w0"]
    with pytest.raises(ValueError, match=r"no entry 'ema'.*'generator'"):
        read_checkpoint(path, entry="ema")
    with pytest.raises(ValueError, match=r"no entry 'ema'; there are"):
        read_checkpoint(GOLDEN / "tensors.safetensors", entry="ema")
    refused(write_zip(tmp_path / "l.pth", b"\x80\x02]."), "found a list")
    # A dictionary that contains itself.
    refused(write_zip(tmp_path / "s.pth", b"\x80\x02}q\x01" + plain("state_dict") + b"h\x01s."), "within each other")


def test_no_message_shows_what_would_fill_the_memory(tmp_path):
    # Tuples, each of which contains the previous one twice.
    doubling = b"\x80\x02)" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(40)) + b"."
    path = tmp_path / "w.pth"
    path.write_bytes(LEGACY_START[: -len(pickle.dumps(1001, 2))] + doubling + pickle.dumps({}, 2))
    assert len(refused(path, "version of torch's old format")) < 1000


@pytest.mark.parametrize("legacy", [False, True])
def test_executes_nothing_and_says_how_to_convert(legacy, tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "w.pth"
    contents = pickle.dumps({"conv1.weight": Attack()}, 2)
    if legacy:
        path.write_bytes(LEGACY_START + pickle.dumps({"little_endian": True}, 2) + contents)
    else:
        write_zip(path, contents)
    message = refused(path, "system")
    assert "nothing was executed" in message
    assert "torch.save(model.state_dict()" in message
    # The same in what comes before the contents.
    path.write_bytes(LEGACY_START + contents)
    refused(path, "nothing was executed")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (("0", "FloatStorage", 6, 1, (2, 3), (3, 1)), "does not lie within"),
        (("0", "FloatStorage", 6, 0, (2, 3), (4, 1)), "does not lie within"),
        (("0", "FloatStorage", 6, 0, (2**31, 2**31), (0, 0)), "does not lie within"),
        (("0", "FloatStorage", 6, 6, (1,), (1,)), "does not lie within"),
        (("0", "FloatStorage", 2**40, 0, (2, 3), (3, 1)), "of which 6 are there"),
        (("0", "DoubleStorage", 6, 0, (2, 3), (3, 1)), "of which 3 are there"),
        (("1", "FloatStorage", 6, 0, (2, 3), (3, 1)), "missing"),
        (("../data.pkl", "FloatStorage", 6, 0, (2, 3), (3, 1)), "missing"),
        (("0", "FloatStorage", 5, 0, (2, 3), (3, 1)), "does not lie within"),
    ],
)
def test_tensors_outside_of_their_storage(record, match, tmp_path):
    refused(write_zip(tmp_path / "w.pth", tensors(record), {"0": NUMBERS}), match)


def test_tensors_may_share_a_storage(tmp_path):
    path = write_zip(tmp_path / "w.pth", tensors(ONE, ("0", "FloatStorage", 6, 4, (2,), (1,))), {"0": NUMBERS})
    assert read_checkpoint(path)["w1"].tolist() == [4, 5]


def test_legacy_storages(tmp_path):
    start = LEGACY_START + pickle.dumps({"little_endian": True}, 2) + tensors(ONE)
    path = tmp_path / "w.pth"
    path.write_bytes(start + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + NUMBERS)
    assert read_checkpoint(path)["w0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for end, match in (
        (pickle.dumps(["0"], 2) + struct.pack("<q", 6) + NUMBERS[:-1], "cut off"),
        (pickle.dumps(["0"], 2) + struct.pack("<q", 2**62) + NUMBERS, "cut off"),
        (pickle.dumps(["0"], 2) + struct.pack("<q", 5) + NUMBERS, "of which 5 are there"),
        (pickle.dumps(["7"], 2) + struct.pack("<q", 6) + NUMBERS, "does not fit"),
        (pickle.dumps([], 2), "missing"),
    ):
        path.write_bytes(start + end)
        refused(path, match)


def test_zip_bombs(tmp_path):
    zeros = ("0", "FloatStorage", 10**7, 0, (10**7,), (1,))
    path = write_zip(tmp_path / "w.pth", tensors(zeros), {"0": bytes(4 * 10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    tracemalloc.start()
    refused(path, "compressed")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    # Entries that claim more than there is, in the central directory.
    data = bytearray(write_zip(tmp_path / "v.pth", tensors(ONE), {"0": NUMBERS}).read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 20 : directory + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "v.pth").write_bytes(data)
    refused(tmp_path / "v.pth", "larger than the file")


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "web page"),
        (b"\n<html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"hello world\n", "text that begins with 'hello world'"),
        (pickle.dumps({"w": 1}), "plain pickle.*torch.save"),
        (bytes(range(256)), "neither"),
        (b"PK\x03\x04 and then nothing", "truncated"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_of_another_kind(contents, match, name, tmp_path):
    if contents[:1] == b"\x00" and name.endswith("safetensors"):
        match = "cannot be read"
    path = tmp_path / name
    path.write_bytes(contents)
    refused(path, match)


def test_archives_of_another_kind(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    refused(tmp_path / "w.npz", "0 entries data.pkl")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    refused(tmp_path / "empty.zip", "0 entries data.pkl")
    refused(write_zip(tmp_path / "w.pt", tensors(ONE), **{"constants.pkl": b"", "code/a.py": b""}), "TorchScript")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refused(tmp_path / "w.tar", "tar archive")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_checkpoint(tmp_path / "nothing.pth")
    refused(tmp_path, "is a folder")


def test_safetensors_of_unknown_types(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    refused(tmp_path / "w.safetensors", "F8_E8M0")


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "tensors.safetensors"])
def test_truncated_and_damaged(name, tmp_path):
    data = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    for length in {*range(1, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:length])
        refused(path)
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)


def test_arrays_can_be_large(tmp_path):
    array = np.arange(300_000, dtype=np.float32).reshape(3, 100_000)
    save_file({"w": array}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "w.safetensors")["w"], array)


def test_objects_beside_the_weights(tmp_path):
    objects = {"args": argparse.Namespace(lr=0.1, out=Path("out")), "best": np.float64(0.5), "mean": np.ones(3)}
    contents = b"\x80\x02}(" + plain("state_dict") + tensors(ONE)[2:-1]
    for key, value in objects.items():
        contents += plain(key) + plain(value)
    contents += b"u."
    zipped = write_zip(tmp_path / "w.pth", contents, {"0": NUMBERS})
    assert read_checkpoint(zipped)["w0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    start = LEGACY_START + pickle.dumps({"little_endian": True}, 2) + contents
    (tmp_path / "old.pth").write_bytes(start + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + NUMBERS)
    assert list(read_checkpoint(tmp_path / "old.pth")) == ["w0"]
    # Nothing but such an object.
    refused(write_zip(tmp_path / "v.pth", pickle.dumps(objects["args"], 2), {}), "an object of argparse.Namespace")


def shards(folder, weight_map, index="model.safetensors.index.json"):
    """Writes an index; shard `a.safetensors` has w0 and w1, `b.safetensors` w2."""
    folder.mkdir(exist_ok=True)
    for file, names in {"a.safetensors": ("w0", "w1"), "b.safetensors": ("w2",)}.items():
        save_file({name: np.full(2, int(name[1]), np.float32) for name in names}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


WEIGHT_MAP = {"w0": "a.safetensors", "w2": "b.safetensors", "w1": "a.safetensors"}


def test_several_files_with_an_index(tmp_path):
    folder = shards(tmp_path / "f", WEIGHT_MAP)
    for path in (folder, str(folder), folder / "model.safetensors.index.json"):
        assert {name: array.tolist() for name, array in read_checkpoint(path).items()} == {
            f"w{i}": [i, i] for i in range(3)
        }
    folder = shards(tmp_path / "g", WEIGHT_MAP, "pytorch_model.bin.index.json")
    write_zip(folder / "c.bin", tensors(ONE), {"0": NUMBERS})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w0": "c.bin"}}))
    assert read_checkpoint(folder)["w0"].shape == (2, 3)
    (folder / "c.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs 1 files, of which 1 are missing: c\.bin"):
        read_checkpoint(folder)
    save_file({"w7": np.zeros(1)}, folder / "model.safetensors")
    assert list(read_checkpoint(folder)) == ["w7"]


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"w0": "../secret.safetensors"}, "not in its folder; nothing was read"),
        ({"w0": "/etc/passwd"}, "not in its folder"),
        ({"w0": "C:\\x"}, "not in its folder"),
        ({"w0": "a/../../x"}, "not in its folder"),
        ({"w0": ""}, "not in its folder"),
        ({"w0": 3}, "no names of files"),
        ([], "no names of files"),
        (None, "no names of files"),
        ({"w2": "a.safetensors"}, "lists arrays of a.safetensors that are not in it: w2"),
    ],
)
def test_an_index_that_cannot_be(weight_map, match, tmp_path):
    refused(shards(tmp_path / "f", weight_map) / "model.safetensors.index.json", match)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "not a regular file")
