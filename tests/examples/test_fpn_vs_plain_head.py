"""What exercise 3 compares, that it repeats no finished training, and what it concludes from the intervals."""

import pathlib
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import common  # noqa: E402
import fpn_vs_plain_head as exercise  # noqa: E402

SMALL, MEDIUM, LARGE = list(exercise.SCORES)[1:]


def test_detectors_differ_in_the_pyramid_only():
    models = exercise.detectors(exercise.Arguments(quick=True))
    assert list(models) == ["FPN", "plain, stride 16"]
    pyramid, plain = models.values()
    parameters = {name: common.count_parameters(model) for name, model in models.items()}
    exercise.check_parameters(parameters)
    assert parameters["FPN"] <= parameters["plain, stride 16"]
    assert pyramid.encoder == plain.encoder
    reductions = [model.neck.scales((2, 4, 8, 16)) for model in models.values()]
    assert reductions == [(4, 8, 16, 32, 64), (16,)]
    anchors = [{size for level in model.head.sizes for size in level} for model in models.values()]
    assert anchors[0] == anchors[1] and len(anchors[0]) == 15


def test_other_numbers_of_parameters_are_refused():
    exercise.check_parameters({"a": 100, "b": 109})
    with pytest.raises(ValueError, match=r"over 10%: \{'a': 100, 'b': 112\}"):
        exercise.check_parameters({"a": 100, "b": 112})
    with pytest.raises(ValueError, match="--strides must be 16, 8 or both"):
        exercise.detectors(exercise.Arguments(strides=(32,)))


def test_scenes_have_one_class():
    scenes = exercise.Digits(3, "val")
    labels = np.concatenate([scenes[index]["labels"] for index in range(3)])
    assert set(labels) == {-1, 0}


def test_scenes_without_a_size_are_refused():
    boxes = np.array([[0.0, 0.0, side, side] for side in (15, 17, 33)])
    exercise.check_sizes([{"boxes": boxes, "labels": np.zeros(3, int)}])
    with pytest.raises(ValueError, match="the 1 validation scenes have no object of some size"):
        exercise.check_sizes([{"boxes": boxes, "labels": np.array([0, 0, -1])}])


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        (((0.2, 0.1), (0.3, 0.1), (0.1, 0.05)), "confirmed. The"),
        (((0.2, 0.1), (0.3, 0.1), (0.1, 0.1)), "confirmed in part. The"),
        (((0.2, 0.3), (-0.3, 0.4), (0.0, 0.1)), "undecided. The"),
        (((0.2, 0.1), (0.3, 0.1), (-0.1, 0.05)), "refuted. The"),
    ],
)
def test_verdicts_follow_the_intervals(intervals, verdict):
    difference = dict(zip((SMALL, MEDIUM, LARGE), intervals, strict=True))
    assert f"across scales: {verdict}" in exercise.judge("plain", difference)


def test_a_verdict_lists_every_size():
    text = exercise.judge("plain", {SMALL: (0.2, 0.1), MEDIUM: (0.1, 0.2), LARGE: (-0.3, 0.1)})
    assert "better for small (+0.200 ± 0.100)" in text
    assert "worse for large (-0.300 ± 0.100); undecided for medium (+0.100 ± 0.200)" in text


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    trainings = []

    def train_model(_, model, *__, **___):
        trainings.append(model)
        return None, [{"scores": dict.fromkeys(exercise.SCORES, 0.5) | {"box_ar1": 0.1}}]

    monkeypatch.setattr(exercise, "train_model", train_model)
    monkeypatch.setattr(exercise, "Digits", lambda *_: None)
    for name, seed, steps in (("FPN", 0, 3), ("FPN", 0, 3), ("FPN", 1, 3), ("plain, stride 8", 0, 3), ("FPN", 0, 4)):
        arguments = exercise.Arguments(out=tmp_path, steps=steps)
        scores = exercise.trained(name, name, seed, None, arguments)
        assert scores == dict.fromkeys(exercise.SCORES, 0.5)
    assert trainings == ["FPN", "FPN", "plain, stride 8", "FPN"]


def test_the_picture_names_its_curves_and_sizes():
    runs = [dict.fromkeys(exercise.SCORES, value) for value in (0.4, 0.5, 0.6)]
    figure = exercise.draw({"FPN": runs, "plain, stride 16": runs}, exercise.Arguments())
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"{name}: AP of all sizes 0.500 ± 0.248" for name in ("FPN", "plain, stride 16")]
    assert [tick.get_text().split("\n")[0] for tick in axes.get_xticklabels()] == ["small", "medium", "large"]
