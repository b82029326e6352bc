"""Trains a network to predict depth or surface normals from one picture, on rendered rooms or on your own data.

Usage: python examples/depth.py --task depth --model unet --encoder resnet18 --out out/depth

Without --data, it trains on rendered scenes (data.RenderedScenes) and scores others. With --data DIR, DIR/train and
DIR/val each have images/ and depth/ (.npy, TIFF, or PNG with --depth-scale), and normals/ for --task normals. Writes
checkpoints, the log, model.safetensors, and pictures to --out: predictions.png and curves.png; for depth also
points.png, a scene from the side; and stereo.png, the prediction for scikit-image's stereo picture. The last line on
standard output is a JSON object with the scores on whole validation pictures, beside those of a constant (the median
depth, or the mean normal).
"""

import dataclasses
import functools
import importlib.resources
import json
import math
import operator
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line, keep_compiled, spread
from PIL import Image
from resuming import check_out, options_of_run, write_options

import densezoo as dz
from densezoo import ops, viz, weights
from densezoo.data import DepthFolder, RenderedScenes, read_image
from densezoo.extras import require
from densezoo.tasks import Depth, Normals
from densezoo.train import Recipe, train

PREPROCESSING = dz.Preprocessing(mean=(0.4,) * 3, std=(0.25,) * 3)
# Middlebury's calibration of scikit-image's stereo_motorcycle: pixels, metres and pixels.
FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086
CENTER = (311.193, 254.877)
LARGEST = 15.0
"""Metres; the rendered rooms are smaller."""


