"""Programs that run without densezoo."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from benchmarks.exports import SEEDS, random_weights
from benchmarks.sharding import CASES
from densezoo.exporting import Program

TASK = dz.tasks.Segmentation(num_classes=3)
PREPROCESSING = dz.Preprocessing(channels=1, mean=(0.4,), std=(0.2,))
WITHOUT_DENSEZOO = """
import sys
sys.modules["densezoo"] = None  # any import of it fails
import jax, numpy as np
from jax import export
program = export.deserialize(open("unet.stablehlo", "rb").read())
pictures = np.load("pictures.npy")
np.savez("found.npz", one=jax.jit(program.call)(pictures), several=program.call(pictures.reshape(3, 8, 4, 1)))
"""


@pytest.fixture(scope="module")
def unet():
    """A model of grey pictures, whose batch norms do something."""
    model = dz.create_model("unet", dz.PlainEncoder((4, 4)), num_classes=3, upsample="nearest")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    random = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: random.uniform(0.1, 0.4, x.shape).astype(x.dtype), shapes)


def of_model(unet, pictures):
    images = (pictures / np.float32(255) - np.float32(0.4)) / np.float32(0.2)
    return TASK.probabilities(jax.jit(unet[0].apply)(unet[1], images))


def test_a_program_takes_pictures_and_runs_without_densezoo(unet, tmp_path):
    pytest.importorskip("flatbuffers")
    file = tmp_path / "unet.stablehlo"
    exported = dz.export(*unet, file, preprocessing=PREPROCESSING, outputs=TASK.probabilities)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.stablehlo"]
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(x) for x in exported.in_avals] == ["uint8[b,2*h,2*w,1]"]
    assert "sqrt" not in str(exported.mlir_module())  # batch norms are folded

    pictures = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 1), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    subprocess.run([sys.executable, "-c", WITHOUT_DENSEZOO], check=True, cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["one"], of_model(unet, pictures), rtol=1e-4, atol=1e-6)
        expected = of_model(unet, pictures.reshape(3, 8, 4, 1))
        np.testing.assert_allclose(found["several"], expected, rtol=1e-4, atol=1e-6)


def test_pixels_of_other_types_are_scaled_as_in_prediction(unet):
    twelve_bits = dataclasses.replace(PREPROCESSING, value_range=(0, 4095))
    pictures = np.random.default_rng(0).integers(0, 4096, (1, 8, 8, 1), np.uint16)
    program = dz.export(*unet, size=(8, 8), batch=1, preprocessing=twelve_bits, image_dtype=np.uint16)
    predict = dz.Predictor(TASK, *unet, twelve_bits)
    found = TASK.probabilities(program.call(pictures))[0]
    np.testing.assert_allclose(found, predict.probabilities(pictures[0]), rtol=1e-4, atol=1e-6)


def of_ones(model):
    """Variables for a program that is not run."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def test_detectors_export_detections_of_a_fixed_size():
    model = CASES["retinanet"]()
    variables = of_ones(model)
    with pytest.raises(ValueError, match=r"SingleStage cannot be exported for any size: pass size=\(height, width\)"):
        dz.export(model, variables)
    few = lambda model, images: model.detect(images, max_detections=5)  # noqa: E731
    program = dz.export(model, variables, size=(64, 96), method=few, platforms=["cuda"])
    shapes = {name: str(x.shape) for name, x in jax.tree.unflatten(program.out_tree, program.out_avals).items()}
    assert shapes == {"boxes": "(b, 5, 4)", "scores": "(b, 5)", "labels": "(b, 5)", "valid": "(b, 5)"}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_models_export_for_every_platform(name):
    model = CASES[name]()
    fixed = {"size": (64, 64)} if hasattr(model, "detect") or name in ("dpt", "unet, Swin") else {}
    program = dz.export(model, of_ones(model), **fixed)
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0].shape[0]) == "b"
    assert program.serialize()  # refuses operations that only one platform or version has


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_models_export_to_onnx_for_any_number_of_images(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = CASES[name]()
    assert dz.export_onnx(model, random_weights(model, SEEDS[name]), tmp_path / "model.onnx", size=(64, 96)) <= 1e-4


def test_errors_say_what_to_pass(unet):
    with pytest.raises(ValueError, match="resizes images"):
        dz.export(*unet, preprocessing=dataclasses.replace(PREPROCESSING, shortest=32))
    with pytest.raises(TypeError, match="the model comes first"):
        dz.export(unet[1], unet[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 64}, ValueError, r"size must be \(height, width\) in pixels, or None; got 64"),
        ({"size": (64, 0)}, ValueError, r"size must be .*; got \(64, 0\)"),
        ({"size": (8, 8), "batch": "2"}, ValueError, r"batch must be a number of images, .*; got '2'"),
        ({"size": (8, 8), "outputs": "classes"}, TypeError, r"outputs must be a function .*; got 'classes'"),
    ],
)
def test_wrong_arguments_are_named(unet, tmp_path, monkeypatch, options, error, message):
    monkeypatch.setattr("densezoo.exporting_onnx.require", lambda name: None)
    for export in (dz.export, dz.export_onnx):
        with pytest.raises(error, match=message):
            export(*unet, tmp_path / "model", **options)


