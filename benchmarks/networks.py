"""Whole models of the zoo, and the same models with the same weights in segmentation_models_pytorch."""

import contextlib
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import densezoo as dz
from benchmarks.machine import Refused, console, memory_budget
from benchmarks.options import Options, parse_shape, sweep_sizes
from benchmarks.smp_models import make


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Options):
    """Options of the benchmarks of models."""

    models: tuple[str, ...] = ("unet:resnet34", "fpn:resnet18", "segnet:vgg11_bn")
    """model:encoder of the zoo."""
    shapes: tuple[str, ...] = ()
    """BxHxW of the images; 4x256x256, with --quick 1x128x128."""
    impl: tuple[str, ...] = ("auto", "reference")
    """Implementations of densezoo's operations."""
    num_classes: int = 2
    """Channels of the logits."""

    def pairs(self) -> list[tuple[str, str]]:
        """(model, encoder) for each of --models."""
        pairs = []
        for text in dict.fromkeys(self.models):
            name, _, encoder = text.partition(":")
            try:
                dz.create_model(name, encoder or None, self.num_classes)
                for impl in self.impl:
                    with dz.ops.implementation(impl):
                        pass
            except (TypeError, ValueError) as error:
                raise Refused(f"--models {text} --impl {' '.join(self.impl)}: {error}") from error
            pairs.append((name, encoder or next(b.encoder for b in dz.blueprints() if b.name == name)))
        return pairs

    def series(self) -> list[tuple[str, tuple[int, int, int]]]:
        """(series, (batch, height, width)) of each comparison; the series is empty but in a sweep."""
        if self.sweep and self.shapes:
            raise Refused("--sweep chooses its shapes: leave --shapes out")
        if self.sweep:
            return sweep_sizes(128, 256, 4) if self.quick else sweep_sizes()
        shapes = self.shapes or (("1x128x128",) if self.quick else ("4x256x256",))
        return [("", parse_shape(text, "BxHxW")) for text in shapes]  # pyright: ignore[reportReturnType]

    def budget(self) -> int:
        """Bytes that a sweep may use."""
        return int(self.memory_gib * 2**30) if self.memory_gib else memory_budget()


def make_model(pair: tuple[str, str], options: NetworkOptions, impl: str, dtype: str | None = None) -> Any:
    """A model of the zoo that computes in a dtype, that of the options unless another is given.

    Without dropout, whose random numbers no two forms share.
    """
    name, encoder = pair
    compute = jnp.bfloat16 if (dtype or options.dtype) == "bfloat16" else None
    model = dz.create_model(name, encoder, options.num_classes, dtype=compute, impl=impl)
    if not hasattr(model.decoder, "dropout"):
        return model
    return model.clone(decoder=model.decoder.clone(dropout=0.0))


def random_images(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Standardised images, (b, h, w, 3), float32."""
    return np.random.default_rng(seed).standard_normal((*shape, 3), np.float32)


def random_variables(pair: tuple[str, str], options: NetworkOptions) -> dict[str, Any]:
    """Float32 variables for where there is no torch to take them from, with statistics as after some training."""
    model = make_model(pair, options, "reference", "float32")
    images = jnp.zeros((1, 64, 64, 3))
    # Runs once: not worth the compiler's optimisation.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    variables: Mapping[Any, Any] = flatten_dict(init(jax.random.key(options.seed), images))
    generator = np.random.default_rng(options.seed)
    return unflatten_dict(
        {
            path: jnp.asarray(perturbed(path[-1], np.asarray(x), generator)) if path[0] == "batch_stats" else x
            for path, x in variables.items()
        }
    )


def perturbed(name: str, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Statistics of a batch norm, away from 0 and 1, so that a norm that is left out shows."""
    noise = generator.uniform(-0.3, 0.3, x.shape).astype(np.float32)
    return x + noise if "mean" in name else x * (1 + noise)


def cast_params(variables: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters in a dtype, statistics as they are: what one serves a model in bfloat16 with."""
    if dtype == "float32":
        return variables
    return variables | {"params": jax.tree.map(lambda x: x.astype(dtype), variables["params"])}


def load_smp() -> Any:
    """segmentation_models_pytorch, or None after saying that it is not there; it needs torchvision beside torch."""
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except Exception as error:  # a torchvision built for another torch raises a RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        console.print(f"segmentation_models_pytorch cannot be imported here ({reason}): going on without torch's side")
        return None


def make_smp_model(pair: tuple[str, str], options: NetworkOptions) -> Any | None:
    """The same model in torch, in float32 and with seeded weights; None if it has none."""
    torch: Any = importlib.import_module("torch")
    name, encoder = pair
    torch.manual_seed(options.seed)
    try:
        model = make(name, encoder, options.num_classes).eval()
    except (KeyError, ValueError):
        console.print(f"segmentation_models_pytorch has no {name}:{encoder}: it is measured alone")
        return None
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    generator = np.random.default_rng(options.seed)
    with torch.no_grad():
        for buffer, x in model.named_buffers():
            if buffer.endswith(("running_mean", "running_var")):
                x.copy_(torch.from_numpy(perturbed(buffer, x.numpy(), generator)))
    return model


def smp_variables(smp_model: Any, pair: tuple[str, str], options: NetworkOptions) -> dict[str, Any]:
    """The variables of densezoo's model with the weights of torch's."""
    model = make_model(pair, options, "reference", "float32")
    return dz.weights.from_torch(model, smp_model.state_dict())


def place_smp_model(smp_model: Any, device: Any, dtype: str) -> Any:
    """The model on its device, channels_last, in its dtype: without autocast, all of it computes in that."""
    torch: Any = importlib.import_module("torch")
    return smp_model.to(device=device, dtype=getattr(torch, dtype), memory_format=torch.channels_last)


def compile_torch(function: Any, device: Any, *, frozen: bool = False) -> Any:
    """What torch.compile makes of a model: on a GPU in its mode max-autotune; `frozen` goes with `frozen_weights`."""
    torch: Any = importlib.import_module("torch")
    inductor: Any = importlib.import_module("torch._inductor")
    options = inductor.list_mode_options("max-autotune") if device.type == "cuda" else {}
    return torch.compile(function, dynamic=False, options=options | ({"freezing": True} if frozen else {}))


def frozen_weights() -> contextlib.AbstractContextManager[Any]:
    """Around the first call of a model compiled with `frozen`: its weights are taken for constants.

    The option alone reaches inductor, and dynamo before it would already have made them arguments.
    """
    inductor_config: Any = importlib.import_module("torch._inductor.config")
    return inductor_config.patch(freezing=True)
