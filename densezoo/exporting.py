"""Export to a program that runs without densezoo: StableHLO, through `jax.export`."""

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.extras import require
from densezoo.files import replace
from densezoo.inference import Method, compile
from densezoo.inputs import example_inputs
from densezoo.inspect.walk import inference_method
from densezoo.messages import option
from densezoo.preprocessing import Preprocessing
from densezoo.types import Dtype, Size
from densezoo.weights import image_channels

LARGE = 16
"""The smallest sides, in steps of the coarsest map, for a model that cannot be exported for all sides."""


def export(
    model: nn.Module,
    variables: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    size: Size | None = None,
    batch: int | None = None,
    preprocessing: Preprocessing | None = None,
    image_dtype: Dtype | None = None,
    outputs: Callable[[Any], Any] | None = None,
    method: Method = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """Exports a model with its variables as one program for several platforms, which JAX runs without densezoo.

    Batch norms are folded into the preceding convolutions, and the variables become constants of the program. By
    default, it accepts any batch size, and any height and width that are multiples of the encoder's coarsest step, such
    as 32; for a few families such as PAN, of at least 16 steps. A model whose parameters or operations depend on the
    image's size (ViT, Swin, detectors) needs a `size`.

    Args:
        model: any model whose first input is images, including your own modules.
        variables: the model's variables.
        path: path of the file; None writes none.
        size: (height, width) of the images. None exports for any multiples of the coarsest step.
        batch: number of images. None exports for any number.
        preprocessing: includes the conversion to floats and the normalisation in the program, which then takes images
            as read from files. None if the program takes normalised float32 images, like the model.
        image_dtype: dtype of the program's images. None is float32 without `preprocessing`, and with it uint8, or for a
            `value_range` beyond 255 the first of uint16, int16 and float32 that holds it.
        outputs: a function of the model's outputs that becomes part of the program, such as `task.predict` for
            classes or `task.probabilities`. None returns the model's outputs, such as logits.
        method: a method of the model to export instead of `__call__`, by name, or a function
            `(model, images) -> outputs` for a method with options. None exports "detect" of a detector and "panoptic"
            of a panoptic model.
        platforms: platforms that the program can run on, as in `jax.export.export`.

    Returns:
        The exported program. `program.call(images)` runs it; after `jax.export.deserialize(bytes)`, without densezoo.
        Instead of objects such as `Detections`, it returns dictionaries with the same names.

    Raises:
        TypeError: if the model and the variables are swapped, or `outputs` is not a function.
        ValueError: if the variables belong to another model, if the model needs a fixed size or batch, or if these are
            not whole numbers of at least 1.
        ModuleNotFoundError: if `flatbuffers`, which `jax.export` needs to write files, is not installed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=3)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        >>> task = dz.tasks.Segmentation(num_classes=3)
        >>> program = dz.export(model, variables, preprocessing=dz.Preprocessing(), outputs=task.predict)
        >>> program.platforms, program.in_avals, program.out_avals
        (('cpu', 'cuda', 'tpu'), (ShapedArray(uint8[b,2*h,2*w,3]),), (ShapedArray(int32[b,2*h,2*w]),))
    """
    if path is not None:
        require("flatbuffers")
    check_shape(size, batch)
    program = Program(model, variables, preprocessing, outputs, method)
    exporter = jax.export.export(jax.jit(program.run), platforms=tuple(platforms))
    exported = program.traced(lambda inputs: exporter(*inputs), size, batch, image_dtype)
    if path is not None:
        replace(os.fspath(path), lambda temporary: temporary.write_bytes(exported.serialize()))
    return exported


def check_shape(size: Any, batch: Any) -> None:
    """Raises a ValueError if a size or a number of images is invalid."""
    if size is not None and not (isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_count, size))):
        raise ValueError(f"{option('size')} must be (height, width) in pixels, or None; got {size!r}")
    if batch is not None and not _is_count(batch):
        raise ValueError(f"{option('batch')} must be a number of images, at least 1, or None; got {batch!r}")


def _is_count(number: Any) -> bool:
    return isinstance(number, int | np.integer) and int(number) >= 1


