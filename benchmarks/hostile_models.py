"""A valid file for every function that reads files of others, and how each is read: models, configurations and runs."""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file

import densezoo as dz
from benchmarks import hostile_changes as changes
from benchmarks.hostile_configs import CONFIGS, PROCESSOR, SCHEDULER
from benchmarks.hostile_readers import Reader
from benchmarks.hostile_torch import legacy, pickle_file, zip_file, zipped
from densezoo.train import create_state, load_variables, read_facts
from densezoo.train.checkpoint import CheckpointWriter, newest_checkpoint
from densezoo.train.checksums import write_checksums
from densezoo.train.log import Log
from densezoo.weights._families import FAMILIES, family_of, kind_of
from densezoo.weights._repository import Config, model_config

_JSON = (changes.damaged, *[changes.json_file] * 3)
_SAFETENSORS = (changes.damaged, changes.safetensors_file, changes.safetensors_file)


@functools.cache
def unet() -> tuple[Any, Any]:
    """A small model and its variables."""
    model = dz.create_model("unet", dz.PlainEncoder((2, 4)), num_classes=2)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def models(folder: Path) -> dict[str, Reader]:
    """Files of `dz.save`, and checkpoints of others."""
    model, variables = unet()
    options = {"task": dz.tasks.Segmentation(2, class_names=("a", "b")), "preprocessing": dz.Preprocessing()}
    dz.save(folder / "model.safetensors", model, variables, **options)
    dz.save(folder / "variables.safetensors", None, variables)
    weights = dz.weights.to_torch(model, variables)
    save_file(weights, folder / "weights.safetensors")
    arrays = {name: np.ones(2, dtype) for name, dtype in (("a", ml_dtypes.bfloat16), ("b", np.int64), ("c", np.bool_))}
    save_file(arrays, folder / "types.safetensors", {"format": "pt"})
    (folder / "zip.pth").write_bytes(zipped(weights))
    (folder / "old.pth").write_bytes(legacy(weights))
    (folder / "small.pth").write_bytes(zipped(arrays | {"d": np.ones((2, 3), np.float32)}))
    shards = folder / "shards"
    shards.mkdir()
    for name in ("a", "b"):
        save_file({name: np.ones(2, np.float32)}, shards / f"{name}.safetensors")
    index = {"metadata": {"total_size": 16}, "weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))

    def transfer(path: Path) -> Any:
        return dz.weights.from_torch(model, path)

    return {
        "model file": Reader("model.safetensors", dz.load_predictor, _SAFETENSORS),
        "file of variables": Reader("variables.safetensors", lambda path: dz.load(path, model=model), _SAFETENSORS),
        "start_from": Reader("model.safetensors", lambda path: dz.weights.start_from(model, path), _SAFETENSORS),
        "safetensors": Reader("types.safetensors", dz.weights.read_checkpoint, _SAFETENSORS),
        "safetensors of weights": Reader("weights.safetensors", transfer, _SAFETENSORS),
        "small .pth": Reader("small.pth", dz.weights.read_checkpoint, (changes.damaged, zip_file, zip_file)),
        ".pth": Reader("zip.pth", transfer, (changes.damaged, zip_file, zip_file)),
        "old .pth": Reader("old.pth", transfer, (changes.damaged, pickle_file, pickle_file)),
        "index of files": Reader("shards/model.safetensors.index.json", dz.weights.read_checkpoint, _JSON),
    }


def repositories(root: Path) -> dict[str, Reader]:
    """Configurations of repositories: what they build and set, and for some families also the weights."""
    readers = {}
    for name, config in CONFIGS.items():
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if name != "UNet2DModel":
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        readers[f"config.json of {name}"] = Reader(
            str((folder / "config.json").relative_to(root.parent)), functools.partial(_of_config, folder), _JSON
        )
        if name in ("segformer", "upernet", "dpt", "UNet2DModel"):
            readers[f"from_hub of {name}"] = Reader(
                str((folder / "config.json").relative_to(root.parent)), functools.partial(_from_hub, folder), _JSON
            )
    (root / "UNet2DModel" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    for name, folder in (("preprocessor_config.json", "segformer"), ("scheduler_config.json", "UNet2DModel")):
        read = functools.partial(dz.weights.hub_settings, root / folder)
        readers[name] = Reader(f"{root.name}/{folder}/{name}", lambda path, read=read: read(), _JSON)
    (root / "timm").mkdir()
    timm = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}}
    (root / "timm" / "config.json").write_text(json.dumps(timm))
    readers["config.json of timm"] = Reader(
        f"{root.name}/timm/config.json", lambda path: dz.weights.preprocessing(root / "timm"), _JSON
    )
    return readers


