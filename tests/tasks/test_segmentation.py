"""The segmentation task and its recipe: it learns, scores whole images of any size, and predicts as it evaluates."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import losses
from densezoo.tasks import Segmentation, describe, from_description
from densezoo.train import Recipe, create_state, evaluator, load_variables, make_optimizer, one_cycle, train

GREY = dz.Preprocessing(channels=1)


class Squares:
    """Bright squares on a dark, noisy background, in images of several sizes."""

    sizes = tuple((24 + 8 * (index % 3), 40) for index in range(12))

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        height, width = self.sizes[index]
        mask = np.zeros((height, width), np.int32)
        row, column = rng.integers(0, height - 12), rng.integers(0, width - 12)
        mask[row : row + 12, column : column + 12] = 1
        image = (60 + 120 * mask + rng.normal(0, 25, mask.shape)).clip(0, 255).astype(np.uint8)
        return {"image": image[..., None], "mask": mask, "name": f"{index}"}


class Threshold(nn.Module):
    """Predicts class 1 where the normalised image is above a parameter."""

    @nn.compact
    def __call__(self, images, *, train=False):
        level = self.param("level", nn.initializers.zeros, ())
        return jnp.concatenate([jnp.zeros_like(images) + level, images], axis=-1)


def threshold_state():
    return create_state(Threshold(), make_optimizer(1e-3, 1), jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_recipe_learns_and_reports_scores(tmp_path):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    recipe = Recipe(crop_size=(24, 32), batch_size=4, steps=30, learning_rate=2e-2, ema_decay=0.5, evaluate_every=15)
    task = Segmentation(2, criterion="cross_entropy+dice", class_names=("ground", "square"))
    records = []
    options = {"directory": tmp_path / "run", "on_record": records.append, "progress": False}
    state, history = train(task, model, Squares(), Squares(), recipe, **options)
    scores = [record["scores"] for record in history if "scores" in record]
    assert len(scores) == 2
    assert scores[-1]["mean_iou"] > 0.85
    assert scores[-1]["iou_square"] > 0.75
    assert int(state.step) == 30
    assert (tmp_path / "run" / "log.jsonl").exists()
    assert records == history
    rates = [float(one_cycle(2e-2, 30)(step)) for step in range(20)]
    np.testing.assert_allclose(history[0]["learning_rate"], np.mean(rates[:10]), rtol=1e-5)
    # The run leaves its best model, with the averaged parameters, which predicts as the state does.
    _, saved = dz.load(tmp_path / "run" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, saved, load_variables(tmp_path / "run", "best"))
    predict = dz.load_predictor(tmp_path / "run")
    assert predict.task == task and predict.preprocessing == GREY
    image = Squares()[0]["image"]
    assert np.mean(predict(image) == Squares()[0]["mask"]) > 0.9


@pytest.mark.parametrize("ignore_index", [255, None])
def test_evaluator_counts_each_pixel_of_each_image_once(ignore_index):
    # A ninth of the pixels is unlabelled, if there is such a label.
    class Source(Squares):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if ignore_index is not None:
                sample["mask"][::3, ::3] = ignore_index
            return sample

    source = Source()
    tp, fp, fn, correct, total = 0, 0, 0, 0, 0
    for index in range(len(source)):
        sample = source[index]
        found = sample["image"][..., 0] / 255 > 0.5
        counted = sample["mask"] != 255
        true = sample["mask"] == 1
        tp += (found & true & counted).sum()
        fp += (found & ~true & counted).sum()
        fn += (~found & true & counted).sum()
        correct += ((found == true) & counted).sum()
        total += counted.sum()
    evaluate = evaluator(Segmentation(2, ignore_index=ignore_index), source, batch_size=5)
    scores = evaluate(threshold_state())
    assert fp + fn > 0  # otherwise the comparison would be meaningless
    np.testing.assert_allclose(scores["iou_1"], tp / (tp + fp + fn), rtol=1e-6)
    np.testing.assert_allclose(scores["pixel_accuracy"], correct / total, rtol=1e-6)


def test_predictor_takes_any_size_and_type():
    predict = dz.Predictor(Segmentation(2), Threshold(), threshold_state().variables, GREY)
    for size in ((33, 7), (1, 1)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)
        np.testing.assert_array_equal(predict(image), image[..., 0] / 255 > 0.5)
        np.testing.assert_array_equal(predict(image.astype(np.float32) / 255), image[..., 0] / 255 > 0.5)


def test_predictor_checks_the_picture_and_gives_probabilities():
    predict = dz.Predictor(Segmentation(2), Threshold(), threshold_state().variables, GREY)
    with pytest.raises(ValueError, match=r"shape \(h, w, 1\), got shape \(4, 4, 3\)"):
        predict(np.zeros((4, 4, 3), np.uint8))
    image = np.array([[0, 255]], np.uint8)[..., None]
    expected = 1 / (1 + np.exp(-np.array([-2.0, 2.0])))  # the normalised image is the second logit, the first is 0
    np.testing.assert_allclose(predict.probabilities(image)[0, :, 1], expected, rtol=1e-6)
    twelve_bits = dataclasses.replace(GREY, value_range=(0, 4095))
    predict = dz.Predictor(Segmentation(2), Threshold(), threshold_state().variables, twelve_bits)
    assert predict(np.full((2, 2, 1), 4095, np.uint16)).all() and not predict(np.full((2, 2, 1), 1000, np.uint16)).any()


def test_a_source_is_converted_after_the_crop_unless_its_range_is_given():
    assert GREY.view(Squares())[0]["image"].dtype == np.uint8  # all of a large picture would be converted for a crop
    scaled = dataclasses.replace(GREY, value_range=(0, 51)).view(Squares())[0]["image"]
    np.testing.assert_allclose(scaled, Squares()[0]["image"] / 51, rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(h, w, 3\)"):
        dz.Preprocessing().view(Squares())[0]


class Both(nn.Module):
    """Logits of two classes, with a parameter for each."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return jnp.concatenate([nn.Dense(1, name="first")(images), nn.Dense(1, name="second")(images)], axis=-1)


