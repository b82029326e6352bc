"""Folders with depth and normals, and rendered scenes."""

import jax
import numpy as np
import pytest
from PIL import Image

from densezoo.data import DepthFolder, RenderedScenes, train_batches
from densezoo.ops import normals_from_depth


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three pictures with depth in one format each."""
    for name in "abc":
        write(tmp_path / "images" / f"{name}.png", np.full((4, 6, 3), 7, np.uint8))
    write(tmp_path / "depth" / "a.png", np.full((4, 6), 2500, np.uint16))
    holes = np.full((4, 6), 2500, np.float32)
    holes[0] = [0, -1, np.nan, np.inf, -np.inf, 1]
    write(tmp_path / "depth" / "b.npy", holes)
    write(tmp_path / "depth" / "c.tif", np.full((4, 6), 1250, np.float32))
    return tmp_path


def test_depth_is_read_from_png_npy_and_tiff_with_holes_of_zero(folder):
    source = DepthFolder(folder, depth_scale=0.001)
    source.check(progress=False)
    assert source.names == ("a", "b", "c")
    assert source.sizes == ((4, 6),) * 3
    assert (source[0]["depth"] == 2.5).all()
    assert source[1]["depth"][0].tolist() == [0, 0, 0, 0, 0, np.float32(0.001)]
    assert (source[2]["depth"] == 1.25).all()
    assert all(item["depth"].dtype == np.float32 for item in (source[0], source[1], source[2]))


def test_normals_from_colours_and_floats_are_unit_vectors_in_the_camera_axes(folder):
    colours = np.zeros((4, 6, 3), np.uint8)  # black: no measurement
    colours[1] = [128, 255, 128]  # up in OpenGL
    colours[2] = 127  # no direction
    write(folder / "normals" / "a.png", colours)
    vectors = np.zeros((4, 6, 3), np.float32)
    vectors[1], vectors[2], vectors[3] = [0, 0, 2], np.nan, [3, 0, 4]
    write(folder / "normals" / "b.npy", vectors)
    write(folder / "normals" / "c.npy", vectors)
    source = DepthFolder(folder, depth_scale=1, axes="opengl")
    first, second = source[0]["normals"], source[1]["normals"]
    np.testing.assert_allclose(first[1], np.broadcast_to([0, -1, 0], (6, 3)), atol=0.01)
    assert not first[[0, 2, 3]].any()
    np.testing.assert_allclose(second[:, 0], [[0, 0, 0], [0, 0, -1], [0, 0, 0], [0.6, 0, -0.8]], atol=1e-6)
    assert DepthFolder(folder, depth_scale=1)[1]["normals"][1, 0].tolist() == [0, 0, 1]


def test_messages_name_the_files(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.png: depth of type uint16, up to 2500, in an unknown unit.*depth_scale=0\.001"
    ):
        DepthFolder(folder)
    with pytest.raises(ValueError, match=r"expected a factor above 0"):
        DepthFolder(folder, depth_scale=0.0)
    write(folder / "depth" / "b.npy", np.zeros((4, 6)))
    (folder / "depth" / "c.tif").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match=r"(?s)c\.tif"):
        DepthFolder(folder, depth_scale=1)
    write(folder / "depth" / "c.tif", np.full((4, 6), 1.0, np.float32))
    with pytest.raises(ValueError, match=r"b\.npy: no pixel has a depth above 0"):
        DepthFolder(folder, depth_scale=1).check(progress=False)
    write(folder / "depth" / "b.npy", np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"4x6.*but its map .*b\.npy is 4x5"):
        DepthFolder(folder, depth_scale=1)
    write(folder / "depth" / "b.npy", np.array([["text"]]))
    with pytest.raises(ValueError, match=r"b\.npy: .*expected numbers"):
        DepthFolder(folder, depth_scale=1)
    (folder / "depth" / "b.npy").unlink()
    with pytest.raises(ValueError, match=r"(?s)1 image without a map: b\.png.*png, tif, bmp or npy"):
        DepthFolder(folder, depth_scale=1)
    (folder / "images" / "b.png").unlink()
    write(folder / "depth" / "d.npy", np.ones((4, 6)))
    write(folder / "depth" / "e.npy", np.ones((4, 6)))
    with pytest.raises(ValueError, match=r"2 files in depth without an image: d\.npy, e\.npy"):
        DepthFolder(folder, depth_scale=1)
    with pytest.raises(TypeError, match=r"depth_scale='mm'; expected a factor"):
        DepthFolder(folder, depth_scale="mm")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        DepthFolder(tmp_path / "none")


def test_scenes_have_exact_geometry_and_depend_only_on_their_number():
    scenes = RenderedScenes(5, size=(36, 48))
    same, other = RenderedScenes(9, size=(36, 48)), RenderedScenes(5, size=(36, 48), seed=1)
    again = RenderedScenes(5, size=(36, 48), split="val")
    normals = jax.jit(lambda depth: normals_from_depth(depth, scenes.focal))
    for index in range(3):
        scene = scenes[index]
        for name in ("image", "depth", "normals"):
            np.testing.assert_array_equal(scene[name], same[index][name])
            assert (scene[name] != other[index][name]).any() and (scene[name] != again[index][name]).any()
        assert scene["image"].dtype == np.uint8 and scene["image"].std() > 10
        assert (scene["depth"] > 0.1).all() and scene["depth"].max() < 25
        np.testing.assert_allclose(np.linalg.norm(scene["normals"], axis=-1), 1, atol=1e-5)
        # The normals are those of the depth, except where the neighbours belong to other surfaces.
        found = np.asarray(normals(scene["depth"]))
        angles = np.degrees(np.arccos(np.clip((found * scene["normals"]).sum(-1), -1, 1)))
        assert np.median(angles) < 0.5 and (angles < 8).mean() > 0.9
    with pytest.raises(IndexError):
        scenes[5]
    with pytest.raises(ValueError, match="expected 'train' or 'val'"):
        RenderedScenes(1, split="test")


def test_scenes_are_samples_of_the_pipeline():
    batch = next(train_batches(RenderedScenes(4, size=(36, 48)), batch_size=2, crop_size=(24, 32))(0))
    assert batch["image"].shape == (2, 24, 32, 3)
    assert batch["depth"].shape == (2, 24, 32) and batch["normals"].shape == (2, 24, 32, 3)


def test_an_array_beyond_the_limit_is_refused_by_its_name(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)  # also 288 bytes
    write(folder / "depth" / "b.npy", np.ones((4, 6, 2), np.float64))
    with pytest.raises(ValueError, match=r"b\.npy: .* exceeds limit of 288 bytes.* Raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        DepthFolder(folder)
