"""The contract of every detector, for any encoder, neck and heads."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import heads
from densezoo.inspect.walk import convolutions

KEY = jax.random.key(0)
DETECTORS = dz.list_models(task="detection")
NORM = functools.partial(dz.GroupNorm, num_groups=4)
ENCODERS = {
    "resnet": lambda **fields: dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8, **fields),
    "shallow": lambda **fields: dz.ResNet((1, 1), dz.BasicBlock, width=8, **fields),
    "mit": lambda **fields: dz.MixTransformer(
        (1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 2), sr_ratios=(4, 2, 1, 1), **fields
    ),
}


def small(name, encoder="resnet", dtype=None, **fields):
    fields = {"features": 8} | fields
    if name == "fcos" or name == "retinanet_v2":
        fields = {"head_norm": NORM} | fields
    if "rcnn" in name:
        fields = {"hidden": (16,), "sizes": None} | fields
    if name == "panoptic_fpn":
        fields = {"hidden": (16,), "stuff_classes": 3, "semantic_features": 8, "semantic_norm": NORM} | fields
    return dz.create_model(name, ENCODERS[encoder](dtype=dtype), 3, dtype=dtype, **fields)


def quickly(*names, of=DETECTORS):
    """The detectors, all but these marked for the long run only."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.parity) for name in of]


@functools.cache
def shapes_of(name):
    model = small(name)
    return model, jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))


def pictures(size, batch=2):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)).astype(np.float32))


@functools.cache
def trained_of(name, **fields):
    """A detector that finds something, with norms that make something of zeros; no initialisation is compiled."""
    model, rng = small(name, **fields).clone(score_threshold=0.0, max_detections=8), np.random.default_rng(1)
    if isinstance(model, dz.RCNN):
        model = model.clone(candidates=(50, 50), proposals=(20, 20))

    def fill(path, x):
        fans = max(1, np.prod(x.shape[:-1]))
        numbers = rng.standard_normal(x.shape) * (1.5 / fans) ** 0.5
        kind = path[-1].key
        return jnp.asarray(1 + 0.2 * rng.random(x.shape) if kind in ("scale", "var") else numbers, x.dtype)

    shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return model, jax.tree_util.tree_map_with_path(fill, shapes)


def objects(size):
    boxes = jnp.array([[[4.0, 6, 30, 28], [20, 10, 44, 40], [0, 0, 0, 0]], [[10, 2, 33, 37], [0] * 4, [0] * 4]])
    labels = jnp.array([[1, 2, -1], [2, -1, -1]])
    instances = jnp.zeros((2, *size), jnp.int32).at[0, 6:28, 4:30].set(1).at[0, 10:40, 20:44].set(2)
    return {"boxes": boxes, "labels": labels, "instances": instances.at[1, 2:37, 10:33].set(1)}


QUICK = [(name, "resnet") for name in ("retinanet", "fcos", "mask_rcnn", "panoptic_fpn", "plain_detector")]
QUICK += [("retinanet", "shallow"), ("retinanet", "mit")]
PAIRS = [(name, encoder) for name in DETECTORS for encoder in ENCODERS]


@pytest.mark.parametrize(
    ("name", "encoder"), [p if p in QUICK else pytest.param(*p, marks=pytest.mark.parity) for p in PAIRS]
)
def test_any_image_and_encoder_give_detections_of_a_fixed_size(name, encoder):
    model, expected = small(name, encoder), None
    for size in ((1, 1), (33, 50)):
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        variables = jax.eval_shape(model.init, KEY, images)
        assert variables == (expected or variables), f"other weights at {size}"
        expected = variables
        found = jax.eval_shape(lambda v, x: dz.detect(model, v, x, max_detections=7), variables, images)
        shapes = [x.shape for x in (found.boxes, found.scores, found.labels, found.valid)]
        assert shapes == [(2, 7, 4), (2, 7), (2, 7), (2, 7)]
        assert (found.masks is not None) == (name.startswith(("mask", "panoptic")))
        assert found.masks is None or found.masks.shape == (2, 7, 28, 28)


