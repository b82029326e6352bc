"""Repositories of the hub: from a folder, and from a cache like huggingface_hub's, without a network."""

import functools
import importlib
import io
import json
import pickle
import struct
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.encoders import ENCODERS
from densezoo.weights import from_hub, preprocessing, to_torch

TIMM = {
    "architecture": "tiny_resnet",
    "num_classes": 2,
    "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "first_conv": "conv1", "classifier": "fc"},
}
SMP = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1], "input_space": "RGB"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """An encoder that the zoo lacks, with few weights."""
    monkeypatch.setitem(ENCODERS, "tiny_resnet", partial(dz.ResNet, depths=(1, 1), block=dz.BasicBlock, width=2))


@functools.cache
def weights():
    encoder = dz.ResNet((1, 1), dz.BasicBlock, 2)
    tree = flatten_dict(jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    generator = np.random.default_rng(0)
    variables = unflatten_dict({p: jnp.asarray(generator.normal(size=x.shape), x.dtype) for p, x in tree.items()})
    return variables, to_torch(encoder, variables) | {"fc.weight": np.zeros((2, 4), np.float32)}


def write(folder, config, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file(weights()[1], folder / name)
    elif name:
        write_torch(folder / name, weights()[1])
    return folder


def write_torch(path, arrays):
    """The bytes that `torch.save` writes for a state_dict."""

    def plain(value):
        return pickle.dumps(value, protocol=2)[2:-1]

    contents = io.BytesIO(b"")
    contents.write(b"\x80\x02}(")
    with zipfile.ZipFile(path, "w") as archive:
        for index, (name, array) in enumerate(arrays.items()):
            kind = b"ctorch\nLongStorage\n" if array.dtype == np.int64 else b"ctorch\nFloatStorage\n"
            run = b"(" + plain("storage") + kind + plain(str(index)) + plain("cpu") + plain(array.size) + b"tQ"
            strides = tuple(stride // array.itemsize for stride in array.strides)
            view = plain(0) + plain(array.shape) + plain(strides) + plain(False) + b"ccollections\nOrderedDict\n)R"
            contents.write(plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + run + view + b"tR")
            archive.writestr(f"archive/data/{index}", array.tobytes())
        archive.writestr("archive/data.pkl", contents.getvalue() + b"u.")


def assert_same(ours, other):
    jax.tree.map(np.testing.assert_array_equal, ours, other)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder(name, tmp_path):
    folder = write(tmp_path / "tiny", TIMM, name)
    for path in (folder, str(folder)):
        encoder, variables = from_hub(path)
        assert isinstance(encoder, dz.ResNet)
        assert_same(variables, weights()[0])
    assert preprocessing(folder) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def test_several_files(tmp_path):
    folder = write(tmp_path / "tiny", TIMM, "")
    files = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, array) in enumerate(weights()[1].items()):
        files["ab"[number % 2] + ".safetensors"][name] = array
    for file, arrays in files.items():
        save_file(arrays, folder / file)
    index = {"weight_map": {name: file for file, arrays in files.items() for name in arrays}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(from_hub(folder)[1], weights()[0])
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        from_hub(folder)


def test_an_architecture_that_cannot_be_checked(tmp_path):
    folder = write(tmp_path / "tiny", TIMM | {"architecture": "tiny_resnetaa"})
    with pytest.warns(UserWarning, match="is of 'tiny_resnetaa', which densezoo does not have"):
        from_hub(folder, dz.create_encoder("tiny_resnet"))
    write(folder, TIMM | {"architecture": "vgg11"})
    with pytest.raises(ValueError, match="vgg11 is a VGG, the model's encoder a ResNet"):
        from_hub(folder, dz.create_encoder("tiny_resnet"))


def test_into_a_model(tmp_path, recwarn):
    folder = write(tmp_path / "tiny", TIMM)
    model = dz.create_model("unet", "tiny_resnet", 2, features=(4, 3, 2))
    same, variables = from_hub(folder, model, in_channels=1, key=jax.random.key(1))
    assert same is model and not recwarn.list
    assert variables["params"]["encoder"]["conv1"]["conv"]["kernel"].shape == (7, 7, 1, 2)
    assert_same(variables["batch_stats"]["encoder"], weights()[0]["batch_stats"])
    assert jax.eval_shape(model.apply, variables, jnp.ones((1, 16, 16, 1))).shape == (1, 16, 16, 2)
    other = dz.create_encoder("tiny_resnet", width=4)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model"):
        from_hub(folder, other)


def test_segmentation_models_pytorchs_encoders(tmp_path):
    # Such a repository is named after its encoder, and says nothing more.
    folder = write(tmp_path / "tiny_resnet.imagenet", SMP)
    encoder, variables = from_hub(folder)
    assert isinstance(encoder, dz.ResNet)
    assert_same(variables, weights()[0])
    assert preprocessing(folder) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_whole_model(tmp_path):
    model = dz.create_model("unet", "tiny_resnet", 2, features=(4, 3, 2))
    tree = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    variables = unflatten_dict({path: jnp.full(x.shape, i, x.dtype) for i, (path, x) in enumerate(tree.items())})
    folder = write(tmp_path, {"_model_class": "Unet", "encoder_name": "resnet18"}, "")
    save_file(to_torch(model, variables), folder / "model.safetensors")
    assert_same(from_hub(folder, model)[1], variables)
    with pytest.raises(ValueError, match="contains no mean and std"):
        preprocessing(folder)
    (folder / "config.json").write_text('{"mean": [51, 102], "std": [51, 51], "input_range": [0, 255]}')
    assert preprocessing(folder) == ((0.2, 0.4), (0.2, 0.2))


def cached(root, repository, revision, config):
    """A cache in huggingface_hub's layout."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    write(folder / "snapshots" / revision, config)


def test_the_cache_without_a_network(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    # What HF_HUB_CACHE and HF_HUB_OFFLINE=1 set when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached(tmp_path, "timm/tiny_resnet.a1_in1k", revision, TIMM)
    for chosen in (None, "main", revision):
        encoder, variables = from_hub("timm/tiny_resnet.a1_in1k", revision=chosen)
        assert isinstance(encoder, dz.ResNet)
        assert_same(variables, weights()[0])
    assert preprocessing("timm/tiny_resnet.a1_in1k") == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    cached(tmp_path, "smp-hub/tiny_resnet.imagenet", revision, SMP)
    assert_same(from_hub("smp-hub/tiny_resnet.imagenet")[1], weights()[0])
    for repository, chosen in (("timm/nothing", None), ("timm/tiny_resnet.a1_in1k", "v2")):
        with pytest.raises(FileNotFoundError, match=rf"cannot get config\.json of {repository}: ") as error:
            from_hub(repository, revision=chosen)
        assert len(str(error.value)) < 500


def test_what_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_hub(tmp_path)
    folder = write(tmp_path / "f", TIMM, "")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        from_hub(folder)
    for wrong in ("resnet50", "a/b/c", tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=r"expected a repository as owner/name, or a folder that exists"):
            from_hub(wrong)
    for config, match in (("{", "is not JSON"), ("[]", "contains a list")):
        (folder / "config.json").write_text(config)
        with pytest.raises(ValueError, match=match):
            from_hub(folder)
    write(folder, TIMM | {"architecture": "resnet51"}, "")
    with pytest.raises(ValueError, match=r"says that it is 'resnet51', and densezoo has no encoder .*as `model`"):
        from_hub(folder)
    write(folder, {}, "")
    with pytest.raises(ValueError, match=r"names no architecture, and densezoo has no encoder 'f'"):
        from_hub(folder)

    import_module = importlib.import_module

    def missing(name):
        if name == "huggingface_hub":
            raise ModuleNotFoundError(name, name=name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "densezoo\[hub\]"; or pass a folder'):
        from_hub("timm/resnet50.a1_in1k")


def test_nothing_in_a_repository_is_executed(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return open, (str(marker), "w")

    folder = write(tmp_path / "tiny", TIMM, "")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.weight": Attack()}, 2))
    with pytest.raises(ValueError, match="nothing was executed"):
        from_hub(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ValueError, match="cannot be read, it may be damaged"):
        from_hub(folder)
    assert not marker.exists()
