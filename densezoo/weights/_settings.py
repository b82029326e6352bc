"""What repositories of the hub say beside the weights: preprocessing of images, names of classes, and the task."""

import dataclasses
import warnings
from typing import Any

from densezoo.weights import _transformers
from densezoo.weights._families import kind_of
from densezoo.weights._repository import Config, Repository, model_config, naming, read_json, read_optional_json
from densezoo.weights._smp import ARCHITECTURES


def preprocessing(
    repository: Repository, *, revision: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation per channel, for images in 0..1, that a repository's weights were trained with.

    Args:
        repository: see `from_hub`.
        revision: see `from_hub`.

    Returns:
        `(mean, std)`, for `(image - mean) / std`, as in `dz.Preprocessing`.

    Raises:
        ImportError: as `from_hub`.
        FileNotFoundError: as `from_hub`.
        ValueError: if the configuration does not contain them.

    Example:
        >>> import pathlib, tempfile
        >>> from densezoo.weights import preprocessing
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}}')
        >>> preprocessing(folder)
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    """
    config = read_json(repository, "config.json", revision)
    # timm stores them in its settings of the weights, segmentation_models_pytorch at the top level.
    settings = config.get("pretrained_cfg", config)
    try:
        scale = float(settings.get("input_range", (0, 1))[1])  # 255 if the images are not in 0..1
        mean, std = (tuple(float(number) / scale for number in settings[name]) for name in ("mean", "std"))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"the config.json of {repository} contains no mean and std of its images") from None
    return mean, std


def hub_settings(repository: Repository, *, revision: str | None = None) -> dict[str, Any]:
    """The arguments of `dz.save` for a model of `from_hub`: what `dz.load_predictor` needs beside the model.

    Args:
        repository: see `from_hub`.
        revision: see `from_hub`.

    Returns:
        Those that the repository has of: `preprocessing`, a `dz.Preprocessing`; `classes`, the names of the classes;
        `task`, what the model is for. segmentation_models_pytorch stores no preprocessing of whole models: add it. The
        depth of a `depth_anything` with `depth_estimation_type="metric"` is in metres; that of others, and of `dpt`, is
        inverse depth up to a scale and a shift. The process of a diffusion task is that of the scheduler's
        configuration.

    Raises:
        ImportError: as `from_hub`.
        FileNotFoundError: as `from_hub`.
        ValueError: if a setting is not supported.

    Example:
        >>> import json, pathlib, tempfile
        >>> import densezoo as dz
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> config = {"model_type": "segformer", "id2label": {"0": "wall", "1": "door"}}
        >>> images = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "size": {"shortest_edge": 512}}
        >>> _ = (folder / "config.json").write_text(json.dumps(config))
        >>> _ = (folder / "preprocessor_config.json").write_text(json.dumps(images))
        >>> settings = hub_settings(folder)
        >>> settings["classes"], settings["preprocessing"].shortest, settings["preprocessing"].std
        (('wall', 'door'), 512, (0.2, 0.2, 0.2))
        >>> # dz.save(path, model, variables, **settings); predict = dz.load_predictor(path)
    """
    from densezoo import tasks  # needs more packages than a model

    config, _ = model_config(repository, revision)
    kind, settings = kind_of(config), {}
    if kind is None:
        mean, std = preprocessing(repository, revision=revision)
        with naming(config.source):
            return {"preprocessing": _preprocessing(mean, std)}
    if kind == "UNet2DModel":
        return _of_diffusion(config, repository, revision)
    if (images := read_optional_json(repository, "preprocessor_config.json", revision)) is not None:
        channels = config.size("num_channels", 3)
        source = f"the preprocessor_config.json of {repository}"
        settings["preprocessing"] = _of_processor(Config(images, source), channels)
    if kind == "depth_anything" or (kind == "dpt" and "DPTForSemanticSegmentation" not in _classes(config)):
        if "depth" in tasks.TASKS:
            metric = config.options.get("depth_estimation_type") == "metric"
            limit = {"max_depth": config.get("max_depth", 1.0)} if metric else {}
            with naming(config.source):
                settings["task"] = tasks.TASKS["depth"](activation="identity", relative=not metric, **limit)
    elif kind in ("segformer", "upernet", "dpt"):
        count, names = _transformers.num_labels(config), _names(config)
        ignored = 255 if count <= 255 else None
        with naming(config.source):
            settings["task"] = tasks.Segmentation(num_classes=count, class_names=names, ignore_index=ignored)
        settings["classes"] = names
    elif kind in ARCHITECTURES:
        count = config.size("classes", 1)
        ignored = 255 if count <= 255 else None
        with naming(config.source):
            settings["task"] = tasks.Segmentation(num_classes=count, ignore_index=ignored)
    return {name: value for name, value in settings.items() if value != ()}


def _of_diffusion(config: Config, repository: Repository, revision: str | None) -> dict[str, Any]:
    """The preprocessing of a diffusion model, and the task with the process of its scheduler, if there is one."""
    from densezoo import diffusion, tasks

    channels = config.size("in_channels", 3)
    middle, half = (0.0, 1.0) if config.get("center_input_sample", False) else (0.5, 0.5)
    settings: dict[str, Any] = {"preprocessing": _preprocessing((middle,) * channels, (half,) * channels)}
    files = ("scheduler/scheduler_config.json", "scheduler_config.json")
    found = ((name, read_optional_json(repository, name, revision)) for name in files)
    name, scheduler = next(((name, scheduler) for name, scheduler in found if scheduler), ("", None))
    if scheduler is not None and config.options.get("class_embed_type") is None:
        with naming(f"the {name} of {repository}"):
            process = dataclasses.asdict(diffusion.Process.from_config(scheduler))
        classes = config.size("num_class_embeds", 1)
        settings["task"] = tasks.Diffusion(classes, label_dropout=0.0, **process)  # these models have no null label
    return settings


def _classes(config: Config) -> list[str]:
    return list(config.get("architectures", ("",)))


def _names(config: Config) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers; equal names get their number."""
    labels = config.inner("id2label").options
    try:
        numbered = {int(number): str(name) for number, name in labels.items()}
        names = [numbered[number] for number in range(len(labels))]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{config.source}: the keys of id2label must be 0 to {len(labels) - 1}, got {error}") from None
    return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))


