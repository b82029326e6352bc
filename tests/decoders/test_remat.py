"""Rematerialisation only changes which values are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)
DECODERS = {
    "unet": dz.UNetDecoder((8,)),
    "unetplusplus": dz.UNetPlusPlusDecoder((8,)),
    "manet": dz.MAnetDecoder((8,), reduction=2),
    "linknet": dz.LinknetDecoder(4),
}


def pyramid():
    rng = np.random.default_rng(0)
    shapes = ((2, 17, 13, 4), (2, 9, 7, 8))
    features = tuple(jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return dz.Pyramid(features, reductions=(1, 2), image_size=(17, 13))


@pytest.mark.parametrize("name", DECODERS)
def test_remat_changes_neither_the_weights_nor_the_gradients(name):
    maps = pyramid()
    decoder = DECODERS[name].clone(dropout=0.25)
    variables = jax.jit(decoder.init)(KEY, maps)
    recomputing = decoder.clone(remat=True)
    assert jax.eval_shape(recomputing.init, KEY, maps) == jax.eval_shape(lambda: variables)

    def gradient(decoder):
        def loss(params):
            y, updated = decoder.apply(
                variables | {"params": params}, maps, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
            )
            return jnp.square(y - 1).mean(), updated

        return jax.grad(loss, has_aux=True)

    kept, again = (jax.make_jaxpr(gradient(d))(variables["params"]) for d in (decoder, recomputing))
    assert "remat" in str(again) and "remat" not in str(kept)
    results = [jax.jit(gradient(d))(variables["params"]) for d in (decoder, recomputing)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_remat_of_a_model_reaches_both_of_its_parts():
    model = dz.create_model("unet", "resnet18", remat=True)
    assert model.encoder.remat and model.decoder.remat
    assert dz.create_model("deeplabv3", "resnet50", remat=True).encoder.remat


def test_remat_takes_less_memory_in_a_train_step():
    images = jnp.ones((2, 192, 192, 3))

    def memory(remat):
        encoder = dz.ResNet((8,), dz.BasicBlock, width=8, remat=remat)
        variables = jax.eval_shape(encoder.init, KEY, images)

        def loss(variables):
            pyramid, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
            return jnp.square(pyramid.maps[-1]).mean()

        options = dz.compiler_options(training=True) | {"xla_backend_optimization_level": 0}  # it is not run
        compiled = jax.jit(jax.grad(loss), compiler_options=options).lower(variables).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(remat=True) < 0.8 * memory(remat=False)