def test_only_errors_of_symbolic_shapes_ask_for_a_shape(unet):
    def trace(outputs):
        program = Program(*unet, None, outputs, None)
        program.traced(lambda inputs: jax.eval_shape(program.run, *inputs), None, None, None)

    with pytest.raises(KeyError, match="masks"):
        trace(lambda logits: {"logits": logits}["masks"])
    with pytest.raises(ValueError, match="cannot be exported for any size: pass size"):
        trace(lambda logits: jnp.zeros(int(logits.shape[1])))


def test_onnx_is_checked_before_it_is_written(unet, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    file = tmp_path / "unet.onnx"
    error = dz.export_onnx(*unet, file, size=(8, 12), preprocessing=PREPROCESSING, outputs=TASK.probabilities)
    assert error <= 1e-4
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [8, 12, 1])
    assert result.name == "output"
    pictures = np.random.default_rng(1).integers(0, 256, (3, 8, 12, 1), np.uint8)
    (found,) = session.run(None, {"images": pictures})
    np.testing.assert_allclose(found, of_model(unet, pictures), rtol=1e-4, atol=1e-5)

    file.unlink()
    with pytest.raises(ValueError, match=r"was not exported to ONNX: onnxruntime's outputs differ from JAX's by"):
        # Random numbers: the check calls the function a second time.
        noise = iter(np.random.default_rng(0).standard_normal(99).astype(np.float32))
        dz.export_onnx(*unet, file, size=(8, 12), outputs=lambda logits: logits * next(noise))
    assert not file.exists()


def test_onnx_files_have_the_operations_of_onnx(unet, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    dz.export_onnx(*unet, tmp_path / "unet.onnx", size=(8, 12))
    operations = [node.op_type for node in onnx.load(tmp_path / "unet.onnx").graph.node]
    assert operations.count("Transpose") <= 2  # of the images and of the logits
    assert {"Conv", "Relu", "MaxPool", "Resize", "Concat"} <= set(operations)


def test_detectors_export_to_onnx(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = CASES["plain_detector"]()
    variables = random_weights(model)
    few = lambda model, images: model.detect(images, max_detections=30)  # noqa: E731
    file = tmp_path / "detector.onnx"
    assert dz.export_onnx(model, variables, file, size=(64, 64), method=few) <= 1e-4
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = jnp.asarray(np.random.default_rng(7).standard_normal((3, 64, 64, 3)), jnp.float32)
    found = dict(
        zip([x.name for x in session.get_outputs()], session.run(None, {"images": np.asarray(images)}), strict=True)
    )
    expected = dz.detect(model, variables, images, max_detections=30)
    assert expected.valid.any(1).all() and len(np.unique(expected.labels[expected.valid])) > 1
    for name, part in found.items():
        np.testing.assert_allclose(part, getattr(expected, name), rtol=1e-4, atol=1e-3, err_msg=name)


def test_outputs_of_onnx_have_other_names_than_the_inputs(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = dz.create_model("autoencoder", dz.PlainEncoder((4, 8)), num_classes=1, latent_features=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 12, 1)))
    dz.export_onnx(model, variables, tmp_path / "model.onnx", size=(8, 12), batch=1)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["images"]
    assert "images_out" in [x.name for x in session.get_outputs()]


@pytest.mark.parametrize(
    ("value_range", "dtype"),
    [(None, "uint8"), ((0, 255), "uint8"), ((0, 4095), "uint16"), ((-1000, 3000), "int16"), ((0, 1e6), "float32")],
)
def test_a_program_takes_pixels_that_hold_the_range_of_values(unet, value_range, dtype):
    preprocessing = dataclasses.replace(PREPROCESSING, value_range=value_range)
    assert dz.export(*unet, size=(8, 8), preprocessing=preprocessing).in_avals[0].dtype == dtype
