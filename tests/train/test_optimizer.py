import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densezoo.train import make_optimizer, one_cycle

# Printed by torch 2.13, rounded to six places: the learning rates before each of ten steps of
# OneCycleLR(AdamW(..., lr=1), 1.0, total_steps=10, cycle_momentum=False).
TORCH_10 = [0.04, 0.52, 1.0, 0.950485, 0.811746, 0.611262, 0.388742, 0.188258, 0.049519, 4e-06]


def test_one_cycle_has_the_values_of_torch():
    schedule = jax.jit(one_cycle(1.0, 10))
    np.testing.assert_allclose([schedule(jnp.int32(i)) for i in range(10)], TORCH_10, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 33, 200])
def test_one_cycle_against_a_loop(steps):
    expected = []
    top = 0.3 * steps - 1
    for i in range(steps):
        if i <= top:
            start, stop, fraction = 2.0 / 25, 2.0, i / top
        else:
            start, stop, fraction = 2.0, 2.0 / 25 / 1e4, (i - top) / (steps - 1 - top)
        expected.append(stop + (start - stop) / 2 * (1 + math.cos(math.pi * fraction)))
    actual = jax.vmap(one_cycle(2.0, steps))(jnp.arange(steps))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_a_few_steps_falls(steps):
    rates = np.array(jax.vmap(one_cycle(1.0, steps))(jnp.arange(steps + 3)))
    assert (rates > 0).all() and (rates <= 1).all()
    assert (np.diff(rates) <= 0).all()  # And stays low when there are more steps than announced.


def test_adamw_against_a_loop():
    steps, decay, clip = 12, 0.1, 0.5
    optimizer = make_optimizer(0.3, steps, weight_decay=decay, clip_norm=clip)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3,)).astype(np.float32), "b": rng.normal(size=(2, 2)).astype(np.float32)}
    gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(steps)]

    expected = jax.tree.map(np.float64, params)
    m, v = jax.tree.map(np.zeros_like, expected), jax.tree.map(np.zeros_like, expected)
    rates = [float(one_cycle(0.3, steps)(i)) for i in range(steps)]
    for i, gradient in enumerate(gradients):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        for name, p in expected.items():
            g = gradient[name] * min(1.0, clip / norm)
            p *= 1 - rates[i] * decay
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            denominator = np.sqrt(v[name] / (1 - 0.999 ** (i + 1))) + 1e-8
            p -= rates[i] * m[name] / (1 - 0.9 ** (i + 1)) / denominator

    with jax.numpy_dtype_promotion("standard"):
        memory = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for gradient in gradients:
            updates, memory = update(gradient, memory, params)
            params = optax.apply_updates(params, updates)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, atol=1e-6)


def test_a_schedule_of_ones_own_takes_the_place_of_the_cycle():
    optimizer = make_optimizer(optax.constant_schedule(0.25), 10, weight_decay=0.0)
    params = jnp.zeros(2)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jnp.array([1.0, -3.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.25, 0.25], rtol=1e-5)  # Adam's first step has the learning rate's length.


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="steps=0"):
        make_optimizer(1e-3, 0)
    with pytest.raises(ValueError, match="steps=0"):
        one_cycle(1e-3, 0)
