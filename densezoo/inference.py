"""Compiled inference: turns a model and its variables into one compiled function, which can be saved to a file."""

import importlib.metadata
import json
import platform
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from jax.core import Tracer
from jax.experimental import serialize_executable
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from densezoo import files
from densezoo.compiling import Jitted, compiler_options, onednn_options
from densezoo.folding import Folding
from densezoo.inputs import example_inputs
from densezoo.inspect.walk import module_calls
from densezoo.types import Dtype
from densezoo.weights import check_variables

_Inputs = tuple[tuple[tuple[int, ...], str], ...]
"""Shape and dtype of each input of a program."""
_FORMAT = "densezoo compiled 3"
Method = str | Callable[..., Any] | None
"""The name of a model's method, or a function `(model, images, ...) -> outputs` that calls one with options."""


def compile(model: nn.Module, variables: Any, *, dtype: Dtype | None = None, method: Method = None) -> "Inference":
    """Compiles a model with its variables for inference: `infer(images)` equals `model.apply(variables, images)`.

    A model of several inputs is compiled to a function of all of them, such as `infer(before, after)`.

    Batch norms are folded into the preceding convolutions, and the variables become constants of the program. The
    function is compiled on the first call with each shape, with `compiler_options()` and, if available, with oneDNN.
    Inside another `jit`, it becomes part of the outer program and uses the options of the outer `jit`.

    With oneDNN, 3x3 convolutions with at least 256 channels of large maps use Winograd's algorithm, which is faster.
    Their outputs differ by about 1e-5 of the largest, and their kernels need four times the memory.

    Args:
        model: any model whose first input is images, including your own modules.
        variables: the model's variables.
        dtype: dtype of the computation, such as `jnp.bfloat16`. Parameters and images are cast to it; statistics and
            other inputs are not. None keeps the dtypes.
        method: method of the model to compile instead of `__call__`, by name, or a function
            `(model, images) -> outputs` for a method with options. "detect" compiles a detector from images to
            `Detections`.

    Returns:
        A function of images and the model's other inputs, such as the sizes of pictures for a detector.

    Raises:
        TypeError: if the model and the variables are swapped.
        ValueError: if the variables belong to another model, or lack one of its collections.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> infer = dz.compile(model, variables)
        >>> bool(jnp.allclose(infer(images), model.apply(variables, images), atol=1e-5))
        True
    """
    check_variables(model, variables)
    return Inference(model, variables, dtype, method)


