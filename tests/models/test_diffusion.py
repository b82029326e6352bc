"""The diffusion U-Net: sizes, channels, conditions, blocks and messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.models import DiffusionUNet, DownLevel, UpLevel

KEY = jax.random.key(0)
SMALL = {"features": (8, 12, 16), "layers": 1, "head_features": 4}


def inputs(size=(9, 6), channels=2, batch=2):
    x = np.random.default_rng(0).standard_normal((batch, *size, channels)).astype(np.float32)
    return jnp.asarray(x), jnp.array([3, 700])[:batch], jnp.array([0, 4])[:batch]


def output(model, *arguments):
    return jax.eval_shape(model.init_with_output, KEY, *arguments)


def test_any_size_and_number_of_channels():
    model = dz.create_model("diffusion_unet", num_classes=5, **SMALL)
    expected = None
    for size, channels in (((1, 1), 1), ((7, 10), 1), ((16, 8), 4)):  # the first two have the same variables
        y, variables = output(model, *inputs(size, channels))
        assert y.shape == (2, *size, channels) and y.dtype == jnp.float32
        expected = expected or variables
        if channels == 1:
            assert variables == expected
    assert output(dz.create_model("diffusion_unet", out_channels=3, **SMALL), *inputs()[:2])[0].shape == (2, 9, 6, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"downsample": "average_pool", "upsample": "bilinear", "residual": True},
        {"downsample": "fir", "upsample": "pixel_shuffle", "skip": "add", "norm": "none"},
        {"downsample": "bilinear", "upsample": "carafe", "skip": "none", "conditioning": "shift"},
    ],
)
def test_blocks_of_the_zoo(fields):
    if fields["downsample"] == "bilinear":
        fields = fields | {"downsample": dz.Bilinear}
    assert output(dz.create_model("diffusion_unet", **SMALL, **fields), *inputs()[:2])[0].shape == (2, 9, 6, 2)


def test_every_parameter_and_input_counts():
    model = dz.create_model("diffusion_unet", num_classes=5, **SMALL)
    x, t, labels = inputs()

    @jax.jit
    def run(key):
        # Random numbers in place of the last layers' nearly zero ones, so that differences are visible.
        variables = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), model.init(key, x, t, labels))

        def loss(params):
            return jnp.square(model.apply({"params": params}, x, t, labels)).mean()

        calls = ((x, t, labels), (x, t + 50, labels), (x, t, jnp.array([1, 3])), (x, t, labels * 0 + 5))
        outputs = [model.apply(variables, *call) for call in (*calls, (x, t), (x, t, labels * 0 + 6))]
        return jax.grad(loss)(variables["params"]), outputs

    gradients, (usual, later, other, null, without, beyond) = run(KEY)
    table = gradients.pop("classes")
    assert np.asarray(table.any(1)).tolist() == [True, False, False, False, True, False]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        # The bias of a key adds the same number to all scores of a query.
        assert bool(leaf.any()) or "key" in str(path[-2]), jax.tree_util.keystr(path)
    for changed in (later, other, null):
        assert float(jnp.abs(usual - changed).max()) > 1e-3
    np.testing.assert_array_equal(null, without)
    assert bool(jnp.isnan(beyond).all())


def test_levels_compose_by_hand():
    model = DiffusionUNet((8, 16), down=(DownLevel, DownLevel), middle=None, up=(UpLevel, UpLevel), layers=1)
    assert output(model, *inputs()[:2])[0].shape == (2, 9, 6, 2)
    with pytest.raises(ValueError, match="entry for each level"):
        output(model.clone(up=(UpLevel,)), *inputs()[:2])


def test_mistakes_are_named():
    model = dz.create_model("diffusion_unet", num_classes=5, **SMALL)
    x, t, labels = inputs()
    for arguments, message in (
        ((x[0], t), "NHWC"),
        ((x, t[:1]), "one for each of the 2 images"),
        ((x, t, labels[:1]), r"labels must have the shape \(2,\)"),
        ((x, t, labels.astype(jnp.float32)), "whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            output(model, *arguments)
    with pytest.raises(ValueError, match="from 0 to 5, where 5 means no class; got 0 to 6"):
        model.init(KEY, x, t, jnp.array([0, 6]))
    with pytest.raises(TypeError, match="to_float"):
        output(model, x.astype(jnp.int32), t)
    with pytest.raises(ValueError, match="no classes"):
        output(dz.create_model("diffusion_unet", **SMALL), x, t, labels)
    for fields, message in (
        ({"encoder": "resnet18"}, "has no encoder"),
        ({"attention_levels": (3,)}, "no level 3"),
        ({"frozen": ("down0",)}, "no parts"),
        ({"trainable_layers": 1}, "no encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            dz.create_model("diffusion_unet", **SMALL, **fields)