@pytest.mark.parametrize("name", quickly("retinanet", "panoptic_fpn"))
def test_bfloat16_computes_in_bfloat16_with_float32_weights_and_boxes(name):
    half = small(name, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 33, 50, 3), jnp.float32)
    variables = jax.eval_shape(half.init, KEY, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    program = jax.make_jaxpr(lambda variables, images: dz.detect(half, variables, images))(variables, images)
    assert {equation.outvars[0].aval.dtype for equation in convolutions(program.jaxpr)} == {jnp.dtype(jnp.bfloat16)}
    assert {out.dtype.name for out in program.out_avals} == {"float32", "int32", "bool"}


@pytest.mark.parametrize("name", quickly("panoptic_fpn"))
def test_a_detector_is_saved_summarised_and_exported(name, tmp_path):
    model, shapes = shapes_of(name)
    path = tmp_path / "detector.safetensors"
    dz.save(path, model, jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes), task=dz.tasks.Detection(3))
    loaded, variables = dz.load(path)
    assert repr(loaded) == repr(model)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)

    table = dz.summary(model, (64, 64, 3))
    layers = {"/".join(layer.path): layer for layer in table.layers}
    assert layers[""].parameters == sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert layers[""].parameters == sum(layer.parameters for layer in table.layers if len(layer.path) == 1)
    for part in shapes["params"]:
        assert layers[part].flops > 0 and layers[part].shapes, f"{part} did not run"
    assert max(map(len, str(table).splitlines())) < 100

    @jax.jit
    def detect(variables, images):
        return dz.detect(model, variables, images, max_detections=4)

    # One program for all of them: no host callback, nothing that only one compiler knows.
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    exported = jax.export.export(detect, platforms=("cpu", "cuda", "tpu"))(shapes, images)
    assert exported.out_avals[0].shape == (1, 4, 4)


@pytest.mark.parametrize("name", quickly("retinanet"))
def test_jit_equals_eager_and_auto_the_reference(name):
    model, variables = trained_of(name)
    images = pictures((50, 37), batch=1)
    found = jax.jit(model.apply)(variables, images)
    expected = model.clone(impl="reference").apply(variables, images)
    for ours, reference in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # A ten-thousandth of the picture, since the second stage reads the boxes of the first.
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=5e-3)


class SmallMaskHead(nn.Module):
    """A mask head whose masks are as large as its input."""

    size: int = 6

    @nn.compact
    def __call__(self, x, *, train=False):
        return dz.blocks.Conv(3, 1)(x)


def test_masks_have_the_size_of_the_mask_head():
    model = small("mask_rcnn", "shallow").clone(mask_head=SmallMaskHead(), proposals=(4, 4))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, images)
    detect = functools.partial(dz.detect, model, max_detections=7)
    assert jax.eval_shape(detect, variables, images).masks.shape == (2, 7, 6, 6)


def test_frozen_parts_keep_their_statistics():
    model, shapes = shapes_of("faster_rcnn_v2")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for frozen in ((), ("encoder",), ("neck",)):
        apply = functools.partial(model.clone(frozen=frozen).apply, train=True, mutable=["batch_stats"])
        program = jax.make_jaxpr(lambda variables, images, apply=apply: apply(variables, images)[1])(shapes, images)
        paths = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes["batch_stats"])]
        for part, out in zip(paths, program.jaxpr.outvars, strict=True):
            # What a step does not touch is the program's input itself. The box head has its turn in the loss.
            assert (out in program.jaxpr.invars) == (part in frozen or part.endswith("_head")), (part, frozen)


