"""densezoo's own files: the round trip preserves a model and its variables, and nothing in a file is executed."""

import dataclasses
import functools
import json
import os
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.weights._describe import build, describe
from densezoo.weights._files import read_with_metadata

GOLDEN = Path(__file__).parents[1] / "golden"


def filled(model, channels=3):
    """Variables with different numbers, without computing the initialisation."""
    side = 2 * max(32, *getattr(model, "encoder", model).reductions)
    tree = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels))))
    generator = np.random.default_rng(0)
    return unflatten_dict(
        {path: jnp.asarray(generator.normal(size=x.shape), x.dtype) for path, x in sorted(tree.items())}
    )


@functools.cache
def small():
    model = dz.create_model("unet", dz.PlainEncoder((2, 4)), 2, upsample=dz.Bilinear)
    return model, filled(model)


def assert_same(ours, other):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, other)


@pytest.mark.parametrize("name", [*dz.list_models(), *dz.list_encoders()])
def test_every_model_and_encoder_is_described(name):
    made = dz.create_model(name) if name in dz.list_models() else dz.create_encoder(name)
    description = json.loads(json.dumps(describe(made, name)))
    again = build(description)
    assert type(again) is type(made)
    assert describe(again, name) == description
    assert repr_of(again) == repr_of(made)
    if isinstance(made, dz.Encoder):
        assert (again.reductions, again.min_size) == (made.reductions, made.min_size)


def repr_of(value):
    """All fields of a module in a comparable form: equal partials and closures do not compare equal."""
    if isinstance(value, nn.Module):
        return type(value), {
            k: repr_of(v) for k, v in vars(value).items() if k not in ("parent", "name", "_id", "_state")
        }
    if isinstance(value, partial):
        return value.func, {key: repr_of(item) for key, item in value.keywords.items()}
    return [repr_of(item) for item in value] if isinstance(value, (tuple, list)) else value


def test_what_a_description_says():
    model = dz.create_model("unet", dz.PlainEncoder((2, 4)), 2, norm=None, upsample=partial(dz.Bilinear, True))
    said = describe(model, "model")
    assert said["class"] == "SegmentationModel"
    dtypes = {"dtype": None, "param_dtype": {"dtype": "float32"}}
    fields = {"features": [2, 4], "norm": {"type": "BatchNorm"}, "act": {"function": "relu"}}
    fields["block"] = {"type": "DoubleConv"}
    assert said["fields"]["encoder"] == {"class": "PlainEncoder", "fields": fields | dtypes}
    bilinear = {"partial": "Bilinear", "keywords": {"align_corners": True}}
    decoder = said["fields"]["decoder"]["fields"]
    assert decoder.items() >= {"features": [2], "upsample": bilinear, "norm": None, "dropout": 0.0}.items()
    # Its initialiser is a function without a name, and the class's own.
    fields = {"num_classes": 2, "kernel_size": 3, "upsample": bilinear}
    assert said["fields"]["head"] == {"class": "SegmentationHead", "fields": fields | dtypes}


@pytest.mark.parametrize("module", [dz.UNetDecoder(), dz.create_encoder("resnet18"), dz.create_encoder("hrnet_w18")])
def test_defaults_are_written_too(module):
    ours = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    assert describe(module, "")["fields"].keys() == ours


def test_a_file_with_fewer_fields_is_read():
    assert repr_of(build({"class": "UNetDecoder", "fields": {"dropout": 0.5}})) == repr_of(dz.UNetDecoder(dropout=0.5))


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": partial(dz.GroupNorm, num_groups=2), "act": nn.gelu},
        {"norm": partial(nn.GroupNorm, num_groups=2), "act": partial(nn.leaky_relu, negative_slope=0.2)},
        {"upsample": partial(dz.TransposedConv, kernel_size=4, kernel_init=dz.blocks.he_uniform)},
        {"upsample": partial(dz.ResizeConv, resize=partial(dz.Bilinear, align_corners=True)), "act": nn.hard_swish},
        {"dtype": jnp.bfloat16, "param_dtype": np.dtype(np.float16), "act": nn.tanh},
        {"skip": dz.LateralAdd, "features": [3], "hidden": (5,)},
    ],
)
def test_fields_come_back(fields):
    decoder = dz.UNetDecoder(**fields)
    again = build(json.loads(json.dumps(describe(decoder, "decoder"))))
    for name, value in fields.items():
        mine = getattr(again, name)
        if isinstance(value, np.dtype):
            assert mine == value
        elif name != "features":
            assert repr_of(mine) == repr_of(value)
    assert again.features == (None if "features" not in fields else (3,))


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_a_file_needs_nothing_else(suffix, tmp_path):
    model, variables = small()
    path = tmp_path / "new folder" / f"model{suffix}"
    dz.save(path, model, variables)
    again, loaded = dz.load(str(path))
    assert_same(loaded, variables)
    assert describe(again, "") == describe(model, "")
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    x = jnp.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(jax.jit(again.apply)(loaded, x), jax.jit(model.apply)(variables, x))


