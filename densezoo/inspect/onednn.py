"""Finds operations in a traced program that oneDNN in jaxlib 0.12 computes wrongly or slowly."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Var

from densezoo.inspect.walk import called_program, convolutions, inner_programs

_CONVOLUTION, _PART = "the result of a convolution", "the same along some axes"


def fault(program: Any) -> str:
    """The reason to compile a program without oneDNN; "" if there is none.

    Args:
        program: a traced program, such as `jax.make_jaxpr(function)(x).jaxpr`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from densezoo import ops
        >>> def function(x, kernel, positions):
        ...     return ops.conv(x, kernel, padding=1) + positions
        >>> x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
        >>> fault(jax.make_jaxpr(function)(x, kernel, jnp.ones((2, 8, 8, 4))).jaxpr)
        ''
        >>> fault(jax.make_jaxpr(function)(x, kernel, jnp.ones((1, 8, 8, 4))).jaxpr)[:15]
        'it adds a value'
    """
    if any(map(_is_miscomputed, convolutions(program))):
        return "it would compute one of its convolutions wrongly"
    if _adds(program, [])[0]:
        return (
            "it adds a value that is constant over images, rows, columns or channels to a convolution, which is 100"
            " times slower"
        )
    return ""


def _is_miscomputed(convolution: Any) -> bool:
    """Whether a window as large as the map produces a single value, for which oneDNN misreads the kernel's layout.

    Autodiff creates such a convolution for the gradient of a 1x1 kernel with one feature.
    """
    numbers = convolution.params["dimension_numbers"]
    kernel, output = convolution.invars[1].aval.shape, convolution.outvars[0].aval.shape
    _, *window = (kernel[axis] for axis in numbers.rhs_spec[1:])
    features, *sides = (output[axis] for axis in numbers.out_spec[1:])
    return features == 1 and set(sides) == {1} and set(window) != {1}


def _adds(program: Any, arguments: Sequence[str | None]) -> tuple[bool, list[str | None]]:
    """Whether the program has a sum for which oneDNN only has a reference loop, and the kinds of its results."""
    known = {var: kind for var, kind in zip(program.invars, arguments, strict=False) if kind}

    def kind_of(atom: Any) -> str | None:
        return known.get(atom) if isinstance(atom, Var) else None

    for equation in program.eqns:
        name, given = equation.primitive.name, [kind_of(atom) for atom in equation.invars]
        results: list[str | None] = []
        if name == "conv_general_dilated":
            results = [_CONVOLUTION]
        elif name == "broadcast_in_dim":
            axes = equation.params["broadcast_dimensions"]
            results = [_PART if _is_part(equation.invars[0], axes, equation.outvars[0]) else None]
        elif name in ("add", "add_any"):
            given = [  # axes of one pixel or channel are broadcast without another equation
                _PART if _is_part(atom, range(atom.aval.ndim), equation.outvars[0]) else kind
                for atom, kind in zip(equation.invars, given, strict=True)
            ]
            if {_CONVOLUTION, _PART} <= set(given):
                return True, []
            results = [_CONVOLUTION if _CONVOLUTION in given else None]
        elif name in ("convert_element_type", "neg"):
            results = given
        elif (inner := called_program(equation)) is not None:
            found, results = _adds(inner, given)
            if found:
                return True, []
        elif any(_adds(inner, [])[0] for inner in inner_programs(equation)):
            return True, []
        known |= {var: kind for var, kind in zip(equation.outvars, results, strict=False) if kind}
    return False, [kind_of(atom) for atom in program.outvars]


def _is_part(atom: Any, axes: Sequence[int], result: Any) -> bool:
    """Whether a map (b, h, w, c) is broadcast from an array with rows or columns, but without all other axes.

    oneDNN is fast at adding a number per channel, or per channel and image.
    """
    shape, sides = result.aval.shape, atom.aval.shape
    if len(shape) != 4:
        return False
    kept = {axis for axis, side in zip(axes, sides, strict=True) if side == shape[axis] > 1}
    return bool(kept & {1, 2}) and kept != {axis for axis, side in enumerate(shape) if side > 1}