def test_several_labels_a_pixel(tmp_path):
    class Source(Squares):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            above = (sample["image"][..., 0] > 60).astype(np.int32)  # a second class, which overlaps the first
            sample["mask"] = np.stack([sample["mask"], above], axis=-1)
            sample["mask"][0, 0] = 255
            return sample

    task = Segmentation(2, criterion="cross_entropy+dice", multilabel=True, class_names=("square", "bright"))
    recipe = Recipe(crop_size=24, batch_size=4, steps=60, learning_rate=0.3, ema_decay=0.5, evaluate_every=60)
    directory = tmp_path / "run"
    _, history = train(task, Both(), Source(), Source(), recipe, directory=directory, progress=False)
    scores = history[-1]["scores"]
    assert scores["iou_square"] > 0.7 and scores["iou_bright"] > 0.9
    # Computed by hand: intersections over unions of the logits above 0.
    intersections, unions = np.zeros(2), np.zeros(2)
    predict = dz.load_predictor(directory, model=Both())
    _, saved = dz.load(directory / "model.safetensors", model=Both())
    jax.tree.map(np.testing.assert_array_equal, saved, load_variables(directory, "best"))
    for index in range(12):
        sample = Source()[index]
        found, true, counted = predict(sample["image"]), sample["mask"] == 1, sample["mask"] != 255
        intersections += ((found == 1) & true & counted).sum((0, 1))
        unions += (((found == 1) | true) & counted).sum((0, 1))
    np.testing.assert_allclose([scores["iou_square"], scores["iou_bright"]], intersections / unions, rtol=1e-6)
    assert predict.probabilities(sample["image"]).sum(-1).max() > 1.1  # sigmoids, not a softmax


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "dcie"}, "unknown loss 'dcie'; did you mean 'dice'"),
        ({"criterion": "dice", "label_smoothing": 0.1}, "label_smoothing was given, and no loss"),
        ({"criterion": "tversky(alhpa=1)"}, "no argument 'alhpa'; it has alpha, beta"),
        ({"class_weights": (1.0,)}, "class_weights needs 3 entries"),
        ({"class_names": ("a", "b", "b")}, "duplicates"),
        ({"num_classes": 0}, "at least 1"),
        ({"labels": {"road": 1}}, "labels must map numbers or colours"),
        ({"labels": (7, 11)}, "labels must map numbers or colours"),
        ({"num_classes": 300}, "ignore_index=255 is one of the mask values 0 to 299.*ignore_index=None"),
        ({"num_classes": 1, "ignore_index": 1}, "ignore_index=1 is one of the mask values 0 to 1"),
        ({"multilabel": True, "ignore_index": 0}, "ignore_index=0 is one of the mask values 0 to 1"),
    ],
)
def test_mistaken_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(**{"num_classes": 3} | options)


def test_many_classes_all_count():
    batch = {"image": jnp.zeros((1, 4, 4, 1)), "mask": jnp.full((1, 4, 4), 255)}
    for ignore_index in (None, -1, 65535):
        task = Segmentation(300, ignore_index=ignore_index)
        apply = lambda images: jnp.zeros((*images.shape[:3], 300))  # noqa: E731
        np.testing.assert_allclose(task.loss(apply, batch, None), np.log(300), rtol=1e-6)
        assert task.scores(task.measure(apply, batch))["iou_255"] == 0
    assert Segmentation(255).ignore_index == Segmentation(300, multilabel=True).ignore_index == 255


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip_norm", "ema_decay", "color_jitter", "scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_of_a_recipe_are_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number of at least 0, got"):
        Recipe(**{name: (1.0, value) if name == "scale" else value})


