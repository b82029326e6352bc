"""Folders of picture pairs, and scenes before and after a change."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from densezoo.data import ChangeFolder, ChangeScenes, eval_batches, train_batches


def write(root, arrays, folders=("A", "B", "label"), suffix="png"):
    for folder, array in zip(folders, arrays, strict=True):
        (root / folder).mkdir(parents=True, exist_ok=True)
        path = root / folder / f"a.{'png' if folder == folders[2] else suffix}"
        if suffix == "tif" and array.ndim == 3:
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
        else:
            Image.fromarray(array).save(path)


def grey(value=0, size=(4, 6)):
    return np.full(size, value, np.uint8)


@pytest.mark.parametrize(
    ("numbers", "options", "expected"),
    [
        ((0, 255), {}, (0, 1)),
        ((0, 1), {}, (0, 1)),
        ((0, 0), {}, (0, 0)),
        ((255, 255), {}, (1, 1)),
        ((1, 2), {"labels": {1: 0, 2: 1}}, (0, 1)),
        ((1, 255), {"ignore_index": 255}, (1, 255)),
        ((2, 3), {"num_classes": 4}, (2, 3)),
    ],
)
def test_labels_become_classes(tmp_path, numbers, options, expected):
    label = grey(numbers[0])
    label[:, 3:] = numbers[1]
    write(tmp_path, (grey(7), grey(9), label))
    item = ChangeFolder(tmp_path, **options)[0]
    assert item["change"].dtype == np.int32 and item["name"] == "a"
    assert (item["change"][:, :3] == expected[0]).all() and (item["change"][:, 3:] == expected[1]).all()
    assert (item["image_before"] == 7).all() and (item["image_after"] == 9).all()


def test_many_bands_and_other_names(tmp_path):
    folders = ("T1", "T2", "cm")
    bands = np.arange(2 * 4 * 6 * 13, dtype=np.uint16).reshape(2, 4, 6, 13)
    write(tmp_path, (*bands, grey(255)), folders, "tif")
    source = ChangeFolder(tmp_path, folders=folders)
    np.testing.assert_array_equal(source[0]["image_after"], bands[1])
    assert source.sizes == ((4, 6),) and "T1" in repr(source)
    source.check(progress=False)
    fields = ("image_before", "image_after", "change")
    (batch,) = eval_batches(source, batch_size=1, fields=fields, ignore_index=-1)
    assert batch["image_before"].shape == (1, 32, 32, 13) and batch["change"][0, 31, 31] == -1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "B" / "a.png").rename(root / "B" / "b.png"),
            r"(?s)1 file missing in A: b.*1 file missing in B: a",
        ),
        (lambda root: Image.fromarray(grey(size=(4, 7))).save(root / "B" / "a.png"), r"B/a.png is 4x7.* one size"),
        (lambda root: Image.fromarray(grey(size=(3, 6))).save(root / "label" / "a.png"), r"label/a.png is 3x6"),
        (
            lambda root: Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / "B" / "a.png"),
            r"A/a.png has 1 bands",
        ),
        (lambda root: Image.fromarray(grey(7)).save(root / "label" / "a.png"), r"label/a.png: mask value 7 \(24 pix"),
        (lambda root: Image.fromarray(grey()).save(root / "A" / "a.bmp"), r"A: 2 files named a: a.bmp, a.png"),
        (lambda root: (root / "A" / "a.png").write_bytes(b"no picture"), r"A/a.png"),
    ],
)
def test_pairs_that_do_not_match_are_named_before_anything_is_read(tmp_path, spoil, message):
    write(tmp_path, (grey(), grey(), grey()))
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        ChangeFolder(tmp_path)


def test_check_finds_what_the_headers_do_not_show(tmp_path):
    for name, bands, label in (("a", 1, 0), ("b", 3, 0), ("c", 1, 9)):
        for folder, array in {"A": np.zeros((4, 6, bands), np.uint8), "label": grey(label)}.items():
            for place in ("A", "B") if folder == "A" else ("label",):
                (tmp_path / place).mkdir(exist_ok=True)
                Image.fromarray(array.squeeze()).save(tmp_path / place / f"{name}.png")
    with pytest.raises(ValueError, match=r"(?s)c.png: mask value 9.*differ in their number of bands: a has 1, b has 3"):
        ChangeFolder(tmp_path).check(progress=False)


def test_missing_folders_are_named(tmp_path):
    write(tmp_path / "train", (grey(), grey(), grey()))
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Did you mean .*train\?"):
        ChangeFolder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)If they have other names, pass folders=\('before', .*cm/NAME\.png   0 and 1"
    ):
        ChangeFolder(tmp_path / "train", folders=("A", "B", "cm"))
    with pytest.raises(ValueError, match="needs three names"):
        ChangeFolder(tmp_path / "train", folders=("A", "A", "label"))


def test_scenes_change_only_where_they_say():
    quiet = ChangeScenes(4, size=(48, 40), light=0, season=0, shift=0, seed=3)
    for number in range(4):
        scene = quiet[number]
        assert scene["image_before"].shape == (48, 40, 3) and scene["change"].shape == (48, 40)
        difference = np.abs(scene["image_before"].astype(int) - scene["image_after"]).max(-1)
        changed = scene["change"] == 1
        # Digits are lighter than their background; the noise is a few levels.
        assert not changed.any() or (difference[changed] > 20).mean() > 0.95
        around = np.pad(changed, 2)
        near = sum(np.roll(np.roll(around, y, 0), x, 1) for y in range(-2, 3) for x in range(-2, 3))[2:-2, 2:-2] > 0
        assert difference[~near].max() < 20
    assert not any(ChangeScenes(4, size=(48, 40), changes=0)[number]["change"].any() for number in range(4))
    assert any(quiet[number]["change"].any() for number in range(4))


def test_scenes_depend_on_the_seed_alone():
    scenes = ChangeScenes(3, size=(48, 48))
    again, other, val = (ChangeScenes(3, size=(48, 48), **more) for more in ({}, {"seed": 1}, {"split": "val"}))
    for name, array in scenes[2].items():
        np.testing.assert_array_equal(array, again[-1][name])
    assert (scenes[2]["image_before"] != other[2]["image_before"]).any()
    assert (scenes[2]["image_before"] != val[2]["image_before"]).any()
    assert repr(scenes) == repr(again) != repr(val) and scenes.sizes == ((48, 48),) * 3
    batch = next(train_batches(scenes, batch_size=2, crop_size=32, num_threads=0)(0))
    assert batch["image_after"].shape == (2, 32, 32, 3) and batch["change"].shape == (2, 32, 32)
    with pytest.raises(IndexError, match="scene 3 of 3"):
        scenes[3]
    for wrong in ({"light": 2}, {"shift": -1}, {"changes": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            ChangeScenes(1, **wrong)
