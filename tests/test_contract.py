"""One suite over the whole zoo: what every model, every encoder and every pair of them promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import densezoo as dz
from densezoo.blueprint import MODELS

KEY = jax.random.key(0)

# Small stand-ins of each encoder family, which compile quickly and take every path of their code.
SMALL = {
    "plain": lambda **fields: dz.PlainEncoder((4, 8, 16), **fields),
    "resnet": lambda **fields: dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8, **fields),
    "shallow": lambda **fields: dz.ResNet((1, 1), dz.BasicBlock, width=8, **fields),
    "bottleneck": lambda **fields: dz.ResNet(
        (1, 2, 1, 1), functools.partial(dz.Bottleneck, groups=2, group_width=32), width=8, **fields
    ),
    "resnet_d": lambda **fields: dz.ResNet(
        (1, 1, 1, 1), dz.Bottleneck, width=8, deep_stem=True, average_down=True, squeeze_excite=True, **fields
    ),
    "senet": lambda **fields: dz.SENet((1, 1, 1, 1), width=16, **fields),
    "vgg_bn": lambda **fields: dz.VGG((1, 2, 1), (4, 8, 8), norm=dz.BatchNorm, **fields),
    "vgg": lambda **fields: dz.VGG((1, 1, 1), (4, 8, 8), full_resolution=True, **fields),
    "densenet": lambda **fields: dz.DenseNet((1, 2, 1, 1), width=8, growth=4, **fields),
    "efficientnet": lambda **fields: dz.EfficientNet(width=0.25, depth=0.3, **fields),
    "mobilenet_v2": lambda **fields: dz.MobileNetV2(width=0.25, **fields),
    "mobilenet_v3": lambda **fields: dz.MobileNetV3(head_features=32, **fields),
    "convnext": lambda **fields: dz.ConvNeXt((1, 1, 2, 1), (8, 8, 16, 16), grn=True, layer_scale=None, **fields),
    "swin": lambda **fields: dz.Swin((2, 1, 1, 1), embed_dim=8, num_heads=(1, 2, 2, 2), window_size=4, **fields),
    "mit": lambda **fields: dz.MixTransformer(
        (1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 2), sr_ratios=(4, 2, 1, 1), **fields
    ),
    "hrnet": lambda **fields: dz.HRNet(8, depths=(1, 1, 1), branch_size=1, **fields),
    "branches": lambda **fields: dz.HRNet(8, depths=(1, 1, 1), branch_size=1, incre=False, **fields),
    "vit": lambda **fields: dz.ViT(embed_dim=16, depth=4, num_heads=2, grid=4, **fields),
}


def usual(model):
    """The first of these small encoders that the model's entry does not refuse."""
    return next(name for name in ("resnet", "vgg_bn", "vit") if not MODELS[model].misfit(SMALL[name]()))


# Every model over one encoder, and every encoder under one model, with those that go together alone.
PAIRS = [
    *((model, usual(model)) for model in dz.list_models(task="segmentation")),
    *((model, "shallow") for model in ("unetplusplus", "manet", "linknet", "upernet")),
    *(("unet", encoder) for encoder in SMALL if encoder not in ("resnet", "vit", "branches")),
    *(("segnet", encoder) for encoder in ("plain", "vgg")),
    *(("fpn", encoder) for encoder in ("plain", "vgg_bn", "mit")),
    ("unetplusplus", "mit"),
    ("segformer", "mit"),
    ("upernet", "swin"),
    ("hrnet", "branches"),
]
# Of these, what the default run takes where a test is slow; `-m parity` runs the others.
QUICK = {("unet", "vgg"), ("fpn", "plain"), ("segnet", "vgg_bn")}


def quickly(cases):
    """The cases, those that are not quick marked for the long run only."""
    return [case if case[:2] in QUICK else pytest.param(*case, marks=pytest.mark.parity) for case in cases]


def over_one_encoder(pairs):
    """The pairs, those but one over a small ResNet for each model, the shallower if there are two, for the long run."""
    shallow = {model for model, encoder in PAIRS if encoder == "shallow"}
    quick = [(model, "shallow" if model in shallow else "resnet") for model, _ in pairs]
    return [pair if pair in quick else pytest.param(*pair, marks=pytest.mark.parity) for pair in pairs]


# Narrow decoders, in keeping with the encoders; of the others 16 channels in place of more.
FIELDS = {
    "fpn": {"features": 32, "segmentation_features": 32},
    "manet": {"reduction": 1, "attention_features": 8},
}


def defaults(module):
    return {field.name: field.default for field in dataclasses.fields(module)}


