"""The Mix Transformer, beyond the contract of all encoders."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).standard_normal((2, 33, 40, 3)).astype(np.float32)


def quick(function):
    """`jax.jit` for functions that run once or twice, without the compiler's optimisation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def filled(module, *arguments):
    """Variables with random numbers, which are faster than those of `init`."""
    shapes = jax.eval_shape(module.init, KEY, *arguments)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.5, 0.5, leaf.shape), leaf.dtype), shapes)


def small(**fields):
    return dz.MixTransformer(**({"depths": (1, 1, 1, 1), "embed_dims": (4, 8, 10, 16)} | fields))


def shallow(**fields):
    """One stage, which covers every path and compiles quickly."""
    return small(**({"depths": (2,), "coarsest": 4} | fields))


def shapes(encoder, size=(64, 96)):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))


def test_epsilons_of_the_norms_are_the_references():
    epsilons = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, dz.LayerNorm):
            epsilons[context.module.path] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(small())
    assert len(epsilons) == 4 + 3 + 8 + 4  # of patches, of reduced keys, of blocks and of stages
    wide = {path for path in epsilons if path[-1].startswith("patch_embed") or path[-1] == "norm"}
    assert epsilons == {path: 1e-5 if path in wide else 1e-6 for path in epsilons}
    assert len(wide) == 4 + 3


@pytest.mark.parametrize(("stride", "reductions"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16)), (32, (4, 8, 16, 32))])
def test_output_stride_keeps_the_size_and_the_weights(stride, reductions):
    encoder = small(output_stride=stride)
    pyramid, variables = shapes(encoder)
    assert encoder.reductions == pyramid.reductions == reductions
    assert [x.shape[1:3] for x in pyramid.maps] == [(64 // r, 96 // r) for r in reductions]
    assert variables == shapes(small())[1]


def test_coarsest_leaves_out_the_deeper_stages():
    _, whole = shapes(small())
    pyramid, variables = shapes(small(coarsest=8))
    assert [x.shape[-1] for x in pyramid.maps] == [4, 8]
    assert variables["params"] == {name: whole["params"][name] for name in variables["params"]}
    assert not any(name[-1] in "34" or "3" in name.split("_")[0] for name in variables["params"])


@pytest.mark.parametrize("fields", [{"coarsest": 12}, {"output_stride": 4}])
def test_impossible_strides_are_named(fields):
    with pytest.raises(ValueError, match=str(next(iter(fields.values())))):
        shapes(small(**fields))


def test_the_smallest_image_gives_each_attention_one_tile():
    encoder = small()
    assert (encoder.min_size, small(coarsest=4).min_size, small(sr_ratios=(1, 1, 1, 1)).min_size) == (29, 29, 1)
    pyramid, _ = shapes(encoder, (29, 29))
    assert [x.shape[1:3] for x in pyramid.maps] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    with pytest.raises(ValueError, match="at least 29x29 pixels"):
        shapes(encoder, (28, 40))
    logits, _ = shapes(dz.create_model("segformer", small()), (5, 40))
    assert logits.shape == (1, 5, 40, 1)


def test_drop_path_works_in_training_only():
    encoder = shallow(drop_path=0.9)
    variables = filled(encoder, IMAGES)
    still = quick(shallow().apply)(variables, IMAGES).maps[0]
    np.testing.assert_array_equal(quick(encoder.apply)(variables, IMAGES).maps[0], still)
    train = quick(lambda key: encoder.apply(variables, IMAGES, train=True, rngs={"dropout": key}).maps[0])
    seen = [train(jax.random.key(seed)) for seed in range(2)]
    assert float(jnp.abs(seen[0] - seen[1]).max()) > 1e-3
    # The tables of names have the reference's rate.
    assert dz.create_encoder("mit_b0").drop_path == 0.1


def test_remat_gives_the_same_gradients():
    variables = filled(shallow(depths=(1,)), IMAGES)
    gradients = []
    for remat in (False, True):
        encoder = shallow(depths=(1,), remat=remat)

        def loss(params, encoder=encoder):
            pyramid = encoder.apply(params, IMAGES, train=True)
            return sum(jnp.square(x - 1).sum() for x in pyramid.maps)

        gradients.append(quick(jax.grad(loss))(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *gradients)


def test_attention_is_stable_in_bfloat16():
    encoder, half = shallow(), shallow(dtype=jnp.bfloat16)
    variables = filled(encoder, IMAGES)
    exact, rounded = quick(encoder.apply)(variables, IMAGES), quick(half.apply)(variables, IMAGES)
    for x, y in zip(exact.maps, rounded.maps, strict=True):
        assert y.dtype == jnp.bfloat16
        assert np.corrcoef(np.ravel(x), np.ravel(y.astype(jnp.float32)))[0, 1] > 0.999