class Program:
    """What is exported: a function from images to arrays in tuples, lists and dictionaries."""

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        preprocessing: Preprocessing | None,
        outputs: Callable[[Any], Any] | None,
        method: Method,
    ):
        if preprocessing is not None and preprocessing.resizes:
            raise ValueError(
                "the preprocessing resizes images, which an exported program does not: resize them before, and pass"
                " dataclasses.replace(preprocessing, shortest=None, longest=None, size=None)"
            )
        if outputs is not None and not callable(outputs):
            raise TypeError(
                f"{option('outputs')} must be a function of the model's outputs, such as task.predict for classes, or"
                f" None; got {outputs!r}"
            )
        self.model, self._preprocessing, self._outputs = model, preprocessing, outputs
        self.method = inference_method(model) if method is None else method
        self._infer = compile(model, variables, method=self.method)
        self.channels = image_channels(model, variables) if preprocessing is None else preprocessing.channels

    @property
    def names(self) -> list[str]:
        """The names of the inputs, as in the model's method."""
        function = self.method if callable(self.method) else getattr(type(self.model), self.method or "__call__")
        return list(inspect.signature(function).parameters)[1:]

    def run(self, images: Any, *inputs: Any) -> Any:
        """The program."""
        shape = images.shape
        given = [self._prepared(x) if x.shape == shape else x for x in (images, *inputs)]
        found = self._infer.run(*given)
        return _plain(found if self._outputs is None else self._outputs(found))

    def inputs(
        self, size: Size | None, batch: int | None, dtype: Dtype | None, *, least: int = 1
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the inputs, symbolic where no number is given. Symbolic sides have at least `least` steps."""
        encoder = getattr(self.model, "encoder", self.model)
        step = max(getattr(encoder, "reductions", (32,)))
        height, width = (f"{step}*h", f"{step}*w") if size is None else size
        shape = jax.export.symbolic_shape(
            f"{'b' if batch is None else batch}, {height}, {width}, {self.channels}",
            constraints=[] if least == 1 else [f"h >= {least}", f"w >= {least}"],
        )
        dtype = self._dtype() if dtype is None else dtype
        images, *others = example_inputs(self.model, jax.ShapeDtypeStruct(shape, jnp.float32))
        alike = jax.ShapeDtypeStruct(images.shape, jnp.dtype(dtype))
        return (alike, *(alike if x.shape == images.shape else x for x in others))

    def _dtype(self) -> Any:
        """The dtype of the images if none is given."""
        if self._preprocessing is None:
            return np.float32
        low, high = self._preprocessing.value_range or (0, 255)
        limits = {dtype: np.iinfo(dtype) for dtype in (np.uint8, np.uint16, np.int16)}
        return next((dtype for dtype, x in limits.items() if x.min <= low and high <= x.max), np.float32)

    def traced(self, trace: Callable[..., Any], size: Size | None, batch: int | None, dtype: Dtype | None) -> Any:
        """Returns `trace(shapes of the inputs)`; what fails because of symbolic shapes is explained.

        Some models, such as PAN, compute small maps in another way: they are traced for large images alone.
        """
        if size is None:
            with contextlib.suppress(Exception):  # the second attempt reports the error
                return trace(self.inputs(size, batch, dtype))
        try:
            return trace(self.inputs(size, batch, dtype, least=1 if size else LARGE))
        except Exception as error:  # operations on symbolic sizes raise errors of many types
            size_text, batch_text = option("size", "(height, width)", typed="HEIGHT WIDTH"), option("batch", "NUMBER")
            missing = {size_text: size, batch_text: batch}
            advice = [argument for argument, value in missing.items() if value is None]
            if not advice or self._fails_alike(error, size, batch, dtype):
                raise
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{type(self.model).__name__} cannot be exported for any"
                f" {'size' if size is None else 'number of images'}: pass {advice[0]} ({reason})"
            ) from error

    def _fails_alike(self, error: Exception, size: Size | None, batch: int | None, dtype: Dtype | None) -> bool:
        """Whether the program also fails with this error for a fixed shape: then symbolic shapes are not its cause."""
        step = 2 * max(getattr(getattr(self.model, "encoder", self.model), "reductions", (32,)))
        try:
            jax.eval_shape(self.run, *self.inputs(size or (step, step), batch or 2, dtype))
        except Exception as other:
            return type(other) is type(error) and str(other) == str(error)
        return False

    def _prepared(self, pixels: Any) -> Float[Array, "b h w c"]:
        """Pixels as `Preprocessing.prepare` converts them, normalised."""
        if self._preprocessing is None:
            return pixels
        images = pixels.astype(jnp.float32)
        if self._preprocessing.value_range is not None:
            low, high = map(np.float32, self._preprocessing.value_range)
            images = (images - low) * (1 / (high - low))
        elif jnp.issubdtype(pixels.dtype, jnp.integer):
            images = images * np.float32(1 / np.iinfo(pixels.dtype).max)
        return self._preprocessing.normalize()(None, {"image": images})["image"]


def _plain(tree: Any) -> Any:
    """Outputs as arrays in tuples, lists and dictionaries, which other programs know."""
    if dataclasses.is_dataclass(tree):
        parts = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return {name: _plain(part) for name, part in parts.items() if part is not None}
    if isinstance(tree, dict):
        return {name: _plain(part) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(map(_plain, tree))
    return tree
