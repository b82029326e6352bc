"""Damaged and hostile files: every reader returns a result or raises a ValueError or an OSError that names the file.

`python -m benchmarks.hostile_files` reads more files and counts what comes of them.
"""

import io
import json
import logging
import random
import struct
import warnings

import numpy as np
import pytest
import tifffile

from benchmarks import hostile_changes, hostile_formats, hostile_torch
from benchmarks.hostile_files import attack, outcome, prepare, row
from benchmarks.hostile_readers import Reader
from densezoo.encoders.base import ENCODERS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, known = tmp_path_factory.mktemp("hostile"), dict(ENCODERS)
    yield folder, prepare(folder)
    ENCODERS.clear()  # of the encoder that `prepare` registers
    ENCODERS.update(known)


def test_every_reader_returns_or_says_why(prepared):
    folder, readers = prepared
    for name, reader in readers.items():
        slow = "from_hub" in name or name in ("log.jsonl", "start_from", "model file") or "checkpoint" in name
        outcomes = attack(name, reader, folder, 2 if slow else 10)
        assert slow or outcomes["read"] < outcomes.total(), name


def replaced(old, new):
    def change(content):
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return change


def with_tag(tag, value):
    """Sets the first number of a tag of a TIFF file."""

    def change(content):
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            found = tiff.pages.first.tags[tag]
        order = "<" if content[:2] == b"II" else ">"
        data = bytearray(content)
        if isinstance(value, float):
            struct.pack_into(order + "H", data, found.offset + 2, 11)
        kind = "f" if isinstance(value, float) else {3: "H", 4: "I"}[int(found.dtype)]
        struct.pack_into(order + kind, data, found.valueoffset, value)
        return bytes(data)

    return change


def with_metadata(name, value):
    """Sets an entry of the description in a file of `dz.save`."""

    def change(content):
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = json.loads(header["__metadata__"]["densezoo"]) | {name: value}
        header["__metadata__"]["densezoo"] = json.dumps(metadata)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return change


LONG = "1" + 400 * "0"  # finite, but no float
DIGITS = "9" * 5000  # more than Python converts


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("tiles.tif by windows", with_tag("TileWidth", 0), "in strips or tiles of"),
        ("lzw.tif by windows", with_tag("RowsPerStrip", 0), "in strips or tiles of"),
        ("lzw.tif by windows", with_tag("RowsPerStrip", 9.0), r"in strips or tiles of \(9\.0,"),
        ("lzw.tif by windows", with_tag("StripByteCounts", 65535), "it is truncated"),
        ("lzw.tif", with_tag("ImageLength", 60_000), "lists 1 of 6667 strips or tiles"),
        ("planes.tif", with_tag("StripByteCounts", 65535), "file is truncated"),
        ("coco", replaced('"id": 1, "file_name"', f'"id": {2**31}, "file_name"'), "expected a number of 32 bits"),
        ("coco", replaced('"bbox": [1,', f'"bbox": [{LONG},'), "the box .* finite numbers"),
        ("coco", replaced('"area": 20', f'"area": {LONG}'), "the area"),
        ("coco", replaced("[[1, 2, 6,", f"[[1, 2, {LONG},"), "the polygon .* finite"),
        (
            "depth.npy",
            lambda content: b"\x93NUMPY\1\0\x28\x23" + 9000 * b"-",
            "cannot be read .* damaged .npy file",
        ),
        ("coco", replaced('"file_name": "a.png"', '"file_name": "\\ud800"'), "expected a file in"),
        ("panoptic", replaced('"image_id": 1', '"image_id": {}'), "an annotation is of image {}"),
        ("panoptic", replaced('"category_id": 1', '"category_id": []'), r"there is no category \[\]"),
        ("model file", with_metadata("task", []), "invalid task"),
        (
            "model file",
            with_metadata("model", {"class": "PlainEncoder", "fields": {"features": [10**400]}}),
            "number 1e300 or more",
        ),
        ("start_from", with_metadata("preprocessing", 5), "invalid preprocessing"),
        ("start_from", with_metadata("preprocessing", {"channels": 0}), "invalid preprocessing"),
        (
            "scheduler_config.json",
            replaced('"num_train_timesteps": 100', '"num_train_timesteps": []'),
            "expected a value",
        ),
        ("scheduler_config.json", replaced('"beta_end": 0.02', '"beta_end": "a"'), "expected a value like 0.02"),
        ("config.json of timm", replaced("[0.5,", f"[{LONG},"), "no mean and std"),
        ("config.json of segformer", replaced('prob": 0.1', f'prob": {LONG}'), "to be of type float"),
        (
            "config.json of segformer",
            replaced('["SegformerForSemanticSegmentation"]', "5"),
            "architectures to be of type list",
        ),
        (
            "config.json of dpt",
            replaced("[4, 2, 1, 0.5]", "[4, 2, 2147483647, 0.5]"),
            "whole numbers up to 64, or their",
        ),
        (
            "config.json of UNet2DModel",
            replaced('embed_type": null', 'embed_type": []'),
            r"class_embed_type='\[\]' is not",
        ),
        (
            "preprocessor_config.json",
            replaced("[0.2, 0.2,", "[0.2, -1,"),
            "preprocessor_config.json of .*std must be above 0",
        ),
        ("log.jsonl of a resumed run", replaced('"loss": 0.5', f'"loss": {DIGITS}'), "line 1 is not a record"),
        ("checkpoint's checksums", replaced('"_METADATA"', '"../../log.jsonl"'), "not in its folder"),
        ("checkpoint's tree", lambda content: b'{"tree_metadata": {}}', "it is damaged"),
        ("compiled programs", replaced('\\"inputs\\"', '\\"output\\"'), "its checksum differs"),
        ("compiled programs", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its checksum differs"),
        ("config.json of Unet", replaced('"classes": 2', '"classes": 0'), "expected classes to be"),
        ("model.json", replaced('"num_classes": 2', '"num_classes": 3'), "does not describe the model of the run"),
    ],
)
def test_files_that_once_failed(prepared, name, change, match):
    folder, readers = prepared
    reader = readers[name]
    path = folder / reader.path
    valid = path.read_bytes()
    path.write_bytes(change(valid))
    try:
        with pytest.raises(ValueError, match=match) as error:
            reader.read(path)
    finally:
        path.write_bytes(valid)
    assert str(path) in str(error.value) or str(path.parent) in str(error.value)


