"""The walker over traced programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import densezoo as dz
from densezoo.inspect.walk import as_reference, convolutions, module_calls, traced, walk


def names_and_times(function, *arguments):
    return [(step.name, step.times) for step in walk(jax.make_jaxpr(function)(*arguments).jaxpr)]


def test_inner_programs_are_walked_and_scans_counted():
    def inner(x, _):
        return jax.jit(jnp.sin)(x), jax.lax.scan(lambda x, _: (jnp.cos(x), None), x, length=3)[0]

    def outer(x):
        return jax.lax.scan(inner, jnp.exp(x), length=5)

    found = names_and_times(outer, 1.0)
    assert [step for step in found if step[0] in ("exp", "sin", "cos")] == [("exp", 1), ("sin", 5), ("cos", 15)]


def test_all_branches_are_walked_but_only_this_platforms():
    def branches(x):
        x = jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)
        return jax.lax.platform_dependent(x, cpu=jnp.exp, tpu=jnp.log, default=jnp.tanh)

    names = {name for name, _ in names_and_times(branches, 1.0)}
    here = "exp" if jax.default_backend() == "cpu" else "tanh"
    assert names & {"sin", "cos", "exp", "log", "tanh"} == {"sin", "cos", here}


def test_steps_have_the_names_of_modules_and_their_program():
    model = dz.PlainEncoder((4, 8))
    images = jnp.ones((1, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    program = traced(model.apply, variables, images, visit=lambda module, call, args, kwargs: call(*args, **kwargs))
    steps = [step for step in walk(program) if step.name == "conv_general_dilated"]
    assert [step.equation for step in steps] == convolutions(program)
    assert [[name for name in step.scopes if name.startswith(("block", "conv"))][:2] for step in steps] == [
        [f"block{block}", f"conv{conv}"] for block in (0, 1) for conv in (1, 2)
    ]
    assert all(any(step.equation is equation for equation in step.program.eqns) for step in steps)


class Adding(nn.Module):
    def __call__(self, x):
        return self.twice(x) + 1

    def twice(self, x):
        return 2 * x


def test_calls_give_what_the_visitor_says_each_time():
    seen = []

    def visit(module, call, args, kwargs):
        seen.append(type(module))
        return 10 * call(*args, **kwargs)

    for _ in range(2):
        assert [step.name for step in walk(traced(Adding().apply, {}, 1.0, visit=visit))][-1] == "mul"
    assert seen == [Adding, Adding]
    with module_calls(visit):
        assert Adding().apply({}, 1.0) == 30


def test_the_plain_form_is_that_of_the_field_and_the_operations():
    model = dz.create_model("unet", "plain")
    with as_reference(model) as plain, as_reference(Adding()) as own:
        assert plain == model.clone(impl="reference") and own == Adding()
        assert "custom_vjp" not in str(jax.make_jaxpr(lambda x: dz.ops.max_pool(x))(jnp.ones((1, 4, 4, 1))))
