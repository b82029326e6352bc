"""Whole models of the zoo, with the weights of a peer's models."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import densezoo as dz
from benchmarks.hub_models import CONFIGS, DIFFUSERS, TIME, TRANSFORMERS
from benchmarks.machine import Refused
from benchmarks.options import Options, parse_shape
from benchmarks.protocol import Worker
from benchmarks.seeded import perturbed
from densezoo.compiling import jitted_once
from densezoo.models import DiffusionUNet, SiameseModel
from densezoo.weights._families import family_of, kind_of
from densezoo.weights._repository import Config

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Options):
    """Options of the benchmarks of models."""

    models: tuple[str, ...] = ()
    """model:encoder of the zoo."""
    shapes: tuple[str, ...] = ()
    """BxHxW of the images."""
    impl: tuple[str, ...] = ()
    """Implementations to time additionally through plain jax.jit: auto, reference."""
    num_classes: int = 2
    """Channels of the logits."""

    def pairs(self) -> list[tuple[str, str]]:
        """(model, encoder) for each of --models."""
        pairs = []
        for text in dict.fromkeys(self.models):
            name, _, encoder = text.partition(":")
            try:
                create((name, encoder), self.num_classes)
                for impl in self.impl:
                    with dz.ops.implementation(impl):
                        pass
            except (TypeError, ValueError) as error:
                raise Refused(f"--models {text} --impl {' '.join(self.impl)}: {error}") from error
            pairs.append((name, encoder or next(b.encoder for b in dz.blueprints() if b.name == name)))
        return pairs

    def shapes_of(self, pair: tuple[str, str], defaults: Sequence[str]) -> list[Shape]:
        """The image shapes for a model: the defaults, or multiples of 224 instead of 256 if its name contains 224."""
        if self.shapes:
            return [parse_shape(text, "BxHxW") for text in self.shapes]  # pyright: ignore[reportReturnType]
        shapes = [parse_shape(text, "BxHxW") for text in (("1x128x128",) if self.quick else defaults)]
        if pair[1].endswith("_224"):
            shapes = [(batch, *(max(1, side // 256) * 224 for side in sides)) for batch, *sides in shapes]
        return shapes  # pyright: ignore[reportReturnType]


def make_model(pair: tuple[str, str], options: NetworkOptions, shape: Shape, impl: str, dtype: str) -> Any:
    """Creates a model of the zoo that computes in a dtype.

    It has no dropout and stochastic depth, because forms cannot share random numbers.
    """
    fields = {"dtype": jnp.bfloat16 if dtype == "bfloat16" else None, "impl": impl}
    model = create(pair, options.num_classes, **fields)
    for part, field in (("decoder", "dropout"), ("decoder", "aspp_dropout"), ("encoder", "drop_path")):
        if getattr(getattr(model, part, None), field, 0.0):
            model = model.clone(**{part: getattr(model, part).clone(**{field: 0.0})})
    if isinstance(getattr(model, "encoder", None), dz.Swin):
        # Like timm's model for images of this size, which determines the shapes of its tables.
        model = model.clone(encoder=model.encoder.clone(image_size=shape[1:]))
    return model


def create(pair: tuple[str, str], num_classes: int, *, dtype: Any = None, impl: str = "auto") -> Any:
    """A model of the zoo, or of a configuration of transformers or diffusers, which has its own number of classes."""
    name, encoder = pair
    if name not in (TRANSFORMERS, DIFFUSERS):
        return _of_images(dz.create_model(name, encoder or None, num_classes, dtype=dtype, impl=impl))
    if encoder not in CONFIGS or dtype is not None:
        raise ValueError(f"expected {name}: and one of {', '.join(CONFIGS)}, in float32")
    config = Config(CONFIGS[encoder], f"benchmarks.hub_models, {encoder}")
    return _of_images(family_of(config, kind_of(config) or "").build(config).clone(impl=impl))


def _of_images(model: Any) -> Any:
    """A function of images: the model itself, or, if it needs another input, one that supplies it."""
    for kind, function in ((DiffusionUNet, AtTime), (SiameseModel, BesideMirrored)):
        if isinstance(model, kind):
            fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.init}
            return function(**{key: value for key, value in fields.items() if key not in ("parent", "name")})
    return model


class BesideMirrored(SiameseModel):
    """A change detector of images and their mirror images."""

    def __call__(self, images: Any, *, train: bool = False) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(images, images[:, :, ::-1], train=train)

    def example_inputs(self, images: Any) -> tuple[Any, ...]:
        return (images,)


class AtTime(DiffusionUNet):
    """A diffusion network at a fixed time: a function of images, like the other networks."""

    def __call__(self, images: Any, *, train: bool = False) -> jax.Array:
        return super().__call__(images, TIME, train=train)

    def example_inputs(self, images: Any) -> tuple[Any, ...]:
        return (jax.ShapeDtypeStruct(images.shape, images.dtype),)


def compile_model(model: Any, variables: Any, dtype: str) -> Callable[[Any], Any]:
    """Images -> logits: `dz.compile` of a model and its float32 variables."""
    return dz.compile(model, variables, dtype=jnp.bfloat16 if dtype == "bfloat16" else None)


def random_variables(pair: tuple[str, str], options: NetworkOptions, shape: Shape) -> dict[str, Any]:
    """Float32 variables without a peer, with statistics as after some training."""
    model = make_model(pair, options, shape, "reference", "float32")
    init = jitted_once(model.init)
    variables: Mapping[Any, Any] = flatten_dict(init(jax.random.key(options.seed), jnp.zeros((1, *shape[1:], 3))))
    generator = np.random.default_rng(options.seed)
    return unflatten_dict(
        {
            path: jnp.asarray(perturbed(path[-1], np.asarray(x), generator)) if path[0] == "batch_stats" else x
            for path, x in variables.items()
        }
    )


def peer_variables(worker: Worker, pair: tuple[str, str], options: NetworkOptions, shape: Shape) -> dict[str, Any]:
    """Makes the worker build the same model; returns densezoo's variables with the worker's weights.

    Raises:
        PeerError: if the worker cannot build it.
    """
    name, encoder = pair
    asked = {"model": name, "encoder": encoder, "classes": options.num_classes}
    answer = worker.ask("model", **asked, image_size=shape[1:], seed=options.seed)
    with np.load(answer["weights"]) as file:
        arrays = {key: file[key] for key in file.files}
    model = make_model(pair, options, shape, "reference", "float32")
    if name != "segnet":
        return dz.weights.from_torch(model, arrays)
    # No reference for its decoder is in common use: the worker's uses the names of densezoo's.
    encoder_arrays = {key: x for key, x in arrays.items() if key.startswith("encoder.")}
    variables: dict[Any, Any] = flatten_dict(dz.weights.from_torch(model, encoder_arrays, part="encoder"))
    for (collection, part, *names), x in list(variables.items()):
        if part != "encoder":
            variables[collection, part, *names] = jnp.asarray(_segnet_array(part, names, arrays)).reshape(x.shape)
    return unflatten_dict(variables)


def _segnet_array(part: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    own = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[
        names[-1]
    ]
    if part == "head":
        array = arrays[f"segmentation_head.0.{own}"]
    else:
        array = arrays[f"decoder.{names[0]}.{0 if names[1] == 'conv' else 1}.{own}"]
    return array.transpose(2, 3, 1, 0) if names[-1] == "kernel" else array


def cast_params(variables: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Casts parameters to a dtype and keeps the statistics, as when serving a model in bfloat16."""
    if dtype == "float32":
        return variables
    return variables | {"params": jax.tree.map(lambda x: x.astype(dtype), variables["params"])}