def test_curves_of_a_log_without_records_name_it(prepared):
    folder, readers = prepared
    path = folder / "run" / "log.jsonl"
    valid = path.read_bytes()
    path.write_text(f'{{"step": {DIGITS}}}\n{{"step": 1, "loss": {LONG}}}\n')
    try:
        with pytest.raises(ValueError, match=r"log\.jsonl has no record such as"):
            readers["log.jsonl"].read(path)
    finally:
        path.write_bytes(valid)


def test_a_damaged_tiff_file_logs_at_most_one_message(prepared, caplog):
    folder, readers = prepared
    content = bytearray((folder / "plain.tif").read_bytes())
    content[10:80] = b"\xff" * 70  # the first tags
    (folder / "damaged.tif").write_bytes(content)
    for name in ("plain.tif", "deflate.tif by windows"):
        caplog.clear()
        with pytest.raises(ValueError, match=r"damaged\.tif"):
            readers[name].read(folder / "damaged.tif")
        assert len(caplog.records) == 1
    caplog.clear()
    logging.getLogger("tifffile").error("of another reader")
    logging.getLogger("tifffile").error("of another reader")
    assert len(caplog.records) == 2


def test_a_fault_is_kept_and_counted(tmp_path):
    def read(path):
        if path.read_bytes() != b"valid":
            raise KeyError("x")

    (tmp_path / "a").write_bytes(b"valid")
    reader = Reader("a", read, (lambda content, rng: b"other",))
    with pytest.raises(AssertionError, match=r"broken, file 0: KeyError\('x'\)"):
        attack("broken", reader, tmp_path, 1)
    outcomes = attack("broken", reader, tmp_path, 5, tmp_path / "kept")
    assert (tmp_path / "kept" / "broken-2").read_bytes() == b"other" and len(list((tmp_path / "kept").iterdir())) == 3
    assert (tmp_path / "a").read_bytes() == b"valid"
    assert row("broken", outcomes, 0, 1.0)["faults"] == {"KeyError('x')": 5}


@pytest.mark.parametrize(
    ("read", "match"),
    [
        (lambda path: (_ for _ in ()).throw(ValueError("bad")), "does not name the file"),
        (lambda path: [warnings.warn(f"{path} {n}", stacklevel=1) for n in range(30)], "30 warnings"),
    ],
)
def test_messages_without_the_file_and_floods_of_warnings_are_faults(read, match, tmp_path):
    with pytest.raises(Exception, match=match):
        outcome(Reader("name.bin", read), tmp_path, b"")


MODULES = (hostile_changes, hostile_formats, hostile_torch)
CHANGES = {name: getattr(module, name) for module in MODULES for name in vars(module) if name.endswith("_file")}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_structure_are_past_the_first_check(name, prepared):
    """Most files with a changed structure are still recognised; with damaged bytes, about half of them are not."""
    folder, readers = prepared
    change = CHANGES[name]
    reader = next(reader for reader in readers.values() if change in reader.damage)
    path = folder / reader.path
    valid, rng, found = path.read_bytes(), random.Random(0), []
    try:
        for _ in range(40):
            found.append(outcome(reader, folder, change(valid, rng)))
    finally:
        path.write_bytes(valid)
    assert np.mean([kind.endswith("first check") for kind in found]) < 0.5
    assert len(set(found)) > 1


def test_a_model_of_many_classes_has_no_ignored_value(prepared):
    folder, readers = prepared
    path = folder / readers["config.json of Unet"].path
    valid = path.read_bytes()
    path.write_bytes(replaced('"classes": 2', '"classes": 300')(valid))
    try:
        assert readers["config.json of Unet"].read(path)["task"].ignore_index is None
    finally:
        path.write_bytes(valid)