def small_model(name, encoder, dtype=None, **fields):
    entry, made = MODELS[name], SMALL[encoder](dtype=dtype)
    features = defaults(entry.decoder).get("features")
    narrow = {"features": 16} if isinstance(features, int) and features > 32 else {}
    # What the family asks of an encoder that is given by name.
    asked = {field: value for field, value in entry.encoder_fields.items() if field in defaults(made)}
    return dz.create_model(name, made.clone(**asked), 3, dtype=dtype, **(narrow | FIELDS.get(name, {}) | fields))


def images(size, channels=3, batch=2):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((batch, *size, channels)).astype(np.float32))


@functools.cache
def variables_of(name, encoder):
    model = small_model(name, encoder)
    return model, jax.jit(model.init)(KEY, images((40, 37)))


def fits(model, encoder):
    """Whether a pair of names makes a model, by what the model's entry asks of an encoder and what it refuses."""
    entry, encoder = MODELS[model], dz.create_encoder(encoder)
    return entry.encoder_fields.keys() <= defaults(encoder).keys() and not entry.misfit(encoder)


# One for each set of scales; all the others are looked through with `-m parity`.
FAMILIES = {"plain", "resnet18", "vit_tiny_patch16_224"}


def every_encoder():
    return [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.parity) for name in dz.list_encoders()]


@functools.cache
def pyramid_of(encoder, size, channels):
    """What the encoder gives inside a model, and its variables; traced once for all decoders."""
    within = dz.PyramidModel(encoder=encoder, neck=lambda pyramid, train: pyramid)
    shape = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    return jax.eval_shape(within.init_with_output, KEY, shape)


@functools.cache
def answer_to(decoder, head, pyramid):
    """Logits and variables for a pyramid of these shapes; traced once for all the encoders that give it."""
    x, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid)
    logits, head_variables = jax.eval_shape(functools.partial(head.init_with_output, size=pyramid.image_size), KEY, x)
    return logits, (variables, head_variables)


@pytest.mark.parametrize("encoder_name", every_encoder())
def test_logits_have_the_image_size_and_weights_do_not_depend_on_it(encoder_name):
    for name in dz.list_models(task="segmentation"):
        if not fits(name, encoder_name):
            with pytest.raises(ValueError, match=r"needs an encoder|does not go with"):
                jax.eval_shape(dz.create_model(name, encoder_name).init, KEY, jnp.zeros((1, 64, 64, 3)))
            continue
        model = dz.create_model(name, encoder_name, num_classes=5)
        expected = None
        shapes = [((1, 1), 3), ((33, 50), 3)]
        if encoder_name in FAMILIES:
            shapes += [((2, 97), 3), ((33, 50), 1), ((33, 50), 5)]
        for size, channels in shapes:
            pyramid, variables = pyramid_of(model.encoder, size, channels)
            logits, others = answer_to(model.decoder, model.head, pyramid)
            assert logits.shape == (2, *pyramid.image_size, 5), name
            assert logits.dtype == jnp.float32
            if channels == 3:
                expected = expected or (variables, others)
                assert (variables, others) == expected, f"{name} has other weights at {size}"


@pytest.mark.parametrize("name", dz.list_models(task="segmentation"))
def test_any_image_gives_logits_of_its_size(name):
    model = dz.create_model(name, num_classes=5)
    for size in ((1, 1), (33, 50)):
        shape = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        assert jax.eval_shape(model.init_with_output, KEY, shape)[0].shape == (2, *size, 5)


@pytest.mark.parametrize("name", every_encoder())
def test_encoders_publish_their_reductions(name):
    encoder = dz.create_encoder(name)
    pyramid, _ = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, 64, 96, 3)))
    assert [feature.shape[1:3] for feature in pyramid.maps] == [(64 // r, 96 // r) for r in encoder.reductions]
    assert pyramid.reductions == encoder.reductions
    assert pyramid.image_size == (64, 96)


@pytest.mark.parametrize(("name", "encoder"), over_one_encoder(PAIRS))
def test_every_parameter_receives_a_gradient(name, encoder):
    model, variables = variables_of(name, encoder)
    x = images((40, 37))
    target = jax.random.normal(KEY, (2, 40, 37, 3))

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = model.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
        )
        return jnp.square(logits - target).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)
        # A bias before a batch norm has no effect, and so no gradient: some references have it all the same.
        *module, leaf_name = (key.key for key in path)
        beside = functools.reduce(dict.__getitem__, module[:-1], variables["params"]) if len(module) > 1 else {}
        normed = module[-1] in ("conv", "upsample") and "norm" in beside
        without_effect = leaf_name == "bias" and (normed or (encoder == "vgg_bn" and "features_" in module[-1]))
        assert without_effect or float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        # Models that read all maps are in the long run; here, those that leave some out.
        pair
        if pair[1] == "resnet" and len(MODELS[pair[0]].reads((2, 4, 8, 16, 32))) < 5
        else pytest.param(*pair, marks=pytest.mark.parity)
        for pair in PAIRS
    ],
)
def test_decoders_use_the_maps_that_their_entry_names(name, encoder):
    model, variables = variables_of(name, encoder)
    encoder_of, decoder = (
        {kind: tree[part] for kind, tree in variables.items() if part in tree} for part in ("encoder", "decoder")
    )
    pyramid = jax.jit(model.encoder.apply)(encoder_of, images((40, 37)))
    answer = jax.jit(lambda maps: model.decoder.apply(decoder, pyramid.replace(maps=maps)))
    before = answer(pyramid.maps)
    read = MODELS[name].reads(model.encoder.reductions)
    for level, scale in enumerate(model.encoder.reductions):
        changed = list(pyramid.maps)
        changed[level] = jnp.flip(changed[level], axis=(0, 1, 2, 3))
        changes = float(jnp.abs(answer(tuple(changed)) - before).max()) > 1e-5 * float(jnp.abs(before).max())
        assert changes == (level in read), f"map {level}, at 1/{scale}"


