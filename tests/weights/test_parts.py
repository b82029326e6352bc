"""Checkpoints of one part of a model, loaded into the whole model."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import densezoo as dz
from densezoo.weights import from_torch, to_torch

GOLDEN = Path(__file__).parents[1] / "golden"
ENCODER = dz.ResNet((1, 1), dz.BasicBlock, width=2)
MODEL = dz.create_model("unet", ENCODER, 2, features=(4, 3, 2))
PARTS = ("encoder", "decoder", "head")


def init(model, key, channels=3):
    images = jnp.zeros((1, 64, 64, channels))
    return jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})(key, images)


@functools.cache
def whole():
    """Variables of the model, and the same as the reference's arrays."""
    tree = flatten_dict(jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    generator = np.random.default_rng(0)
    variables = unflatten_dict({p: jnp.asarray(generator.normal(size=x.shape), x.dtype) for p, x in tree.items()})
    return variables, to_torch(MODEL, variables)


def assert_same(ours, other):
    jax.tree.map(np.testing.assert_array_equal, ours, other)


def of(part, variables):
    return {name: tree[part] for name, tree in variables.items() if part in tree}


@pytest.fixture(autouse=True)
def few_compilations(monkeypatch, request):
    """Skips the initialisation of other parts, which only one test checks."""
    if "initialised" not in request.node.name:
        zeros = lambda model, paths, channels, key: {path: jnp.zeros(()) for path in paths}  # noqa: E731
        monkeypatch.setattr("densezoo.weights._convert.initialise", zeros)


def test_the_other_parts_are_initialised(recwarn):
    variables, arrays = whole()
    arrays = {name.removeprefix("encoder."): a for name, a in arrays.items() if name.startswith("encoder.")}
    filled = from_torch(MODEL, arrays, part="encoder", key=jax.random.key(7))
    assert not recwarn.list
    assert_same(of("encoder", filled), of("encoder", variables))
    made = init(MODEL, jax.random.key(7))
    assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, made)
    for part in ("decoder", "head"):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
        jax.tree.map(close, of(part, filled), of(part, made))


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.", "backbone.body.", "encoder.model."])
def test_where_an_encoder_is_found(prefix):
    variables, arrays = whole()
    renamed = {prefix + name.removeprefix("encoder."): a for name, a in arrays.items() if name.startswith("encoder.")}
    classifier = {"fc.weight": np.zeros(3)} if prefix == "" else {f"{prefix.split('.')[0]}.loss.weight": np.zeros(2)}
    filled = from_torch(MODEL, renamed | (classifier if prefix in ("", "backbone.body.") else {}), part="encoder")
    assert_same(of("encoder", filled), of("encoder", variables))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_whole_checkpoint(part):
    variables, arrays = whole()
    assert_same(of(part, from_torch(MODEL, arrays, part=part)), of(part, variables))
    # The other parts may be those of any model, this one's may not.
    begin = "segmentation_head." if part == "head" else f"{part}."
    arrays = {name: array for name, array in arrays.items() if name.startswith(begin)}
    arrays |= {"loss.weight": np.zeros(2), "decoder2.x": np.zeros(3)}
    assert_same(of(part, from_torch(MODEL, arrays, part=part)), of(part, variables))
    with pytest.raises(ValueError, match=rf"1 unexpected in the checkpoint: {begin}x"):
        from_torch(MODEL, arrays | {f"{begin}x": np.zeros(3)}, part=part)
    lost = next(name for name in arrays if name.endswith(".weight"))
    with pytest.raises(
        ValueError, match=rf"does not fit the model's {part}:(.|\n)*1 missing in the checkpoint: {lost}"
    ):
        from_torch(MODEL, {name: array for name, array in arrays.items() if name != lost}, part=part)


def together(case):
    """A model whose reference's decoder and head have names with the same start, its arrays, and the variables."""
    classes = {"num_classes": 2}
    model = {
        "hrnet_w18_small_segmentation": lambda: dz.create_model("hrnet", "hrnet_w18_small", **classes),
        "smp_dpt_vit_tiny": lambda: dz.create_model(
            "dpt", "vit_tiny_patch16_224", **classes, intermediate_features=(32, 64, 96, 128), features=32
        ),
        "torchvision_deeplabv3_resnet50": lambda: dz.SegmentationModel(
            encoder=dz.create_encoder("resnet50", output_stride=8, dilate_first=False),
            decoder=dz.DeepLabV3Decoder(),
            head=dz.SegmentationHead(**classes, kernel_size=1, upsample=dz.Bilinear),
        ),
    }[case]()
    shapes = json.loads(str(np.load(GOLDEN / f"{case}.npz")["shapes"]))
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return model, arrays, from_torch(model, arrays)


@pytest.mark.parametrize(
    ("case", "begin"),
    [
        ("hrnet_w18_small_segmentation", "last_layer."),
        ("smp_dpt_vit_tiny", "segmentation_head."),
        ("torchvision_deeplabv3_resnet50", "classifier."),
    ],
)
def test_parts_whose_names_begin_alike(case, begin):
    model, arrays, variables = together(case)
    for part in PARTS:
        assert_same(of(part, from_torch(model, arrays, part=part)), of(part, variables))
        if part != "encoder":
            with pytest.raises(ValueError, match=rf"1 unexpected in the checkpoint: {begin}x"):
                from_torch(model, arrays | {f"{begin}x": np.zeros(3)}, part=part)


def test_a_neck():
    pyramid = dz.PyramidModel(encoder=ENCODER, neck=dz.FPNNeck(features=5, levels=2))
    tree = flatten_dict(jax.eval_shape(pyramid.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    variables = unflatten_dict({path: jnp.full(x.shape, i, x.dtype) for i, (path, x) in enumerate(tree.items())})
    arrays = to_torch(pyramid, variables) | {"roi_heads.box_head.fc6.bias": np.zeros(3)}
    assert_same(of("neck", from_torch(pyramid, arrays, part="neck")), of("neck", variables))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(channels):
    arrays = whole()[1]
    filled = from_torch(MODEL, arrays, part="encoder", in_channels=channels)
    alone = from_torch(ENCODER, arrays, in_channels=channels)
    assert filled["params"]["encoder"]["conv1"]["conv"]["kernel"].shape == (7, 7, channels, 2)
    assert_same(of("encoder", filled), alone)


def test_what_is_no_part():
    arrays = whole()[1]
    with pytest.raises(ValueError, match="part must be one of encoder, decoder, head; got 'neck'"):
        from_torch(MODEL, arrays, part="neck")
    with pytest.raises(ValueError, match="None for a module without parts; got 'encoder'"):
        from_torch(ENCODER, arrays, part="encoder")
