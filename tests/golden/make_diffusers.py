"""Golden outputs of diffusers' UNet2DModel and of its samplers. Needs diffusers 0.42.1 and torch.

python tests/golden/make_diffusers.py
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import seeded
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel

FOLDER = Path(__file__).parent

CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}
"""The settings of google/ddpm-cifar10-32."""

SKIPS = {
    "block_out_channels": (64, 32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "mid_block_scale_factor": math.sqrt(2),
    "time_embedding_type": "fourier",
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "attention_head_dim": 16,
}
"""The blocks of google/ncsnpp-ffhq-1024."""

CASES: dict[str, dict[str, Any]] = {
    "cifar10": {"config": CIFAR10, "size": (32, 32), "t": [7]},
    "narrow": {"config": CIFAR10 | {"block_out_channels": (32, 64, 64, 64)}, "size": (16, 24), "t": [999, 0]},
    "skips": {"config": SKIPS, "size": (16, 8), "t": [0.3, 20.0]},
    "residual": {
        "config": {
            "block_out_channels": (16, 24, 16),
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "layers_per_block": 1,
            "resnet_time_scale_shift": "scale_shift",
            "norm_num_groups": 8,
            "act_fn": "gelu",
            "num_class_embeds": 5,
            "in_channels": 4,
            "out_channels": 2,
            "center_input_sample": True,
        },
        "size": (12, 8),
        "t": [3, 500],
        "labels": [4, 0],
    },
    "times": {
        "config": {
            "block_out_channels": (16, 20),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "attn_norm_num_groups": 2,
            "time_embedding_type": "learned",
            "num_train_timesteps": 50,
            "time_embedding_dim": 24,
            "class_embed_type": "timestep",
            "act_fn": "mish",
        },
        "size": (6, 10),
        "t": [49, 2],
        "labels": [1, 30],
    },
    "vectors": {
        "config": {
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "mid_block_type": None,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "class_embed_type": "identity",
            "act_fn": "relu",
        },
        "size": (8, 8),
        "t": [11, 12],
        "vectors": 32,
    },
}


def network(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    model = UNet2DModel(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(seeded.array(name, shape)) for name, shape in shapes.items()})
    return model.eval(), shapes


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))


def write(case: str, config: dict[str, Any], size: tuple[int, int], t: list[float], **labels: Any) -> None:
    model, shapes = network(config)
    shape = (len(t), *size, config.get("in_channels", 3))
    given = labels.get("labels")
    if "vectors" in labels:
        given = seeded.array("vectors.bias", (len(t), labels["vectors"]))
    with torch.inference_mode():
        classes = None if given is None else torch.as_tensor(given)
        output = nhwc(model(nchw(seeded.array("image", shape)), torch.tensor(t), classes).sample)
    described = json.dumps(config | {"_class_name": "UNet2DModel"})
    arrays = {} if given is None else {"labels": np.asarray(given)}
    path = FOLDER / f"diffusers_{case}.npz"
    np.savez_compressed(
        path, config=described, shapes=json.dumps(shapes), image_shape=shape, t=t, output_y=output, **arrays
    )
    print(f"{path.name}: {output.shape}, largest magnitude {np.abs(output).max():.3g}")


def write_trajectory(clip_sample: bool) -> None:
    """Ten steps of DDIM with the default schedule, from the seeded image as noise."""
    config = dict(CASES["narrow"]["config"])
    model, shapes = network(config)
    scheduler = DDIMScheduler(clip_sample=clip_sample)
    scheduler.set_timesteps(10)
    shape = (1, 16, 16, 3)
    x, states = nchw(seeded.array("image", shape)), []
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
            states.append(nhwc(x))
    path = FOLDER / f"diffusers_ddim_{'clipped' if clip_sample else 'free'}.npz"
    described = json.dumps(config | {"_class_name": "UNet2DModel"})
    np.savez_compressed(
        path,
        config=described,
        scheduler=json.dumps(dict(scheduler.config)),
        shapes=json.dumps(shapes),
        image_shape=shape,
        output_states=np.stack(states),
    )
    print(f"{path.name}: largest magnitude {np.abs(states[-1]).max():.3g}")


def write_samplers() -> None:
    """Eight steps of DDIM and DPM-Solver++(2M) with each spacing of times, for a function instead of a network."""
    shape, ends = (1, 2, 3, 4), {}
    for method, scheduler in (("ddim", DDIMScheduler), ("dpm", DPMSolverMultistepScheduler)):
        for spacing in ("leading", "trailing", "linspace"):
            sampler = scheduler(timestep_spacing=spacing)
            sampler.set_timesteps(8)
            x = nchw(seeded.array("image", shape))
            for t in sampler.timesteps:
                x = sampler.step(torch.tanh(x) * (0.5 + 0.4 * t / 1000), t, x).prev_sample
            ends[f"{method}_{spacing}"] = nhwc(x)
    np.savez_compressed(FOLDER / "diffusers_samplers.npz", image_shape=shape, **ends)


if __name__ == "__main__":
    for name, case in CASES.items():
        write(name, **case)
    for clip in (False, True):
        write_trajectory(clip)
    write_samplers()
