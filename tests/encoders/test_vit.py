"""The Vision Transformer, beyond the contract of all encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights
from densezoo.blocks import attend
from densezoo.blocks.rotary import axial_rotation, rotated

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 20, 33, 3)).astype(np.float32)


def quick(function):
    """`jax.jit` for functions that run once or twice, without the compiler's optimisation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def filled(module, *arguments):
    """Variables with random numbers, which are faster than those of `init`."""
    shapes = jax.eval_shape(module.init, KEY, *arguments)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.5, 0.5, leaf.shape), leaf.dtype), shapes)


def small(**fields):
    return dz.ViT(**({"embed_dim": 8, "depth": 4, "num_heads": 2, "patch_size": 8, "grid": 4} | fields))


def test_attention_is_the_mean_weighted_by_the_softmax():
    query, key, value = RNG.standard_normal((3, 1, 5, 2, 4)).astype(np.float32)
    y = jax.jit(attend)(query, key, value)
    for head in range(2):
        scores = np.exp(query[0, :, head] @ key[0, :, head].T / 2)
        expected = scores / scores.sum(1, keepdims=True) @ value[0, :, head]
        np.testing.assert_allclose(y[0, :, head], expected, rtol=1e-5, atol=1e-6)
    half = attend(*(x.astype(jnp.bfloat16) for x in (query, key, value)))
    assert half.dtype == jnp.bfloat16
    # Large scores do not overflow, and one token's share is then all.
    largest = np.argmax(query[0, 0, 0] @ key[0, :, 0].T)
    np.testing.assert_allclose(attend(1e4 * query, key, value)[0, 0, 0], value[0, largest, 0], rtol=1e-5)


