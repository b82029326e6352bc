"""The contract suite: properties of every model, every encoder and every pair of them."""

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

# Small stand-ins of each encoder family, which compile quickly and cover every path of their code.
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
    """The first of these small encoders that the model's entry accepts."""
    return next(name for name in ("resnet", "vgg_bn", "vit") if not MODELS[model].misfit(SMALL[name]()))


# Every model over one encoder, every encoder under one model, and models over other scales.
MODELS_ONCE = [(model, usual(model)) for model in dz.list_models(task="segmentation")]
ENCODERS_ONCE = [("unet", encoder) for encoder in SMALL if encoder not in ("resnet", "vit", "branches")]
OTHER_SCALES = [
    *((model, "shallow") for model in ("unetplusplus", "manet", "linknet", "upernet")),
    *((model, encoder) for model in ("unet", "segnet") for encoder in ("plain", "vgg")),
    *(("fpn", encoder) for encoder in ("plain", "mit")),
    ("unetplusplus", "mit"),
    ("segformer", "mit"),
    ("upernet", "swin"),
    ("hrnet", "branches"),
]
# The subset that slow tests use in the default run; `-m parity` runs the others.
QUICK = {("unet", "vgg"), ("fpn", "plain"), ("segnet", "vgg_bn")}


def quickly(cases):
    """The cases; slow ones are marked for the long run only."""
    return [case if case[:2] in QUICK else pytest.param(*case, marks=pytest.mark.parity) for case in cases]


def over_one_encoder(pairs):
    """The pairs. All except one with a small ResNet for each model (the shallower of two) are for the long run."""
    shallow = {model for model, encoder in pairs if encoder == "shallow"}
    quick = {(model, "shallow" if model in shallow else "resnet") for model, _ in pairs} | {("segnet", "vgg_bn")}
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


def random_pyramid(encoder, size=(40, 37)):
    """A pyramid of random numbers, with the encoder's shapes."""
    shapes, _ = jax.eval_shape(encoder.init_with_output, KEY, images(size))
    rng = np.random.default_rng(0)

    def fill(x):
        whole = jnp.issubdtype(x.dtype, jnp.integer)  # places in the windows of a pooling
        return jnp.asarray(rng.integers(0, 4, x.shape) if whole else rng.standard_normal(x.shape), x.dtype)

    return jax.tree.map(fill, shapes)


def fits(model, encoder):
    """Whether a pair of names forms a model, according to the model's entry."""
    entry, encoder = MODELS[model], dz.create_encoder(encoder)
    return entry.encoder_fields.keys() <= defaults(encoder).keys() and not entry.misfit(encoder)


# One for each set of scales; all the others are looked through with `-m parity`.
FAMILIES = {"plain", "resnet18", "vit_tiny_patch16_224"}


def every_encoder():
    return [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.parity) for name in dz.list_encoders()]


@functools.cache
def pyramid_of(encoder, size, channels):
    """The encoder's outputs inside a model, and its variables; traced once for all decoders."""
    within = dz.PyramidModel(encoder=encoder, neck=lambda pyramid, train: pyramid)
    shape = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    return jax.eval_shape(within.init_with_output, KEY, shape)


@functools.cache
def answer_to(decoder, head, pyramid):
    """Logits and variables for a pyramid of these shapes; traced once for all encoders with these shapes."""
    x, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid)
    logits, head_variables = jax.eval_shape(functools.partial(head.init_with_output, size=pyramid.image_size), KEY, x)
    return logits, (variables, head_variables)


@pytest.mark.parametrize("encoder_name", every_encoder())
def test_logits_have_the_image_size_and_weights_do_not_depend_on_it(encoder_name):
    for name in dz.list_models(task="segmentation"):
        if not fits(name, encoder_name):
            with pytest.raises(ValueError, match=r"needs an encoder|does not work with"):
                jax.eval_shape(dz.create_model(name, encoder_name).init, KEY, jnp.zeros((1, 64, 64, 3)))
            continue
        model = dz.create_model(name, encoder_name, num_classes=5)
        expected = None
        shapes = [((33, 50), 3)]
        if encoder_name in FAMILIES:  # the other encoders are tested alone, below
            shapes += [((1, 1), 3), ((33, 50), 1), ((33, 50), 5)]
        if encoder_name == "plain":
            shapes += [((2, 97), 3)]
        for size, channels in shapes:
            pyramid, variables = pyramid_of(model.encoder, size, channels)
            logits, others = answer_to(model.decoder, model.head, pyramid)
            assert logits.shape == (2, *pyramid.image_size, 5), name
            assert logits.dtype == jnp.float32
            if channels == 3:
                expected = expected or (variables, others)
                assert (variables, others) == expected, f"{name} has other weights at {size}"
    encoder = dz.create_encoder(encoder_name)
    assert pyramid_of(encoder, (1, 1), 3)[1] == pyramid_of(encoder, (33, 50), 3)[1]


