"""Autoencoders: sizes, the bottleneck, and the random latents of a VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)


def test_any_image_is_restored_at_its_size():
    for encoder in ("plain", "resnet18"):
        model = dz.create_model("autoencoder", encoder, num_classes=2, latent_features=3)
        for size in ((1, 1), (33, 50)):
            found, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((2, *size, 2)))
            assert found.images.shape == (2, *size, 2) and found.log_variance is None
            decode = jax.tree_util.Partial(model.apply, method="decode")
            scale = model.encoder.reductions[-1]
            height, width = (scale * side for side in found.latents.shape[1:3])
            assert jax.eval_shape(decode, variables, found.latents).shape == (2, height, width, 2)
    with pytest.raises(ValueError, match="does not work with"):
        dz.create_model("vae", "vit_tiny_patch16_224")


def test_everything_passes_through_the_latents():
    model = dz.create_model("vae", dz.PlainEncoder((4, 8), norm=None), num_classes=1, latent_features=2, norm=None)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 8, 1)).astype(np.float32))
    assert model.encoder.reductions == (1, 2)

    @jax.jit
    def run(key):
        variables = model.init(key, images)
        usual = model.apply(variables, images)
        drawn = model.apply(variables, images, train=True, rngs={"dropout": key})
        decode = lambda latents: model.apply(variables, latents, (9, 8), method="decode")  # noqa: E731
        task = dz.tasks.Autoencoding(kl_weight=0.1)

        def loss(params):
            apply = lambda x: model.apply({"params": params}, x, train=True, rngs={"dropout": key})  # noqa: E731
            return task.loss(apply, {"image": images}, key)[0]

        return usual, drawn, decode(usual.latents), decode(drawn.latents), jax.grad(loss)(variables["params"])

    usual, drawn, same, also, gradients = run(KEY)
    np.testing.assert_allclose(usual.images, same, atol=1e-6)
    np.testing.assert_allclose(drawn.images, also, atol=1e-6)
    np.testing.assert_array_equal(usual.latents, usual.mean)
    spread = (drawn.latents - usual.mean) / jnp.exp(0.5 * usual.log_variance)
    assert 0.5 < float(spread.std()) < 1.5
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves(gradients))


def test_the_loss_and_the_scores_of_autoencoding():
    images = jnp.zeros((2, 4, 4, 1))
    found = dz.models.Reconstruction(
        images + 0.1, images, mean=jnp.ones((2, 1, 1, 3)), log_variance=jnp.zeros((2, 1, 1, 3))
    )
    loss, parts = dz.tasks.Autoencoding(kl_weight=2.0).loss(lambda x: found, {"image": images}, KEY)
    # The divergence of N(1, 1) from N(0, 1) is 1/2 for each of 6 latents, for 32 values.
    np.testing.assert_allclose([parts["mse"], parts["kl"], loss], [0.01, 3 / 32, 0.01 + 6 / 32], rtol=1e-5)
    task = dz.tasks.Autoencoding(data_range=1.0)
    batch = {"image": images, "size": jnp.array([[4, 2], [0, 0]])}
    wrong_outside = images.at[:, :, :2].set(0.1).at[0, :, 2:].set(9)
    assert abs(task.scores(task.measure(lambda x: wrong_outside, batch))["psnr"] - 20) < 1e-4
    with pytest.raises(ValueError, match="num_classes=1"):
        task.loss(lambda x: jnp.zeros((2, 4, 4, 3)), {"image": images}, KEY)
    for options in ({"kl_weight": -1.0}, {"data_range": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            dz.tasks.Autoencoding(**options)