def test_every_type_and_collection(tmp_path):
    class Any(nn.Module):
        pass

    generator = np.random.default_rng(0)
    types = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8, jnp.uint32, jnp.bool_, jnp.float8_e4m3fn]
    arrays = {np.dtype(t).name: jnp.asarray(generator.normal(size=(3, 2)) * 9).astype(t) for t in types}
    arrays |= {"scalar": jnp.float32(3), "empty": jnp.zeros((0, 2)), "nan": jnp.array([np.nan, -0.0, np.inf])}
    arrays["double"] = np.arange(3) + 2**-40  # JAX has no 64 bits here
    arrays["transposed"] = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    variables = {"params": {"a": {"b": arrays}}, "batch_stats": {"x": jnp.ones(2)}, "mine": {"y": jnp.zeros(3)}}
    dz.save(tmp_path / "v.safetensors", None, variables)
    model = Any()
    same, loaded = dz.load(tmp_path / "v.safetensors", model=model)
    assert same is model
    assert_same(loaded, variables)
    assert isinstance(loaded["params"]["a"]["b"]["float32"], jax.Array)


def test_a_module_of_ones_own(tmp_path):
    class OwnSkip(nn.Module):
        dtype: type | None = None
        param_dtype: type = jnp.float32

        def __call__(self, x, feature):
            return x

    model = dz.create_model("unet", dz.PlainEncoder((2, 4)), 2, skip=OwnSkip)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"SegmentationModel.decoder.skip cannot be .*OwnSkip.*dz\.save\(path, None"):
        dz.save(path, model, filled(model))
    assert not list(tmp_path.iterdir())
    dz.save(path, None, filled(model))
    _, loaded = dz.load(path, model=model)
    assert_same(loaded, filled(model))
    with pytest.raises(ValueError, match=r"only has variables: build their model in code"):
        dz.load(path)
    with pytest.raises(ValueError, match=r"file of dz\.save: load it with dz\.load\(path, model=model\)"):
        dz.weights.from_torch(model, path)
    for value in (lambda x: x, nn.initializers.normal(0.3), print, os.system, jnp.sin):
        with pytest.raises(ValueError, match=r"UNetDecoder\.act cannot be written into a file: it is <"):
            describe(dz.UNetDecoder(act=value), "UNetDecoder")


def test_the_model_given_is_another(tmp_path):
    model, variables = small()
    dz.save(tmp_path / "m.safetensors", model, variables)
    other = dz.create_model("unet", dz.PlainEncoder((2, 4)), 3, upsample=dz.Bilinear)
    with pytest.raises(
        ValueError,
        match=r"are not those of the model: params/head/conv/\w+ is .* For other classes .*weights\.start_from\(model",
    ):
        dz.load(tmp_path / "m.safetensors", model=other)
    with pytest.raises(ValueError, match="not the variables of the model"):
        dz.save(tmp_path / "n.safetensors", other, variables)
    with pytest.raises(ValueError, match="expected the variables of a model"):
        dz.save(tmp_path / "n.safetensors", None, {})
    assert not (tmp_path / "n.safetensors").exists()


def test_an_array_of_another_rank(tmp_path):
    model, variables = small()
    path = tmp_path / "m.safetensors"
    tree = flatten_dict(variables)
    kernel = ("params", "encoder", "block0", "conv1", "conv", "kernel")
    dz.save(path, None, unflatten_dict(tree | {kernel: jnp.float32(3)}))
    with pytest.raises(ValueError, match=r"conv1/conv/kernel is \(\), expected \(3, 3, 3, 2\)"):
        dz.load(path, model=model)


def test_any_number_of_input_channels(tmp_path):
    model, _ = small()
    variables = filled(model, 7)
    dz.save(tmp_path / "m.safetensors", model, variables)
    assert_same(dz.load(tmp_path / "m.safetensors")[1], variables)


