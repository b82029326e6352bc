"""Runs a torch model with seeded weights and writes its golden file. Shared by the `make_*.py` beside it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seeded
import torch

FOLDER = Path(__file__).parent


def write(
    case: str,
    model: torch.nn.Module,
    shape: tuple[int, ...],
    outputs: Callable[[Any], Mapping[str, Any]],
    ours: Mapping[str, Any] | None = None,
) -> None:
    """Writes `case`.npz: names and shapes of the model's weights, the NHWC image's shape, and NHWC outputs.

    Args:
      case: name of the file.
      model: its weights are replaced by seeded ones.
      shape: of the NHWC image.
      outputs: from what the model gives to the NCHW maps to store, by name.
      ours: what to build here and compare, see `write_model` and `write_encoder`.
    """
    # Tables of indices, which torchvision's Swin keeps with its weights, stay as they are.
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point() or "num_batches" in k}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    arrays = {name: torch.from_numpy(seeded.array(name, size)) for name, size in shapes.items()}
    model.load_state_dict(arrays, strict=len(weights) == len(model.state_dict()))
    image = torch.from_numpy(seeded.array("image", shape).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        maps = {name: x.numpy().transpose(0, 2, 3, 1) for name, x in outputs(model.eval()(image)).items()}
    arrays = {f"output_{name}": np.ascontiguousarray(x) for name, x in maps.items()}
    described = {} if ours is None else {"ours": json.dumps(ours)}
    np.savez_compressed(FOLDER / f"{case}.npz", shapes=json.dumps(shapes), image_shape=shape, **described, **arrays)
    for name, x in maps.items():
        print(f"{case} {name}: {x.shape}, largest magnitude {np.abs(x).max():.3g}")


def write_model(
    case: str,
    model: torch.nn.Module,
    shape: tuple[int, ...],
    name: str,
    encoder: str,
    *,
    quick: bool = False,
    **fields: Any,
) -> None:
    """Writes the logits of a segmentation model, which `dz.create_model(name, encoder, classes, **fields)` must give.

    Args:
      case: name of the file.
      model: image -> logits, NCHW.
      shape: of the NHWC image.
      name: of the model here.
      encoder: its name here.
      quick: whether the default run of the tests compares it; else only `pytest -m parity` does.
      **fields: further arguments of `create_model`, as JSON can write them.
    """
    ours = {"model": name, "encoder": encoder, "fields": fields, "quick": quick}
    write(case, model, shape, lambda logits: {"logits": logits}, ours)


def write_encoder(
    case: str, model: torch.nn.Module, shape: tuple[int, ...], name: str, *, quick: bool = False, **fields: Any
) -> None:
    """Writes the features of an encoder, thinned, which `dz.create_encoder(name, **fields)` must give.

    Args:
      case: name of the file.
      model: image -> NCHW features, fine to coarse.
      shape: of the NHWC image.
      name: of the encoder here.
      quick: as in `write_model`.
      **fields: its fields, as JSON can write them.
    """

    def outputs(features: Any) -> dict[str, torch.Tensor]:
        return {str(level): thin(x, max(1, x.shape[1] // 8)) for level, x in enumerate(features)}

    write(case, model, shape, outputs, {"encoder": name, "fields": fields, "quick": quick})


def thin(x: torch.Tensor, step: int) -> torch.Tensor:
    """Every `step`-th channel, and the mean of all channels, so that each of them counts."""
    return torch.cat([x[:, ::step], x.mean(1, keepdim=True)], 1)