@pytest.mark.parametrize("name", quickly("fcos", "mask_rcnn_v2"))
def test_every_parameter_receives_a_gradient(name):
    model, variables = trained_of(name)
    task = dz.tasks.Detection(3, masks="mask" in name or "panoptic" in name, region_samples=32)
    images = pictures((64, 64))

    @jax.jit
    @jax.grad
    def gradient(params):
        def apply(*inputs, train=True, **options):
            return model.apply(
                variables | {"params": params}, *inputs, train=train, mutable=["batch_stats"], **options
            )[0]

        loss = task.loss(apply, {"image": images} | objects((64, 64)), KEY)[0]
        if name == "panoptic_fpn":
            loss += jnp.square(apply(apply(images).pyramid, method="semantic") - 1).mean()
        return loss

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", [n for n in DETECTORS if n in ("retinanet", "faster_rcnn")])
def test_padding_changes_nothing_and_rows_without_objects_neither(name):
    model, variables = trained_of(name)
    task = dz.tasks.Detection(3, region_samples=32)

    @jax.jit
    def run(batch):
        found = dz.detect(model, variables, batch["image"], batch["size"], max_detections=50)
        return found, task.loss(functools.partial(model.apply, variables), batch, KEY)

    batch = {"image": pictures((64, 64)), "size": jnp.array([[64, 50], [40, 64]])} | objects((64, 64))
    found, (loss, _) = run(batch)
    assert bool(found.valid.any()) and bool(jnp.isfinite(loss)) and float(loss) > 0
    assert float(found.boxes[0, :, 2].max()) == 50 and float(found.boxes[1, :, 3].max()) == 40
    outside = batch["image"].at[0, :, 50:].set(7.0).at[1, 40:].set(jnp.nan)
    boxes = jnp.where((batch["labels"] < 0)[..., None], jnp.nan, batch["boxes"])
    again, (same, _) = run(batch | {"image": outside, "boxes": boxes})
    np.testing.assert_array_equal(again.boxes, found.boxes)
    np.testing.assert_array_equal(same, loss)
    # Without an object, all is background; a picture of no size has none.
    nothing, (loss, _) = run(batch | {"labels": jnp.full((2, 3), -1), "size": jnp.array([[64, 64], [0, 0]])})
    assert bool(jnp.isfinite(loss)) and not bool(nothing.valid[1].any())
    _, (wrong, _) = run(batch | {"labels": jnp.full((2, 3), 3)})
    assert bool(jnp.isnan(wrong))


SIZES = [(name, "nearest") for name in ("retinanet", "faster_rcnn", "mask_rcnn")]
SIZES += [("fcos", "bilinear"), ("panoptic_fpn", "dysample"), ("retinanet", "carafe"), ("fcos", "transposed_conv_4x4")]


@pytest.mark.parametrize(
    ("name", "upsample"),
    [p if p[0] in ("fcos", "panoptic_fpn") else pytest.param(*p, marks=pytest.mark.parity) for p in SIZES],
)
def test_a_batch_of_different_sizes_has_the_detections_of_each_picture(name, upsample):
    model, variables = trained_of(name, encoder="shallow", upsample=upsample)
    detect = jax.jit(lambda images, sizes: dz.detect(model, variables, images, sizes))
    # The second picture fills the batch, so that only the first has something to lose.
    images, (height, width) = pictures((96, 120)), (50, 70)
    both = detect(images, jnp.array([[height, width], [96, 120]]))
    alone = detect(images[:1, :height, :width], None)
    assert bool(alone.valid.any())
    np.testing.assert_array_equal(both.valid[0], alone.valid[0])
    np.testing.assert_array_equal(both.labels[0], alone.labels[0])
    # Not to the bit: a convolution of a larger map adds in another order.
    np.testing.assert_allclose(both.scores[0], alone.scores[0], atol=1e-5)
    np.testing.assert_allclose(both.boxes[0] / 100, alone.boxes[0] / 100, atol=1e-5)
    if alone.masks is not None:
        np.testing.assert_allclose(both.masks[0], alone.masks[0], atol=1e-3)


def test_a_batch_of_different_sizes_has_the_segments_of_each_picture():
    model, variables = trained_of("panoptic_fpn", encoder="shallow")
    options = {"score_threshold": 0.0, "stuff_area": 20}
    merge = jax.jit(lambda images, sizes: dz.panoptic(model, variables, images, sizes, **options))
    images, (height, width) = pictures((96, 120)), (50, 70)
    segments = merge(images, jnp.array([[height, width], [96, 120]])).segments[0]
    expected = merge(images[:1, :height, :width], None).segments[0]
    rows = model.max_detections
    assert 0 < int(expected.min(where=expected > 0, initial=rows)) <= rows < int(expected.max())  # objects and stuff
    assert float((segments[:height, :width] == expected).mean()) > 0.999  # up to rounding at the borders
    assert not segments[height:].any() and not segments[:, width:].any()