def test_segnet_uses_every_pooling():
    model, variables = variables_of("segnet", "vgg_bn")
    encoder = {kind: tree["encoder"] for kind, tree in variables.items() if "encoder" in tree}
    decoder = {kind: tree["decoder"] for kind, tree in variables.items() if "decoder" in tree}
    pyramid = jax.jit(model.encoder.apply)(encoder, images((40, 37)))
    apply = jax.jit(model.decoder.apply)
    before = apply(decoder, pyramid)
    for level, indices in enumerate(pyramid.pool_indices):
        changed = list(pyramid.pool_indices)
        changed[level] = (indices + 1) % 4
        after = apply(decoder, pyramid.replace(pool_indices=tuple(changed)))
        assert float(jnp.abs(after - before).max()) > 1e-3, f"the indices of pooling {level} are not used"


@pytest.mark.parametrize(("name", "encoder"), quickly(PAIRS))
def test_jit_equals_eager_at_an_odd_size(name, encoder):
    model, variables = variables_of(name, encoder)
    x = images((23, 18), batch=1)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), model.apply(variables, x), atol=1e-4, rtol=1e-4)


def relative(a, b):
    return float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()))


# Every model and every encoder at least once; at 64x64 all steps up double exactly, at 40x37 none does.
COMPARED = [("unet", "bottleneck"), ("unet", "vgg"), ("hrnet", "branches")]
COMPARED += [(name, usual(name)) for name in dz.list_models(task="segmentation") if name not in ("unet", "hrnet")]
COMPARED = [(*pair, (64, 64)) for pair in COMPARED] + [(name, "plain", (40, 37)) for name in ("unet", "fpn", "segnet")]


@pytest.mark.parametrize(("name", "encoder", "size"), quickly(COMPARED))
def test_auto_equals_reference(name, encoder, size):
    model, variables = variables_of(name, encoder)
    x = images(size)
    logits = jax.jit(model.apply)(variables, x)
    assert relative(logits, jax.jit(model.clone(impl="reference").apply)(variables, x)) < 1e-5


@pytest.mark.parametrize(("name", "encoder", "size"), quickly(COMPARED))
def test_gradients_of_auto_equal_those_of_the_reference(name, encoder, size):
    model, variables = variables_of(name, encoder)

    # In float64, since in float32 the two round a ReLU or a pooling's winner to different sides here and there.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        x = images(size).astype(jnp.float64)
        target = jax.random.normal(KEY, (2, *size, 3), jnp.float64)

        def gradient(model):
            def loss(params):
                logits, _ = model.apply(
                    wide | {"params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
                )
                return jnp.square(logits - target).mean()

            return jax.jit(jax.grad(loss))(wide["params"])

        auto, reference = gradient(model), gradient(model.clone(impl="reference"))
        # A gradient that is zero but for rounding (of a bias before a batch norm) has no relative error of its own.
        whole = float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(reference))))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(auto), jax.tree.leaves(reference), strict=True):
            assert float(jnp.abs(a - b).max()) <= 1e-9 * whole, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("name", "encoder"), [("unet", "resnet"), ("fpn", "bottleneck"), ("segnet", "vgg_bn")])
def test_auto_equals_reference_in_bfloat16(name, encoder):
    _, variables = variables_of(name, encoder)
    model = small_model(name, encoder, dtype=jnp.bfloat16)
    x = images((64, 64))
    logits = [jax.jit(model.clone(impl=impl).apply)(variables, x).astype(jnp.float32) for impl in ("auto", "reference")]
    exact = jax.jit(small_model(name, encoder).apply)(variables, x)
    # Neither is further from the float32 result than the other, within the noise of bfloat16.
    assert relative(logits[0], exact) < 1.5 * relative(logits[1], exact) + 1e-3


