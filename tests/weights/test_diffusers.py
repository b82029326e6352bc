"""Outputs equal those of diffusers' UNet2DModel, with its weights, in golden files made by `make_diffusers.py`."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import densezoo as dz
from densezoo import weights
from densezoo.weights import _diffusers

GOLDEN = Path(__file__).parents[1] / "golden"
seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]


def load(case):
    golden = np.load(GOLDEN / f"diffusers_{case}.npz")
    arrays = {name: seeded(name, tuple(shape)) for name, shape in json.loads(str(golden["shapes"])).items()}
    return golden, json.loads(str(golden["config"])), arrays


def write(folder, config, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
    return folder


def relative(ours, reference):
    assert ours.shape == reference.shape
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


CASES = [pytest.param("cifar10", marks=pytest.mark.parity), "narrow", "skips", "residual", "times", "vectors"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case, tmp_path):
    golden, config, arrays = load(case)
    model, variables = weights.from_hub(write(tmp_path, config, arrays))
    image = jnp.asarray(seeded("image", tuple(golden["image_shape"].tolist())))
    labels = jnp.asarray(golden["labels"].astype(np.int32)) if "labels" in golden.files else None
    if case == "vectors":
        labels = jnp.asarray(golden["labels"])
    t = jnp.asarray(golden["t"].astype(np.float32))
    ours = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})(variables, image, t, labels)
    assert relative(ours, golden["output_y"]) < 2e-5  # the contract says 1e-4
    back = weights.to_torch(model, variables)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("case", ["free", "clipped"])
def test_ddim_trajectory(case):
    golden, config, arrays = load(f"ddim_{case}")
    model = _diffusers.unet_of_config(config)
    process = dz.diffusion.Process.from_config(json.loads(str(golden["scheduler"])))
    sample = dz.diffusion.make_sampler(model, process, steps=10, spacing="leading")
    noise = jnp.asarray(seeded("image", tuple(golden["image_shape"].tolist())))
    ours = sample(weights.from_torch(model, arrays), jax.random.key(0), noise=noise)
    assert relative(ours, golden["output_states"][-1]) < 1e-4
