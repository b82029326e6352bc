"""Options for XLA under which densezoo's models were measured to run fastest."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA:CPU hands convolutions to YNNPACK by default; Eigen's are up to 1.6 times faster (docs/benchmarks.md).
_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}}


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)` that make the models faster; they change no result.

    `densezoo.train` passes them itself. An option that the installed jaxlib does not know is left out, so that the
    result may be empty. JAX takes such options at the outermost `jit` only.

    Args:
        platform: "cpu", "gpu", "tpu"; None means the default one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> jax.jit(model.apply, compiler_options=dz.compiler_options())(variables, images).shape
        (1, 16, 16, 2)
    """
    default = jax.default_backend()
    known = {}
    for name, value in _OPTIONS.get(platform or default, {}).items():
        if (platform or default) != default:
            continue  # it cannot be tried here
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except Exception:  # what an unknown option raises differs between versions
            continue
        known[name] = value
    return known


class Jitted:
    """`jax.jit` with `compiler_options()`, which also works inside another `jit` or a `scan`, where JAX takes none.

    It has the attributes of the jitted function (`lower`, `trace`, ...).
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._outermost = jax.jit(function, compiler_options=compiler_options(), **options)
        self._inside = jax.jit(function, **options)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return (self._inside if traced else self._outermost)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_outermost"], name)
