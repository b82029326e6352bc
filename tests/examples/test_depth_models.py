"""predict.py and evaluate.py with a model of depth, and the stereo picture of depth.py."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import densezoo as dz

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import depth
import evaluate
import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures with depth in millimetres, and a model that predicts 2 m everywhere."""
    root = tmp_path_factory.mktemp("depth")
    for index, millimetres in enumerate((2000, 2500)):
        for name, array in (("images", np.zeros((8, 12, 3), np.uint8)), ("depth", np.full((8, 12), millimetres, "u2"))):
            (root / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / "data" / name / f"{index}.png")
    model = dz.create_model("unet", dz.PlainEncoder((4, 4)), 1)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
    variables["params"]["head"] = jax.tree.map(jnp.zeros_like, variables["params"]["head"])
    variables["params"]["head"]["conv"]["bias"] += np.log(2)
    dz.save(root / "model.safetensors", model, variables, task=dz.tasks.Depth(), preprocessing=dz.Preprocessing())
    return root


def test_predict_writes_depth_in_the_unit_of_training(folder, tmp_path):
    predict.main(predict.Arguments([folder / "data" / "images"], model=folder / "model.safetensors", out=tmp_path))
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), np.full((8, 12), 2), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "0_view.png", "1.npy", "1_view.png"]
    with pytest.raises(ValueError, match="omit --probabilities"):
        predict.endings(dz.tasks.Depth(), True)
    with pytest.raises(ValueError, match=r"detect\.py"):
        predict.endings(dz.tasks.Detection(3), False)


def test_evaluate_scores_depth(folder, tmp_path, capsys):
    options = {"model": folder / "model.safetensors", "data": folder / "data", "out": tmp_path}
    evaluate.main(evaluate.Arguments(**options, depth_scale=0.001))
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores == json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 2
    assert scores["abs_rel"] == pytest.approx((0 + 0.2) / 2, rel=1e-5)
    assert scores["rmse"] == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(ValueError, match="in an unknown unit"):
        evaluate.main(evaluate.Arguments(**options))


def test_the_stereo_picture_is_metric_and_its_absence_is_no_error(tmp_path):
    disparity = np.full((100, 150), 994.978 * 0.193001 / 2 - 31.086)  # 2 m
    disparity[:50] = np.nan
    np.savez(tmp_path / "motorcycle_disp.npz", disparity)
    with pytest.raises(FileNotFoundError, match="lacks"):
        depth.stereo_files(tmp_path)
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(tmp_path / "motorcycle_left.png")
    picture, truth = depth.stereo_picture(*depth.stereo_files(tmp_path), focal=994.978 / 2)
    assert picture.shape == (50, 75, 3)
    np.testing.assert_allclose(truth, np.repeat([0.0, 2.0], 25)[:, None] * np.ones((1, 75)), rtol=1e-5)