@pytest.mark.parametrize("name", dz.list_models(task="segmentation"))
def test_any_image_gives_logits_of_its_size(name):
    dz.create_model(name)  # over its usual encoder, which it does not refuse
    model = small_model(name, usual(name))
    for size in ((1, 1), (33, 50)):
        shape = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        assert jax.eval_shape(model.init_with_output, KEY, shape)[0].shape == (2, *size, 3)


@pytest.mark.parametrize("name", every_encoder())
def test_encoders_publish_their_reductions(name):
    encoder = dz.create_encoder(name)
    pyramid, _ = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, 64, 96, 3)))
    assert [feature.shape[1:3] for feature in pyramid.maps] == [(-(-64 // r), -(-96 // r)) for r in encoder.reductions]
    assert pyramid.reductions == encoder.reductions
    assert pyramid.image_size == (64, 96)


def without_effect(path, params, encoder=None):
    """Whether this is a bias before a batch norm, which has no gradient: some references have such biases."""
    *module, leaf = (key.key for key in path)
    beside = functools.reduce(dict.__getitem__, module[:-1], params) if len(module) > 1 else {}
    name = module[-1] if module else ""  # a parameter of the encoder itself, such as a position embedding
    normed = name in ("conv", "upsample") and "norm" in beside
    return leaf == "bias" and (normed or (encoder == "vgg_bn" and "features_" in name))


def assert_gradients(gradients, encoder=None):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)
        assert without_effect(path, gradients, encoder) or bool(leaf.any()), jax.tree_util.keystr(path)


@pytest.mark.parametrize(("name", "encoder"), over_one_encoder(MODELS_ONCE + OTHER_SCALES))
def test_every_parameter_and_every_map_that_the_entry_names_receives_a_gradient(name, encoder):
    model = small_model(name, encoder)
    pyramid = random_pyramid(model.encoder)

    @jax.jit  # with the initialisation in the same program
    def gradients(key, pyramid):
        x, decoder = model.decoder.init_with_output(key, pyramid)
        head = model.head.init(key, x, pyramid.image_size)

        def loss(params, maps):
            x, _ = model.decoder.apply(
                decoder | {"params": params["decoder"]},
                pyramid.replace(maps=maps),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            logits = model.head.apply({"params": params["head"]}, x, pyramid.image_size)
            return jnp.square(logits - jax.random.normal(key, logits.shape)).mean()

        return jax.grad(loss, argnums=(0, 1))({"decoder": decoder["params"], "head": head["params"]}, pyramid.maps)

    of_params, of_maps = gradients(KEY, pyramid)
    assert_gradients(of_params)
    read = MODELS[name].reads(model.encoder.reductions)
    for level, (scale, gradient) in enumerate(zip(model.encoder.reductions, of_maps, strict=True)):
        assert bool(gradient.any()) == (level in read), f"map {level}, at 1/{scale}"


@pytest.mark.parametrize(
    "name", [name if name in ("resnet", "vit") else pytest.param(name, marks=pytest.mark.parity) for name in SMALL]
)
def test_every_parameter_of_an_encoder_receives_a_gradient(name):
    encoder = SMALL[name]()

    @jax.jit
    def gradients(key, x):
        variables = encoder.init(key, x)

        def loss(params):
            pyramid, _ = encoder.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            outputs = (*pyramid.maps, *(pyramid.tokens or ()))
            return sum((y * jax.random.normal(key, y.shape)).sum() for y in outputs)

        return jax.grad(loss)(variables["params"])

    assert_gradients(gradients(KEY, images((40, 37))), name)


def test_a_model_hands_the_gradient_on_to_its_encoder():
    model, variables = variables_of("unet", "plain")

    @jax.jit
    @jax.grad
    def gradients(params):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return jnp.square(apply(variables | {"params": params}, images((40, 37)))[0] - 1).mean()

    assert_gradients(gradients(variables["params"]))


def test_segnet_uses_every_pooling():
    model, variables = variables_of("segnet", "vgg_bn")
    decoder = {kind: tree["decoder"] for kind, tree in variables.items() if "decoder" in tree}
    pyramid = random_pyramid(model.encoder)
    apply = jax.jit(model.decoder.apply)
    before = apply(decoder, pyramid)
    for level, indices in enumerate(pyramid.pool_indices):
        changed = list(pyramid.pool_indices)
        changed[level] = (indices + 1) % 4
        after = apply(decoder, pyramid.replace(pool_indices=tuple(changed)))
        assert float(jnp.abs(after - before).max()) > 1e-3, f"the indices of pooling {level} are not used"


@pytest.mark.parametrize(("name", "encoder"), quickly([*MODELS_ONCE, *ENCODERS_ONCE, ("fpn", "plain")]))
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
        # A gradient that is zero up to rounding (of a bias before a batch norm) has no meaningful relative error.
        whole = float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(reference))))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(auto), jax.tree.leaves(reference), strict=True):
            assert float(jnp.abs(a - b).max()) <= 1e-9 * whole, jax.tree_util.keystr(path)


