import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernels, machine, options, upsampling
from densezoo.ops.implementation import chosen

LIMITS = {"copy_bandwidth": 1e10, "copy_bandwidth_by_mib": {"4": 1e10}, "matmul_peak": {"float32": 1e11}}


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    """Measuring the machine's limits takes seconds and gigabytes."""
    monkeypatch.setattr(upsampling, "measure_limits", lambda quick: LIMITS)
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)


def run(*argv):
    return options.run_command(upsampling.main, upsampling.Arguments, argv)


def test_two_kernels_end_to_end(tmp_path, capsys):
    argv = ("--quick", "--rounds", "2", "--shapes", "1x4x4x2", "--kernels", "nearest_x2", "max_unpool")
    assert run(*argv, "--out", str(tmp_path)) == 0
    (path,) = tmp_path.glob("upsampling-quick-cpu_*-float32-jax*.json")
    result = json.loads(path.read_text())
    rows = result["rows"]
    assert result["limits"] == LIMITS and result["machine"]["versions"]["jax"] == jax.__version__
    cases = {(row["kernel"], row["mode"], row["form"]) for row in rows}
    forms = ("auto", "reference", "jax")
    assert cases == {(k, m, f) for k in ("nearest_x2", "max_unpool") for m in upsampling.MODES for f in forms}
    for row in rows:
        assert row["errors"]["values"] == 0 and len(row["samples_milliseconds"]) == 2
        seconds = row["milliseconds"]["median"] / 1e3
        # 32 floats in, 128 out; backward 128 and 32 more; unpooling also reads 32 bytes of indices, twice.
        wanted = 4 * 160 * (1 if row["mode"] == "forward" else 2)
        wanted += (row["kernel"] == "max_unpool") * 32 * (1 if row["mode"] == "forward" else 2)
        assert row["bytes"] == wanted
        share = max(wanted / 1e10, row["flops"] / 1e11) / seconds
        assert row["roofline_share"] == pytest.approx(share, rel=1e-3)
        assert row["peak_bytes"] > 0 and row["compile_seconds"] > 0 and set(row["ratios"]) == set(forms) - {row["form"]}
    assert [row["flops"] for row in rows if row["kernel"] == "nearest_x2"] == [0] * 3 + [32 * 3] * 3
    out = capsys.readouterr().out
    assert (
        out.startswith("| kernel | shape | mode | auto, ms |") and "| max_unpool | 1x4x4x2 | forward+backward |" in out
    )


def test_pallas_is_a_form_on_tpus_and_has_the_numbers_of_the_others(tmp_path, monkeypatch):
    names = [name for name, kernel in kernels.KERNELS.items() if "pallas" in upsampling.jax_forms(kernel, "tpu")]
    assert names == ["bilinear_x2", "max_unpool"]
    assert not any("pallas" in upsampling.jax_forms(kernels.KERNELS[name], "cpu") for name in names)
    # As on a TPU, but interpreted: its values and gradients are checked before anything is timed.
    forms = upsampling.jax_forms
    monkeypatch.setattr(upsampling, "jax_forms", lambda kernel, platform, **options: forms(kernel, "tpu", **options))
    for name in names:
        kernel = kernels.KERNELS[name]
        interpreted = dataclasses.replace(kernel, pallas=lambda *inputs, kernel=kernel: kernel.pallas(*inputs, True))
        monkeypatch.setitem(kernels.KERNELS, name, interpreted)
    argv = ("--quick", "--rounds", "1", "--shapes", "1x4x4x2", "--kernels", *names, "--out", str(tmp_path))
    assert run(*argv) == 0
    (path,) = tmp_path.glob("*.json")
    rows = [row for row in json.loads(path.read_text())["rows"] if row["form"] == "pallas"]
    assert [(row["kernel"], row["mode"]) for row in rows] == [(n, m) for n in names for m in upsampling.MODES]
    assert all(row["errors"]["gradients"] < 1e-5 for row in rows)


