"""XLA compiler options that were fastest in measurements of densezoo's models, and `jax.jit` with these options."""

import functools
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from densezoo.inspect.onednn import fault
from densezoo.ops.implementation import with_onednn

_log = logging.getLogger(__name__)

_OPTIONS = {
    # XLA:CPU uses YNNPACK for convolutions by default; Eigen was up to 1.6 times faster in a U-Net.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # XLA leaves convolutions out of CUDA graphs by default. With them, a train step of a U-Net took 4 % less time.
    "gpu": {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION"},
}
_TRAINING = {
    # This pass removes the barriers of `jax.checkpoint` before common subexpression elimination, which would undo the
    # rematerialisation. The other pass would compile small loops in a way that knows no barriers.
    "cpu": {"xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting"},
}
# oneDNN's convolutions with fused bias, residual and ReLU, available in jaxlib >= 0.11 on x86-64 Linux.
_NESTED = "`compiler_options` can only be passed to top-level"
_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": "True"}


def compiler_options(*, training: bool = False) -> dict[str, str]:
    """Returns options for `jax.jit(..., compiler_options=...)` on the default platform. They only change rounding.

    With `training=True`, the options include those that a train step needs: without them, rematerialisation saves no
    memory on CPU. `densezoo.train` passes them itself. Options that the installed jaxlib does not know are omitted, so
    the result may be empty. JAX accepts such options only at the outermost `jit`. They do not enable oneDNN, which
    computes some programs wrongly; `compile` and `densezoo.train` check the program and enable it themselves.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> jax.jit(model.apply, compiler_options=dz.compiler_options())(variables, images).shape
        (1, 16, 16, 2)
    """
    return dict(_known(training))


@functools.cache
def _known(training: bool) -> dict[str, str]:
    known = {}
    platform = jax.default_backend()
    for name, value in (_OPTIONS.get(platform, {}) | (_TRAINING.get(platform, {}) if training else {})).items():
        if _compiled(lambda x: x, {name: value}, 0.0) is not None:
            known[name] = value
    if (flag := "xla_disable_hlo_passes") in known:
        # The option replaces the flag, so the passes that the user disabled are repeated.
        own = re.findall(rf"--{flag}=(\S+)", os.environ.get("XLA_FLAGS", ""))
        known[flag] = ",".join([*own[-1:], known[flag]])
    return known


@functools.cache
def onednn_options() -> dict[str, str]:
    """The option for oneDNN, if compiling a small convolution shows that it takes effect on this processor."""
    if jax.default_backend() != "cpu":
        return {}

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Some versions of jaxlib accept the flag and ignore it.
    maps, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 8, 16), (3, 3, 16, 16)))
    text = _compiled(convolve, _known(False) | _ONEDNN, maps, kernel)
    return dict(_ONEDNN) if text is not None and "__onednn$convolution" in text else {}


def _compiled(function: Callable[..., Any], options: dict[str, str], *arguments: Any) -> str | None:
    """The compiled program as text; None if the options are unknown."""
    try:
        return jax.jit(function, compiler_options=options).lower(*arguments).compile().as_text()
    except (jax.errors.JaxRuntimeError, ValueError, TypeError):  # the type depends on the version
        return None


class Jitted:
    """`jax.jit` with `compiler_options()`, and with oneDNN if it is available and computes the program correctly.

    Inside another `jit` or a `scan`, where JAX accepts no options, it becomes part of the outer program. JAX's
    persistent cache cannot store programs with oneDNN, so oneDNN is not used if the cache is on. `training` is passed
    to `compiler_options`. The object has the attributes of the jitted function.
    """

    def __init__(self, function: Callable[..., Any], *, training: bool = False, donate_argnums: int | tuple = ()):
        self._function, self._training, self._donated = function, training, donate_argnums
        self._trusted = True
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _by_onednn(self) -> Any:  # made on the first call, since it starts the backend
        function = functools.wraps(self._function)(with_onednn()(_checked(self._function)))
        return self._jit(function, compiler_options(training=self._training) | onednn_options())

    @functools.cached_property
    def _by_xla(self) -> Any:
        return self._jit(self._function, compiler_options(training=self._training))

    @functools.cached_property
    def _inside(self) -> Any:
        return self._jit(self._function, None)

    def _jit(self, function: Callable[..., Any], options: dict[str, str] | None) -> Any:
        return jax.jit(function, compiler_options=options, donate_argnums=self._donated)

    def _wants_onednn(self) -> bool:
        return self._trusted and bool(onednn_options()) and not _cache_is_on()

    def _first(self, call: Callable[[Any], Any]) -> Any:
        """Calls the jitted function, with oneDNN if possible."""
        if self._wants_onednn():
            try:
                return call(self._by_onednn)
            except _Refused as refusal:
                self._trusted = False
                name = getattr(self._function, "__name__", "a function")
                _log.warning("%s is compiled without oneDNN: %s", name, refusal)
        return call(self._by_xla)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._first(lambda jitted: jitted(*args, **kwargs))
        except ValueError as error:
            if _NESTED not in str(error):
                raise
            return self._inside(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of the jitted function."""
        return self._first(lambda jitted: jitted.lower(*args, **kwargs))

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of the jitted function."""
        return self._first(lambda jitted: jitted.trace(*args, **kwargs))

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As of the jitted function."""
        return jax.eval_shape(self._function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "_cache_size":
            raise AttributeError(name)
        return getattr(self._by_onednn if self._wants_onednn() else self._by_xla, name)


def jitted_once(function: Callable[..., Any], out_shardings: Any = None) -> Callable[..., Any]:
    """`jax.jit` with few LLVM passes, for functions that run once, such as parameter initialisation.

    For a ResNet-34, all passes would take 10 s and save 0.05 s. Inside another `jit`, the function becomes part of the
    outer program.
    """

    def run(*args: Any) -> Any:
        try:
            options = {"xla_backend_optimization_level": 1}
            return jax.jit(function, out_shardings=out_shardings, compiler_options=options)(*args)
        except ValueError as error:
            if _NESTED not in str(error):
                raise
            return function(*args)

    return run


def _cache_is_on() -> bool:
    config: Any = jax.config
    on = config.jax_compilation_cache_dir is not None and config.jax_enable_compilation_cache
    if on:
        _say_once(
            "JAX's persistent cache is on and cannot store programs with oneDNN: compiling without it, which is slower"
        )
    return on


_say_once = functools.cache(_log.warning)


class _Refused(Exception):
    """The reason to compile a program without oneDNN."""


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `function` to raise `_Refused` at trace time if it should not be compiled with oneDNN."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        if reason := fault(program.jaxpr):
            raise _Refused(reason)
        results = jaxpr_as_fun(program)(*jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return checked
