"""ResNet and its variants, beyond the contract of all encoders."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).standard_normal((2, 33, 47, 3)).astype(np.float32)


def small(cls=dz.ResNet, **fields):
    block = dz.CaffeBottleneck if cls is dz.SENet else dz.BasicBlock
    return cls(**({"depths": (1, 1, 1, 1), "block": block, "width": 8} | fields))


def shapes(encoder, size=(64, 96)):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))


def run(encoder, variables, images=IMAGES, **arguments):
    return jax.jit(lambda variables: encoder.apply(variables, images, **arguments))(variables).maps


@pytest.mark.parametrize("cls", [dz.ResNet, dz.SENet])
@pytest.mark.parametrize(("stride", "reductions"), [(8, (2, 4, 8, 8, 8)), (16, (2, 4, 8, 16, 16))])
def test_output_stride_keeps_the_size_and_the_weights(cls, stride, reductions):
    encoder = small(cls, output_stride=stride)
    assert encoder.reductions == reductions
    pyramid, variables = shapes(encoder)
    assert [x.shape[1:3] for x in pyramid.maps] == [(64 // r, 96 // r) for r in reductions]
    assert variables == shapes(small(cls))[1]


@pytest.mark.parametrize("fields", [{"coarsest": 12}, {"coarsest": 0}, {"output_stride": 4}])
def test_impossible_strides_are_named(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        shapes(small(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"output_stride": 8}, "2244"),  # smp's rule: both convolutions of each block
        ({"output_stride": 8, "dilate_first": False}, "224"),  # torchvision's: the first as in the stage before
        ({"output_stride": 16}, "22"),
        ({"output_stride": 16, "dilate_first": False}, "2"),
        ({}, ""),
    ],
)
def test_dilation_stands_for_strides(fields, expected):
    encoder = small(**fields)
    _, variables = shapes(encoder)
    program = jax.jit(encoder.apply).lower(variables, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)).as_text()
    assert "".join(re.findall(r"rhs_dilate = \[([2-9])", program)) == expected


def test_coarsest_leaves_out_the_deeper_stages():
    encoder = small(coarsest=8, drop_path=0.5)
    _, whole = shapes(small())
    pyramid, variables = shapes(encoder)
    assert (encoder.reductions, pyramid.reductions, len(pyramid.maps)) == ((2, 4, 8), (2, 4, 8), 3)
    assert set(variables["params"]) == {"conv1", "layer1_0", "layer2_0"}
    assert variables["params"] == {name: whole["params"][name] for name in variables["params"]}
    assert small(coarsest=8, output_stride=8).reductions == (2, 4, 8)


def test_drop_path_acts_in_training_only():
    encoder = small(depths=(1, 1), drop_path=0.999, norm=None)
    variables = jax.jit(encoder.init)(KEY, IMAGES)
    usual = small(depths=(1, 1), norm=None)
    without = run(usual, variables)
    np.testing.assert_array_equal(run(encoder, variables)[-1], without[-1])
    train = run(encoder, variables, train=True, rngs={"dropout": KEY})
    # The first block is never dropped, the last one leaves its shortcut.
    np.testing.assert_array_equal(train[1], without[1])
    shortcut = variables["params"]["layer2_0"]["downsample"]["conv"]
    alone = jnp.einsum("bhwc,cd->bhwd", without[1][:, ::2, ::2], shortcut["kernel"][0, 0])
    np.testing.assert_allclose(train[2], jax.nn.relu(alone), rtol=1e-4, atol=1e-5)  # the biases are 0


def test_remat_changes_neither_the_weights_nor_the_gradients():
    encoder = small(depths=(2,), drop_path=0.5, squeeze_excite=True)
    variables = jax.jit(encoder.init)(KEY, IMAGES)

    def gradient(remat):
        @jax.jit
        @jax.grad
        def of(params):
            pyramid, _ = encoder.clone(remat=remat).apply(
                variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
            )
            return jnp.square(pyramid.maps[-1]).mean()

        return of(variables["params"])

    assert shapes(encoder.clone(remat=True)) == shapes(encoder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(False), gradient(True))


def test_average_shortcuts_of_odd_maps_take_the_mean_of_what_is_there():
    encoder = small(depths=(1, 1), average_down=True, norm=None)
    variables = jax.jit(encoder.init)(KEY, IMAGES[:, :17, :17])
    before = run(encoder, variables, IMAGES[:, :17, :17])[1]
    assert before.shape[1:3] == (5, 5)
    params = jax.tree.map(jnp.zeros_like, variables["params"]["layer2_0"])
    params["downsample"]["conv"]["kernel"] = jnp.eye(8, 16).reshape(1, 1, 8, 16)
    after = run(encoder, {"params": variables["params"] | {"layer2_0": params}}, IMAGES[:, :17, :17])[2]
    np.testing.assert_allclose(after[:, 2, 2, :8], before[:, 4, 4], rtol=1e-6)
    np.testing.assert_allclose(after[:, 2, 0, :8], before[:, 4, :2].mean(1), rtol=1e-6)


def test_senet_floors_odd_sides_and_takes_small_images():
    encoder = small(dz.SENet)
    assert [x.shape[1:3] for x in shapes(encoder, (65, 47))[0].maps][:3] == [(33, 24), (16, 12), (8, 6)]
    assert shapes(encoder, (encoder.min_size, encoder.min_size))[0].maps[-1].shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match="at least 3x3"):
        shapes(encoder, (encoder.min_size - 1, 32))
    # Half a window at the end averages the existing pixels.
    x = -jnp.ones((1, 4, 4, 1)).at[0, 3, 3, 0].set(0.5)
    assert encoder.pool(x)[0, :, :, 0].tolist() == [[-1.0, -1.0], [-1.0, -0.5]]


def test_names_have_their_variants():
    deep = dz.create_encoder("resnet50d")
    assert (deep.deep_stem, deep.average_down, deep.dilate_first) == (True, True, False)
    assert dz.create_encoder("seresnet50").squeeze_excite
    assert isinstance(dz.create_encoder("se_resnet50"), dz.SENet)


def test_blocks_start_as_their_shortcut_where_timm_has_it_so():
    assert dz.create_encoder("resnet50d").zero_init_last and dz.create_encoder("seresnet50").zero_init_last
    assert not dz.create_encoder("resnet50").zero_init_last
    group_norm = partial(dz.GroupNorm, num_groups=2)
    for norm in (dz.BatchNorm, group_norm, None):
        encoder = small(depths=(1, 1), zero_init_last=True, norm=norm, act=lambda x: x, squeeze_excite=True)
        params = jax.jit(encoder.init)(KEY, IMAGES)["params"]
        zeros = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if path[-1].key == "scale" and not leaf.any()
        ]
        wanted = [] if norm is None else [f"['layer{stage}_0']['conv2']['norm']['scale']" for stage in (1, 2)]
        assert zeros == wanted
