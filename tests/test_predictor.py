"""A predictor computes the same as `model.apply`, at the picture's own size."""

from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import densezoo as dz
from benchmarks.sharding import CASES
from densezoo.compiling import onednn_options
from densezoo.tasks import Segmentation


class Net(nn.Module):
    """A convolution, which depends on the zeros outside the border."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Conv(2, (3, 3))(images)


def test_pictures_are_computed_at_their_own_size(tmp_path):
    model, task, preprocessing = Net(), Segmentation(2), dz.Preprocessing(channels=1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    logits = model.apply(variables, (jnp.asarray(picture[None]).astype(jnp.float32) / 255 - 0.5) / 0.25)
    expected = jax.nn.softmax(logits)[0]
    predict = dz.Predictor(task, model, variables, preprocessing)
    np.testing.assert_allclose(predict.probabilities(picture), expected, atol=1e-5)
    # Padding changes the convolution's input outside the border, so it is optional.
    approximate = dz.Predictor(task, model, variables, preprocessing, pad_to=4).probabilities(picture)
    assert approximate.shape == expected.shape
    np.testing.assert_allclose(approximate[:-1, :-1], expected[:-1, :-1], atol=1e-5)
    assert np.abs(approximate - expected).max() > 0.01

    path = tmp_path / "model.safetensors"
    dz.save(path, None, variables, task=task, preprocessing=preprocessing)
    with pytest.warns(DeprecationWarning, match="multiple has been renamed to pad_to"):
        predict = dz.load_predictor(path, model=model, multiple=4)
    np.testing.assert_array_equal(predict.probabilities(picture), approximate)
    with pytest.warns(DeprecationWarning, match="multiple has been renamed to pad_to"):
        dz.Predictor(task, model, variables, preprocessing, multiple=4)
    with pytest.raises(ValueError, match="pad_to must be a number of pixels, at least 1, or None; got 0"):
        dz.load_predictor(path, model=model, pad_to=0)


class Finder(nn.Module):
    """Detects one object: the whole picture."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return self.param("scale", nn.initializers.ones, ()) * images.mean((1, 2))

    def detect(self, images, sizes=None, **thresholds):
        height, width = sizes.astype(jnp.float32).T
        boxes = jnp.stack([0 * width, 0 * height, width, height], -1)[:, None]
        one = jnp.ones((len(images), 1))
        return dz.Detections(boxes, one, one.astype(jnp.int32), one > 0, jnp.ones((len(images), 1, 28, 28)))


def test_what_was_resized_is_brought_back():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 1), dtype=np.uint8)
    half = dz.Preprocessing(channels=1, shortest=20)
    assert half.size_of(40, 60) == (20, 30)
    model = Net()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    predict = dz.Predictor(Segmentation(2), model, variables, half)
    mask, probabilities = predict(picture), predict.probabilities(picture)
    assert mask.shape == (40, 60) and mask.dtype == np.int32 and probabilities.shape == (40, 60, 2)
    # A mask has the pixels of the smaller picture twice.
    np.testing.assert_array_equal(mask[::2, ::2], mask[1::2, 1::2])
    assert (mask != dz.Predictor(Segmentation(2), model, variables, dz.Preprocessing(channels=1))(picture)).any()

    finder = Finder()
    variables = finder.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    for preprocessing in (half, dz.Preprocessing(channels=1), dz.Preprocessing(channels=1, longest=45)):
        found = dz.Predictor(dz.tasks.Detection(2), finder, variables, preprocessing, pad_to=32)(picture)
        np.testing.assert_allclose(found.boxes, [[0, 0, 60, 40]])
        assert found.masks.shape == (1, 28, 28)
    with pytest.raises(ValueError, match="shortest"):
        dz.Preprocessing(shortest=0)


def test_wrong_values_are_reported():
    preprocessing = dz.Preprocessing(channels=1)
    with pytest.raises(ValueError, match="NaN"):
        preprocessing.prepare(np.full((4, 4, 1), np.nan, np.float32))
    with pytest.warns(UserWarning, match=r"floats from 0 to 255, expected 0..1"):
        preprocessing.prepare(np.array([[[0.0], [255.0]]], np.float32))
    with pytest.raises(ValueError, match=r"read_image\(path, channels=1\)"):
        preprocessing.prepare(np.zeros((4, 4), np.uint8))


def test_an_image_is_read_from_bytes_and_file_objects(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path)
    expected = dz.data.read_image(path)
    np.testing.assert_array_equal(dz.data.read_image(path.read_bytes()), expected)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(dz.data.read_image(file), expected)


def small_predictor(with_statistics, task=None, model=None, **options):
    model = model or dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    variables = with_statistics(model, jnp.zeros((1, 16, 16, 3)))
    return dz.Predictor(task or Segmentation(3), model, variables, **options)