def test_features_are_those_of_evenly_spaced_blocks():
    encoder = small(depth=5, levels=2)
    variables = filled(encoder, IMAGES)
    pyramid = quick(encoder.apply)(variables, IMAGES)
    assert pyramid.reductions == encoder.reductions == (8, 8)
    assert [x.shape for x in pyramid.maps] == [(2, 3, 5, 8)] * 2
    assert [x.shape for x in pyramid.tokens] == [(2, 1, 8)] * 2
    # The second block of five, and the fifth.
    first = small(depth=2, levels=1)
    kept = {name: variables["params"][name] for name in jax.eval_shape(first.init, KEY, IMAGES)["params"]}
    alone = quick(first.apply)({"params": kept}, IMAGES)
    np.testing.assert_allclose(alone.maps[0], pyramid.maps[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone.tokens[0], pyramid.tokens[0], rtol=1e-5, atol=1e-5)


def test_weights_do_not_depend_on_the_image_size_and_zeros_fill_the_last_patches():
    encoder = small(depth=1, levels=1)
    variables = filled(encoder, IMAGES)
    for size in ((32, 32), (1, 1), (40, 9)):
        assert jax.eval_shape(encoder.init, KEY, jnp.zeros((1, *size, 3))) == jax.eval_shape(lambda: variables)
    padded = np.pad(IMAGES, ((0, 0), (0, 4), (0, 7), (0, 0)))
    pyramids = [quick(encoder.apply)(variables, images) for images in (IMAGES, padded)]
    jax.tree.map(np.testing.assert_array_equal, pyramids[0].maps, pyramids[1].maps)
    assert [p.image_size for p in pyramids] == [(20, 33), (24, 40)]


@pytest.mark.parametrize("resample", ["antialiased", "bicubic", "bilinear"])
def test_position_embeddings_are_as_they_are_at_their_own_size(resample):
    positions = jnp.arange(16.0 * 8).reshape(1, 16, 8)
    resampled = small(resample=resample).bind({})._resampled
    np.testing.assert_array_equal(resampled(positions, (4, 4)), positions)
    # The centre of a grid of one pixel is the mean of a ramp.
    np.testing.assert_allclose(resampled(positions, (1, 1))[0, 0], positions[0].mean(0), rtol=1e-5)
    assert resampled(positions, (7, 2)).shape == (1, 14, 8)


def test_maps_of_numbered_blocks_with_registers_and_without_padding():
    encoder = small(levels=(1, 4), registers=3, pad=False, norm_maps=True, layer_scale=0.1)
    variables = filled(encoder, IMAGES)
    pyramid = quick(encoder.apply)(variables, IMAGES)
    assert [x.shape for x in pyramid.maps] == [(2, 2, 4, 8)] * 2 and [x.shape for x in pyramid.tokens] == [
        (2, 4, 8)
    ] * 2
    # Rows and columns beyond the last whole patch are not read.
    other = quick(encoder.apply)(variables, IMAGES[:, :16, :32])
    jax.tree.map(np.testing.assert_array_equal, pyramid.maps, other.maps)
    with pytest.raises(ValueError, match="at least 8x8"):
        jax.eval_shape(encoder.init, KEY, IMAGES[:, :7])


def test_rotary_attention_depends_on_offsets_between_patches():
    query, key = RNG.standard_normal((2, 8)).astype(np.float32)
    rotation = axial_rotation((3, 4), 8, before=1)
    turned = [np.asarray(rotated(jnp.broadcast_to(x, (1, 13, 1, 8)), rotation))[0, :, 0] for x in (query, key)]
    np.testing.assert_array_equal(turned[0][0], query)
    products = (turned[0] @ turned[1].T)[1:, 1:].reshape(3, 4, 3, 4)
    for row, column in ((0, 0), (1, 2)):  # one row down and one column to the right
        np.testing.assert_allclose(products[row, column, row + 1, column + 1], products[1, 1, 2, 2], rtol=1e-4)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 1e-3
    with pytest.raises(ValueError, match="multiples of 4, got 6"):
        axial_rotation((3, 4), 6)


@pytest.mark.parametrize("levels", [(), (2, 2), (3, 1), (0, 1), (4, 5)])
def test_wrong_numbers_of_blocks_are_named(levels):
    with pytest.raises(ValueError, match=r"levels must be ascending numbers of blocks in 1\.\.4; got \("):
        jax.eval_shape(small(levels=levels).init, KEY, IMAGES)
    with pytest.raises(ValueError, match="resample must be one of antialiased, bicubic, bilinear; got 'nearest'"):
        jax.eval_shape(small(resample="nearest").init, KEY, IMAGES)


@pytest.mark.parametrize("fields", [{"num_heads": 3}, {"levels": 0}, {"levels": 5}])
def test_impossible_fields_are_named(fields):
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        jax.eval_shape(small(**fields).init, KEY, IMAGES)


def test_drop_path_works_in_training_only():
    fields = {"depth": 2, "levels": 1}
    encoder = small(drop_path=0.9, **fields)
    variables = filled(encoder, IMAGES)
    still = quick(small(**fields).apply)(variables, IMAGES).maps[-1]
    np.testing.assert_array_equal(quick(encoder.apply)(variables, IMAGES).maps[-1], still)
    apply = quick(lambda key: encoder.apply(variables, IMAGES, train=True, rngs={"dropout": key}).maps[-1])
    assert float(jnp.abs(apply(jax.random.key(1)) - apply(jax.random.key(2))).max()) > 1e-3


def test_remat_gives_the_same_gradients():
    fields = {"depth": 1, "levels": 1}
    variables = filled(small(**fields), IMAGES)
    gradients = []
    for remat in (False, True):
        encoder = small(remat=remat, **fields)

        def loss(params, encoder=encoder):
            return sum(jnp.square(x).sum() for x in encoder.apply(params, IMAGES).maps)

        gradients.append(quick(jax.grad(loss))(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *gradients)


def test_names_of_a_classifier_and_of_any_number_of_channels():
    encoder = small(depth=1, levels=1)
    shapes = jax.eval_shape(encoder.init, KEY, IMAGES)["params"]
    names = {
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 17, 8),
        "patch_embed.proj.weight": (8, 3, 8, 8),
        "patch_embed.proj.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "head.weight": (10, 8),
        "head.bias": (10,),
    }
    for layer, sizes in {
        "norm1": (8,),
        "attn.qkv": (24, 8),
        "attn.proj": (8, 8),
        "norm2": (8,),
        "mlp.fc1": (32, 8),
        "mlp.fc2": (8, 32),
    }.items():
        names |= {f"blocks.0.{layer}.weight": sizes, f"blocks.0.{layer}.bias": sizes[:1]}
    arrays = {name: RNG.standard_normal(size).astype(np.float32) for name, size in names.items()}
    params = weights.from_torch(encoder, arrays)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_array_equal(params["blocks_0"]["attn"]["qkv"]["kernel"], arrays["blocks.0.attn.qkv.weight"].T)
    one = weights.from_torch(encoder, arrays, in_channels=1)["params"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(one[..., 0, :], params["patch_embed"]["kernel"].sum(2), rtol=1e-5, atol=1e-6)
