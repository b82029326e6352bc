"""Names, prefixes, shapes and errors of `from_torch`, on tiny models and hand-written names."""

import contextlib
import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.weights import from_torch

RNG = np.random.default_rng(0)
WIDTHS = (2, 4, 8, 16)


def norm(name, width):
    arrays = {leaf: RNG.normal(size=width).astype(np.float32) for leaf in ("weight", "bias", "running_mean")}
    arrays |= {"running_var": RNG.uniform(0.5, 1, width).astype(np.float32), "num_batches_tracked": np.array(3)}
    return {f"{name}.{leaf}": array for leaf, array in arrays.items()}


def conv(name, *shape, bias=False):
    arrays = {f"{name}.weight": RNG.normal(size=shape).astype(np.float32)}
    return arrays | ({f"{name}.bias": RNG.normal(size=shape[0]).astype(np.float32)} if bias else {})


def resnet(prefix="", channels=3):
    """Names of torchvision's ResNet with one basic block per stage, and a classifier."""
    arrays = conv("conv1", 2, channels, 7, 7) | norm("bn1", 2)
    before = 2
    for stage, width in enumerate(WIDTHS, start=1):
        block = f"layer{stage}.0"
        arrays |= conv(f"{block}.conv1", width, before, 3, 3) | norm(f"{block}.bn1", width)
        arrays |= conv(f"{block}.conv2", width, width, 3, 3) | norm(f"{block}.bn2", width)
        if stage > 1:
            arrays |= conv(f"{block}.downsample.0", width, before, 1, 1) | norm(f"{block}.downsample.1", width)
        before = width
    arrays |= {"fc.weight": np.zeros((10, 16)), "fc.bias": np.zeros(10)}
    return {prefix + name: array for name, array in arrays.items()}


def unet(classes=2):
    """Names of segmentation_models_pytorch's U-Net with this encoder."""
    arrays = {name: array for name, array in resnet("encoder.").items() if ".fc." not in name}
    channels, skips = 16, (8, 4, 2, 2, 0)
    for index, (width, skip) in enumerate(zip((6, 5, 4, 3, 2), skips, strict=True)):
        block = f"decoder.blocks.{index}"
        arrays |= conv(f"{block}.conv1.0", width, channels + skip, 3, 3) | norm(f"{block}.conv1.1", width)
        arrays |= conv(f"{block}.conv2.0", width, width, 3, 3) | norm(f"{block}.conv2.1", width)
        channels = width
    return arrays | conv("segmentation_head.0", classes, 2, 3, 3, bias=True)


def encoder(**fields):
    return dz.ResNet(depths=(1, 1, 1, 1), block=dz.BasicBlock, width=2, **fields)


def model(classes=2):
    return dz.create_model("unet", encoder=encoder(), num_classes=classes, features=(6, 5, 4, 3, 2))


MODEL = model()
ARRAYS = {"unet": unet(), "resnet": resnet()}


