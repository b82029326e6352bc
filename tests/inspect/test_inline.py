"""Programs as flat lists of plain equations."""

import jax
import jax.numpy as jnp

from densezoo.inspect.inline import inlined


@jax.custom_jvp
def halved(x):
    return jax.lax.platform_dependent(x, cpu=lambda x: x / 2, default=lambda x: x * 0.25)


halved.defjvp(lambda primals, tangents: (halved(primals[0]), tangents[0]))


def function(x):
    y = jax.jit(halved)(jax.lax.optimization_barrier(x))
    jnp.sin(y)  # unused
    return jax.checkpoint(jnp.exp)(jax.lax.fori_loop(0, 3, lambda i, carry: halved(carry), y)), x


def names(program):
    inner = [each for equation in program.eqns for each in equation.params.values() if hasattr(each, "eqns")]
    return {equation.primitive.name for equation in program.eqns}.union(*map(names, inner))


def test_a_flat_program_computes_the_same_with_plain_equations():
    x = jnp.array([1.0, 16.0])
    flat = inlined(function, x, platform="cpu")
    assert [each.tolist() for each in flat(x)] == [jnp.exp(x / 16).tolist(), x.tolist()]
    assert names(jax.make_jaxpr(flat)(x)) == {"add", "div", "exp", "scan"}
    assert inlined(function, x)(x)[0].tolist() == jnp.exp(x / 256).tolist()  # the default branch