def _of_config(folder: Path, path: Path) -> Any:
    config, _ = model_config(folder, None)
    if (kind := kind_of(config)) is not None:
        family_of(config, kind).build(config)
    return dz.weights.hub_settings(folder)


def _from_hub(folder: Path, path: Path) -> Any:
    """Writes the weights when they are first needed, because making them takes seconds."""
    config = CONFIGS[folder.name]
    names = [folder / name for name in FAMILIES[kind_of(Config(config, "")) or ""].files if "index" not in name]
    weights = next(name for name in names if name.suffix == ".safetensors")
    if not weights.exists():
        model = family_of(Config(config, ""), kind_of(Config(config, "")) or "").build(Config(config, ""))
        inputs = dz.inputs.example_inputs(model, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes)
        save_file(dz.weights.to_torch(model, variables), weights)
    return dz.weights.from_hub(folder)


def runs(folder: Path) -> dict[str, Reader]:
    """The files of a training run, and of compiled programs."""
    model, variables = unet()
    state = create_state(model, optax.sgd(0.1), jax.random.key(0), jnp.zeros((1, 8, 8, 3)), variables=variables)
    writer = CheckpointWriter(folder / "run", "best")
    writer.save(state, {"step": 5, "name": "mean_iou", "score": 0.5})
    writer.close()
    checkpoint = newest_checkpoint(folder / "run", "best")
    assert checkpoint is not None
    inside = str(checkpoint.resolve().relative_to(folder.resolve()))
    record = {"step": 5, "loss": 0.5, "grad_norm": 1.0, "images_per_second": None, "input_wait": 0.1}
    scores = {"step": 5, "scores": {"mean_iou": 0.5, "iou_a": 0.25, "iou_b": None}}
    (folder / "run" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (record, scores)))
    old = {"model": "unet", "encoder": "hostile", "num_classes": 2, "channels": 3, "upsample": "", "skip": ""}
    old |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    dz.register_encoders({"hostile": functools.partial(dz.PlainEncoder, (2, 4))})
    (folder / "run" / "model.json").write_text(json.dumps(old))
    infer = dz.compile(model, variables)
    infer(jnp.zeros((1, 8, 8, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compiled programs lack oneDNN
        infer.save(folder / "unet.compiled")
    payload = (folder / "unet.compiled").read_bytes()
    length = int.from_bytes(payload[:8], "little")

    def facts(path: Path) -> Any:
        return read_facts(folder / "run", "best")

    def with_checksums(read: Callable[[], Any]) -> Callable[[Path], Any]:
        def run(path: Path) -> Any:
            """Reads with the checksums of the changed files."""
            sums = checkpoint / "checksums.json"
            valid = sums.read_bytes()
            write_checksums(checkpoint, {})
            sums.write_text(json.dumps({"files": json.loads(sums.read_text())["files"]}))
            try:
                return read()
            finally:
                sums.write_bytes(valid)

        return run

    def variables_of_run() -> Any:
        return load_variables(folder / "run", "best")

    def header(content: bytes, rng: Any) -> bytes:
        """The header of the compiled programs; machine code must be trusted."""
        changed = changes.safetensors_file(content[: 8 + length], rng)
        return changed + content[8 + length :]

    return {
        "log.jsonl": Reader(
            "run/log.jsonl", lambda path: dz.viz.training_curves(path), (changes.damaged, *[changes.json_lines] * 3)
        ),
        "log.jsonl of a resumed run": Reader(
            "run/log.jsonl", lambda path: Log(folder / "run", 10), (changes.damaged, *[changes.json_lines] * 3)
        ),
        "model.json": Reader("run/model.json", lambda path: dz.load_predictor(folder / "run"), _JSON),
        "checkpoint's facts": Reader(f"{inside}/_CHECKPOINT_METADATA", facts, _JSON),
        "checkpoint's checksums": Reader(f"{inside}/checksums.json", facts, _JSON),
        "checkpoint's tree": Reader(f"{inside}/_METADATA", with_checksums(variables_of_run), _JSON),
        "checkpoint's arrays": Reader(f"{inside}/manifest.ocdbt", with_checksums(variables_of_run)),
        "compiled programs": Reader("unet.compiled", dz.load_compiled, (header,)),
    }
