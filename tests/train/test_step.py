import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densezoo import compiling
from densezoo.ops.implementation import onednn
from densezoo.train import create_state, make_eval_step, make_train_step


def sgd_state(model, batch, *, key=0, **options):
    return create_state(model, optax.sgd(0.5), jax.random.key(key, impl="rbg"), batch["image"], **options)


def step_of(loss, **options):
    """A train step for a loss of the model's outputs."""
    return make_train_step(lambda apply, batch, key: loss(apply(batch["image"]), batch), **options)


def copy(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def assert_equal(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 2e-5, "atol": 1e-6} | tolerance))


class Pointwise(nn.Module):
    """Dropout and one weight per channel: compiles quickly."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(images))


@functools.cache
def gradient_of(model, loss):
    """One gradient of a model without dropout, by hand: `(variables, batch) -> gradients, new statistics, loss`."""

    @jax.jit
    def gradient(variables, batch):
        def value(params):
            collections = variables | {"params": params}
            prediction, updated = model.apply(collections, batch["image"], train=True, mutable=["batch_stats"])
            return loss(prediction, batch), updated.get("batch_stats", {})

        (value, statistics), gradient = jax.value_and_grad(value, has_aux=True)(variables["params"])
        return gradient, statistics, value

    return gradient


def test_one_step_is_the_update_written_out(net, loss, batch_of):
    model, batch = net(dropout=0.0), batch_of()
    state = sgd_state(model, batch)
    before = copy(state.variables)
    gradient, statistics, value = gradient_of(model, loss)(before, batch)

    state, metrics = step_of(loss)(state, batch)
    assert_equal(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, before["params"], gradient))
    assert_equal(state.batch_stats, statistics)
    assert not np.allclose(state.batch_stats["norm"]["mean"], before["batch_stats"]["norm"]["mean"])
    assert set(metrics) == {"loss", "grad_norm"} and int(state.step) == 1
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_the_state_is_donated_and_the_step_compiled_once(new_state, train_step, batch_of, compilations):
    state = new_state()
    first = state
    state, _ = train_step(state, batch_of(0))
    assert all(x.is_deleted() for x in jax.tree.leaves((first.params, first.opt_state, first.ema)))
    with compilations() as compiled:
        for seed in (1, 2):
            state, _ = train_step(state, batch_of(seed))
    assert not compiled
    assert int(state.step) == 3


def test_a_step_works_inside_jit_and_scan(new_state, train_step, batch_of):
    expected, metrics = train_step(new_state(), batch_of(0))
    state, inside = jax.jit(lambda state, batch: train_step(state, batch))(new_state(), batch_of(0))
    np.testing.assert_allclose(inside["loss"], metrics["loss"], rtol=1e-6)
    batches = jax.tree.map(lambda x: x[None], batch_of(0))
    state, scanned = jax.lax.scan(train_step, new_state(), batches)
    np.testing.assert_allclose(scanned["loss"][0], metrics["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_randomness_depends_on_key_and_step_alone(loss, batch_of):
    batch = batch_of()
    model, step = Pointwise(), step_of(loss)
    optimizer = optax.sgd(0.0)  # The parameters stay, so that only dropout makes the loss differ.

    def losses(key, count):
        state = create_state(model, optimizer, jax.random.key(key, impl="rbg"), batch["image"])
        values = []
        for _ in range(count):
            state, metrics = step(state, batch)
            values.append(float(metrics["loss"]))
        return values

    first = losses(0, 3)
    assert len(set(first)) == 3
    assert losses(0, 3) == first
    assert losses(1, 1) != first[:1]


def test_a_frozen_part_does_not_move(net, loss, batch_of):
    batch = batch_of()
    model = net(frozen=("encoder", "norm"))
    state = create_state(
        model, optax.adamw(0.1, weight_decay=0.5), jax.random.key(0, impl="rbg"), batch["image"], ema_decay=0.9
    )
    before = copy(state.variables)
    step = step_of(loss)
    for seed in range(2):
        state, metrics = step(state, batch_of(seed))
    for name in ("encoder", "norm"):
        assert_equal(state.params[name], before["params"][name], rtol=0, atol=0)
        assert_equal(state.ema_variables["params"][name], before["params"][name], rtol=0, atol=0)
    assert_equal(state.batch_stats, before["batch_stats"], rtol=0, atol=0)
    assert not np.allclose(state.params["head"]["kernel"], before["params"]["head"]["kernel"])
    assert float(metrics["grad_norm"]) > 0


def test_augmentation_sees_a_new_key_every_step(batch_of):
    batch = batch_of()

    def augment(key, batch):
        return batch | {"shift": jax.random.normal(key)}

    def loss(prediction, batch):
        return jnp.mean(prediction), {"shift": batch["shift"]}

    state = sgd_state(Pointwise(), batch, key=3)
    step, shifts = step_of(loss, augment=augment), []
    for _ in range(2):
        state, metrics = step(state, batch)
        shifts.append(float(metrics["shift"]))
    assert shifts[0] != shifts[1]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # Parts are unrolled on a CPU, a loop elsewhere.
def test_accumulation_goes_through_the_parts(net, loss, batch_of, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model, batch = net(dropout=0.0), batch_of(size=6)
    state = sgd_state(model, batch)
    before = variables = copy(state.variables)
    parts = [jax.tree.map(lambda x, i=i: x[i::3], batch) for i in range(3)]
    gradients, values = [], []
    for part in parts:  # Statistics flow from part to part, parameters stay.
        gradient, statistics, value = gradient_of(model, loss)(variables, part)
        variables = variables | {"batch_stats": statistics}
        gradients.append(gradient)
        values.append(value)

    state, metrics = step_of(loss, accumulate=3)(state, batch)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
    assert_equal(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, before["params"], mean))
    assert_equal(state.batch_stats, variables["batch_stats"])
    np.testing.assert_allclose(metrics["loss"], np.mean(values), rtol=1e-5)


def test_accumulation_changes_nothing_where_images_are_independent(net, loss, batch_of):
    model, batch = net(dropout=0.0, norm=False), batch_of()
    results = []
    for accumulate in (1, 2):
        state, metrics = step_of(loss, accumulate=accumulate)(sgd_state(model, batch), batch)
        results.append((state.params, metrics))
    assert_equal(results[1], results[0])


def test_parts_drop_different_features(batch_of):
    batch = jax.tree.map(lambda x: np.concatenate([x[:1]] * 4), batch_of())  # Four times the same image.

    def loss(prediction, batch):
        value = jnp.mean(prediction)
        return value, {"square": value**2}

    _, metrics = step_of(loss, accumulate=4)(sgd_state(Pointwise(), batch), batch)
    assert float(metrics["square"]) - float(metrics["loss"]) ** 2 > 1e-8  # The variance over parts.


def test_accumulate_divides_the_batch(net, loss, batch_of):
    batch = batch_of(size=4)
    with pytest.raises(ValueError, match=r"accumulate=3 does not divide the batch: image has shape \(4, 5, 6, 2\)"):
        step_of(loss, accumulate=3)(sgd_state(net(), batch), batch)
    with pytest.raises(ValueError, match="accumulate"):
        step_of(loss, accumulate=0)


def test_average_against_a_loop(loss, batch_of):
    batch = batch_of()
    state = sgd_state(Pointwise(), batch, ema_decay=0.3)
    step = step_of(loss)
    expected = copy(state.params)
    for count in range(1, 5):
        state, _ = step(state, batch)
        decay = min(0.3, (1 + count) / (10 + count))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.array(p), expected, state.params)
    assert_equal(state.ema, expected)
    assert_equal(state.ema_variables, {"params": expected})
    assert not np.allclose(state.params["Dense_0"]["kernel"], expected["Dense_0"]["kernel"])


def test_bfloat16_computes_in_bfloat16_and_trains_in_float32(net, loss, batch_of):
    seen = {}

    def remember(updates, state, params=None):
        seen["gradients"] = {x.dtype for x in jax.tree.leaves(updates)}
        return updates, state

    def observed_loss(prediction, batch):
        seen["prediction"] = prediction.dtype
        return jnp.mean(prediction - batch["target"].astype(jnp.bfloat16)) ** 2  # A bfloat16 scalar.

    batch = batch_of()
    optimizer = optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), remember), optax.adamw(0.1))
    with jax.numpy_dtype_promotion("standard"):  # Linen's BatchNorm subtracts a float32 mean from a bfloat16 input.
        key = jax.random.key(0, impl="rbg")
        state = create_state(net(dtype=jnp.bfloat16), optimizer, key, batch["image"], ema_decay=0.9)
        state, metrics = step_of(observed_loss)(state, batch)
    float32 = jnp.dtype("float32")
    assert seen == {"gradients": {float32}, "prediction": jnp.bfloat16}
    assert {x.dtype for x in jax.tree.leaves((state.variables, state.ema, metrics))} == {float32}
    assert {x.dtype for x in jax.tree.leaves(state.opt_state)} == {float32, jnp.dtype("int32")}  # Counts are ints.


@pytest.mark.parametrize(
    ("bad_loss", "message"),
    [
        (lambda prediction, batch: prediction, r"loss must be a scalar, but has shape \(4, 5, 6, 1\)"),
        (lambda prediction, batch: (jnp.mean(prediction), {"hits": prediction[0]}), "hits must be a scalar"),
        (lambda prediction, batch: (jnp.mean(prediction), {"grad_norm": 1.0}), r"\['grad_norm'\]"),
    ],
)
def test_what_a_loss_gives_is_checked(new_state, batch_of, bad_loss, message):
    with pytest.raises(ValueError, match=message):
        step_of(bad_loss)(new_state(), batch_of())


def test_a_loss_of_outputs_goes_on_working_with_a_warning(new_state, loss, batch_of):
    expected, metrics = step_of(loss)(new_state(), batch_of())
    with pytest.warns(DeprecationWarning, match=r"write loss\(apply, batch, key\)"):
        step = make_train_step(loss)
    state, old = step(new_state(), batch_of())
    assert_equal(state.params, expected.params, rtol=0, atol=0)
    assert float(old["loss"]) == float(metrics["loss"])
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=r"no \['before'\]; it has"):
        make_train_step(loss, inputs=("before",))(new_state(), batch_of())
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=r"write \('image',\)"):
        make_train_step(loss, inputs="image")
    with pytest.raises(TypeError, match=r"must take \(apply, batch, key\)"):
        make_train_step(lambda apply: 0.0)
    with pytest.raises(TypeError, match="calls apply itself"):
        make_train_step(lambda apply, batch, key: 0.0, inputs=("image",))


def test_a_model_of_two_images():
    class Difference(nn.Module):
        @nn.compact
        def __call__(self, before, after, *, train=False):
            return nn.Dense(1)(after - before)

    batch = {"before": jnp.ones((2, 3, 3, 1)), "after": jnp.ones((2, 3, 3, 1))}
    state = create_state(Difference(), optax.sgd(0.1), jax.random.key(0, impl="rbg"), batch["before"], batch["after"])

    def loss(apply, batch, key):
        return jnp.mean((apply(batch["before"], batch["after"]) - 1) ** 2)

    state, metrics = make_train_step(loss)(state, batch)
    assert float(metrics["loss"]) == 1.0  # No change: the prediction is the bias, 0.
    change = make_eval_step(lambda apply, batch: jnp.mean(apply(batch["before"], batch["after"])))(state, batch)
    np.testing.assert_allclose(change, 0.2, rtol=1e-6)  # The bias after one step of gradient -2.


class Counting(nn.Module):
    """A custom collection and a custom random stream."""

    @nn.compact
    def __call__(self, images, *, train=False):
        calls = self.variable("tallies", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            calls.value += 1
        noise = jax.random.normal(self.make_rng("noise")) if train and not self.is_initializing() else 0.0
        return nn.Dense(1)(images) + noise


def test_any_collection_and_any_random_stream(batch_of, leaves):
    batch, drawn = batch_of(), []

    def loss(apply, batch, key):
        first, second = apply(batch["image"]), apply(batch["image"])
        return jnp.mean(first), {"difference": jnp.mean(first - second), "own": jax.random.normal(key)}

    state, step = sgd_state(Counting(), batch, ema_decay=0.5), make_train_step(loss)
    for count in (1, 2):
        state, metrics = step(state, batch)
        assert int(state.variables["tallies"]["calls"]) == 2 * count  # Both calls of the loss count.
        assert abs(float(metrics["difference"])) > 1e-3  # Each has noise of its own.
        drawn.append((float(metrics["difference"]), float(metrics["own"])))
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    assert state.batch_stats == {} and "tallies" in state.ema_variables


def test_evaluation_is_inference_with_the_averaged_parameters(new_state, train_step, batch_of, compilations):
    state, batch = new_state(), batch_of()
    for _ in range(2):
        state, _ = train_step(state, batch)

    def measure(apply, batch):
        prediction = apply(batch["image"])
        return {"sum": jnp.sum(prediction), "images": prediction.shape[0]}

    apply = jax.jit(lambda variables: jnp.sum(state.apply_fn(variables, batch["image"])))
    for ema, variables in ((True, state.ema_variables), (False, state.variables)):
        step = make_eval_step(measure, ema=ema)
        result = step(state, batch)
        np.testing.assert_allclose(result["sum"], apply(variables), rtol=1e-5)
        assert int(result["images"]) == 4
        with compilations() as compiled:
            again = step(state, batch)
        assert not compiled
        np.testing.assert_array_equal(again["sum"], result["sum"])  # Neither donated nor random.
    assert not np.allclose(apply(state.variables), apply(state.ema_variables))


@pytest.mark.parametrize("available", [False, True])
def test_a_step_knows_whether_onednn_compiles_it(monkeypatch, batch_of, loss, available):
    monkeypatch.setattr(compiling, "onednn_options", lambda: compiling._ONEDNN if available else {})
    seen = []

    def looking(prediction, batch):
        seen.append(onednn())
        return loss(prediction, batch)

    batch = batch_of()
    step_of(looking).trace(sgd_state(Pointwise(), batch), batch)
    assert set(seen) == {available}
