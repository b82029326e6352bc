"""What `train` refuses before the first step: models, samples and arguments that do not fit the task."""

import numpy as np
import pytest

import densezoo as dz
from densezoo.data import Subset
from densezoo.tasks import Autoencoding, ChangeDetection, Depth, Diffusion, Normals, Segmentation
from densezoo.train import Recipe, evaluator, recipe, train

RECIPE = Recipe(crop_size=8, batch_size=2, steps=1)
ENCODER = dz.PlainEncoder((2, 2))
UNET = dz.create_model("unet", ENCODER, num_classes=3)
SIAMESE = dz.create_model("siamese_unet", ENCODER, num_classes=2)
IMAGE = np.zeros((8, 8, 3), np.float32)
MASK = np.zeros((8, 8), np.int32)
SCENES = [{"image": IMAGE, "mask": MASK}] * 2
PAIRS = [{"image_before": IMAGE, "image_after": IMAGE, "change": MASK}] * 2


def refused(task, model, source, **options):
    train(task, model, source, source, RECIPE, progress=False, **options)


@pytest.mark.parametrize("task", [Segmentation(2), Segmentation(1), ChangeDetection()])
def test_other_numbers_of_outputs(task):
    batch = {name: np.zeros((1, 8, 8, 3)) for name in task.inputs} | {task.target: MASK[None]}
    logits = np.zeros((1, 8, 8, 3))
    message = rf"{type(task).__name__} needs a model with num_classes={task.num_classes}, and this one has 3 output"
    for outputs in (logits, (logits[..., : task.num_classes], logits)):  # the second of an auxiliary head
        with pytest.raises(ValueError, match=message):
            task.loss(lambda *images, outputs=outputs: outputs, batch, None)
    with pytest.raises(ValueError, match=message):
        task.measure(lambda *images: logits, batch)


def test_models_and_samples_of_other_tasks():
    with pytest.raises(TypeError, match=r"2 inputs \(image_before, image_after\), and SegmentationModel takes 1"):
        refused(ChangeDetection(num_classes=3), UNET, PAIRS)
    with pytest.raises(TypeError, match=r"1 input \(image\), and SiameseModel takes 2 \(before, after\)"):
        refused(Segmentation(2), SIAMESE, SCENES)
    with pytest.raises(TypeError, match="Depth needs a model with 1 input"):
        refused(Depth(), SIAMESE, [{"image": IMAGE, "depth": IMAGE[..., 0]}])
    with pytest.raises(ValueError, match=r"Segmentation needs samples with image, mask; those of the source have"):
        refused(Segmentation(2), SIAMESE, PAIRS)
    with pytest.raises(TypeError, match=r"must be a task, .* got SegmentationModel; the model is the second"):
        refused(UNET, Segmentation(3), SCENES)


@pytest.mark.parametrize("mesh", [(4,), "data=4"])
def test_a_mesh_of_another_type(mesh):
    with pytest.raises(TypeError, match=r"expected a mesh, such as jax\.make_mesh\(.*; got"):
        refused(Segmentation(3), UNET, SCENES, mesh=mesh)


def test_labels_outside_the_classes():
    task, wrong = Segmentation(3), MASK.copy()
    wrong[2, 3] = 255  # unlabelled
    task.check(UNET, [{"image": IMAGE, "mask": wrong}])
    wrong[0, 1] = 5
    with pytest.raises(ValueError, match=r"sample 1 has 5 in 'mask'; .* num_classes=3 expects 0 to 2, and 255 for"):
        refused(task, UNET, [SCENES[0], {"image": IMAGE, "mask": wrong}])
    several = Segmentation(3, multilabel=True)
    several.check(UNET, [{"image": IMAGE, "mask": np.ones((8, 8, 3), np.uint8)}])
    with pytest.raises(ValueError, match=r"sample 0 has 2 .* expects 0 to 1"):
        several.check(UNET, [{"image": IMAGE, "mask": np.full((8, 8, 3), 2)}])
    with pytest.raises(ValueError, match="sample 0 has 2 in 'change'"):
        ChangeDetection().check(SIAMESE, [PAIRS[0] | {"change": MASK + 2}])


@pytest.mark.parametrize("hole", [0, -1, np.nan, np.inf])
def test_nothing_is_measured(hole):
    holes = {"image": IMAGE, "depth": np.full((8, 8), hole, np.float32)}
    with pytest.raises(ValueError, match=r"no pixel is measured: depth has .* in any of the 2 samples"):
        refused(Depth(), dz.create_model("unet", ENCODER, num_classes=1), [holes, holes])
    Depth().check(UNET, [holes, holes | {"depth": np.ones((8, 8))}])
    normals = {"image": IMAGE, "normals": np.full((8, 8, 3), np.nan if hole else 0)}
    with pytest.raises(ValueError, match="no pixel is measured: normals"):
        Normals().check(UNET, [normals])
    Normals().check(UNET, [{"image": IMAGE, "normals": -np.ones((8, 8, 3))}])


@pytest.mark.parametrize("task", [Diffusion(), Autoencoding()])
def test_images_are_scaled_to_the_range_of_the_task_by_default(task, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe.Preprocessing, "normalize", lambda self: seen.append((self.mean, self.std)) or len)
    source = [{"image": np.zeros((4, 4, 4), np.uint8)}]
    recipe.evaluator(task, source)
    assert seen == [((0.5,) * 4, (0.5,) * 4)]


EMPTY = Subset(SCENES, ())


@pytest.mark.parametrize(("name", "sources"), [("training", (EMPTY, SCENES)), ("validation", (SCENES, EMPTY))])
def test_empty_sources_are_refused_before_any_work(name, sources, tmp_path):
    with pytest.raises(ValueError, match=f"the {name} source is empty, a Subset of length 0.* check its folder"):
        train(Segmentation(3), UNET, *sources, RECIPE, directory=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="the validation source is empty, a list of length 0"):
        evaluator(Segmentation(3), [])