@pytest.mark.parametrize("wrong", ["values", "gradients"])
def test_a_wrong_kernel_is_not_timed(tmp_path, monkeypatch, capsys, wrong):
    good = kernels.KERNELS["bilinear_x2"]

    @jax.custom_vjp
    def bad_gradient(x):
        return good.op(x)

    bad_gradient.defvjp(lambda x: (good.op(x), None), lambda _, g: (1.01 * g[:, ::2, ::2],))

    def bad(x):
        if chosen() == "reference":
            return good.op(x)
        return good.op(x) * 1.001 if wrong == "values" else bad_gradient(x)

    monkeypatch.setitem(kernels.KERNELS, "bilinear_x2", dataclasses.replace(good, op=bad))
    monkeypatch.setattr(upsampling, "measure", lambda *args, **kwargs: pytest.fail("timed"))
    upsampling.truth_of.cache_clear()
    assert run("--quick", "--shapes", "1x4x4x2", "--kernels", "bilinear_x2", "--out", str(tmp_path)) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("bilinear_x2 (1x4x4x2, float32, forward") and "form 'auto'" in message
    assert f"{wrong}[0] differ from the reference by " in message
    if wrong == "values":
        assert "by 0.001 of its largest magnitude" in message
    assert not list(tmp_path.iterdir())
    upsampling.truth_of.cache_clear()


def test_odd_shapes_are_for_kernels_that_do_not_pool():
    arguments = upsampling.Arguments(kernels=("bilinear_x2",), shapes=("1x3x5x2",))
    assert arguments.inputs() == [(1, 3, 5, 2)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--kernels", "nearest"), "did you mean nearest_x"),
        (("--shapes", "4x4x4"), "a shape is BxHxWxC"),
        (("--shapes", "4x0x4x4"), "a shape is BxHxWxC"),
        (("--shapes", "4x5x4x4"), "even height and width"),
        (("--platform", "tpu"), "sees no such device"),
        (("--rounds", "0"), "at least 1"),
        (("--against", "torch", "--peer-python", "/no/python"), "--peer-python /no/python: No such file"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(argv, message, capsys, tmp_path):
    assert run(*argv, "--out", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_every_kernel_has_forms_that_agree_in_shape_and_work_to_count(name):
    kernel, shape = kernels.KERNELS[name], (2, 4, 6, 8)
    inputs = kernels.make_inputs(name, shape, "float32", 0)
    again = kernels.make_inputs(name, shape, "float32", 0)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, again, strict=True))
    outputs = {
        form: jax.eval_shape(upsampling.traced(kernel, form, backward=False), inputs, None)[0]
        for form in ("auto", "reference", *(["jax"] if kernel.stock else []))
    }
    shapes = {form: [(x.shape, x.dtype) for x in each] for form, each in outputs.items()}
    assert all(each == shapes["auto"] for each in shapes.values())
    forward, backward = (kernels.least_bytes(kernel, inputs, outputs["auto"], backward=b) for b in (False, True))
    assert 0 < forward < backward
    assert len(kernel.flops(shape)) == 2 and min(kernel.flops(shape)) >= 0


def test_products_are_counted():
    # 2x2 transposed: for each of 24 pixels 4 taps of 8 -> 4 channels, a multiplication and an addition.
    assert kernels.KERNELS["transposed_2x2"].flops((1, 4, 6, 8)) == (24 * 4 * 8 * 4 * 2, 2 * 24 * 4 * 8 * 4 * 2)
    # bilinear x2 of 4x6: 8x6 values along the rows, then 8x12: two products and a sum for each.
    forward, backward = kernels.KERNELS["bilinear_x2"].flops((1, 4, 6, 1))
    assert forward == 3 * (48 + 96)
    # the adjoint multiplies as often and adds up 48, then 24 sums
    assert backward == 2 * 2 * (48 + 96) - 48 - 24


def test_positions_stay_off_the_pixels():
    positions = np.asarray(kernels.make_inputs("dysample", (1, 4, 6, 2), "bfloat16", 0)[1])
    assert positions.shape == (1, 8, 12, 2) and positions.dtype == np.float32
    fraction = positions - np.floor(positions)
    assert fraction.min() > 0.04 and fraction.max() < 0.96
    assert positions.min() > 0 and (positions < [3, 5]).all()


def test_errors_are_relative_to_the_largest_value():
    assert options.relative_error([1.0, 4.5], [1.0, 5.0]) == pytest.approx(0.1)
    assert options.relative_error([0.0], [0.0]) == 0
    assert options.relative_error([1.0, np.nan], [1.0, 2.0]) == float("inf")
    assert options.relative_error(jnp.ones(3), jnp.ones(2)) == float("inf")
