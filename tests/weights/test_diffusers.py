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


CASES = [pytest.param("cifar10", marks=pytest.mark.parity), "skips", "residual"]
CASES += [pytest.param(case, marks=pytest.mark.parity) for case in ("narrow", "times", "vectors")]


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


@pytest.mark.parametrize("case", [pytest.param("free", marks=pytest.mark.parity), "clipped"])
def test_ddim_trajectory(case, tmp_path):
    golden, config, arrays = load(f"ddim_{case}")
    pipeline = {"model_index.json": {"_class_name": "DDIMPipeline"}}
    pipeline["scheduler/scheduler_config.json"] = json.loads(str(golden["scheduler"]))
    write(tmp_path / "unet", config, arrays)
    (tmp_path / "scheduler").mkdir()
    for name, contents in pipeline.items():
        (tmp_path / name).write_text(json.dumps(contents))
    model, variables = weights.from_hub(tmp_path)
    settings = weights.hub_settings(tmp_path)
    assert settings["preprocessing"] == dz.Preprocessing(3, (0.5,) * 3, (0.5,) * 3)
    settings["task"].check(model)
    sample = settings["task"].sampler(model, steps=10, spacing="leading")
    noise = jnp.asarray(seeded("image", tuple(golden["image_shape"].tolist())))
    ours = sample(variables, jax.random.key(0), noise=noise)
    assert relative(ours, golden["output_states"][-1]) < 1e-4


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("down_block_types", ("DownBlock2D", "CrossAttnDownBlock2D"), "CrossAttnDownBlock2D.*SkipDownBlock2D"),
        ("up_block_types", ("KUpBlock2D", "KUpBlock2D"), "KUpBlock2D.*not supported.*SkipUpBlock2D"),
        ("act_fn", "snake", "snake.*silu"),
        ("block_out_channels", (8,), "differ in number"),
        ("norm_num_groups", -4, "norm_num_groups"),
        ("time_embedding_type", "hourly", "hourly.*fourier"),
        ("new_option", 3, "new_option"),
    ],
)
def test_unknown_options_are_named(option, value, message, tmp_path):
    _, config, _ = load("vectors")
    (tmp_path / "config.json").write_text(json.dumps(config | {option: value}))
    with pytest.raises(ValueError, match=message):
        weights.from_hub(tmp_path)


def test_settings_and_pipelines_without_a_unet(tmp_path):
    config = {"_class_name": "UNet2DModel", "in_channels": 1, "num_class_embeds": 7, "center_input_sample": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    task = dz.tasks.Diffusion(7, "cosine", "epsilon", label_dropout=0.0)
    assert weights.hub_settings(tmp_path) == {"preprocessing": dz.Preprocessing(1, (0.0,), (1.0,)), "task": task}
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    for read in (weights.from_hub, weights.hub_settings):
        with pytest.raises(ValueError, match=r"DiTPipeline.*without a unet; it has \['transformer'\]"):
            read(tmp_path / "pipeline")