def rewritten(path, change):
    """The file with a different description."""
    _, metadata = read_with_metadata(path)
    assert metadata is not None
    change(metadata)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["densezoo"] = json.dumps(metadata)
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def decoder(metadata):
    return metadata["model"]["fields"]["decoder"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda data: decoder(data).update({"class": "UNet4000"}),
            "class 'UNet4000'.*does not support.*by densezoo 9",
        ),
        (lambda data: decoder(data)["fields"].update(warp=3), "the field 'warp' of UNetDecoder.*Update densezoo"),
        (
            lambda data: decoder(data)["fields"].update(upsample={"partial": "Warp", "keywords": {}}),
            "function 'Warp'",
        ),
        (
            lambda data: decoder(data)["fields"].update(upsample={"partial": "Bilinear", "keywords": {"warp": 1}}),
            "the field 'warp' of Bilinear",
        ),
        (lambda data: decoder(data)["fields"].update(act={"function": "os.system"}), "the function 'os.system'"),
        (lambda data: decoder(data)["fields"].update(act={"call": "x"}), "the entry .*call"),
        (lambda data: decoder(data)["fields"].update(dtype={"dtype": "float3"}), "the entry .*float3"),
        (lambda data: data.update(format=2), "the format 2"),
        (lambda data: data.update(model=3), "something else than a model"),
        (lambda data: data["model"]["fields"].pop("head"), "cannot be built.*head"),
        (lambda data: decoder(data)["fields"].update(features="ab"), "a model that cannot be built: "),
        (lambda data: decoder(data)["fields"].update(act=3), "a model that cannot be built: "),
        (lambda data: data["model"]["fields"].update(encoder=3), "a model that cannot be built: "),
    ],
)
def test_files_of_another_version(change, match, tmp_path):
    model, variables = small()
    path = tmp_path / "model.safetensors"
    dz.save(path, model, variables)
    rewritten(path, lambda data: (data.update(version="9.0"), change(data)))
    with pytest.raises(ValueError, match=match) as error:
        dz.load(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 500
    # The model may be given all the same.
    assert_same(dz.load(path, model=model)[1], variables)


@pytest.mark.parametrize(
    ("encoder", "fields", "match"),
    [
        (dz.ResNet((1, 1), dz.BasicBlock, width=2), {"depths": [10**9, 1]}, r"the number 1e\+09, more than any"),
        (dz.ResNet((1, 1), dz.BasicBlock, width=2), {"depths": [4000, 4000]}, "far more layers than its 2 arrays"),
        (dz.ResNet((1, 1), dz.BasicBlock, width=2), {"width": 10**9}, "the number"),
        (dz.ViT(4, 1, 1, levels=1), {"patch_size": 10_000}, "the number"),
        (dz.ViT(4, 1, 1, levels=1), {"patch_size": 4096}, "not those of the model: .* is missing"),
        (dz.EfficientNet(), {"depth": 1e9}, "the number"),
        (dz.EfficientNet(), {"depth": 500.0}, "far more layers"),
        (dz.Swin((2,) * 4, 4, (1,) * 4), {"window_size": 3000, "pad_first": True}, "window_size is 64 at most"),
    ],
)
def test_descriptions_of_huge_models_are_refused_before_they_are_built(encoder, fields, match, tmp_path):
    path = tmp_path / "model.safetensors"
    description = describe(encoder, "")
    description["fields"] |= fields
    metadata = {"format": 1, "version": "0.1.0", "model": description}
    arrays = {"params/x": np.zeros(1, np.float32), "params/y": np.zeros(1, np.float32)}
    save_file(arrays, path, metadata={"densezoo": json.dumps(metadata)})
    with pytest.raises(ValueError, match=match):
        dz.load(path)


def test_only_what_is_listed_is_looked_up(tmp_path):
    for name in (
        "os.system",
        "builtins.eval",
        "flax.linen.Module",
        "SegmentationModel.__init__",
        "blocks.conv.partial",
    ):
        for kind in ("type", "function"):
            with pytest.raises(ValueError):
                build({kind: name})
        with pytest.raises(ValueError):
            build({"class": name, "fields": {}})
        with pytest.raises(ValueError):
            build({"partial": name, "keywords": {}})
    for field in ("parent", "name", "__class__", "__post_init__"):
        with pytest.raises(ValueError, match="the field"):
            build({"class": "UNetDecoder", "fields": {field: None}})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    model, variables = small()
    dz.save(tmp_path / "m.safetensors", model, variables)
    with pytest.raises((ValueError, RecursionError)):
        rewritten(tmp_path / "m.safetensors", lambda data: data.update(model=deep))
        dz.load(tmp_path / "m.safetensors")


def test_files_written_before_fields_were_renamed(tmp_path):
    encoder = dz.VGG((1, 1), (2, 4), norm=dz.BatchNorm)
    model = dz.create_model("segnet", encoder, 2)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), variables)
    dz.save(tmp_path / "model.safetensors", model, variables)

    def with_old_names(metadata):
        for part in ("encoder", "decoder"):
            fields = metadata["model"]["fields"][part]["fields"]
            fields["stage_sizes"] = fields.pop("depths")

    rewritten(tmp_path / "model.safetensors", with_old_names)
    again, same = dz.load(tmp_path / "model.safetensors")  # without a warning, which would fail here
    assert (again.encoder.depths, again.decoder.depths) == (model.encoder.depths, model.decoder.depths)
    assert_same(same, variables)


