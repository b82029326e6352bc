"""Options for XLA under which densezoo's models were measured to run fastest."""

import functools

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
    known = {}
    for name, value in _OPTIONS.get(platform or jax.default_backend(), {}).items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except Exception:  # the error of an unknown option differs between versions
            continue
        known[name] = value
    return known
