"""Compares the outputs of all decoders and encoder families with segmentation_models_pytorch's.

Usage: python -m benchmarks.parity [--models unet fpn] [--encoders resnet18 mit_b0] [--report]

Each pair gets torch's random weights, random norms, biases and statistics, and a random image. The error is the maximum
difference of the logits over their maximum magnitude, in float32. Needs torch, timm and segmentation-models-pytorch,
except for `--report`. Each finished pair is a line of --out and is not repeated. `--report` writes the tables of --docs
from --out without measuring.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from benchmarks.smp_models import SMP_MODELS, make
from densezoo.encoders import ENCODERS as ALL_ENCODERS
from densezoo.lookup import look_up
from densezoo.zoo import MODELS

ENCODERS = (
    "resnet18",
    "resnext50_32x4d",
    "resnet50d",
    "seresnet50",
    "se_resnet50",
    "vgg11_bn",
    "densenet121",
    "efficientnet-b0",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "mobilenet_v2",
    "mobilenetv3_large_100",
    "convnext_tiny",
    "convnextv2_atto",
    "mit_b0",
    "swin_tiny_patch4_window7_224",
    "hrnet_w18",
    "vit_small_patch16_224",
)
"""One or more encoders of each family."""

SIZES = {"pan": (128, 160)}  # its reference pools the coarsest map three times
"""Image sizes; 64x96 for the other models."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares the zoo with segmentation_models_pytorch."""

    models: tuple[str, ...] = tuple(SMP_MODELS)
    """Names of models."""
    encoders: tuple[str, ...] = ENCODERS
    """Names of encoders."""
    out: Path = Path("benchmarks/results/parity.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/zoo.md")
    """The document that contains the tables."""
    report: bool = False
    """Only write the document's tables, without measuring."""


def main(arguments: Arguments) -> int:
    """Measures or reports; returns the exit code, 1 if an error exceeds 1e-4."""
    rows = read_lines(arguments.out)
    if not arguments.report:
        chosen: Any = ((arguments.models, MODELS, "model"), (arguments.encoders, ALL_ENCODERS, "encoder"))
        for names, table, kind in chosen:
            for name in names:  # checks all of them before the first one takes its time
                look_up(name, table, kind)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        done = {(row["model"], row["encoder"]) for row in rows}
        for model in arguments.models:
            size = SIZES.get(model, (64, 96))
            for encoder in arguments.encoders:
                if (model, encoder) in done:
                    continue
                row = {"model": model, "encoder": encoder, "size": size} | compare(model, encoder, size)
                rows.append(row)
                append_line(arguments.out, row)
    else:
        insert(arguments.docs, tables(rows))
    return int(not all(row.get("error", 0) <= 1e-4 for row in rows))  # a NaN error also fails


def compare(model: str, encoder: str, size: tuple[int, int]) -> dict[str, Any]:
    """Parameters and error of a pair, or the reason why densezoo or the reference lacks it."""
    import torch  # pyright: ignore[reportMissingImports]

    try:
        ours = dz.create_model(model, encoder, num_classes=2)
    except ValueError as error:
        return {"refused": str(error)}
    if isinstance(ours.encoder, dz.Swin):
        # Like timm's model for images of this size, which determines the shapes of its tables.
        ours = ours.clone(encoder=ours.encoder.clone(image_size=size))
    torch.manual_seed(0)
    try:
        reference = make(model, encoder, 2, size).eval()
    except (KeyError, ValueError) as error:
        return {"no_reference": str(error)}
    generator = np.random.default_rng(0)
    with torch.no_grad():
        # Values other than 0 and 1, so that a misplaced one is detected: norms, statistics, biases, and the scales of
        # residual branches, some of which start at 0 and would hide their branch.
        for name, array in [*reference.named_buffers(), *reference.named_parameters()]:
            if array.ndim > 0 and array.numel() == max(array.shape) and array.is_floating_point():
                low, high = (-0.2, 0.2) if name.endswith(("bias", "running_mean")) else (0.7, 1.3)
                array.copy_(torch.from_numpy(generator.uniform(low, high, array.shape).astype(np.float32)))
    image = generator.standard_normal((1, *size, 3)).astype(np.float32)
    try:
        with torch.inference_mode():
            wanted = reference(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    except RuntimeError as error:
        return {"no_reference": f"it cannot take an image of this size: {error}"}
    variables = dz.weights.from_torch(ours, reference.state_dict())
    # Each runs once, so compiler optimisation is not worth its time.
    apply = jax.jit(ours.apply, compiler_options={"xla_backend_optimization_level": 0})
    logits = np.asarray(apply(variables, jnp.asarray(image)))
    error = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"parameters": count, "error": error, "versions": {"jax": jax.__version__, "torch": torch.__version__}}


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The document's parts: errors and parameters, with a row for each encoder and a column for each decoder."""
    models = [model for model in SMP_MODELS if any(row["model"] == model for row in rows)]
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    found = {(row["model"], row["encoder"]): row for row in rows}

    def cell(row: dict[str, Any] | None, key: str) -> str:
        if row is None:
            return ""
        if key not in row:
            return "-" if "refused" in row else "no reference"
        return f"{row['error']:.0e}" if key == "error" else f"{row['parameters'] / 1e6:.1f}"

    def table(key: str) -> str:
        lines = [(encoder, *(cell(found.get((model, encoder)), key) for model in models)) for encoder in encoders]
        return markdown_table(("encoder", *models), lines)

    measured = [row["error"] for row in rows if "error" in row]
    count = [sum(kind in row for row in rows) for kind in ("refused", "no_reference")]
    worst = "Not measured yet."
    if measured:
        worst = (
            f"{len(measured)} pairs, largest error {max(measured):.1e};"
            f" {count[0]} rejected, {count[1]} without a reference."
        )
    return {"errors": f"{worst}\n\n{table('error')}", "parameters": table("parameters")}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