def test_a_batch_without_its_field_or_of_another_shape_is_named():
    images = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"no \['mask'\]; it has \['image'\]"):
        Segmentation(2).loss(lambda x: x, {"image": images}, None)
    with pytest.raises(ValueError, match=r"masks of shape \(b, h, w, 2\) with multilabel=True"):
        Segmentation(2, multilabel=True).loss(lambda x: x, {"image": images, "mask": images[..., 0]}, None)


def test_losses_by_name_are_the_sums_that_they_say():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 5, 6, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2, 5, 6)), jnp.int32).at[0, 0].set(255)
    named = losses.named_loss(
        "cross_entropy + 0.5*tversky(alpha=0.3, beta=0.7)", class_weights=(1.0, 2.0, 0.5), ignore_index=255
    )
    common = {"class_weights": (1.0, 2.0, 0.5), "ignore_index": 255}
    expected = losses.cross_entropy(logits, labels, **common)
    expected += 0.5 * losses.tversky_loss(logits, labels, alpha=0.3, beta=0.7, **common)
    np.testing.assert_allclose(named(logits, labels), expected, rtol=1e-6)
    several = (labels[..., None] == jnp.arange(3).reshape(1, 1, 1, 3)).astype(jnp.int32)
    binary = losses.named_loss("focal+dice", multilabel=True, class_weights=(1.0, 2.0, 0.5))
    each = [
        losses.focal_loss(logits[..., i : i + 1], several[..., i])
        + losses.dice_loss(logits[..., i : i + 1], several[..., i])
        for i in range(3)
    ]
    np.testing.assert_allclose(binary(logits, several), np.average(each, weights=(1.0, 2.0, 0.5)), rtol=1e-6)


def test_a_task_survives_json():
    import json

    task = Segmentation(3, class_weights=(1.0, 2.0, 3.0), class_names=("a", "b", "c"), criterion="dice")
    assert from_description(json.loads(json.dumps(describe(task)))) == task
    for labels in ({7: 0, 11: 1, 0: 255}, {(0, 0, 0): 0, (128, 64, 128): 1}):
        task = Segmentation(2, labels=labels)
        again = from_description(json.loads(json.dumps(describe(task))))
        assert again == task and hash(again) == hash(task) and dict(again.labels) == labels
    with pytest.raises(ValueError, match="unknown task 'poses'"):
        from_description({"name": "poses"})
    with pytest.raises(ValueError, match=r"no options \['depth'\]"):
        from_description({"name": "segmentation", "options": {"num_classes": 2, "depth": 1}})


def test_evaluation_takes_the_averaged_parameters():
    state = create_state(
        Threshold(), make_optimizer(1e-3, 1), jax.random.key(0), jnp.zeros((1, 8, 8, 1)), ema_decay=0.9
    )
    evaluate = evaluator(Segmentation(2), Squares())
    state = state.replace(params={"level": jnp.float32(10.0)})  # calls every pixel class 0; the average is still 0
    assert evaluate(state)["iou_1"] > 0.5
    state = state.replace(ema={"level": jnp.float32(10.0)})
    assert evaluate(state)["iou_1"] == 0


def test_deprecated_names_go_on_working():
    from densezoo.train import SegmentationRecipe, predictor, train_segmentation

    with pytest.warns(DeprecationWarning, match="train.Recipe"):
        recipe = SegmentationRecipe(crop_size=16, batch_size=2, steps=1)
    numbers = {"mean": (0.5,), "std": (0.25,)}
    with pytest.warns(DeprecationWarning, match=r"train\.train"):
        state, _ = train_segmentation(
            Threshold(), Squares(), Squares(), recipe, num_classes=2, progress=False, **numbers
        )
    with pytest.warns(DeprecationWarning, match=r"dz\.Predictor"):
        assert predictor(Threshold(), state.variables, **numbers)(np.zeros((3, 4, 1), np.uint8)).shape == (3, 4)


def test_augmentation_moves_image_and_mask_together():
    recipe = Recipe(flip_vertical=True, rotate=True, color_jitter=0.2)
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.integers(0, 2, (8, 16, 16)).astype(np.int32))
    batch = {"image": jnp.expand_dims(mask.astype(jnp.float32), -1), "mask": mask}
    out = jax.jit(Segmentation(2).augment(recipe))(jax.random.key(1), batch)
    moved = [not bool((a == b).all()) for a, b in zip(out["mask"], mask, strict=True)]
    assert any(moved)
    for image, moved_mask in zip(np.asarray(out["image"])[..., 0], np.asarray(out["mask"]), strict=True):
        # Whatever the colours, a pixel of class 1 is brighter than any of class 0.
        assert image[moved_mask == 1].min() > image[moved_mask == 0].max()
    nothing = dataclasses.replace(recipe, flip_horizontal=False, flip_vertical=False, rotate=False, color_jitter=0.0)
    out = Segmentation(2).augment(nothing)(jax.random.key(1), batch)
    np.testing.assert_array_equal(out["mask"], mask)
    np.testing.assert_allclose(out["image"], batch["image"])
