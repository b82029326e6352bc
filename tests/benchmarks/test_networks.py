"""Inference and training end to end on a tiny model, without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from benchmarks import machine, models, networks, options, training

LIMITS = {"copy_bandwidth": 1e10, "copy_bandwidth_by_mib": {"4": 1e10}, "matmul_peak": {"float32": 1e11}}
TINY = ("--quick", "--rounds", "1", "--models", "unet:resnet18", "--shapes", "1x32x32", "--impl", "auto")


def tiny_model(pair, arguments, impl, dtype=None):
    """What stands for every name: the real ones take too long to compile."""
    return dz.create_model("unet", dz.PlainEncoder((4, 8)), arguments.num_classes, impl=impl)


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(models, "measure_limits", lambda quick: LIMITS)
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    for module in (networks, models, training):
        monkeypatch.setattr(module, "make_model", tiny_model)


def test_inference_as_it_is_and_folded(tmp_path, capsys):
    assert options.run_command(models.main, models.Arguments, (*TINY, "--out", str(tmp_path))) == 0
    result = json.loads(next(tmp_path.glob("models-quick-*.json")).read_text())
    plain, folded = result["rows"]
    assert (plain["form"], folded["form"]) == ("auto", "auto, folded")
    for row in (plain, folded):
        assert 0 <= row["error"] < 1e-3 and row["part"] == "model" and row["shape"] == [1, 32, 32]
        assert row["peak_bytes"] > row["temp_bytes"] > 0 and row["compile_seconds"] > 0
        assert row["images_per_second"] == pytest.approx(1e3 / row["milliseconds"]["median"], rel=1e-3)
    # The norms' statistics are gone.
    assert "| unet:resnet18 | 1x32x32 | auto, folded |" in capsys.readouterr().out


def test_a_model_that_folds_wrongly_is_not_timed(tmp_path, monkeypatch, capsys):
    def wrong(model, variables):
        return jax.tree.map(lambda x: 1.05 * x, variables)

    monkeypatch.setattr(models.dz, "fold_batch_norm", wrong)
    argv = (*TINY, "--part", "decoder", "--folded", "yes", "--out", str(tmp_path))
    assert options.run_command(models.main, models.Arguments, argv) == 1
    message = capsys.readouterr().err
    assert "unet:resnet18 1x32x32, auto, folded: the output differs from the reference by" in message
    assert not list(tmp_path.iterdir())


def test_training_compiles_again_from_the_cache(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    assert options.run_command(training.main, training.Arguments, (*TINY, "--out", str(tmp_path))) == 0
    assert jax.config.jax_compilation_cache_dir == before
    (row,) = json.loads(next(tmp_path.glob("training-quick-*.json")).read_text())["rows"]
    assert row["cached_compile_seconds"] < row["compile_seconds"]
    found = row["checked"]
    assert found["second loss"] < found["first loss"] and found["gradient norm"] > 0
    assert row["peak_bytes"] > 0 and row["mode"] == "training"


def test_another_loss_is_an_error():
    truth = {"first loss": 1.0, "gradient norm": 2.0, "second loss": 0.9}
    training.check("m", truth | {"second loss": 0.9001}, truth, "float32", "cpu")
    with pytest.raises(options.Mismatch, match=r"m: the gradient norm is 2\.1 and the reference's 2: nothing is timed"):
        training.check("m", truth | {"gradient norm": 2.1}, truth, "float32", "cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--models", "unet:resnet35"), "unknown encoder 'resnet35'"),
        (("--models", "unit"), "unknown model 'unit'"),
        (("--impl", "fast"), "impl is one of auto, reference"),
        (("--shapes", "1x2x3x4"), "a shape is BxHxW"),
        (("--num-classes", "0"), "num_classes"),
    ],
)
def test_bad_options(argv, message, capsys):
    assert options.run_command(models.main, models.Arguments, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_smp_it_goes_on(monkeypatch, capsys):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nlong story")

    monkeypatch.setattr(networks.importlib, "import_module", broken)
    assert networks.load_smp() is None
    error = capsys.readouterr().err
    assert "cannot be imported here (operator torchvision::nms does not exist): going on" in error


def test_statistics_are_moved_off_their_start():
    generator = np.random.default_rng(0)
    mean, var = networks.perturbed("mean", np.zeros(9), generator), networks.perturbed("var", np.ones(9), generator)
    assert np.abs(mean).min() > 0 and var.min() > 0.6 and np.ptp(var) > 0.1


def test_parameters_are_cast_and_statistics_are_not():
    variables = {"params": {"kernel": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
    cast = networks.cast_params(variables, "bfloat16")
    assert (cast["params"]["kernel"].dtype, cast["batch_stats"]["mean"].dtype) == (jnp.bfloat16, jnp.float32)
    assert networks.cast_params(variables, "float32") is variables