def test_each_picture_has_the_anchors_that_it_has_alone():
    maps = [jnp.zeros((2, -(-96 // r), -(-160 // r), 4)) for r in (8, 16, 32, 64, 128)]
    pyramid = dz.Pyramid(tuple(maps), reductions=(8, 16, 32, 64, 128), image_size=(96, 160))
    sizes = [(each,) for each in (32.0, 64.0, 128.0, 256.0, 512.0)]
    both = heads.grid_of(pyramid, sizes, (0.5, 1.0), jnp.array([[96, 160], [64, 96]]))
    alone = [jnp.zeros((1, -(-64 // r), -(-96 // r), 4)) for r in (8, 16, 32, 64, 128)]
    alone = heads.grid_of(
        dz.Pyramid(tuple(alone), reductions=pyramid.reductions, image_size=(64, 96)), sizes, (0.5, 1.0)
    )
    np.testing.assert_array_equal(both.anchors[1][both.inside[1]], alone.anchors[0])
    whole = heads.grid_of(pyramid, sizes, (0.5, 1.0))
    np.testing.assert_array_equal(both.anchors[0], whole.anchors[0])
    expected = dz.ops.pyramid_anchors((96, 160), [x.shape[1:3] for x in maps], sizes, (0.5, 1.0))
    np.testing.assert_array_equal(whole.anchors[0], jnp.concatenate(expected))


@pytest.mark.parametrize("name", quickly("retinanet", of=("retinanet", "mask_rcnn_v2")))
def test_compile_goes_from_pictures_to_detections(name):
    model, variables = trained_of(name)
    images, sizes = pictures((40, 64)), jnp.array([[40, 60], [33, 64]])
    found = dz.compile(model, variables, method="detect")(images, sizes)
    expected = jax.jit(lambda images: dz.detect(model, variables, images, sizes))(images)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    with pytest.raises(TypeError, match="SegmentationModel is not a detector"):
        dz.detect(dz.create_model("unet", dz.PlainEncoder((4, 8))), variables, images)
    with pytest.raises(ValueError, match="a height and a width for each of the 2 images"):
        dz.detect(model, variables, images, jnp.array([40, 60]))


def test_masks_of_instances_are_cropped_as_roi_align_crops_them():
    rng = np.random.default_rng(0)
    instances = jnp.asarray(rng.integers(0, 4, (40, 50)).astype(np.int32))
    boxes = np.concatenate([rng.uniform(-3, 20, (6, 2)), rng.uniform(15, 55, (6, 2))], 1).astype(np.float32)
    numbers = jnp.asarray(rng.integers(1, 4, 6).astype(np.int32))
    masks = (instances[None] == numbers[:, None, None]).astype(jnp.float32)[..., None]
    expected = dz.ops.roi_align(masks, jnp.asarray(boxes)[:, None], 28, sampling_ratio=0)[:, 0, :, :, 0]
    np.testing.assert_allclose(dz.ops.crop_instances(instances, numbers, jnp.asarray(boxes), 28), expected, atol=1e-5)


def test_masks_of_many_detections_are_those_of_their_boxes():
    model = small("mask_rcnn")
    images = jax.random.normal(KEY, (2, 64, 64, 3))

    @jax.jit
    def run(images):
        variables = model.init(KEY, images)
        outputs = model.apply(variables, images)
        options = {"score_threshold": 0.0, "max_detections": 60}  # more than the mask head takes at a time
        found = model.apply(variables, outputs, method="detections_of", **options)
        logits = model.apply(variables, outputs.pyramid, found.boxes, method="mask_logits")
        chosen = jnp.maximum(found.labels, 0)[:, :, None, None, None]
        return found, jax.nn.sigmoid(jnp.take_along_axis(logits, chosen, -1)[..., 0])

    found, expected = run(images)
    valid = np.asarray(found.valid)
    assert valid.sum(1).min() > 30
    np.testing.assert_allclose(np.asarray(found.masks)[valid], np.asarray(expected)[valid], atol=1e-5)
