"""The recipe: training of any task, from a source of samples to a trained state and its scores."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densezoo.data import Source, eval_batches, train_batches
from densezoo.data.resizing import ResizeTo
from densezoo.inputs import example_inputs
from densezoo.messages import option
from densezoo.preprocessing import Preprocessing
from densezoo.train.loop import fit
from densezoo.train.optimizer import make_optimizer, one_cycle
from densezoo.train.sharding import Layout, replicated
from densezoo.train.state import TrainState, create_state
from densezoo.train.step import make_eval_step, make_train_step

if TYPE_CHECKING:
    from densezoo.tasks import Task


MODEL_FILE = "model.safetensors"
"""Name of the model file in the directory of a run."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of training: AdamW with a one-cycle learning rate on random crops.

    The training scripts have the same options.

    Attributes:
        crop_size: height and width of the random training crops in pixels, or one number for both.
        batch_size: number of crops per step.
        steps: number of steps of the whole training.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: weight decay of AdamW.
        clip_norm: largest global norm of the gradients; larger ones are scaled down.
        accumulate: number of parts into which each batch is split, to save memory.
        ema_decay: decay of a moving average of the parameters, which is evaluated. 0 for none, and None for the task's
            default, which is none for most tasks.
        flip_horizontal: whether to flip half of the crops horizontally.
        flip_vertical: whether to flip half of the crops vertically.
        rotate: whether to rotate by random multiples of 90 degrees; for square crops.
        scale: range of the random scale factor.
        color_jitter: strength of random brightness, contrast and saturation.
        seed: seed of parameters, shuffling, crops and augmentation.
        evaluate_every: steps between evaluations. There is always one at the end.
        eval_batch_size: number of whole images per batch in an evaluation.
        checkpoint_every: steps between checkpoints.
    """

    crop_size: int | tuple[int, int] = 256
    batch_size: int = 8
    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    color_jitter: float = 0.0
    seed: int = 0
    evaluate_every: int | None = None
    eval_batch_size: int = 4
    checkpoint_every: int = 500

    def __post_init__(self):
        positive = ("batch_size", "steps", "accumulate", "evaluate_every", "eval_batch_size", "checkpoint_every")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{option(name)} must be at least 1, got {value}")
        if min(self.crop) < 1:
            raise ValueError(f"{option('crop_size')} must be at least 1, got {self.crop_size}")
        if self.rotate and self.crop[0] != self.crop[1]:
            raise ValueError(
                f"{option('rotate')}, by 90 degrees, needs square crops; got {option('crop_size', self.crop_size)}"
            )
        for name in ("learning_rate", "weight_decay", "clip_norm", "ema_decay", "scale", "color_jitter"):
            values = np.array(getattr(self, name) or 0.0, float)
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"{option(name)} must be a number of at least 0, got {getattr(self, name)}")
        if self.learning_rate == 0:
            raise ValueError(f"{option('learning_rate')} must be above 0, got 0")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"{option('accumulate', self.accumulate)} does not divide {option('batch_size', self.batch_size)}"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crops."""
        if isinstance(self.crop_size, int):
            return self.crop_size, self.crop_size
        height, width = self.crop_size
        return height, width