@functools.cache
def expected(name):
    """The variables for these names without any other arrays in the file."""
    return from_torch(MODEL if name == "unet" else encoder(), ARRAYS[name])


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_every_array_is_at_its_place():
    arrays = resnet()
    variables = from_torch(encoder(), arrays)
    params, stats = variables["params"]["layer2_0"], variables["batch_stats"]["layer2_0"]
    weight = arrays["layer2.0.conv2.weight"]
    assert weight.shape == (4, 4, 3, 3)
    # Output 1, input 3, row 0, column 2.
    assert params["conv2"]["conv"]["kernel"][0, 2, 3, 1] == weight[1, 3, 0, 2]
    assert_same(params["conv1"]["conv"]["kernel"], arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert_same(params["downsample"]["norm"]["scale"], arrays["layer2.0.downsample.1.weight"])
    assert_same(params["downsample"]["norm"]["bias"], arrays["layer2.0.downsample.1.bias"])
    assert_same(stats["conv2"]["norm"]["mean"], arrays["layer2.0.bn2.running_mean"])
    assert_same(stats["conv2"]["norm"]["var"], arrays["layer2.0.bn2.running_var"])
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(variables))
    # As many arrays as `init` makes, in the same tree.
    made = jax.eval_shape(encoder().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers_are_taken_off(prefix, container):
    arrays = ARRAYS["unet"]
    wrapped = {prefix + name: array for name, array in arrays.items()}
    contents = wrapped if container is None else {container: wrapped, "epoch": 3, "optimizer": {"lr": 1.0}}
    assert_same(from_torch(MODEL, contents), expected("unet"))


@pytest.mark.parametrize("prefix", ["module.", "net.", "module._orig_mod.", "wrapped.mine."])
def test_what_is_beside_a_prefix_is_left_out_with_a_warning(prefix):
    beside = {"std": np.ones((1, 3, 1, 1)), "loss.weight": np.zeros(2), "n_averaged": np.int64(3)}
    arrays = beside | {prefix + name: array for name, array in ARRAYS["unet"].items()}
    with pytest.warns(UserWarning, match=rf"begin with '{prefix}', and 3 do not; .*: std, loss\.weight, n_averaged"):
        assert_same(from_torch(MODEL, arrays), expected("unet"))
    del arrays[f"{prefix}decoder.blocks.0.conv1.0.weight"]
    with (
        pytest.warns(UserWarning, match="do not"),
        pytest.raises(ValueError, match=r"1 missing in the checkpoint: decoder\.blocks\.0\.conv1\.0\.weight"),
    ):
        from_torch(MODEL, arrays)


def test_an_encoder_behind_any_prefix():
    arrays = {f"student.trunk.{name}": array for name, array in ARRAYS["resnet"].items()}
    assert_same(from_torch(encoder(), arrays), expected("resnet"))


def copies(**prefixes):
    """The same names with several prefixes, each with other values."""
    return {
        f"{prefix}{name}": array + np.asarray(value, array.dtype)
        for prefix, value in prefixes.items()
        for name, array in ARRAYS["resnet"].items()
    }


def test_one_of_several_copies_is_chosen_by_an_argument():
    plus_one = from_torch(encoder(), copies(**{"": 1}))
    with pytest.raises(ValueError, match=r"behind each of 'student', 'teacher': choose by entry="):
        from_torch(encoder(), copies(**{"student.": 0, "teacher.": 1}))
    for entry in ("teacher", "teacher."):
        assert_same(from_torch(encoder(), copies(**{"student.": 0, "teacher.": 1}), entry=entry), plus_one)
    for other in ("ema.module.", "model_ema."):
        with (
            pytest.warns(UserWarning, match=rf"'model' is taken. For the others: choose by entry='{other[:-1]}'"),
            pytest.warns(UserWarning, match="were left out"),
        ):
            assert_same(from_torch(encoder(), copies(**{"model.": 0, other: 1})), expected("resnet"))
    # Dictionaries beside each other, as timm and others write them.
    for key, ema in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")):
        contents = {ema: copies(**{"module.": 1}), key: ARRAYS["resnet"], "optimizer": {"state": {}}, "epoch": 3}
        with pytest.warns(UserWarning, match=f"'{key}' is taken. For the others: entry='{ema}'"):
            assert_same(from_torch(encoder(), contents), expected("resnet"))
        assert_same(from_torch(encoder(), contents, entry=ema), plus_one)
    # The only dictionary of arrays, under any key.
    assert_same(from_torch(encoder(), {"ema": {"module": ARRAYS["resnet"]}, "epoch": 3}), expected("resnet"))
    with pytest.raises(ValueError, match=r"choose one by entry=\.\.\.: 'a', 'b'"):
        from_torch(encoder(), {"a": ARRAYS["resnet"], "b": ARRAYS["resnet"]})
    with pytest.raises(ValueError, match=r"no entry 'c'; there are: 'a'"):
        from_torch(encoder(), {"a": ARRAYS["resnet"]}, entry="c")


def test_not_strict_with_nothing_that_fits_is_an_error():
    nothing = {"nothing.weight": np.zeros((3, 3), np.float32)}
    some = nothing | {f"other{i}.weight": np.zeros(2) for i in range(60)}
    for arrays in (nothing, some | {"encoder.bn1.weight": np.zeros(2, np.float32)}):
        with pytest.raises(ValueError) as error:
            from_torch(MODEL, arrays, strict=False)
        assert "encoder.layer1.0" in str(error.value) and "nothing.weight" in str(error.value)
    # A small part of the model, but all of the checkpoint.
    head = {name: array for name, array in ARRAYS["unet"].items() if name.startswith("segmentation_head")}
    with pytest.warns(UserWarning, match="does not fit the model in everything"):
        from_torch(MODEL, head, strict=False)


@pytest.mark.parametrize("prefix", ["encoder.", "backbone.body.", "body.", "backbone.", "encoder.model."])
def test_an_encoder_within_the_checkpoint_of_a_model(prefix):
    arrays = {prefix + name: array for name, array in ARRAYS["resnet"].items() if not name.startswith("fc")}
    arrays |= {"decoder.p5.weight": np.zeros(3), "rpn.head.weight": np.zeros(3), "classifier.0.weight": np.zeros(3)}
    # torchvision's segmentation models have a dilated backbone.
    named = pytest.warns(UserWarning, match="output_stride=8") if prefix == "backbone." else contextlib.nullcontext()
    with named:
        variables = from_torch(encoder(), arrays)
    assert_same(variables, expected("resnet"))


@pytest.mark.parametrize("classifier", ["fc.weight", "classifier.6.bias", "head.fc.weight", "pre_logits.fc1.weight"])
def test_classifiers_are_left_out(classifier):
    assert_same(from_torch(encoder(), ARRAYS["resnet"] | {classifier: np.zeros(3)}), expected("resnet"))


def test_vgg():
    vgg = dz.VGG(depths=(1, 2), widths=(2, 3), norm=dz.BatchNorm)
    arrays = conv("features.0", 2, 1, 3, 3, bias=True) | norm("features.1", 2)
    arrays |= conv("features.4", 3, 2, 3, 3, bias=True) | norm("features.5", 3)
    arrays |= conv("features.7", 3, 3, 3, 3, bias=True) | norm("features.8", 3)
    variables = from_torch(vgg, arrays | {"classifier.0.weight": np.zeros(3)})
    assert_same(variables["params"]["features_7"]["bias"], arrays["features.7.bias"])
    assert_same(variables["batch_stats"]["features_5"]["mean"], arrays["features.5.running_mean"])


def pyramid_arrays(prefix, within):
    arrays = {f"{prefix}body.{k}": v for k, v in ARRAYS["resnet"].items() if not k.startswith("fc")}
    for level, width in enumerate(WIDTHS[1:]):
        arrays |= conv(f"{prefix}fpn.inner_blocks.{level}{within}", 5, width, 1, 1, bias=True)
        arrays |= conv(f"{prefix}fpn.layer_blocks.{level}{within}", 5, 5, 3, 3, bias=True)
    return arrays | conv(f"{prefix}fpn.extra_blocks.p6", 5, 5, 3, 3, bias=True)


@pytest.mark.parametrize("prefix", ["backbone.", ""])
@pytest.mark.parametrize("within", [".0", ""])
def test_pyramids_of_detectors(prefix, within):
    arrays = pyramid_arrays(prefix, within)
    detector = {name: np.zeros(3) for name in ("rpn.head.cls_logits.bias", "roi_heads.box_head.fc6.bias", "head.x")}
    pyramid = dz.PyramidModel(encoder=encoder(), neck=dz.FPNNeck(features=5, levels=3))
    neck = from_torch(pyramid, arrays | (detector if prefix else {}))["params"]["neck"]
    blocks = [f"{prefix}fpn.inner_blocks.{level}{within}.bias" for level in range(3)]
    assert_same(neck["top_down"]["skip0"]["lateral"]["bias"], arrays[blocks[0]])
    assert_same(neck["top_down"]["skip1"]["lateral"]["bias"], arrays[blocks[1]])
    assert_same(neck["top_down"]["top"]["bias"], arrays[blocks[2]])
    assert_same(neck["output2"]["bias"], arrays[f"{prefix}fpn.layer_blocks.2{within}.bias"])
    with pytest.raises(ValueError, match=r"1 unexpected in the checkpoint: neck\.x"):
        from_torch(pyramid, arrays | {"neck.x": np.zeros(3)})


class FakeTensor:
    """The used part of a torch tensor's interface; NumPy has no equivalent of its bfloat16."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        if self.array.dtype == ml_dtypes.bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [
        *itertools.product([FakeTensor, np.asarray], [np.float16, ml_dtypes.bfloat16, np.float64, np.float32]),
        *itertools.product([jnp.asarray], [np.float16, ml_dtypes.bfloat16, np.float32]),
    ],
)
def test_types_of_arrays(wrap, dtype):
    arrays = {name: array.astype(dtype) for name, array in ARRAYS["resnet"].items()}
    variables = from_torch(encoder(), {name: wrap(array) for name, array in arrays.items()})
    kernel = variables["params"]["conv1"]["conv"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, arrays["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0))


def test_paths_and_parameter_types(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(ARRAYS["resnet"], path)
    assert_same(from_torch(encoder(), path), expected("resnet"))
    assert_same(from_torch(encoder(), str(path)), expected("resnet"))
    half = from_torch(encoder(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), path)
    assert half["params"]["conv1"]["conv"]["kernel"].dtype == jnp.bfloat16
    with pytest.raises(FileNotFoundError):
        from_torch(encoder(), tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match=re.escape(f"{path} does not fit the model")):
        from_torch(MODEL, path)
    for wrong in (None, [1], 3):
        with pytest.raises(TypeError, match="path or a mapping"):
            from_torch(encoder(), wrong)
    with pytest.raises(ValueError, match="none has any"):
        from_torch(encoder(), {"epoch": 3})


def test_values_are_passed_on_as_they_are():
    arrays = dict(ARRAYS["resnet"])
    arrays["bn1.bias"] = np.array([np.nan, np.inf], np.float32)
    bias = from_torch(encoder(), arrays)["params"]["conv1"]["norm"]["bias"]
    np.testing.assert_array_equal(bias, [np.nan, np.inf])


def test_parameters_are_copies():
    memory = np.zeros(128, np.uint8)
    start = -memory.ctypes.data % 64  # JAX would use an array so aligned without a copy
    bias = memory[start : start + 8].view(np.float32)
    variables = from_torch(encoder(), ARRAYS["resnet"] | {"bn1.bias": bias})
    bias[:] = 1
    np.testing.assert_array_equal(variables["params"]["conv1"]["norm"]["bias"], 0)


def test_input_channels_come_from_the_checkpoint():
    for channels in (1, 4):
        variables = from_torch(encoder(), resnet(channels=channels))
        assert variables["params"]["conv1"]["conv"]["kernel"].shape == (7, 7, channels, 2)


def test_input_channels_can_change():
    weight = ARRAYS["resnet"]["conv1.weight"]
    one = from_torch(encoder(), ARRAYS["resnet"], in_channels=1)["params"]["conv1"]["conv"]["kernel"]
    np.testing.assert_allclose(one[:, :, 0], weight.sum(1).transpose(1, 2, 0), rtol=1e-6)
    five = from_torch(encoder(), ARRAYS["resnet"], in_channels=5)["params"]["conv1"]["conv"]["kernel"]
    for channel, source in enumerate((0, 1, 2, 0, 1)):
        np.testing.assert_allclose(five[:, :, channel], weight[:, source].transpose(1, 2, 0) * 0.6, rtol=1e-6)
    assert_same(from_torch(encoder(), ARRAYS["resnet"], in_channels=3), expected("resnet"))
    with pytest.raises(ValueError, match=r"in_channels must be at least 1, .*; got 0"):
        from_torch(encoder(), ARRAYS["resnet"], in_channels=0)


def plain(between="double_conv", bias=True):
    arrays = conv(f"inc.{between}.0", 4, 3, 3, 3, bias=bias) | norm(f"inc.{between}.1", 4)
    return arrays | conv(f"inc.{between}.3", 4, 4, 3, 3, bias=bias) | norm(f"inc.{between}.4", 4)


def test_a_bias_before_a_norm_goes_into_the_mean():
    arrays = plain()
    variables = from_torch(dz.PlainEncoder(features=(4,)), arrays)
    image = RNG.normal(size=(1, 1, 1, 3)).astype(np.float32)
    x = image[0, 0, 0]
    # One pixel, zero padding: only the kernels' centres count.
    for number in (0, 3):
        x = arrays[f"inc.double_conv.{number}.weight"][:, :, 1, 1] @ x + arrays[f"inc.double_conv.{number}.bias"]
        after = f"inc.double_conv.{number + 1}."
        x = (x - arrays[after + "running_mean"]) / np.sqrt(arrays[after + "running_var"] + 1e-5)
        x = np.maximum(x * arrays[after + "weight"] + arrays[after + "bias"], 0)
    ours = dz.PlainEncoder(features=(4,)).apply(variables, image).maps[0][0, 0, 0]
    assert np.abs(x).max() > 0.1
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_a_bias_without_a_running_mean_is_left_over():
    group_norm = functools.partial(nn.GroupNorm, num_groups=2)
    arrays = {name: array for name, array in plain().items() if "running" not in name}
    with pytest.raises(ValueError, match=r"2 unexpected in the checkpoint: inc\.double_conv\.0\.bias"):
        from_torch(dz.PlainEncoder(features=(4,), norm=group_norm), arrays)


@pytest.mark.parametrize("between", ["double_conv", "conv.conv"])
def test_forms_of_plain_names(between):
    arrays = plain(between, bias=False)
    others = {"up1.up.weight": np.zeros(3), "outc.bias": np.zeros(3)}
    variables = from_torch(dz.PlainEncoder(features=(4,)), arrays | others)
    assert_same(variables["batch_stats"]["block0"]["conv2"]["norm"]["mean"], arrays[f"inc.{between}.4.running_mean"])


def test_plain_names_without_norms():
    arrays = conv("inc.double_conv.0", 4, 3, 3, 3, bias=True) | conv("inc.double_conv.2", 4, 4, 3, 3, bias=True)
    block = from_torch(dz.PlainEncoder(features=(4,), norm=None), arrays)["params"]["block0"]
    assert_same(block["conv2"]["conv"]["bias"], arrays["inc.double_conv.2.bias"])


def test_everything_wrong_is_in_one_error():
    arrays = dict(ARRAYS["unet"])
    del arrays["encoder.layer2.0.conv1.weight"]
    arrays["decoder.blocks.7.conv1.0.weight"] = np.zeros((2, 2, 3, 3))
    arrays["segmentation_head.0.bias"] = np.zeros(3, np.float32)
    arrays["encoder.bn1.weight"] = np.zeros(2, np.int64)
    with pytest.raises(ValueError) as error:
        from_torch(MODEL, arrays)
    message = str(error.value)
    assert "1 missing in the checkpoint: encoder.layer2.0.conv1.weight" in message
    assert "1 unexpected in the checkpoint: decoder.blocks.7.conv1.0.weight" in message
    assert "segmentation_head.0.bias came (3,) float32, expected (2,) float32" in message
    assert "encoder.bn1.weight came (2,) int64" in message


def test_long_lists_are_cut_and_hints_given():
    arrays = {name: array for name, array in ARRAYS["unet"].items() if "conv1" not in name}
    with pytest.raises(ValueError, match=r"\d\d missing in the checkpoint: .*; and \d+ more"):
        from_torch(MODEL, arrays)
    with pytest.raises(ValueError, match='No name matches: the guide "Weights"'):
        from_torch(MODEL, {"a.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="To initialise the others: part='encoder'") as error:
        from_torch(MODEL, ARRAYS["resnet"])
    assert "missing in the checkpoint: decoder.blocks.0" in str(error.value)


def test_names_are_of_the_naming_that_the_rest_has():
    arrays = plain(bias=False)
    unet = dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=(4,)), decoder=dz.UNetDecoder(features=()), head=dz.SegmentationHead(2)
    )
    with pytest.raises(ValueError, match=r"2 missing in the checkpoint: outc\.conv\.bias"):
        from_torch(unet, arrays)


def test_not_strict_fills_what_fits_and_warns():
    with pytest.warns(UserWarning, match=r"does not fit the model in everything(.|\n)*missing(.|\n)*decoder\.blocks"):
        variables = from_torch(MODEL, ARRAYS["resnet"], strict=False, key=jax.random.key(7))
    for collection in ("params", "batch_stats"):
        assert_same(variables[collection]["encoder"], expected("resnet")[collection])
    fresh = jax.jit(lambda key: MODEL.init(key, jnp.zeros((1, 64, 64, 3)))["params"]["decoder"]["block4"])(
        jax.random.key(7)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), variables["params"]["decoder"]["block4"], fresh
    )
    assert_same(variables["batch_stats"]["decoder"]["block4"]["convs"]["conv1"]["norm"]["var"], jnp.ones(2))

    with pytest.warns(UserWarning, match=r"segmentation_head\.0\.weight came \(2, 2, 3, 3\)"):
        other = from_torch(model(classes=5), ARRAYS["unet"], strict=False)
    assert_same(other["params"]["decoder"], expected("unet")["params"]["decoder"])
    assert other["params"]["head"]["conv"]["kernel"].shape == (3, 3, 2, 5)


def test_what_has_no_known_name():
    class OwnEncoder(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return dz.Pyramid((dz.Conv(4, name="mine")(images),), None, (1,), images.shape[1:3])

    with pytest.raises(ValueError, match=r"in the model but in no known naming: params/mine/bias"):
        from_torch(OwnEncoder(), ARRAYS["resnet"])
    learned = dz.create_model(
        "unet", encoder=encoder(), num_classes=2, features=(6, 5, 4, 3, 2), upsample=dz.TransposedConv
    )
    with pytest.raises(ValueError, match=r"10 in the model but in no known naming: params/decoder/block0/upsample"):
        from_torch(learned, ARRAYS["unet"])


def test_a_subclass_of_an_encoder_has_its_names():
    class OwnResNet(dz.ResNet):
        pass

    own = OwnResNet(depths=(1, 1, 1, 1), block=dz.BasicBlock, width=2)
    assert_same(from_torch(own, ARRAYS["resnet"]), expected("resnet"))


def test_smp_auxiliary_classifiers_are_left_out():
    arrays = ARRAYS["unet"] | {"classification_head.3.weight": np.zeros(3)}
    assert_same(from_torch(MODEL, arrays), expected("unet"))


def test_every_reference_array_is_used_once():
    """No array is read twice, and none except the counters is unread."""
    counted = {name: np.full_like(a, i, np.float32) for i, (name, a) in enumerate(ARRAYS["unet"].items())}
    used = sorted(int(array.ravel()[0]) for array in flatten_dict(from_torch(MODEL, counted)).values())
    assert used == [i for i, name in enumerate(counted) if not name.endswith("num_batches_tracked")]
