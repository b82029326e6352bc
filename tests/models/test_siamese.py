"""Change detection: the contract of models of two images, and what is special about joining two pyramids."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import viz
from densezoo.inspect.walk import convolutions

KEY = jax.random.key(0)
FUSIONS = ("early", "concat", "difference")
RESNET = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8)
SHAPE = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
PLAIN = dz.PlainEncoder((4, 8, 8))


def small(fusion="difference", encoder=PLAIN, **fields):
    return dz.create_model("siamese_unet", encoder, 2, fusion=fusion, **fields)


MODELS = {fusion: small(fusion) for fusion in FUSIONS} | {
    "snunet": dz.create_model("snunet", dz.PlainEncoder((16, 8, 8), block=dz.ResidualDoubleConv), 2)
}


def pictures(size=(24, 20), batch=2, channels=3):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((2, batch, *size, channels)).astype(np.float32))


@functools.cache
def variables_of(name):
    """Random variables, with norms that are not neutral; no initialisation is compiled."""
    rng = np.random.default_rng(1)

    def fill(path, x):
        noise = rng.uniform(0.5, 1.5, x.shape)
        kernel = rng.normal(0, (2 / max(1, np.prod(x.shape[:-1]))) ** 0.5, x.shape)
        return jnp.asarray(noise if path[-1].key in ("var", "scale") else kernel, x.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(MODELS[name].init, KEY, SHAPE, SHAPE))


@pytest.mark.parametrize(
    "fusion", ["difference", *(pytest.param(name, marks=pytest.mark.parity) for name in ("early", "concat"))]
)
def test_any_decoder_works(fusion):
    encoders = {"segnet": dz.VGG((1, 1, 1), (4, 8, 8)), "dpt": dz.ViT(embed_dim=16, depth=4, num_heads=2, grid=4)}
    for decoder in dz.list_models(task="segmentation"):
        asked = dz.blueprint.MODELS[decoder].encoder_fields
        encoder = encoders.get(decoder, RESNET.clone(**{k: v for k, v in asked.items() if hasattr(RESNET, k)}))
        model = small(fusion, encoder, decoder=decoder)
        run = functools.partial(jax.eval_shape, model.init_with_output, KEY)
        if (fusion, decoder) == ("difference", "segnet"):
            with pytest.raises(ValueError, match=r"or is the difference of two: .* fusion='concat' for two images"):
                run(SHAPE, SHAPE)
            continue
        assert run(SHAPE, SHAPE)[0].shape == (2, 33, 50, 2), decoder


@pytest.mark.parametrize("name", MODELS)
def test_any_size_has_the_same_weights(name):
    tiny = jax.ShapeDtypeStruct((1, 2, 7, 3), jnp.float32)
    logits, variables = jax.eval_shape(MODELS[name].init_with_output, KEY, tiny, tiny)
    assert logits.shape == (1, 2, 7, 2) and variables == jax.eval_shape(MODELS[name].init, KEY, SHAPE, SHAPE)


def test_a_decoder_may_be_a_module_or_take_fields():
    decoder = dz.FPNDecoder(features=16, segmentation_features=8, norm=dz.BatchNorm)
    assert small(decoder=decoder).decoder == decoder
    model = small("concat", decoder="fpn", features=16)
    assert model.decoder.features == 16 and model.decoder.levels == 3 and model.head.kernel_size == 1
    assert dz.create_model("snunet", "fc_siam").fusion == "concat"
    # The paper's encoder: two, two, three and three convolutions, a map before each pooling, and the last one pooled.
    shapes, variables = jax.eval_shape(dz.create_encoder("fc_siam").init_with_output, KEY, SHAPE)
    assert [x.shape[1:] for x in shapes.maps] == [(33, 50, 16), (16, 25, 32), (8, 12, 64), (4, 6, 128), (2, 3, 128)]
    assert sum("kernel" in layer for layer in variables["params"].values()) == 10


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: small("diference"), ValueError, "unknown fusion 'diference'; did you mean 'difference'"),
        (lambda: small(decoder="retinanet"), ValueError, "unknown decoder 'retinanet'"),
        (lambda: small(decoder="snunet"), ValueError, "unknown decoder 'snunet'"),
        (lambda: small(decoder=dz.UNetDecoder), TypeError, "a name or a module"),
        (lambda: small(fusoin="early"), TypeError, "no argument 'fusoin'; did you mean 'fusion'"),
        (lambda: dz.create_model("unet", fusion="early"), TypeError, "no argument 'fusion'"),
        (lambda: dz.create_model("retinanet", decoder="fpn"), TypeError, "a retinanet has no decoder to choose"),
        (lambda: dz.create_model("snunet", fusion="early"), TypeError, "no argument 'fusion'"),
        (lambda: dz.create_model("snunet", dz.PlainEncoder((4,))), ValueError, "at least two maps"),
        (
            lambda: small().init(KEY, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 9, 3))),
            ValueError,
            r"before and after the change; got \(1, 8, 8, 3\) float32 and \(1, 8, 9, 3\) float32",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "name", ["difference", "snunet", *(pytest.param(name, marks=pytest.mark.parity) for name in ("early", "concat"))]
)
def test_one_program_answers_the_usual_questions(name):
    model, variables = MODELS[name], variables_of(name)
    before, after = pictures()

    @jax.jit
    def run(before, after):
        def loss(params):
            # A random target, so that no gradient cancels by symmetry.
            rngs = {"dropout": KEY}
            apply = functools.partial(model.apply, variables | {"params": params}, train=True, rngs=rngs)
            logits, _ = apply(before, after, mutable=["batch_stats"])
            return jnp.square(logits - jax.random.normal(KEY, logits.shape)).mean()

        plain = model.clone(impl="reference")
        return (
            model.apply(variables, before, after),
            model.apply(variables, after, before),
            model.apply(variables, before[1:], after[1:]),
            plain.apply(variables, before, after),
            jax.grad(loss)(variables["params"]),
        )

    logits, swapped, alone, reference, gradient = run(before, after)
    largest = float(jnp.abs(logits).max())
    np.testing.assert_allclose(alone, logits[1:], atol=1e-5 * largest)  # pairs do not mix
    np.testing.assert_allclose(reference, logits, atol=1e-5 * largest)
    np.testing.assert_allclose(dz.compile(model, variables)(before, after), logits, atol=1e-4 * largest)
    if name == "difference":
        np.testing.assert_array_equal(swapped, logits)
    else:
        assert float(jnp.abs(swapped - logits).max()) > 0.01 * largest
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        before_norm = path[-1].key == "bias" and path[-2].key == "conv" and "attention" not in str(path)
        assert before_norm or bool(jnp.abs(leaf).max() > 0), jax.tree_util.keystr(path)


def test_equal_pictures_have_no_difference():
    image = pictures()[0]
    variables = variables_of("difference")
    maps = []
    with dz.inspect.walk.module_calls(lambda module, call, args, kwargs: maps.append(args) or call(*args, **kwargs)):
        small().apply(variables, image, image)
    (pyramid,) = [args[0] for args in maps if args and isinstance(args[0], dz.Pyramid)]
    assert not any(bool(x.any()) for x in pyramid.maps)  # the coarsest too


def test_it_is_saved_summarised_drawn_and_differentiated_in_nnx(tmp_path):
    model, variables = small("early"), variables_of("early")
    path = tmp_path / "change.safetensors"
    with pytest.raises(ValueError, match="are not the variables of the model"):
        dz.save(path, small("concat"), variables)
    # With images of five bands, the first kernel reads ten.
    bands = jax.ShapeDtypeStruct((1, 32, 32, 5), jnp.float32)
    shapes = jax.eval_shape(model.init, KEY, bands, bands)
    dz.save(path, model, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes))
    loaded, arrays = dz.load(path)
    assert repr(loaded) == repr(model)
    assert arrays["params"]["encoder"]["block0"]["conv1"]["conv"]["kernel"].shape == (3, 3, 10, 4)

    table = dz.summary(MODELS["snunet"], (32, 32, 3))
    layers = {"/".join(layer.path): layer for layer in table.layers}
    assert layers["encoder"].shapes[0] == (2, 32, 32, 16) and layers["decoder"].shapes == ((1, 32, 32, 32),)

    read = viz.architecture(MODELS["concat"], image_size=(32, 32))
    assert read.boxes[0].name == "2 images" and read.columns == ("image", "encoder", "decoder", "head")
    assert [link.join for link in read.links if link.kind == "skip"] == ["concat"] * 2
    of_one, of_two = (dz.inspect.receptive_fields(x, (64, 64, 3)) for x in (dz.create_model("unet", PLAIN), small()))
    assert of_one.layers[-1].size == of_two.layers[-1].size

    module = dz.to_nnx(model, variables)
    before, after = pictures()
    np.testing.assert_allclose(module(before, after), model.apply(variables, before, after), atol=1e-5)


def test_early_fusion_repeats_the_first_kernel_of_a_pretrained_encoder():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(RESNET.init, KEY, SHAPE)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.uniform(size=x.shape), x.dtype), shapes)
    arrays = dz.weights.to_torch(RESNET, variables)
    loaded = dz.weights.from_torch(small("early", RESNET), arrays, part="encoder", in_channels=3)
    kernel, before = (tree["conv1"]["conv"]["kernel"] for tree in (loaded["params"]["encoder"], variables["params"]))
    np.testing.assert_allclose(kernel, jnp.concatenate([before, before], 2) / 2, rtol=1e-6)
    loaded = dz.weights.from_torch(small("difference", RESNET), arrays, part="encoder")
    np.testing.assert_array_equal(loaded["params"]["encoder"]["conv1"]["conv"]["kernel"], before)


def test_bfloat16_computes_in_bfloat16():
    model = dz.create_model("snunet", "snunet", dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, KEY, SHAPE, SHAPE)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    program = jax.make_jaxpr(model.apply)(variables, SHAPE, SHAPE).jaxpr
    assert {equation.outvars[0].aval.dtype for equation in convolutions(program)} == {jnp.dtype(jnp.bfloat16)}


def test_compiled_programs_of_pairs_are_saved(tmp_path, recwarn):
    model, variables = MODELS["difference"], variables_of("difference")
    infer = dz.compile(model, variables)
    infer.save(tmp_path / "change.compiled", (1, 8, 8, 3))
    loaded = dz.load_compiled(tmp_path / "change.compiled")
    before, after = pictures((8, 8), batch=1)
    np.testing.assert_allclose(loaded(before, after), model.apply(variables, before, after), atol=1e-4)
    with pytest.raises(ValueError, match=r"for images of \(1, 8, 8, 3\) float32, only for .* and \(1, 8, 8, 3\)"):
        loaded(before)


ON_TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import densezoo as dz

before, after = np.random.default_rng(0).standard_normal((2, 4, 16, 12, 3)).astype(np.float32)
model = dz.create_model("siamese_unet", dz.PlainEncoder((4, 8)), 2, fusion="concat")
variables = jax.jit(model.init)(jax.random.key(0), before, after)
expected = jax.jit(model.apply)(variables, before, after)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
    with jax.set_mesh(mesh):
        inputs = place(variables), place(before, "data"), place(after, "data")
        compiled = jax.jit(model.apply).lower(*inputs).compile()
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(compiled(*inputs), expected, atol=1e-5)
print("agree")
"""


def test_pairs_stay_on_their_device():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "agree\n", done.stderr[-3000:]
