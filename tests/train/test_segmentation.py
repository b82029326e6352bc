"""The recipe: it learns, scores whole images of any size, and predicts as it evaluates."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.train import (
    SegmentationRecipe,
    create_state,
    make_evaluator,
    make_optimizer,
    predictor,
    train_segmentation,
)

MEAN, STD = (0.5,), (0.25,)


class Squares:
    """Bright squares on a dark, noisy ground, in images of several sizes."""

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
    """Says class 1 where the normalised image is above a parameter."""

    @nn.compact
    def __call__(self, images, *, train=False):
        level = self.param("level", nn.initializers.zeros, ())
        return jnp.concatenate([jnp.zeros_like(images) + level, images], axis=-1)


def threshold_state():
    return create_state(Threshold(), make_optimizer(1e-3, 1), jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_recipe_learns_and_reports_scores(tmp_path):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    recipe = SegmentationRecipe(crop_size=24, batch_size=4, steps=30, learning_rate=2e-2, evaluate_every=15)
    state, history = train_segmentation(
        model,
        Squares(),
        Squares(),
        recipe,
        num_classes=2,
        mean=MEAN,
        std=STD,
        directory=tmp_path / "run",
        progress=False,
    )
    scores = [record["scores"] for record in history if "scores" in record]
    assert len(scores) == 2
    assert scores[-1]["mean_iou"] > 0.85
    assert scores[-1]["iou_1"] > 0.75
    assert int(state.step) == 30
    assert (tmp_path / "run" / "log.jsonl").exists()


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
    evaluate = make_evaluator(source, 2, mean=MEAN, std=STD, ignore_index=ignore_index, batch_size=5)
    scores = evaluate(threshold_state())
    assert fp + fn > 0  # else the comparison would say little
    np.testing.assert_allclose(scores["iou_1"], tp / (tp + fp + fn), rtol=1e-6)
    np.testing.assert_allclose(scores["pixel_accuracy"], correct / total, rtol=1e-6)


def test_predictor_takes_any_size_and_type():
    predict = predictor(Threshold(), threshold_state().variables, mean=MEAN, std=STD)
    for size in ((33, 7), (1, 1)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)
        np.testing.assert_array_equal(predict(image), image[..., 0] / 255 > 0.5)
        np.testing.assert_array_equal(predict(image.astype(np.float32) / 255), image[..., 0] / 255 > 0.5)


def test_augmentation_moves_image_and_mask_together():
    recipe = SegmentationRecipe(flip_vertical=True, rotate=True, color_jitter=0.2)
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.integers(0, 2, (8, 16, 16)).astype(np.int32))
    batch = {"image": jnp.expand_dims(mask.astype(jnp.float32), -1), "mask": mask}
    out = jax.jit(recipe.augment(MEAN, STD))(jax.random.key(1), batch)
    moved = [not bool((a == b).all()) for a, b in zip(out["mask"], mask, strict=True)]
    assert any(moved)
    for image, moved_mask in zip(np.asarray(out["image"])[..., 0], np.asarray(out["mask"]), strict=True):
        # Whatever the colours, a pixel of class 1 is brighter than any of class 0.
        assert image[moved_mask == 1].min() > image[moved_mask == 0].max()
    nothing = dataclasses.replace(recipe, flip_horizontal=False, flip_vertical=False, rotate=False, color_jitter=0.0)
    out = nothing.augment(MEAN, STD)(jax.random.key(1), batch)
    np.testing.assert_array_equal(out["mask"], mask)
    np.testing.assert_allclose(out["image"], (batch["image"] - 0.5) / 0.25)