def test_impl_changes_what_is_compiled_and_not_the_parameters():
    texts = {}
    for impl in dz.ops.IMPLEMENTATIONS:
        model = small_model("unet", "plain", impl=impl)
        variables = jax.eval_shape(model.init, KEY, images((64, 64)))
        assert variables == jax.eval_shape(small_model("unet", "plain").init, KEY, images((64, 64)))
        texts[impl] = jax.jit(model.apply).lower(variables, images((64, 64))).as_text()
    assert "stablehlo.concatenate" in texts["reference"]
    assert texts["auto"] != texts["reference"]
    with pytest.raises(ValueError, match="one of auto, reference"):
        small_model("unet", "plain", impl="fastest")


def test_the_reference_differentiates_forward():
    model = small_model("unet", "plain", impl="reference")
    _, variables = variables_of("unet", "plain")
    x = images((32, 32))
    _, tangent = jax.jit(lambda x, dx: jax.jvp(lambda x: model.apply(variables, x), (x,), (dx,)))(x, x)
    small = 1e-2
    apply = jax.jit(model.apply)
    difference = (apply(variables, x + small * x) - apply(variables, x - small * x)) / (2 * small)
    assert np.corrcoef(np.ravel(tangent), np.ravel(difference))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("unet", "resnet"),
        ("fpn", "plain"),
        ("segnet", "vgg_bn"),
        pytest.param("fpn", "bottleneck", marks=pytest.mark.parity),
    ],
)
def test_bfloat16_computes_in_bfloat16_with_float32_weights(name, encoder):
    model, variables = variables_of(name, encoder)
    half = small_model(name, encoder, dtype=jnp.bfloat16)
    x = images((64, 64))
    shapes = jax.eval_shape(half.init, KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    # Every convolution really is in bfloat16, also where no step up doubles exactly.
    text = jax.jit(half.apply).lower(variables, images((40, 37))).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("xbf16>" in line.split("->")[-1] for line in convolutions)
    auto, reference = (jax.jit(half.clone(impl=impl).apply)(variables, x) for impl in ("auto", "reference"))
    assert auto.dtype == reference.dtype == jnp.bfloat16
    auto, reference, exact = auto.astype(jnp.float32), reference.astype(jnp.float32), jax.jit(model.apply)(variables, x)
    # bfloat16 keeps 8 bits, so correlation says more than a bound on each pixel; pooling's winners change too.
    assert np.corrcoef(np.ravel(auto), np.ravel(exact))[0, 1] > 0.97
    # Neither form is further from the float32 result than the other, within the noise of bfloat16.
    assert relative(auto, exact) < 1.5 * relative(reference, exact) + 1e-3


def test_batch_of_one_is_a_part_of_the_batch():
    model, variables = variables_of("unet", "plain")
    x = images((33, 35))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, x)[1:], apply(variables, x[1:]), atol=1e-5, rtol=1e-5)


def test_frozen_parts_keep_their_statistics():
    model, variables = variables_of("unet", "plain")
    apply = functools.partial(model.clone(frozen=("encoder",)).apply, train=True, mutable=["batch_stats"])
    _, updated = jax.jit(apply)(variables, images((32, 32)))
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
    with pytest.raises(ValueError, match=r"images with 1 channels .* \(2, 32, 32, 1\)"):
        model.apply(variables, images((32, 32), channels=1))


def test_images_that_look_like_nchw_are_warned_of():
    model = small_model("unet", "plain")
    with pytest.warns(UserWarning, match="look like NCHW"):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, 3, 32, 32)))