@dataclasses.dataclass(frozen=True)
class Arguments(Recipe):
    """Options of the script; those of the recipe come first."""

    crop_size: int | tuple[int, int] = (96, 128)
    steps: int = 800
    color_jitter: float = 0.2
    data: Path | None = None
    """Folder with train and val; by default rendered scenes."""
    task: Literal["depth", "normals"] = "depth"
    """What to predict."""
    depth_scale: float | None = None
    """Factor from the numbers in depth files to metres, such as 0.001 for millimetres; needed for whole numbers."""
    axes: Literal["opencv", "opengl"] = "opencv"
    """Axes of normals in files: y down and z forward, or y up and z backward."""
    criterion: str = "silog + 0.5*gradient(log=True)"
    """Loss of depth: silog, l1, gradient, scale_shift_invariant, or sums of them."""
    max_depth: float | None = None
    """Largest depth of predictions and scores: the network's output becomes a sigmoid times this, and not exp, which
    has no bound. By default 15 m for rendered scenes, and none with --data."""
    model: str = "unet"
    """One of densezoo.list_models()."""
    encoder: str | None = "resnet18"
    """One of densezoo.list_encoders()."""
    encoder_weights: Path | None = None
    """File to load the encoder from: model.safetensors of a run, or a PyTorch checkpoint (.pth, .safetensors)."""
    val: int = 64
    """Number of rendered scenes to validate on."""
    focal: float | None = None
    """Focal length of the pictures in pixels, for points.png; by default that of the scenes, or the width."""
    stereo: Path | None = None
    """Folder with motorcycle_left.png and motorcycle_disp.npz; by default those of the installed scikit-image."""
    out: Path = Path("out/depth")
    """Output folder."""
    resume: bool = False
    """Continue the run in --out exactly. Options that are not given are those of the run."""
    quick: bool = False
    """A tiny model and a few steps, to see that everything works."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    if arguments.quick:
        arguments = dataclasses.replace(arguments, steps=4, crop_size=(48, 64), batch_size=2, val=3)
    if arguments.val < 1:
        raise ValueError(f"--val must be at least 1, got {arguments.val}")
    if arguments.focal is not None and not arguments.focal > 0:
        raise ValueError(f"--focal must be a number of pixels above 0, got {arguments.focal}")
    stereo_files(arguments.stereo)  # raises errors now instead of after the training
    task: Depth | Normals = Normals()
    if arguments.task == "depth":
        largest = LARGEST if arguments.max_depth is None and arguments.data is None else arguments.max_depth
        activation = "exp" if largest is None else "sigmoid"
        task = Depth(criterion=arguments.criterion, activation=activation, max_depth=largest)
    train_source, val_source = (source_of(arguments, part) for part in ("train", "val"))
    if task.fields[1] not in val_source[0]:
        raise ValueError(f"{arguments.data} has no normals/, which --task normals needs")
    encoder = dz.PlainEncoder((8, 16, 32)) if arguments.quick else arguments.encoder
    model = dz.create_model(arguments.model, encoder, task.num_classes)
    check_out(arguments)
    variables = None
    if arguments.encoder_weights:
        variables = weights.start_from(model, arguments.encoder_weights, part="encoder")
    for source in (train_source, val_source):
        if isinstance(source, DepthFolder):
            source.check()
    write_options(arguments.out / "options.json", arguments)
    state, history = train(
        task,
        model,
        train_source,
        val_source,
        arguments,
        preprocessing=PREPROCESSING,
        variables=variables,
        directory=arguments.out,
        resume=arguments.resume,
    )
    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    predict = dz.Predictor(task, model, state.ema_variables, PREPROCESSING)
    scores = {
        **scores,
        **{f"constant_{name}": value for name, value in constant_scores(task, train_source, val_source).items()},
    }
    viz.save(viz.training_curves(history), arguments.out / "curves.png")
    draw(task, predict, val_source, arguments)
    scores |= stereo_scores(task, predict, arguments)
    shown = ("abs_rel", "rmse", "delta1") if arguments.task == "depth" else ("mean_angle", "median_angle", "within_30")
    # A score is None if it is undefined, because no pixel counts.
    result: dict[str, Any] = {
        name: None if math.isnan(value) else round(value, 4) for name, value in scores.items() if name.endswith(shown)
    }
    result |= {"steps": int(state.step), "seconds": round(time.perf_counter() - started, 1), "out": str(arguments.out)}
    print(json.dumps({"task": arguments.task, "model": arguments.model, **result}))


def source_of(arguments: Arguments, part: Any) -> Any:
    """Scenes, or a folder."""
    if arguments.data is not None:
        return DepthFolder(arguments.data / part, depth_scale=arguments.depth_scale, axes=arguments.axes)
    return RenderedScenes(10**6 if part == "train" else arguments.val, size=arguments.crop, split=part)


def constant_scores(task: Depth | Normals, train_source: Any, val_source: Any) -> dict[str, float]:
    """The scores of one value for all pixels: the median depth of training pictures, or their mean normal."""
    name = task.fields[1]
    seen = np.concatenate([item[name].reshape(-1, *item[name].shape[2:]) for item in spread(train_source, 32)])
    seen = seen[seen > 0] if name == "depth" else seen[(seen != 0).any(-1)]
    value = np.median(seen) if name == "depth" else seen.mean(0)
    count = jax.jit(lambda truth: task.count(jnp.broadcast_to(jnp.asarray(value, jnp.float32), truth.shape), truth))
    return task.scores(functools.reduce(operator.add, (count(item[name][None]) for item in iterate(val_source))))


def iterate(source: Any) -> Any:
    return (source[index] for index in range(len(source)))


def draw(task: Depth | Normals, predict: dz.Predictor, source: Any, arguments: Arguments) -> None:
    """Draws predictions of validation pictures, and for depth the points of the first one."""
    items = spread(source, 4)
    images, found = [item["image"] for item in items], [predict(item["image"]) for item in items]
    if isinstance(task, Normals):
        figure = viz.normal_maps(images, [item["normals"] for item in items], found)
    else:
        figure = viz.depth_maps(images, [item["depth"] for item in items], found, unit=task.unit)
        focal = arguments.focal or getattr(source, "focal", images[0].shape[1])
        clouds = {"truth": items[0]["depth"], "prediction": found[0]}
        points = {title: np.asarray(ops.points_from_depth(jnp.asarray(d), focal)) for title, d in clouds.items()}
        viz.save(viz.point_clouds(images[0], points, unit=task.unit), arguments.out / "points.png")
    viz.save(figure, arguments.out / "predictions.png")


def stereo_scores(task: Depth | Normals, predict: dz.Predictor, arguments: Arguments) -> dict[str, float]:
    """Draws the prediction for the stereo picture, and returns its scores; for depth also after alignment."""
    focal = arguments.focal or float(arguments.crop[1])
    # At the scale at which the camera has the focal length of the scenes, so that perspective means the same.
    files = stereo_files(arguments.stereo)
    if files is None:
        print("this scikit-image has no stereo picture: pass --stereo, a folder with its files", file=sys.stderr)
        return {}
    picture, depth = stereo_picture(*files, focal=focal)
    found = predict(picture)
    center = [middle * focal / FOCAL for middle in CENTER]
    if isinstance(task, Normals):
        truth = np.asarray(jax.jit(lambda depth: ops.normals_from_depth(depth, focal, center))(depth))
        viz.save(viz.normal_maps([picture], [truth], [found]), arguments.out / "stereo.png")
        return {f"stereo_{name}": score for name, score in scores_of(task, found, truth).items()}
    valid = ops.measured(jnp.asarray(depth))
    aligned = np.asarray(ops.align_scale_shift(jnp.asarray(found)[None], jnp.asarray(depth)[None], valid[None]))[0]
    names = ("as predicted", "scale and shift fitted to the truth")
    figure = viz.depth_maps([picture] * 2, [depth] * 2, [found, aligned], unit=task.unit, names=names)
    viz.save(figure, arguments.out / "stereo.png")
    scores = {f"stereo_{name}": score for name, score in scores_of(task, found, depth).items()}
    return scores | {f"stereo_aligned_{name}": score for name, score in scores_of(task, aligned, depth).items()}


def scores_of(task: Depth | Normals, found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    counts: Any = task.count(jnp.asarray(found)[None], jnp.asarray(truth)[None])
    return task.scores(counts)


def stereo_files(folder: Path | None) -> tuple[Path, Path] | None:
    """The stereo picture and its disparities; None if scikit-image would have to download them."""
    names = ("motorcycle_left.png", "motorcycle_disp.npz")
    root = Path(str(importlib.resources.files(require("skimage")))) / "data" if folder is None else folder
    picture, disparities = (root / name for name in names)
    if picture.is_file() and disparities.is_file():
        return picture, disparities
    if folder is not None:
        raise FileNotFoundError(f"--stereo {folder} lacks {' or '.join(names)}")
    return None


def stereo_picture(picture: Path, disparities: Path, *, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """The left picture, resized to a focal length, and its depth in metres; 0 where it is unknown."""
    with np.load(disparities) as kept:
        disparity = kept[kept.files[0]]
    with np.errstate(invalid="ignore"):
        depth = np.where(np.isfinite(disparity), FOCAL * BASELINE / (disparity + OFFSET), 0).astype(np.float32)
    image = read_image(picture, channels=3)
    size = round(image.shape[0] * focal / FOCAL), round(image.shape[1] * focal / FOCAL)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized), dz.data.fields.kind_of("depth").resize(depth, size)


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments, options_of_run)
