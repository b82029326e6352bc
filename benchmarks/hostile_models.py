"""A valid file for every function that reads files of others, and how each is read: models, configurations and runs."""

import functools
import io
import json
import pickle
import struct
import warnings
import zipfile
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
from benchmarks.hostile_readers import Reader
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
        "small .pth": Reader(
            "small.pth", dz.weights.read_checkpoint, (changes.damaged, changes.zip_file, changes.zip_file)
        ),
        ".pth": Reader("zip.pth", transfer, (changes.damaged, changes.zip_file, changes.zip_file)),
        "old .pth": Reader("old.pth", transfer, (changes.damaged, changes.pickle_file, changes.pickle_file)),
        "index of files": Reader("shards/model.safetensors.index.json", dz.weights.read_checkpoint, _JSON),
    }


_STORAGES = {"float32": b"Float", "int64": b"Long", "bfloat16": b"BFloat16", "bool": b"Bool"}


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def _tensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle that `torch.save` writes, without torch."""
    body = b"\x80\x02}("
    for key, (name, array) in enumerate(arrays.items()):
        kind = b"ctorch\n" + _STORAGES[array.dtype.name] + b"Storage\n"
        storage = b"(" + _plain("storage") + kind + _plain(str(key)) + _plain("cpu") + _plain(array.size) + b"tQ"
        strides = tuple(stride // array.itemsize for stride in array.strides)
        view = _plain(0) + _plain(array.shape) + _plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
        body += _plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"
    return body + b"u."


def zipped(arrays: dict[str, np.ndarray]) -> bytes:
    """A file of `torch.save`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", _tensors(arrays))
        archive.writestr("weights/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"weights/data/{key}", array.tobytes())
        archive.writestr("weights/version", b"3\n")
    return file.getvalue()


def legacy(arrays: dict[str, np.ndarray]) -> bytes:
    """A file of `torch.save` before torch 1.6."""
    start = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps([str(key) for key in range(len(arrays))], 2)
    storages = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    return start + _tensors(arrays) + keys + storages


CONFIGS: dict[str, dict[str, Any]] = {
    "segformer": {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "classifier_dropout_prob": 0.1,
        "decoder_hidden_size": 16,
        "depths": [1, 1, 1, 1],
        "hidden_act": "gelu",
        "hidden_sizes": [8, 16, 24, 32],
        "mlp_ratios": [2, 2, 2, 2],
        "num_attention_heads": [1, 2, 3, 4],
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "sr_ratios": [8, 4, 2, 1],
        "id2label": {"0": "wall", "1": "door"},
    },
    "dpt": {
        "model_type": "dpt",
        "architectures": ["DPTForDepthEstimation"],
        "backbone_out_indices": [0, 1, 2, 3],
        "fusion_hidden_size": 12,
        "head_in_index": -1,
        "hidden_size": 16,
        "image_size": 64,
        "intermediate_size": 40,
        "neck_hidden_sizes": [8, 12, 16, 20],
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "patch_size": 16,
        "readout_type": "project",
        "reassemble_factors": [4, 2, 1, 0.5],
    },
    "depth_anything": {
        "model_type": "depth_anything",
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": 16,
            "image_size": 70,
            "mlp_ratio": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "out_indices": [1, 2, 3, 4],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "patch_size": 14,
            "reshape_hidden_states": False,
        },
        "depth_estimation_type": "metric",
        "max_depth": 20,
        "fusion_hidden_size": 8,
        "head_hidden_size": 32,
        "head_in_index": -1,
        "neck_hidden_sizes": [8, 12, 16, 20],
        "patch_size": 14,
        "reassemble_factors": [4, 2, 1, 0.5],
        "reassemble_hidden_size": 16,
    },
    "upernet": {
        "model_type": "upernet",
        "backbone_config": {
            "model_type": "swin",
            "depths": [2, 2, 2, 2],
            "embed_dim": 8,
            "num_heads": [1, 2, 2, 4],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "window_size": 3,
        },
        "hidden_size": 12,
        "pool_scales": [1, 2, 3, 6],
        "auxiliary_channels": 8,
        "use_auxiliary_head": True,
    },
    "convnext": {
        "model_type": "upernet",
        "backbone_config": {
            "model_type": "convnext",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 24, 32],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "hidden_size": 12,
        "pool_scales": [1, 2, 3, 6],
        "auxiliary_channels": 8,
    },
    "Unet": {
        "_model_class": "Unet",
        "encoder_name": "tu-resnet18.a1_in1k",
        "encoder_depth": 3,
        "in_channels": 3,
        "classes": 2,
        "decoder_channels": [8, 6, 4],
        "decoder_attention_type": "scse",
        "decoder_interpolation": "bilinear",
    },
    "UNet2DModel": {
        "_class_name": "UNet2DModel",
        "act_fn": "mish",
        "attention_head_dim": 8,
        "block_out_channels": [8, 16],
        "class_embed_type": None,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "num_class_embeds": 10,
        "time_embedding_type": "positional",
    },
}
_PROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
    "size": {"height": 32, "width": 48},
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 100,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
}


def repositories(root: Path) -> dict[str, Reader]:
    """Configurations of repositories: what they build and set, and for some families also the weights."""
    readers = {}
    for name, config in CONFIGS.items():
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if name != "UNet2DModel":
            (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
        readers[f"config.json of {name}"] = Reader(
            str((folder / "config.json").relative_to(root.parent)), functools.partial(_of_config, folder), _JSON
        )
        if name in ("segformer", "upernet", "dpt", "UNet2DModel"):
            readers[f"from_hub of {name}"] = Reader(
                str((folder / "config.json").relative_to(root.parent)), functools.partial(_from_hub, folder), _JSON
            )
    (root / "UNet2DModel" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
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