def test_impl_changes_what_is_compiled_and_not_the_parameters():
    texts = {}
    for impl in dz.ops.IMPLEMENTATIONS:
        model = small_model("unet", "resnet", impl=impl)
        variables = jax.eval_shape(model.init, KEY, images((64, 64)))
        assert variables == jax.eval_shape(small_model("unet", "resnet").init, KEY, images((64, 64)))
        texts[impl] = jax.jit(model.apply).lower(variables, images((64, 64))).as_text()
    assert "stablehlo.concatenate" in texts["reference"]
    assert texts["auto"] != texts["reference"]
    with pytest.raises(ValueError, match="one of auto, reference"):
        small_model("unet", "resnet", impl="fastest")


def test_the_reference_differentiates_forward():
    model = small_model("unet", "resnet", impl="reference")
    _, variables = variables_of("unet", "resnet")
    x = images((32, 32))
    _, tangent = jax.jit(lambda x, dx: jax.jvp(lambda x: model.apply(variables, x), (x,), (dx,)))(x, x)
    small = 1e-2
    apply = jax.jit(model.apply)
    difference = (apply(variables, x + small * x) - apply(variables, x - small * x)) / (2 * small)
    assert np.corrcoef(np.ravel(tangent), np.ravel(difference))[0, 1] > 0.95


@pytest.mark.parametrize(("name", "encoder"), [("unet", "resnet"), ("fpn", "bottleneck"), ("segnet", "vgg_bn")])
def test_bfloat16_computes_in_bfloat16_with_float32_weights(name, encoder):
    model, variables = variables_of(name, encoder)
    half = small_model(name, encoder, dtype=jnp.bfloat16)
    x = images((40, 37))
    shapes = jax.eval_shape(half.init, KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    logits = jax.jit(half.apply)(variables, x)
    assert logits.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits, so correlation says more than a bound on each pixel; pooling's winners change too.
    exact = np.asarray(jax.jit(model.apply)(variables, x)).ravel()
    assert np.corrcoef(np.asarray(logits.astype(jnp.float32)).ravel(), exact)[0, 1] > 0.97
    # Every convolution really is in bfloat16.
    text = jax.jit(half.apply).lower(variables, x).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("xbf16>" in line.split("->")[-1] for line in convolutions)


def test_batch_of_one_is_a_part_of_the_batch():
    model, variables = variables_of("unet", "resnet")
    x = images((33, 35))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, x)[1:], apply(variables, x[1:]), atol=1e-5, rtol=1e-5)


def test_frozen_parts_keep_their_statistics():
    model = small_model("unet", "resnet").clone(frozen=("encoder",))
    x = images((32, 32))
    variables = jax.jit(model.init)(KEY, x)
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = apply(variables, x)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(same["encoder"]))
    assert not any(jax.tree.leaves(same["decoder"]))


def test_works_as_an_nnx_module():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    x = images((32, 32))
    module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(x)
    graph, state = nnx.split(module)
    logits = nnx.jit(lambda module: module(x))(module)
    assert logits.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(nnx.jit(lambda module: module(x))(nnx.merge(graph, state)), logits)
    gradient = nnx.jit(nnx.grad(lambda module: jnp.square(module(x)).mean()))(module)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(nnx.state(gradient, nnx.Param)))


def test_pyramid_model_gives_maps_of_equal_channels():
    model = dz.PyramidModel(encoder=SMALL["resnet"](), neck=dz.FPNNeck(features=16))
    maps, _ = jax.jit(model.init_with_output)(KEY, images((65, 47)))
    assert [p.shape for p in maps] == [(2, 17, 12, 16), (2, 9, 6, 16), (2, 5, 3, 16), (2, 3, 2, 16)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (jnp.zeros((32, 32, 3)), "NHWC"),
        (jnp.zeros((1, 0, 32, 3)), "empty"),
        (jnp.zeros((1, 32, 32, 3), jnp.uint8), "to_float"),
    ],
)
def test_bad_images_are_named(bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small_model("unet", "plain").init(KEY, bad)


def test_images_of_other_channels_than_the_weights_are_named():
    model, variables = variables_of("unet", "plain")
    with pytest.raises(ValueError, match=r"images of 1 channels .* \(2, 32, 32, 1\)"):
        model.apply(variables, images((32, 32), channels=1))


def test_images_that_look_like_nchw_are_warned_of():
    model = small_model("unet", "plain")
    with pytest.warns(UserWarning, match="look like NCHW"):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, 3, 32, 32)))
