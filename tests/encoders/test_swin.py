"""Swin, beyond the contract of all encoders."""

import json
import re
import runpy
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights
from densezoo.encoders.swin import SwinBlock

KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = np.random.default_rng(0).standard_normal((2, 33, 28, 3)).astype(np.float32)


def small(**fields):
    return dz.Swin(**({"depths": (2, 2, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 3} | fields))


def shapes(encoder, size):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("size", [(4, 4), (7, 300), (65, 47)])
def test_weights_do_not_depend_on_the_size_of_the_images(size):
    pyramid, variables = shapes(small(), size)
    assert variables == shapes(small(), (64, 64))[1]
    finest = size[0] // 4, size[1] // 4
    expected = [tuple(-(-side // 2**stage) for side in finest) for stage in range(4)]
    assert [x.shape[1:3] for x in pyramid.maps] == expected


def test_images_smaller_than_a_patch_are_named():
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(3, 64\)"):
        shapes(small(), (3, 64))
    with pytest.raises(ValueError, match=r"image_size=\(2, 64\)"):
        shapes(small(image_size=(2, 64)), (64, 64))


def influence(block, size, pixel):
    """The pixels of the map that a pixel of the block's result depends on."""
    x = jax.random.normal(KEY, (1, *size, 4))

    @jax.jit
    @jax.grad
    def gradient(x):
        result, _ = block.init_with_output(KEY, x)
        return jnp.square(result[0, pixel[0], pixel[1]]).sum()

    return np.abs(np.asarray(gradient(x))[0]).max(-1) > 1e-12


def rectangle(size, rows, columns):
    mask = np.zeros(size, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


@pytest.mark.parametrize(
    ("shifted", "size", "pixel", "rows", "columns"),
    [
        (False, (8, 12), (5, 2), (4, 8), (0, 4)),
        # At the edges a shifted window's regions keep apart.
        (True, (8, 12), (0, 3), (0, 2), (2, 6)),
        # No shift along a side that the window spans.
        (True, (4, 12), (0, 2), (0, 4), (2, 6)),
        # Windows as small as the map.
        (True, (3, 2), (0, 0), (0, 3), (0, 2)),
        # The last windows go beyond the map.
        (False, (6, 5), (5, 4), (4, 6), (4, 5)),
    ],
)
def test_pixels_see_their_window(shifted, size, pixel, rows, columns):
    seen = influence(SwinBlock(num_heads=2, window_size=4, shifted=shifted), size, pixel)
    np.testing.assert_array_equal(seen, rectangle(size, rows, columns))


def test_a_layout_for_one_size_is_kept_at_others():
    x = jax.random.normal(KEY, (1, 24, 22, 3))
    free, fixed = small(coarsest=4), small(coarsest=4, image_size=(24, 22))
    variables = jax.jit(free.init)(KEY, x)
    assert jax.eval_shape(fixed.init, KEY, x) == jax.eval_shape(free.init, KEY, x)
    for height, same in ((24, True), (12, False)):
        a, b = (jax.jit(encoder.apply)(variables, x[:, :height]).maps[-1] for encoder in (free, fixed))
        assert np.allclose(a, b, atol=1e-6) == same
    # Built for small images, the tables are small.
    table = shapes(small(image_size=[32, 16]), (64, 64))[1]["params"]["stage2_block0"]["attn"]
    assert table["relative_position_bias_table"].shape == (3 * 1, 2)


def test_epsilons_of_the_norms_are_the_references():
    epsilons = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, dz.LayerNorm):
            epsilons[context.module.path] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(small(), (64, 64))
    assert len(epsilons) == 1 + 3 + 2 * 6  # of patches, of mergings and of blocks
    assert set(epsilons.values()) == {1e-5}


def test_coarsest_leaves_out_the_deeper_stages():
    pyramid, variables = shapes(small(coarsest=8), (64, 64))
    assert len(pyramid.maps) == 2
    assert not any(name.startswith(("stage2", "stage3")) for name in variables["params"])
    with pytest.raises(ValueError, match="coarsest must be 4, 8, 16 or 32, got 5"):
        shapes(small(coarsest=5), (64, 64))


def test_drop_path_drops_in_training_only():
    encoder = small(depths=(2, 0, 0, 0), coarsest=4, drop_path=0.5)
    same = np.repeat(IMAGES[:1, :16, :16], 32, 0)
    variables = jax.jit(encoder.init)(KEY, same)
    still, trained = (
        jax.jit(partial(encoder.apply, train=train, rngs={"dropout": KEY}))(variables, same).maps[-1]
        for train in (False, True)
    )
    np.testing.assert_allclose(still[1:], still[:-1], rtol=1e-5, atol=1e-6)
    # The last block's two branches are dropped or doubled, independently for each sample and branch.
    assert len({tuple(sample.ravel().round(3).tolist()) for sample in np.asarray(trained)}) == 4


def test_remat_gives_the_same_gradients():
    encoder = small(depths=(1, 0, 0, 0), coarsest=4)
    variables = jax.jit(encoder.init)(KEY, IMAGES)

    def gradient(encoder):
        return jax.jit(jax.grad(lambda v: jnp.square(encoder.apply(v, IMAGES).maps[-1]).sum()))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(encoder),
        gradient(encoder.clone(remat=True)),
    )


def test_bfloat16_stays_close():
    encoder = small(depths=(0, 1, 0, 0), coarsest=8)
    variables = jax.jit(encoder.init)(KEY, IMAGES)
    half = jax.jit(encoder.clone(dtype=jnp.bfloat16).apply)(variables, IMAGES).maps[-1]
    assert half.dtype == jnp.bfloat16
    exact = jax.jit(encoder.apply)(variables, IMAGES).maps[-1]
    assert np.corrcoef(np.ravel(half.astype(jnp.float32)), np.ravel(exact))[0, 1] > 0.99


def reference():
    """An encoder, its arrays with the names of timm's `features_only`, and its variables."""
    with np.load(GOLDEN / "timm_swin.npz") as golden:
        names = json.loads(str(golden["shapes"]))
    seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
    arrays = {name.removeprefix("model."): seeded(name, tuple(shape)) for name, shape in names.items()}
    encoder = dz.Swin((2, 2, 2, 2), 16, (1, 2, 4, 8))
    return encoder, arrays, weights.from_torch(encoder, arrays)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "encoder.model."])
@pytest.mark.parametrize("dot", [".", "_"])
def test_names_of_timm_and_of_those_who_wrap_it(prefix, dot):
    encoder, arrays, expected = reference()
    renamed = {prefix + name.replace("layers_", f"layers{dot}"): array for name, array in arrays.items()}
    renamed[f"{prefix}norm.weight"] = renamed[f"{prefix}head.fc.bias"] = np.zeros(128, np.float32)
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch(encoder, renamed), expected)


@pytest.mark.parametrize("coarsest", [8, 32])
def test_names_of_the_authors(coarsest):
    encoder, arrays, expected = reference()
    renamed = {
        re.sub(r"layers_(\d)\.downsample", lambda match: f"layers_{int(match[1]) - 1}.downsample", name): array
        for name, array in arrays.items()
    }
    renamed = {name.replace("layers_", "layers."): array for name, array in renamed.items()}
    renamed["layers.0.blocks.1.attn_mask"] = np.zeros((64, 49, 49), np.float32)
    renamed["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
    params = weights.from_torch(encoder.clone(coarsest=coarsest), {"model": renamed})["params"]
    jax.tree.map(np.testing.assert_array_equal, params, {name: expected["params"][name] for name in params})