def pictures_of(sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_sizes_share_programs(with_statistics, compilations, monkeypatch):
    monkeypatch.setattr("densezoo.predictor.programs.SIDES", (32, 64))  # smaller ones, for the test's sake
    monkeypatch.setattr("densezoo.predictor.programs.TILE", 32)
    exact, shared = (small_predictor(with_statistics, max_programs=limit) for limit in (None, 8))
    with pytest.raises(ValueError, match="max_programs is exact, and pad_to is not: pass only one of them"):
        small_predictor(with_statistics, max_programs=8, pad_to=32)
    onednn_options()  # which compiles a probe
    pictures = pictures_of([(32, 32), (17, 23), (40, 33), (63, 64), (75, 31), (66, 101)])
    with compilations() as compiled:
        found = [shared.probabilities(picture) for picture in pictures]
    assert len(compiled) == shared.compiled == 3
    for picture, probabilities in zip(pictures, found, strict=True):
        np.testing.assert_allclose(probabilities, exact.probabilities(picture), atol=1e-5)
    # Eight threads share them too, whatever the order.
    others = pictures_of([(20 + n, 31 - n) for n in range(8)])
    with ThreadPoolExecutor(8) as pool:
        by_threads = list(pool.map(shared.probabilities, others * 2))
    assert shared.compiled == 3
    for found, picture in zip(by_threads, others * 2, strict=True):
        np.testing.assert_array_equal(found, shared.probabilities(picture))


class Global(nn.Module):
    """Subtracts the median of all pixels, for which no program can be shared."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Conv(3, (3, 3))(images) - jnp.median(images, (1, 2), keepdims=True)


def test_a_predictor_keeps_a_bounded_number_of_programs(with_statistics):
    predict = small_predictor(with_statistics, model=Global(), max_programs=2)
    first, *others = pictures_of([(8 + n, 9) for n in range(8)])
    predict(first)
    predict(first)
    assert predict.compiled == 1
    for picture in others[:-1]:
        predict(picture)
    with pytest.warns(UserWarning, match="needs a program for each size of image, and 8 were compiled"):
        predict(others[-1])
    predict(others[-1])
    assert predict.compiled == 8
    predict(first)  # was dropped
    assert predict.compiled == 9


def test_batches_and_warm_up(with_statistics):
    predict = small_predictor(with_statistics)
    pictures = pictures_of([(16, 16), (20, 12), (16, 16), (16, 16)])
    masks = predict.batch(pictures, size=2)
    assert predict.compiled == 3  # two at once, and one of each size
    predict.warm_up((24, 16))
    assert predict.compiled == 4
    predict(*pictures_of([(24, 16)]))
    for picture, mask in zip(pictures, masks, strict=True):
        np.testing.assert_array_equal(mask, predict(picture))
    assert predict.compiled == 4
    with pytest.raises(ValueError, match="size must be at least 1"):
        predict.batch(pictures, size=0)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "panoptic_fpn"])
def test_a_detector_shares_programs(name, with_statistics, monkeypatch):
    monkeypatch.setattr("densezoo.predictor.programs.SIDES", (96, 128))
    model = CASES[name]()
    variables = with_statistics(model, jnp.zeros((1, 64, 64, 3)))
    task = dz.tasks.PanopticSegmentation(3) if name == "panoptic_fpn" else dz.tasks.Detection(3)
    exact, shared = (dz.Predictor(task, model, variables, max_programs=limit) for limit in (None, 8))
    for picture in pictures_of([(50, 40), (90, 96), (41, 77)]):
        found, expected = shared(picture), exact(picture)
        detections = expected.detections if name == "panoptic_fpn" else expected
        assert detections.valid.sum() > 3
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
    assert shared.compiled == 1


def test_a_detector_with_attention_or_unknown_modules_shares_none(with_statistics):
    swin = dz.Swin((1, 1), 8, (1, 2), window_size=2, coarsest=8)
    for model in (Finder(), dz.create_model("retinanet", swin, 3, features=8)):
        predict = small_predictor(with_statistics, dz.tasks.Detection(3), model, max_programs=8)
        with pytest.raises(ValueError, match="there are no shared programs"):
            predict.warm_up()


def test_a_change_detector_shares_programs(with_statistics):
    model = dz.create_model("siamese_unet", dz.PlainEncoder((4, 8)), 2)
    task = dz.tasks.ChangeDetection()
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images, images)
    exact, shared = (dz.Predictor(task, model, variables, max_programs=limit) for limit in (None, 8))
    before, after = pictures_of([(33, 21)] * 2)
    np.testing.assert_allclose(shared.probabilities(before, after), exact.probabilities(before, after), atol=1e-5)
    assert shared.probabilities(before[:30], after[:30]).shape == (30, 21, 2) and shared.compiled == 1


def test_a_predictor_tiles_large_pictures(with_statistics):
    predict = small_predictor(with_statistics)
    (picture,) = pictures_of([(75, 101)])
    np.testing.assert_array_equal(predict.tiled(picture, max_pixels=6500), predict(picture))
    assert predict.tiled(picture[:20, :20], probabilities=True, augment=True).shape == (20, 20, 3)
    with pytest.raises(ValueError, match="resizes pictures"):
        small_predictor(with_statistics, preprocessing=dz.Preprocessing(shortest=20)).tiled(picture)


def test_programs_of_tiles_are_kept(with_statistics, compilations):
    predict = small_predictor(with_statistics)
    first, second = pictures_of([(75, 101)] * 2)
    predict.tiled(first, max_pixels=6500)
    with compilations() as compiled:
        found = predict.tiled(second, max_pixels=6500)
    assert not compiled
    np.testing.assert_array_equal(found, predict(second))


def test_warm_up_of_nothing_is_an_error(with_statistics):
    for options in ({}, {"max_programs": 8, "model": Global()}):
        with pytest.raises(ValueError, match="no shared programs, so that each size has its own: pass the sizes"):
            small_predictor(with_statistics, **options).warm_up()
    with pytest.raises(ValueError, match="4 shared programs, and max_programs=2 keeps fewer"):
        small_predictor(with_statistics, max_programs=2).warm_up()


def test_warm_up_compiles_the_shared_programs_of_resized_images(with_statistics, monkeypatch):
    monkeypatch.setattr("densezoo.predictor.programs.SIDES", (32, 64))
    monkeypatch.setattr("densezoo.predictor.predictor.SIDES", (32, 64))
    monkeypatch.setattr("densezoo.predictor.programs.TILE", 32)
    predict = small_predictor(with_statistics, max_programs=8, preprocessing=dz.Preprocessing(shortest=30))
    predict.warm_up()
    assert predict.compiled == 3
    for picture in pictures_of([(15, 15), (60, 120), (15, 50)]):  # 30x30, 30x60 and 30x100
        assert predict(picture).shape == picture.shape[:2]
    assert predict.compiled == 3


def test_wrong_images_of_a_batch_are_found_first(with_statistics):
    predict = small_predictor(with_statistics)
    with pytest.raises(ValueError, match=r"expected an image of shape \(h, w, 3\), got shape \(16, 16, 1\)"):
        predict.batch([*pictures_of([(16, 16)]), np.zeros((16, 16, 1), np.uint8)])
    assert predict.compiled == 0


def test_sizes_that_share_no_program_are_traced_once(with_statistics, monkeypatch):
    predict = small_predictor(with_statistics, model=Global(), max_programs=8)
    traced, original = [], dz.predictor.programs.trace
    monkeypatch.setattr(
        dz.predictor.programs, "trace", lambda outputs, shape: traced.append(shape) or original(outputs, shape)
    )
    (picture,) = pictures_of([(33, 21)])
    predict(picture)
    count = len(traced)
    assert count
    predict(picture)
    assert len(traced) == count


def test_known_sizes_do_not_wait_for_new_ones(with_statistics):
    predict = small_predictor(with_statistics, max_programs=8)
    (picture,) = pictures_of([(33, 21)])
    expected = predict(picture)
    with ThreadPoolExecutor(1) as pool, predict._shared["predict"]._tracing:  # as if another thread was tracing
        np.testing.assert_array_equal(pool.submit(predict, picture).result(timeout=60), expected)


def test_what_is_kept_of_sizes_is_bounded(with_statistics, monkeypatch):
    predict = small_predictor(with_statistics, max_programs=8)
    pictures = pictures_of([(20 + n, 31) for n in range(4)])
    predict(pictures[0])
    one = predict._shared["predict"]._kept
    assert one > 0
    monkeypatch.setattr("densezoo.predictor.programs.KEPT", int(2.5 * one))
    for picture in pictures:
        predict(picture)
    assert len(predict._shared["predict"]._layouts) == 2 and predict._shared["predict"]._kept <= 2.5 * one


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_of_unknown_range_are_refused(with_statistics, dtype):
    predict = small_predictor(with_statistics)
    (picture,) = pictures_of([(16, 16)])
    with pytest.raises(ValueError, match=rf"{np.dtype(dtype)} pixels, whose range is unknown: .*uint8"):
        predict(picture.astype(dtype))
    known = dz.Preprocessing(value_range=(0, 255))
    np.testing.assert_allclose(known.prepare(picture.astype(dtype)), picture / np.float32(255), rtol=1e-6)
    assert dz.Preprocessing().prepare(picture.astype(np.uint32)).dtype == np.float32  # TIFF files, with their `bits`


def test_paths_are_not_pictures(with_statistics, tmp_path):
    predict = small_predictor(with_statistics)
    for path in ("geo.tif", tmp_path / "geo.tif"):
        for function in (predict, predict.tiled, lambda path: predict.batch([path])):
            with pytest.raises(TypeError, match=r"got the path '.*geo\.tif': read it with dz\.data\.read_image"):
                function(path)
    with pytest.raises(TypeError, match=r"got the path 'geo\.tif'"):
        dz.predict_tiled(None, {}, "geo.tif")


def test_batches_and_tiles_are_of_one_image():
    model = dz.create_model("siamese_unet", dz.PlainEncoder((2, 2)), 2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *[jnp.zeros((1, 8, 8, 3))] * 2)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    predict = dz.Predictor(dz.tasks.ChangeDetection(), model, variables)
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(TypeError, match=r"batch is for tasks of one image, and ChangeDetection takes 2 images"):
        predict.batch([picture])
    with pytest.raises(TypeError, match=r"tiled is for .*: call predict\(image_before, image_after\) instead"):
        predict.tiled(picture)
