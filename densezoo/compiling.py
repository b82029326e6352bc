"""Options for XLA under which densezoo's models were measured to run best."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_OPTIONS = {
    # XLA:CPU hands convolutions to YNNPACK by default; Eigen's were up to 1.6 times faster in a U-Net.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
}
_TRAINING = {
    # This pass takes the barriers of `jax.checkpoint` out before XLA:CPU looks for what is computed twice, so that all
    # would be kept. The barriers cost an inference with Winograd convolutions some percent, and training nothing.
    "cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"},
}
# oneDNN's convolutions, with the bias, the residual and the ReLU that follow: in jaxlib >= 0.11 on x86-64 Linux.
_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": "True"}


def compiler_options(*, training: bool = False) -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)` on the default platform; results change by rounding.

    With `training` there are also those that a train step needs, without which rematerialisation saves no memory on a
    CPU. `densezoo.train` passes them itself. An option that the installed jaxlib does not know is left out, so that the
    result may be empty. JAX takes such options at the outermost `jit` only.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> jax.jit(model.apply, compiler_options=dz.compiler_options())(variables, images).shape
        (1, 16, 16, 2)
    """
    known = dict(_known(training))
    return known if training else known | _onednn()


@functools.cache
def _known(training: bool) -> dict[str, str]:
    known = {}
    platform = jax.default_backend()
    for name, value in (_OPTIONS.get(platform, {}) | (_TRAINING.get(platform, {}) if training else {})).items():
        if _compiled(lambda x: x, {name: value}, 0.0) is not None:
            known[name] = value
    if (flag := "xla_disable_hlo_passes") in known:
        # The option takes the place of the flag, so the user's own passes are named again.
        own = re.findall(rf"--{flag}=(\S+)", os.environ.get("XLA_FLAGS", ""))
        known[flag] = ",".join([*own[-1:], known[flag]])
    return known


@functools.cache
def _onednn() -> dict[str, str]:
    """The option for oneDNN, if a small convolution shows that this jaxlib follows it on this processor."""
    if jax.default_backend() != "cpu":
        return {}

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Some versions know the flag and do nothing with it.
    text = _compiled(convolve, _known(False) | _ONEDNN, jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 16, 16)))
    return dict(_ONEDNN) if text is not None and "__onednn$convolution" in text else {}


def _compiled(function: Callable[..., Any], options: dict[str, str], *arguments: Any) -> str | None:
    """The compiled program as text; None if the options are unknown."""
    try:
        return jax.jit(function, compiler_options=options).lower(*arguments).compile().as_text()
    except Exception:  # what an unknown option raises differs between versions
        return None


class Jitted:
    """`jax.jit` with `compiler_options()`, which also works inside another `jit` or a `scan`, where JAX takes none.

    `training` goes to `compiler_options`. It has the attributes of the jitted function (`lower`, `trace`, ...).
    """

    def __init__(self, function: Callable[..., Any], *, training: bool = False, **options: Any):
        self._function, self._training, self._options = function, training, options
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _outermost(self) -> Any:  # made on the first call, since it starts the backend
        return jax.jit(self._function, compiler_options=compiler_options(training=self._training), **self._options)

    @functools.cached_property
    def _inside(self) -> Any:
        return jax.jit(self._function, **self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._outermost(*args, **kwargs)
        except ValueError as error:
            if "compiler_options" not in str(error):
                raise
            return self._inside(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "_cache_size":
            raise AttributeError(name)
        return getattr(self._outermost, name)
