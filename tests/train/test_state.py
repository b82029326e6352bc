import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densezoo.train import create_state, make_train_step

IMAGE = jax.ShapeDtypeStruct((4, 5, 6, 2), jnp.float32)


def state_of(model, seed=0, image=IMAGE, **options):
    return create_state(model, optax.adamw(0.1), jax.random.key(seed, impl="rbg"), image, **options)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)


def test_a_new_state_has_the_models_variables(net):
    model = net()
    state = state_of(model)
    assert jax.tree.structure(state.variables) == jax.tree.structure(shapes_of(model))
    assert int(state.step) == 0 and state.ema is None
    np.testing.assert_array_equal(state.batch_stats["norm"]["var"], np.ones(3))
    assert np.std(state.params["encoder"]["kernel"]) > 0
    other = state_of(model, seed=1)
    assert not np.array_equal(state.params["encoder"]["kernel"], other.params["encoder"]["kernel"])


def test_only_shapes_of_the_inputs_matter(net, leaves):
    given = state_of(net(), image=np.full(IMAGE.shape, np.nan))  # In float64.
    shapes = state_of(net())
    for x, y in zip(leaves(given).values(), leaves(shapes).values(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_model_without_statistics(net):
    state = state_of(net(norm=False))
    assert state.batch_stats == {} and set(state.variables) == {"params"}


def test_frozen_subtrees_have_no_optimizer_memory(net):
    state = state_of(net(frozen=("encoder", "norm")), ema_decay=0.9)
    assert set(state.trainable) == {"head"}
    assert state.ema is not None and set(state.ema) == {"head"}
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state)}
    assert any("head" in name for name in names)
    assert not any("encoder" in name or "norm" in name for name in names)
    assert set(state.params) == set(state.ema_variables["params"]) == {"encoder", "norm", "head"}


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("encoder", "bakcbone"), r"frozen contains 'bakcbone', but .*\['encoder', 'head', 'norm'\]"),
        ("encoder", r"write \('encoder',\)"),
        (("encoder", "head", "norm"), "nothing to train"),
    ],
)
def test_frozen_names_are_checked(net, frozen, message):
    with pytest.raises(ValueError, match=message):
        state_of(net(frozen=frozen))


def test_starting_from_variables_copies_them(net, loss, batch_of):
    model = net()
    given = dict(state_of(model, seed=7).variables)
    given["batch_stats"] = jax.tree.map(lambda x: np.asarray(x) + 2, given["batch_stats"])  # Numpy arrays do too.
    kept = jax.tree.map(lambda x: np.array(x, copy=True), given)
    state = state_of(model, variables=given, ema_decay=0.9)
    for x, y in zip(jax.tree.leaves(state.variables), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(x, y)
    make_train_step(lambda apply, batch, key: loss(apply(batch["image"]), batch))(
        state, batch_of()
    )  # Donates the state, and with it nothing of the caller's.
    for x, y in zip(jax.tree.leaves(given), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(x, y)


def test_given_variables_take_the_models_dtype(net):
    given = jax.tree.map(lambda x: np.ones(x.shape, np.float16), shapes_of(net()))
    assert {x.dtype for x in jax.tree.leaves(state_of(net(), variables=given).variables)} == {jnp.dtype("float32")}


def test_variables_of_another_model_are_one_error(net):
    with pytest.raises(ValueError, match=r"params/encoder/kernel: \(3, 3, 2, 3\).*expected, \(3, 3, 2, 5\)"):
        state_of(net(), variables=shapes_of(net(features=5)))
    with pytest.raises(ValueError, match="batch_stats/norm/mean: missing in variables"):
        state_of(net(), variables={"params": shapes_of(net())["params"]})
    with pytest.raises(ValueError, match="params/norm/bias: only in variables"):
        state_of(net(norm=False), variables=shapes_of(net()))


def test_a_key_of_the_old_kind_is_an_error(net):
    with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
        create_state(net(), optax.sgd(0.1), jnp.zeros(2, jnp.uint32), IMAGE)


@pytest.mark.parametrize("decay", [0.0, 1.0, -3])
def test_the_decay_is_a_fraction(net, decay):
    with pytest.raises(ValueError, match="ema_decay"):
        state_of(net(), ema_decay=decay)


def test_a_state_is_made_inside_other_programs_too(net, leaves):
    def create(key):
        return create_state(net(), optax.adam(0.1), key, IMAGE)

    key = jax.random.key(3, impl="rbg")
    made = create(key)
    inside, shapes = jax.jit(create)(key), jax.eval_shape(create, key)
    for x, y, shape in zip(leaves(made).values(), leaves(inside).values(), jax.tree.leaves(shapes), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
        assert shape.shape == jnp.shape(y)[: shape.ndim]
