"""Batch norms folded into the convolutions before them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "encoder", "channels", "norms"),
    [
        ("unet", dz.ResNet((1, 1), dz.BasicBlock, width=8), 3, 6 + 6),
        ("fpn", dz.ResNet((1, 1), dz.Bottleneck, width=8), 1, 9),
        ("segnet", dz.VGG((1, 2, 1), (4, 8, 8), norm=dz.BatchNorm), 4, 4 + 4),
        ("unet", dz.PlainEncoder((4, 8)), 3, 4 + 2),
    ],
)
def test_folded_variables_give_the_same_and_have_no_norm_left(name, encoder, channels, norms, with_statistics):
    fields = {"fpn": {"features": 32, "segmentation_features": 32}}.get(name, {})
    model = dz.create_model(name, encoder, 3, **fields)
    images = jax.random.normal(KEY, (2, 40, 37, channels))
    variables = with_statistics(model, images)
    folded = dz.fold_batch_norm(model, variables)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    assert jax.tree.map(jnp.shape, folded["params"]) == jax.tree.map(jnp.shape, variables["params"])
    means = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(folded["batch_stats"]) if path[-1].key == "mean"
    ]
    assert len(means) == norms
    assert not any(leaf.any() for leaf in means)
    apply = jax.jit(model.apply)
    expected, y = apply(variables, images), apply(folded, images)
    np.testing.assert_allclose(y, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    # Folding again changes nothing but by rounding.
    again = dz.fold_batch_norm(model, folded)
    for a, b in zip(jax.tree.leaves(folded), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Standardised(dz.Conv):
    """A custom convolution."""

    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


class NormFirst(nn.Module):
    """Norms that must stay, and one, of a convolution that is used twice, that can be folded."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = dz.Conv(4, name="first")(x)
        x = dz.BatchNorm(name="left")(x) + dz.BatchNorm(name="right")(x)
        x = dz.BatchNorm(name="alone")(nn.relu(x))
        x = dz.BatchNorm(name="of_own")(Standardised(4, name="own")(x))
        beside = dz.Conv(4, name="beside")(x)
        x = beside + dz.BatchNorm(name="residual")(beside)
        once = dz.Conv(4, name="once")
        x = dz.BatchNorm(name="of_once")(once(x)) + nn.relu(once(nn.relu(x)))
        shared = dz.Conv(4, name="shared")
        norm = dz.BatchNorm(name="of_both")
        return norm(shared(x)) + norm(shared(nn.relu(x)))


def test_only_a_norm_that_alone_reads_a_convolution_is_folded(with_statistics):
    model, images = NormFirst(), jax.random.normal(KEY, (2, 9, 9, 2))
    variables = with_statistics(model, images)
    folded = dz.fold_batch_norm(model, variables)
    gone = {name for name, stats in folded["batch_stats"].items() if not stats["mean"].any()}
    assert gone == {"of_both"}
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(folded, images), apply(variables, images), rtol=1e-4, atol=1e-4)
    compiled = dz.compile(model, variables)
    np.testing.assert_allclose(compiled(images), apply(variables, images), rtol=1e-4, atol=1e-4)


def test_what_has_no_batch_norm_stays_as_it_is():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8), norm=None), 3, norm=None)
    variables = model.init(KEY, jnp.ones((1, 16, 16, 3)))
    assert dz.fold_batch_norm(model, variables) is variables
    with pytest.raises(ValueError, match="params"):
        dz.fold_batch_norm(model, {"batch_stats": {}})


def test_what_is_not_the_models_is_named(with_statistics):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    variables = with_statistics(model, jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(TypeError, match="the model comes first"):
        dz.fold_batch_norm(variables, model)
    with pytest.raises(ValueError, match=r"not the variables of the model: batch_stats/.* is missing"):
        dz.fold_batch_norm(model, {"params": variables["params"]})
    with pytest.raises(ValueError, match="params/decoder/block0/convs/conv1/conv/bias is missing"):
        dz.fold_batch_norm(dz.create_model("unet", dz.PlainEncoder((4, 8), norm=None), 2, norm=None), variables)