def test_damaged_and_foreign_files(tmp_path):
    model, variables = small()
    path = tmp_path / "model.safetensors"
    dz.save(path, model, variables)
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="it is empty" if length == 0 else "damaged or truncated|not a checkpoint"):
            dz.load(path)
    save_file({"conv1.weight": np.zeros((2, 3, 3, 3), np.float32)}, path)
    for foreign in (path, GOLDEN / "tensors.pth", GOLDEN / "tensors.safetensors"):
        with pytest.raises(ValueError, match=r"is not a file of dz\.save: .*from_torch"):
            dz.load(foreign)
    with pytest.raises(FileNotFoundError):
        dz.load(tmp_path / "nothing.safetensors")


class Own(nn.Module):
    """An encoder that does not publish its reductions."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(dz.BatchNorm()(nn.Conv(4, (3, 3))(images), train=train))
        return dz.Pyramid((x, nn.max_pool(x, (2, 2), (2, 2))))


def test_an_encoder_of_ones_own_need_not_tell_its_reductions(tmp_path):
    model = dz.SegmentationModel(Own(), dz.UNetDecoder((4,)), dz.SegmentationHead(2))
    images = jnp.ones((1, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    dz.save(tmp_path / "own.safetensors", None, variables)
    assert_same(dz.load(tmp_path / "own.safetensors", model=model)[1], variables)
    folded = dz.fold_batch_norm(model, variables)
    np.testing.assert_allclose(model.apply(folded, images), model.apply(variables, images), atol=1e-5)


def test_the_other_readers_and_orders_are_named(tmp_path):
    model, variables = small()
    with pytest.raises(TypeError, match=r"dz\.save\(path, model, variables\) takes the path first"):
        dz.save(model, variables, tmp_path / "model.safetensors")
    dz.save(tmp_path / "model.safetensors", model, variables)
    with pytest.raises(ValueError, match=r"is a file of dz\.save: .*dz\.load"):
        dz.weights.from_torch(model, tmp_path / "model.safetensors")


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model, variables = small()
    path = tmp_path / "model.safetensors"
    dz.save(path, model, variables)
    before = path.read_bytes()

    def full(arrays, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("densezoo.weights._native.save_file", full)
    with pytest.raises(OSError, match="no space"):
        dz.save(path, model, variables)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_may_write_one_file_at_once(tmp_path, monkeypatch):
    model, variables = small()
    names = []
    written = save_file

    def noting(arrays, filename, metadata):
        names.append(filename)
        if len(names) == 1:  # another begins before this one has written
            dz.save(tmp_path / "model.safetensors", model, variables)
        written(arrays, filename, metadata)

    monkeypatch.setattr("densezoo.weights._native.save_file", noting)
    dz.save(tmp_path / "model.safetensors", model, variables)
    assert len(set(names)) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
    assert_same(dz.load(tmp_path / "model.safetensors")[1], variables)


def test_another_process_reads_it(tmp_path):
    model, variables = small()
    dz.save(tmp_path / "model.safetensors", model, variables)
    program = "import sys, densezoo as dz; model, v = dz.load(sys.argv[1]); print(type(model.decoder).__name__, len(v))"
    run = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "model.safetensors")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "UNetDecoder 2\n"