def _preprocessing(mean: tuple[float, ...], std: tuple[float, ...], **fields: Any) -> Any:
    from densezoo.preprocessing import Preprocessing

    return Preprocessing(len(mean), mean, std, **fields)


def _of_processor(config: Config, channels: int) -> Any:
    """The preprocessing that transformers' settings describe, but for the interpolation, which is linear here."""
    config.only(do_center_crop=False)
    if config.get("do_pad", False):
        warnings.warn(f"{config.source}: do_pad is left out: densezoo's models take images of all sizes", stacklevel=3)
    # (factor * pixel - mean) / std of pixels in 0..255, for images in 0..1
    factor = 255 * (config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if config.get("do_normalize", True):
        for name in ("image_mean", "image_std"):
            if config.options.get(name) is None:
                raise ValueError(f"{config.source} has no {name}")
        mean, std = config.get("image_mean", mean), config.get("image_std", std)
    if factor <= 0 or not len(mean) == len(std) == channels:
        raise ValueError(f"{config.source}: expected means and deviations of {channels} channels, got {mean} and {std}")
    mean, std = (tuple(number / factor for number in numbers) for numbers in (mean, std))
    size = _size(config) if config.get("do_resize", True) else {}
    with naming(config.source):
        return _preprocessing(mean, std, **size)


def _size(config: Config) -> dict[str, Any]:
    if isinstance(config.options.get("size"), int):
        sides = {"height": config.size("size", 1), "width": config.size("size", 1)}
    else:
        size = config.inner("size")
        sides = {name: size.size(name, 1) for name in size.options}
    if set(sides) == {"height", "width"}:
        return {
            "size": (sides["height"], sides["width"]),
            "keep_aspect": config.get("keep_aspect_ratio", False),
            "multiple": config.size("ensure_multiple_of", 1),
        }
    if not sides or not set(sides) <= {"shortest_edge", "longest_edge"}:
        raise config.unsupported("size", config.options.get("size"), "height and width, shortest_edge, longest_edge")
    return {name.removesuffix("_edge"): side for name, side in sides.items()}
