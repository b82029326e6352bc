"""The code shared by the lesson's scripts, and that exercise 2 repeats no finished training."""

import dataclasses
import logging
import pathlib
import sys

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import common  # noqa: E402
import skip_addition as exercise  # noqa: E402


def test_items_are_spread_over_a_source():
    assert common.spread(range(100), 4) == [12, 37, 62, 87]
    assert common.spread(range(3), 4) == [0, 1, 2]


def test_summary_is_the_mean_and_its_t_interval():
    mean, half = common.summarise([{"iou": 0.1}, {"iou": 0.2}, {"iou": 0.6}])["iou"]
    assert mean == pytest.approx(0.3)
    assert half == pytest.approx(4.303 * np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3), rel=1e-3)


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    trainings = []

    def train_model(_, model, *__, **___):
        trainings.append(model.decoder.skip)
        return type("State", (), {"variables": None}), []

    monkeypatch.setattr(exercise, "train_model", train_model)
    monkeypatch.setattr(exercise, "Predictor", lambda *_, **__: lambda image: image[..., 0])
    monkeypatch.setattr(exercise, "score", lambda *_: {"mean_iou": 0.5})
    monkeypatch.setattr(exercise, "digit_scenes", lambda *_, **__: None)
    val = [{"image": np.full((2, 2, 3), number)} for number in range(6)]
    arguments = exercise.Arguments(out=tmp_path, steps=3)
    for name, seed in (("concat", 0), ("concat", 0), ("concat", 1), ("add", 0)):
        numbers, arrays = exercise.trained(name, seed, val, arguments)
        assert numbers == {"mean_iou": 0.5}
        np.testing.assert_array_equal(arrays["predictions"][:, 0, 0], [1, 3, 5])
    assert trainings == [exercise.SKIPS[name] for name in ("concat", "concat", "add")]
    for changes in ({"steps": 4}, {"val": 7}, {"tolerance": 2}):
        exercise.trained("concat", 0, val, dataclasses.replace(arguments, **changes))
    assert len(trainings) == 6


def test_only_a_cache_of_the_user_gives_a_warning(tmp_path, monkeypatch):
    config, logger = jax.config, logging.getLogger("densezoo.compiling")
    before, level = config.jax_compilation_cache_dir, logger.level  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for own in (str(tmp_path / "own"), None):
            config.update("jax_compilation_cache_dir", own)
            common.keep_compiled()
            assert logger.isEnabledFor(logging.WARNING) == (own is not None)
        assert config.jax_compilation_cache_dir == str(tmp_path / "densezoo" / "compiled")  # pyright: ignore
    finally:
        config.update("jax_compilation_cache_dir", before)
        logger.setLevel(level)


def test_help_starts_with_what_the_script_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["skip_addition.py", "--help"])
    with pytest.raises(SystemExit):
        common.command_line(exercise.main, exercise.Arguments)
    assert "Exercise 2: U-Net skips by addition" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("fields", "message"), [({"seeds": 1}, "--seeds must be 2 to 10"), ({"val": 0}, "at least 1")])
def test_bad_arguments_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        common.check_runs(exercise.Arguments(**fields))