def train(
    task: "Task",
    model: nn.Module,
    train_source: Source,
    val_source: Source,
    recipe: Recipe | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    variables: Any = None,
    resize: ResizeTo | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
    mesh: Mesh | Layout | None = None,
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Trains a model for a task on crops of one source and evaluates it on the whole images of another.

    With a `directory`, the best model so far is saved as `model.safetensors`, which `dz.load_predictor` and `dz.load`
    read. For a model with your own modules, the file only contains the variables.

    Args:
        task: fields, loss, scores and augmentation, such as `tasks.Segmentation(num_classes=3)`.
        model: the task's inputs -> what its loss takes. A model of other inputs than images has a method
            `example_inputs`.
        train_source: training samples.
        val_source: validation samples; their sizes may differ.
        recipe: the hyperparameters; None for the defaults.
        preprocessing: preprocessing of the images. None normalises 0..1 images with ImageNet's mean and deviation, or
            0.5 and 0.25 for other numbers of channels; for `tasks.Diffusion` and `tasks.Autoencoding`, to -1..1.
        variables: initial variables instead of random ones.
        resize: size to which training samples are resized before cropping, such as `data.ScaleJitter((512, 512))`.
            None uses the size of the preprocessing, as validation always does.
        directory: directory for checkpoints, the log and the model file. None writes nothing.
        resume: whether to continue the run in `directory` exactly.
        on_record: called with each new record of the history; see `fit`.
        progress: whether to show a progress line on stderr.
        mesh: devices to train on, with any of the axes `data`, `fsdp`, `rows` and `columns`, such as
            `jax.make_mesh((4,), ("data",))`, or a `Layout` with your own rules. A run may be resumed on another mesh.
            Each of several processes calls this function, and reads its own part of every batch; the first one writes
            the log and the model file. None trains on one device. See the page "Several devices".

    Returns:
        The trained state and the history, whose last record contains the final scores; see `fit`.

    Raises:
        ValueError, FileExistsError, FloatingPointError, OSError: see `fit`. ValueError also if a source has no samples,
            or if the task finds that the model or the samples do not fit it.
        TypeError: if the task and the model are swapped, the model takes another number of images, or `mesh` is not a
            mesh.

    Example:
        >>> import densezoo as dz
        >>> from densezoo.data import DigitScenes
        >>> task = dz.tasks.Segmentation(num_classes=11)
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), task.num_classes)
        >>> train_source, val_source = DigitScenes(8, size=(48, 48)), DigitScenes(2, size=(48, 48), split="val")
        >>> recipe = Recipe(crop_size=16, batch_size=2, steps=1)
        >>> state, history = train(task, model, train_source, val_source, recipe, progress=False)
        >>> "mean_iou" in history[-1]["scores"]
        True
    """
    channels = _channels_of(task, train_source)
    _check_filled("validation", val_source)
    recipe = Recipe() if recipe is None else recipe
    layout = Layout.of(mesh)
    if layout is not None:
        layout.check(recipe.batch_size, recipe.crop, recipe.accumulate)
    elif jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes train together on a mesh of their devices: pass mesh=")
    if hasattr(task, "check"):
        task.check(model, train_source, val_source)  # pyright: ignore[reportAttributeAccessIssue]
    if directory is not None:
        from densezoo.tasks import describe

        describe(task)  # raises an error now instead of when the first model file is saved
    preprocessing = _default_preprocessing(task, channels) if preprocessing is None else preprocessing
    image = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.crop, channels), jnp.float32)
    schedule = one_cycle(recipe.learning_rate, recipe.steps)
    optimizer = make_optimizer(schedule, recipe.steps, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
    state = create_state(
        model,
        optimizer,
        jax.random.key(recipe.seed),
        *example_inputs(model, image, count=len(task.inputs)),
        variables=variables,
        ema_decay=(getattr(task, "ema_decay", None) if recipe.ema_decay is None else recipe.ema_decay) or None,
        mesh=layout,
    )
    change, normalize = task.augment(recipe), preprocessing.normalize()
    train_step = make_train_step(
        task.loss,
        augment=lambda key, batch: normalize(key, change(key, batch)),
        accumulate=recipe.accumulate,
        learning_rate=schedule,
    )
    batches = train_batches(
        preprocessing.view(train_source),
        batch_size=recipe.batch_size,
        crop_size=recipe.crop,
        seed=recipe.seed,
        resize=resize or _resize_of(preprocessing),
        ignore_index=task.fill,
        fields=task.fields,
        shard=(0, 1) if layout is None else layout.shard,
    )
    path = None if directory is None else Path(directory) / MODEL_FILE
    save = None if path is None else functools.partial(_save, path, model, task, preprocessing)
    state, history = fit(
        state,
        train_step,
        batches,
        steps=recipe.steps,
        evaluate=evaluator(
            task, val_source, preprocessing=preprocessing, batch_size=recipe.eval_batch_size, mesh=layout
        ),
        evaluate_every=recipe.evaluate_every,
        best=task.best,
        directory=directory,
        resume=resume,
        checkpoint_every=recipe.checkpoint_every,
        on_best=save,
        on_record=on_record,
        progress=progress,
    )
    if path is not None and save is not None and not path.exists():
        save(state)  # all scores were NaN
    return state, history


def evaluator(
    task: "Task",
    source: Source,
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 4,
    mesh: Mesh | Layout | None = None,
) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function from a state to a task's scores on the whole images of a source, with averaged parameters.

    Args:
        task: fields, counts and scores.
        source: validation samples; their sizes may differ.
        preprocessing: preprocessing of the images; None as in `train`.
        batch_size: number of images per batch. It is rounded up to a multiple of the parts of a batch on the mesh.
        mesh: the mesh or layout of the state.

    Returns:
        A function `evaluate(state)` for `fit`.

    Raises:
        ValueError: if the source has no samples.
    """
    _check_filled("validation", source)
    there = source[0]
    if preprocessing is None:
        preprocessing = _default_preprocessing(task, there[task.inputs[0]].shape[-1])
    step = make_eval_step(task.measure)
    normalize = jax.jit(preprocessing.normalize())
    layout = Layout.of(mesh)
    batches = eval_batches(
        preprocessing.view(source),
        batch_size=batch_size if layout is None else batch_size + -batch_size % layout.parts,
        shard=(0, 1) if layout is None else layout.shard,
        multiple=getattr(task, "multiple", 32),
        resize=_resize_of(preprocessing),
        ignore_index=task.fill,
        fields=(*task.fields, *(name for name in getattr(task, "scored_fields", ()) if name in there)),
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        placed = batches if layout is None else map(layout.batch, batches)
        counts = (step(state, normalize(jax.random.key(0), batch)) for batch in placed)
        return task.scores(functools.reduce(operator.add, counts))

    return evaluate


def _channels_of(task: Any, source: Source) -> int:
    """The images' number of channels; refuses a model in place of the task, and a source of other images."""
    if isinstance(task, nn.Module) or not hasattr(task, "inputs"):
        hint = "; the model is the second" if isinstance(task, nn.Module) else ""
        raise TypeError(
            f"the first argument must be a task, such as tasks.Segmentation(num_classes=3); got"
            f" {type(task).__name__}{hint}"
        )
    _check_filled("training", source)
    sample = source[0]
    if missing := [name for name in task.inputs if name not in sample]:
        raise ValueError(
            f"{type(task).__name__} needs samples with {', '.join(task.fields)}; those of the source have"
            f" {', '.join(sample)}, and no {', '.join(missing)}: is the source for another task?"
        )
    return sample[task.inputs[0]].shape[-1]


def _check_filled(name: str, source: Source) -> None:
    if len(source) == 0:
        raise ValueError(
            f"the {name} source is empty, a {type(source).__name__} of length 0; expected at least one sample: check"
            " its folder, or how the data were split"
        )


def _default_preprocessing(task: Any, channels: int) -> Preprocessing:
    return getattr(task, "default_preprocessing", Preprocessing)(channels)


def _resize_of(preprocessing: Preprocessing) -> ResizeTo | None:
    return preprocessing.size_of if preprocessing.resizes else None


def _save(path: Path, model: nn.Module, task: Any, preprocessing: Preprocessing, state: TrainState) -> None:
    """Writes the model file of a run."""
    from densezoo import weights  # imported late, because it imports most of densezoo

    variables = state.ema_variables
    if state.layout is not None:  # all processes take part, because each has a part of the arrays
        variables = jax.jit(functools.partial(replicated, layout=state.layout))(variables)
    if jax.process_index() != 0:
        return
    try:
        weights.save(path, model, variables, task=task, preprocessing=preprocessing)
    except weights.NotDescribable:
        weights.save(path, None, variables, task=task, preprocessing=preprocessing)
