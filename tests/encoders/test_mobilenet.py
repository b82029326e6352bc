"""MobileNetV2 in its two forms, and MobileNetV3's activations."""

import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from densezoo.encoders.inverted_residual import Block
from densezoo.weights import from_torch

KEY = jax.random.key(0)
LEAVES = ("bias", "running_mean", "running_var")


def shapes(encoder, size=(64, 65)):
    pyramid, _ = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))
    return [feature.shape[1:] for feature in pyramid.maps]


def test_the_two_forms_of_v2_differ_in_the_last_feature_and_in_dilation():
    smp, timm = dz.create_encoder("mobilenet_v2"), dz.create_encoder("mobilenetv2_100")
    assert shapes(smp)[:-1] == shapes(timm)[:-1]
    assert (shapes(smp)[-1], shapes(timm)[-1]) == ((2, 3, 1280), (2, 3, 320))
    dilations = [[placed.dilation for placed in e.clone(output_stride=16).layout()] for e in (smp, timm)]
    assert dilations == [[1] * 13 + [2] * 4, [1] * 14 + [2] * 3]


def test_v2_takes_torchvision_and_timm_names():
    encoder = dz.MobileNetV2(width=0.25, coarsest=2)
    torchvision = {
        "stem": ("features.0.0", "features.0.1"),
        "depthwise": ("features.1.conv.0.0", "features.1.conv.0.1"),
        "project": ("features.1.conv.1", "features.1.conv.2"),
    }
    timm = {
        "stem": ("conv_stem", "bn1"),
        "depthwise": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
        "project": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
    }
    kernels = {"stem": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "project": (8, 8, 1, 1)}
    rng = np.random.default_rng(0)
    values = {f"{part}.weight": rng.standard_normal(shape).astype(np.float32) for part, shape in kernels.items()}
    values |= {f"{part}.{leaf}": rng.uniform(0.5, 1.5, 8).astype(np.float32) for part in kernels for leaf in LEAVES}

    def checkpoint(names, others):
        arrays = {}
        for part, (conv, norm) in names.items():
            arrays[f"{conv}.weight"] = values[f"{part}.weight"]
            arrays |= {f"{norm}.{leaf}": values[f"{part}.{leaf}"] for leaf in LEAVES}
            arrays[f"{norm}.weight"] = np.full(8, 2, np.float32)
        return arrays | {name: np.zeros(1, np.float32) for name in others}

    loaded = [
        from_torch(encoder, checkpoint(torchvision, ("features.2.conv.0.0.weight", "features.18.0.weight"))),
        from_torch(encoder, checkpoint(timm, ("blocks.1.0.conv_pw.weight", "conv_head.weight", "classifier.bias"))),
    ]
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def test_v3_gates_by_hard_sigmoid_after_relu():
    encoder = dz.MobileNetV3(blocks=(Block(0, 3, 1, 16, 16, 8),), head_features=8, norm=None)
    x = jnp.ones((1, 8, 8, 3))
    variables = jax.jit(encoder.init)(KEY, x)
    gate = variables["params"]["blocks_0_0"]["gate"]

    def features(bias):
        expand = gate["expand"] | {"bias": jnp.full_like(gate["expand"]["bias"], bias)}
        block = variables["params"]["blocks_0_0"] | {"gate": gate | {"expand": expand}}
        return encoder.apply({"params": variables["params"] | {"blocks_0_0": block}}, x).maps[0]

    # Far out it is 0 or 1 exactly, as a sigmoid never is.
    np.testing.assert_array_equal(features(-100.0), features(-200.0))
    np.testing.assert_array_equal(features(100.0), features(200.0))
    assert float(jnp.abs(features(0.0) - features(100.0)).max()) > 1e-3
    assert float(jnp.abs(features(0.0) - features(-100.0)).max()) > 1e-3


def test_v3_small_has_its_first_feature_at_the_stem():
    encoder = dz.create_encoder("mobilenetv3_small_100")
    assert encoder.all_taps == (-1, 0, 2, 7, 10)
    assert shapes(encoder) == [(32, 33, 16), (16, 17, 16), (8, 9, 24), (4, 5, 48), (2, 3, 576)]


def test_initial_maps_keep_their_magnitude():
    # timm's rule for depthwise kernels; torchvision's starts them smaller, in its own MobileNetV2 only.
    kernels = {}
    for name in ("mobilenet_v2", "mobilenetv2_100"):
        encoder = dz.create_encoder(name, coarsest=4)
        params = jax.jit(encoder.init)(KEY, jnp.zeros((1, 32, 32, 3)))["params"]
        kernels[name] = params["blocks_1_0"]["depthwise"]["conv"]["kernel"]
    assert abs(float(kernels["mobilenetv2_100"].std()) / (2 / 9) ** 0.5 - 1) < 0.1
    assert abs(float(kernels["mobilenet_v2"].std()) / (2 / (9 * 96)) ** 0.5 - 1) < 0.1
