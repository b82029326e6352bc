"""Inference and training end to end on a tiny model, without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from benchmarks import machine, models, networks, options, seeded, training

LIMITS = {"copy_bandwidth": 1e10, "copy_bandwidth_by_mib": {"4": 1e10}, "matmul_peak": {"float32": 1e11}}
TINY = ("--quick", "--rounds", "1", "--models", "unet:resnet18", "--shapes", "1x32x32")


def tiny_model(pair, arguments, shape, impl, dtype):
    """Replaces every model, because the real ones take too long to compile."""
    return dz.create_model("unet", dz.PlainEncoder((4, 8)), arguments.num_classes, impl=impl)


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(models, "measure_limits", lambda quick: LIMITS)
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    for module in (networks, models, training):
        monkeypatch.setattr(module, "make_model", tiny_model)


def test_inference(tmp_path, capsys):
    argv = (*TINY, "--impl", "auto", "--out", str(tmp_path))
    assert options.run_command(models.main, models.Arguments, argv) == 0
    result = json.loads(next(tmp_path.glob("models-quick-*.json")).read_text())
    own, auto = result["rows"]
    assert (own["form"], auto["form"]) == ("densezoo", "auto")
    for row in (own, auto):
        assert 0 <= row["error"] < 1e-3 and row["shape"] == [1, 32, 32] and row["compile_seconds"] > 0
        assert row["images_per_second"] == pytest.approx(1e3 / row["milliseconds"]["median"], rel=1e-3)
    assert auto["peak_bytes"] > auto["temp_bytes"] > 0
    assert "| unet:resnet18 | 1x32x32 | densezoo |" in capsys.readouterr().out


def test_a_model_that_is_compiled_wrongly_is_not_timed(tmp_path, monkeypatch, capsys):
    compiled = models.compile_model
    monkeypatch.setattr(models, "compile_model", lambda *args: lambda x: 1.05 * compiled(*args)(x))
    assert options.run_command(models.main, models.Arguments, (*TINY, "--out", str(tmp_path))) == 1
    message = capsys.readouterr().err
    assert "unet:resnet18 1x32x32, densezoo: the output differs from the reference by" in message
    assert not list(tmp_path.iterdir())


def test_shapes_suit_the_model():
    arguments = models.Arguments()
    assert arguments.shapes_of(("unet", "resnet18"), models.SHAPES) == [(4, 256, 256), (1, 512, 512)]
    assert arguments.shapes_of(("upernet", "swin_tiny_patch4_window7_224"), models.SHAPES) == [
        (4, 224, 224),
        (1, 448, 448),
    ]


def test_training_compiles_again_from_the_cache(tmp_path, monkeypatch):
    before, events = jax.config.jax_compilation_cache_dir, []
    listen = lambda event, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    assert options.run_command(training.main, training.Arguments, (*TINY, "--out", str(tmp_path))) == 0
    jax.monitoring.unregister_event_listener(listen)
    assert jax.config.jax_compilation_cache_dir == before
    (row,) = json.loads(next(tmp_path.glob("training-quick-*.json")).read_text())["rows"]
    assert "/jax/compilation_cache/cache_hits" in events
    assert row["cached_compile_seconds"] > 0 and row["compile_seconds"] > 0
    found = row["checked"]
    assert found["second loss"] < found["first loss"] and found["gradient norm"] > 0
    assert row["peak_bytes"] > 0 and row["mode"] == "training"


def test_another_loss_is_an_error():
    truth = {"first loss": 1.0, "gradient norm": 2.0, "second loss": 0.9}
    training.check("m", truth | {"second loss": 0.9001}, truth, "float32", "cpu")
    with pytest.raises(options.Mismatch, match=r"m: the gradient norm is 2\.1, but the reference's is 2: not timed"):
        training.check("m", truth | {"gradient norm": 2.1}, truth, "float32", "cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--models", "unet:resnet35"), "unknown encoder 'resnet35'"),
        (("--models", "unit"), "unknown model 'unit'"),
        (("--impl", "fast"), "impl must be one of auto, reference"),
        (("--shapes", "1x2x3x4"), "a shape is BxHxW"),
        (("--num-classes", "0"), "num_classes"),
    ],
)
def test_bad_options(argv, message, capsys):
    assert options.run_command(models.main, models.Arguments, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_statistics_are_moved_off_their_start():
    generator = np.random.default_rng(0)
    mean, var = seeded.perturbed("mean", np.zeros(9), generator), seeded.perturbed("var", np.ones(9), generator)
    assert np.abs(mean).min() > 0 and var.min() > 0.6 and np.ptp(var) > 0.1


def test_parameters_are_cast_and_statistics_are_not():
    variables = {"params": {"kernel": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
    cast = networks.cast_params(variables, "bfloat16")
    assert (cast["params"]["kernel"].dtype, cast["batch_stats"]["mean"].dtype) == (jnp.bfloat16, jnp.float32)
    assert networks.cast_params(variables, "float32") is variables
