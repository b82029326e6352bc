"""What every detector promises, whatever its encoder, neck and heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import heads

KEY = jax.random.key(0)
DETECTORS = dz.list_models(task="detection")
NORM = functools.partial(dz.GroupNorm, num_groups=4)
ENCODERS = {
    "resnet": lambda: dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8),
    "shallow": lambda: dz.ResNet((1, 1), dz.BasicBlock, width=8),
    "mit": lambda: dz.MixTransformer(
        (1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 2), sr_ratios=(4, 2, 1, 1)
    ),
}


def small(name, encoder="resnet", **fields):
    fields = {"features": 8} | fields
    if name == "fcos" or name == "retinanet_v2":
        fields = {"head_norm": NORM} | fields
    if "rcnn" in name:
        fields = {"hidden": (16,), "sizes": None} | fields
    return dz.create_model(name, ENCODERS[encoder](), 3, **fields)


def pictures(size, batch=2):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)).astype(np.float32))


@functools.cache
def variables_of(name):
    model = small(name)
    return model, jax.jit(model.init)(KEY, jnp.zeros((1, 64, 64, 3)))


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


@pytest.mark.parametrize("name", [n for n in DETECTORS if n in ("fcos", "mask_rcnn_v2")])
def test_every_parameter_receives_a_gradient(name):
    model, variables = variables_of(name)
    task = dz.tasks.Detection(3, masks="mask" in name, region_samples=32)
    images = pictures((64, 64))

    @jax.jit
    @jax.grad
    def gradient(params):
        def apply(*inputs, train=True, **options):
            rngs = {"dropout": KEY}
            return model.apply(
                variables | {"params": params}, *inputs, train=train, mutable=["batch_stats"], rngs=rngs, **options
            )[0]

        return task.loss(apply, {"image": images} | objects((64, 64)), KEY)[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert bool(jnp.isfinite(leaf).all()), jax.tree_util.keystr(path)
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", [n for n in DETECTORS if n in ("retinanet", "faster_rcnn")])
def test_padding_changes_nothing_and_rows_without_objects_neither(name):
    model, variables = variables_of(name)
    task = dz.tasks.Detection(3, region_samples=32)

    @jax.jit
    def run(batch):
        apply = functools.partial(model.apply, variables)
        return dz.detect(model, variables, batch["image"], batch["size"], score_threshold=0.0), task.loss(
            apply, batch, KEY
        )

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


@pytest.mark.parametrize("name", [n for n in DETECTORS if n in ("fcos", "mask_rcnn")])
def test_a_batch_of_different_sizes_has_the_detections_of_each_picture(name):
    model, variables = variables_of(name)
    # Something to find, and norms that make something of zeros.
    noise = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: x + 0.05 * noise.standard_normal(x.shape).astype(np.float32), variables)
    model = model.clone(score_threshold=0.0, max_detections=8)
    detect = jax.jit(lambda images, sizes: dz.detect(model, variables, images, sizes))
    images, sizes = pictures((160, 200)), np.array([[50, 70], [160, 97]])
    both = detect(images, sizes)
    for image, (height, width) in enumerate(sizes):
        alone = detect(images[image : image + 1, :height, :width], None)
        assert bool(alone.valid.any())
        for ours, expected in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[image], expected[0], rtol=1e-4, atol=1e-3)


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


def test_compile_goes_from_pictures_to_detections():
    model, variables = variables_of("retinanet")
    images, sizes = pictures((40, 64)), jnp.array([[40, 60], [33, 64]])
    model = model.clone(score_threshold=0.0, max_detections=5)
    found = dz.compile(model, variables, method="detect")(images, sizes)
    expected = jax.jit(lambda images: dz.detect(model, variables, images, sizes))(images)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
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
