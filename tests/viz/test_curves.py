import json
import math

import pytest

from densezoo import viz

TRAINING = [
    {"step": step, "loss": 1 / step, "dice": 0.5, "grad_norm": 2.0, "images_per_second": 9.0} for step in range(1, 6)
]
EVALUATION = [{"step": 3, "scores": {"iou": 0.3, "dice": 0.4}}, {"step": 5, "evaluation": {"iou": 0.6}}]


def curves(figure, title):
    axes = next(axes for axes in figure.axes if axes.get_title() == title)
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_panels():
    figure = viz.training_curves([*TRAINING, *EVALUATION, {"step": 5, "learning_rate": 0.1}], smoothing=0)
    assert [axes.get_title() for axes in figure.axes] == [
        "loss",
        "reported",
        "scores",
        "learning rate",
        "gradient norm",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss on training batches",
        "value on training batches",
        "score on validation data",
        "learning rate",
        "norm of the loss's gradient",
    ]
    assert curves(figure, "loss") == {"loss": ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])}
    assert curves(figure, "scores") == {"iou": ([3, 5], [0.3, 0.6]), "dice": ([3], [0.4])}
    assert curves(figure, "learning rate") == {"learning_rate": ([5], [0.1])}
    assert list(curves(figure, "reported")) == ["dice"]


def test_smoothing():
    found = curves(viz.training_curves(TRAINING, smoothing=0.5), "loss")
    values = [1 / step for step in range(1, 6)]
    weights = [[0.5 ** (i - j) for j in range(i + 1)] for i in range(5)]
    expected = [sum(w * v for w, v in zip(row, values, strict=False)) / sum(row) for row in weights]
    assert found["loss"][1] == values
    assert found["loss, moving average (0.5)"][1] == pytest.approx(expected)


def test_long_curves_alone_are_smoothed_by_default():
    records = [{"step": step, "loss": 1 / step} for step in range(1, 102)]
    assert list(curves(viz.training_curves(records[:100]), "loss")) == ["loss"]
    figure = viz.training_curves(records)
    assert list(curves(figure, "loss")) == ["loss", "loss, moving average (0.9)"]
    raw, average = figure.axes[0].lines
    assert raw.get_linewidth() > average.get_linewidth()


def test_scores_of_classes_have_a_panel_with_their_mean_on_top():
    scores = {"pixel_accuracy": 0.9, "iou_sky": 0.2, "iou_digit 0": 0.4, "mean_iou": 0.3, "mean_dice": 0.5}
    figure = viz.training_curves([{"step": 1, "scores": scores}, {"step": 2, "scores": scores}])
    assert [axes.get_title() for axes in figure.axes] == ["scores", "IoU of each class"]
    assert figure.axes[1].get_ylabel() == "IoU on validation data"
    assert list(curves(figure, "scores")) == ["mean_iou", "mean_dice", "pixel_accuracy"]
    assert curves(figure, "IoU of each class") == {
        "mean_iou": ([1, 2], [0.3, 0.3]),
        "sky": ([1, 2], [0.2, 0.2]),
        "digit 0": ([1, 2], [0.4, 0.4]),
    }
    mean, *others = figure.axes[1].lines
    assert all(mean.get_zorder() > other.get_zorder() for other in others)
    assert all(mean.get_linewidth() > other.get_linewidth() for other in others)


def test_logs_as_they_are_found(tmp_path):
    lines = [*map(json.dumps, [*TRAINING, {"step": 6, "loss": None}, {"note": 1}, [1], *EVALUATION]), '{"step": 7, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    for log in (tmp_path, tmp_path / "log.jsonl", str(tmp_path / "log.jsonl")):
        assert curves(viz.training_curves(log, smoothing=0), "loss")["loss"][0] == [1, 2, 3, 4, 5]
    records = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}]
    assert curves(viz.training_curves(records), "loss") == {"loss": ([2], [0.5])}


def test_it_is_drawn(tmp_path):
    figure = viz.training_curves([*TRAINING, *EVALUATION])
    assert viz.save(figure, tmp_path / "curves.png", dpi=40).is_file()


def test_more_curves_than_a_legend_holds(tmp_path):
    scores = {f"iou_{number}": 0.5 for number in range(300)}
    figure = viz.training_curves([{"step": 4, "scores": scores}])
    assert len(curves(figure, "scores")) == 300
    legend = figure.axes[0].get_legend()
    assert legend.get_title().get_text() == "16 of 300" and len(legend.get_texts()) == 16
    viz.save(figure, tmp_path / "curves.png", dpi=40)  # A legend that is too high would be a warning.


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        viz.training_curves(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no record"):
        viz.training_curves(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="smoothing"):
        viz.training_curves(TRAINING, smoothing=1.0)