def load_compiled(path: str | Path) -> "Loaded":
    """Loads programs that `Inference.save` wrote, without tracing or compiling.

    The file contains machine code, so only load files that you trust.

    Args:
        path: path of the file.

    Returns:
        A function of the model's inputs, for the shapes that were saved. It runs machine code and cannot be traced:
        call it outside of `jax.jit`, `jax.grad` and `jax.vmap`.

    Raises:
        ValueError: if the file is damaged or of another kind, or was written with another version of JAX, platform or
            processor.

    Example:
        >>> infer = load_compiled("unet.compiled")  # doctest: +SKIP
        >>> logits = infer(images)  # doctest: +SKIP
    """
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                if str(header.get("format")).startswith(_FORMAT[:-1]):
                    raise ValueError(f"{path} was written by another version of densezoo: compile and save it again")
                raise ValueError(f"{path} is not a file of compiled programs: dz.compile(...).save writes them")
            made = json.loads(header["made for"])
            here = _here()
            if other := [f"{key}: {made.get(key)}, here {here[key]}" for key in here if made.get(key) != here[key]]:
                raise ValueError(
                    f"{path} is for another machine ({'; '.join(other)}): compile the model here with dz.compile"
                )
            _check(path, header["programs"].encode(), int(header["checksum"]))
            programs = {}
            for index, entry in enumerate(json.loads(header["programs"])):
                inputs = tuple((tuple(shape), dtype) for shape, dtype in entry["inputs"])
                trees = (jax.tree.structure(((0,) * len(inputs), {})), jax.tree.structure(_skeleton(entry["output"])))
                payload = file.get_tensor(f"{index}").tobytes()
                _check(path, payload, entry["checksum"])
                programs[inputs] = serialize_executable.deserialize_and_load(payload, *trees)
    except (AttributeError, KeyError, RecursionError, SafetensorError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is not a file of compiled programs: {error}") from error
    return Loaded(programs)


class Inference:
    """The result of `compile`: a function of images, (b, h, w, c), and any other inputs, that returns the outputs."""

    def __init__(self, model: nn.Module, variables: Any, dtype: Dtype | None, method: Method = None):
        self._model, self._dtype, self._method = model, dtype, method
        # NumPy arrays, so that folding happens once at trace time and not in the program.
        self._exact: dict[str, Any] = jax.tree.map(np.asarray, unfreeze(dict(variables)))
        self._variables = self._exact | {"params": jax.tree.map(self._cast, self._exact["params"])}
        self._jitted = Jitted(self.run)
        self._shapes: dict[_Inputs, None] = {}

    def __call__(self, images: Float[Array, "b h w c"], *inputs: Any) -> Any:
        result = self._jitted(images, *inputs)
        if not any(isinstance(x, Tracer) for x in (images, *inputs)):
            self._shapes[_program_for(images, *inputs)] = None
        return result

    def lower(self, images: Any, *inputs: Any) -> Any:
        """Lowers the function for inputs of these shapes, like `lower` of a jitted function."""
        return self._jitted.lower(images, *inputs)

    def save(self, path: str | Path, *shapes: tuple[int, int, int, int]) -> None:
        """Writes the compiled programs to a file for `load_compiled`, on the same processor with the same JAX.

        Programs with oneDNN cannot be saved. The file then contains XLA's own convolutions, which are slower, and a
        warning is issued.

        Args:
            path: path of the file.
            *shapes: shapes of float32 images. The model's other inputs are those for such images. Shapes that the
                function was called with are always saved.

        Raises:
            ValueError: if the function was never called and no shape is given, or if the model's output is not made of
                arrays, tuples and dictionaries.
        """
        images = [jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for shape in shapes]
        wanted = self._shapes | {_program_for(*example_inputs(self._model, x)): None for x in images}
        if not wanted:
            raise ValueError("there is nothing to save yet: call it with images first, or pass image shapes")
        if onednn_options():
            warnings.warn(
                "programs with oneDNN's convolutions cannot be saved: the file contains XLA's own, which are slower",
                stacklevel=2,
            )
        entries, payloads = [], {}
        jitted = jax.jit(self.run, compiler_options=compiler_options())
        for index, inputs in enumerate(wanted):
            compiled = jitted.lower(*(jax.ShapeDtypeStruct(*x) for x in inputs)).compile()
            payload, _, output = serialize_executable.serialize(compiled)
            outline = _outline(jax.tree.unflatten(output, [0] * output.num_leaves))
            if jax.tree.structure(_skeleton(outline)) != output:
                raise ValueError(
                    f"only outputs of arrays, tuples and dictionaries can be saved; this model has {output}"
                )
            entries.append({"inputs": inputs, "output": outline, "checksum": zlib.crc32(payload)})
            payloads[f"{index}"] = np.frombuffer(payload, np.uint8)
        header = {"format": _FORMAT, "made for": json.dumps(_here()), "programs": json.dumps(entries)}
        header["checksum"] = str(zlib.crc32(header["programs"].encode()))
        files.replace(path, lambda temporary: save_file(payloads, temporary, header))

    def _cast(self, x: Any) -> Any:
        return x if self._dtype is None or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(self._dtype)

    def run(self, images: Float[Array, "b h w c"], *inputs: Any) -> Any:
        """The function without `jit`, to be traced as a part of another program."""
        with module_calls(Folding(self._exact, self._variables, self._dtype)):
            others = [self._cast(x) if np.ndim(x) == np.ndim(images) else x for x in inputs]
            return self._model.apply(self._variables, self._cast(images), *others, method=self._method)


class Loaded:
    """The result of `load_compiled`: a function of the model's inputs, for the shapes that were saved."""

    def __init__(self, programs: Mapping[_Inputs, Any]):
        self._programs = programs

    def __call__(self, images: Float[Array, "b h w c"], *inputs: Any) -> Any:
        key = _program_for(images, *inputs)
        if key not in self._programs:
            known = ", ".join(map(_text, self._programs))
            raise ValueError(f"the file has no program for images of {_text(key)}, only for {known}")
        return self._programs[key](images, *inputs)


def _program_for(*inputs: Any) -> _Inputs:
    """Shapes and types of inputs, the types as JAX takes them: NumPy's float64 is float32 unless x64 is enabled."""
    return tuple((tuple(x.shape), jax.dtypes.canonicalize_dtype(x.dtype).name) for x in inputs)


def _text(inputs: _Inputs) -> str:
    return " and ".join(f"{shape} {dtype}" for shape, dtype in inputs)


def _check(path: str | Path, data: bytes, checksum: int) -> None:
    # Damaged machine code would end the process.
    if zlib.crc32(data) != checksum:
        raise ValueError(f"{path} has changed since it was written: its checksum differs")


def _outline(output: Any) -> Any:
    """The structure of an output as JSON: 0 for an array, lists for tuples, objects for dictionaries."""
    if isinstance(output, tuple | list):
        return [_outline(each) for each in output]
    if isinstance(output, Mapping):
        return {name: _outline(each) for name, each in output.items()}
    return 0


def _skeleton(outline: Any) -> Any:
    if isinstance(outline, list):
        return tuple(_skeleton(each) for each in outline)
    if isinstance(outline, dict):
        return {name: _skeleton(each) for name, each in outline.items()}
    return outline


def _here() -> dict[str, str]:
    """The environment that a compiled program depends on."""
    device = jax.local_devices()[0]
    kind = device.device_kind if device.platform != "cpu" else _processor()
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platform": device.platform,
        "device": kind,
    }


def _processor() -> str:
    """The processor's model and features on Linux, or else Python's name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kept = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    return f"{kept.get('model name', platform.machine())} {kept.get('flags', kept.get('Features', ''))}".strip()
