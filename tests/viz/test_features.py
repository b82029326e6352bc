import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.data import astronaut

import densezoo as dz
from densezoo import viz
from densezoo.viz.features import _most_varied

ENCODER = dz.PlainEncoder(features=(4, 8, 16))
IMAGE = jnp.asarray(astronaut()[100:228:4, 150:310:4] / 255, jnp.float32)  # (32, 40, 3)


def random_variables(model, images):
    """Variables without compiling the model's initialisation."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: random.uniform(0.05, 0.5, x.shape).astype(x.dtype), shapes)


def words(figure):
    return [text.get_text() for text in figure.texts]


def panels(figure):
    """Pictures by their map and channel."""
    return {axes.get_label(): axes.images[0].get_array() for axes in figure.axes if axes.get_label()}


@pytest.fixture(scope="module")
def unet():
    model = dz.create_model("unet", ENCODER, num_classes=3)
    return model, random_variables(model, IMAGE[None])


def test_unet(unet, tmp_path):
    model, variables = unet
    figure = viz.feature_maps(model, variables, IMAGE, channels=2, class_names=("sky", "tree", "road"))
    found = words(figure)
    # The caption explains the selected channels and their numbers.
    texts = [" ".join(text.split()) for text in found]
    assert any("largest standard deviation" in text and "channel's index" in text for text in texts)
    assert {"encoder \N{DOWNWARDS ARROW}", "decoder \N{UPWARDS ARROW}", "image", "prediction"} <= set(found)
    assert [word for word in found if "stride" in word] == [
        "maps[0], stride 1, 4 channels",
        "block1, stride 1, 4 channels",
        "maps[1], stride 2, 8 channels",
        "block0, stride 2, 8 channels",
        "maps[2], stride 4, 16 channels",
    ]
    assert len(panels(figure)) == 5 * 2

    # The very maps of the model: its encoder and decoder applied by hand.
    @jax.jit
    def by_hand(variables, images):
        bound = model.bind(variables)
        pyramid = bound.encoder(images)
        result = bound.decoder(pyramid)
        return pyramid, result, bound.head(result, images.shape[1:3])

    pyramid, result, logits = by_hand(variables, IMAGE[None])
    for label, picture in panels(figure).items():
        name, channel = label.split(" channel ")
        if name.startswith("encoder.maps"):
            expected = pyramid.maps[int(name[-2])]
        elif name == "decoder.block1":
            expected = result
        else:
            continue
        np.testing.assert_allclose(picture, expected[0, ..., int(channel)], rtol=1e-4)
    assert any(
        np.array_equal(axes.images[0].get_array(), viz.colorize(logits[0].argmax(-1), viz.palette(3)))
        for axes in figure.axes
    )
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [("sky", "tree", "road")[label] for label in np.unique(logits.argmax(-1))]
    assert viz.save(figure, tmp_path / "a.png", dpi=50).stat().st_size > 10_000


@pytest.mark.parametrize(
    "name, columns, expected",
    [
        ("fpn", ["encoder", "decoder.top_down", "decoder"], "top_down[1], stride 2, 8 channels"),
        ("segnet", ["encoder", "decoder"], "stage0_conv1, stride 2, 4 channels"),
    ],
)
def test_other_families(name, columns, expected):
    fields = {"features": 8, "segmentation_features": 32} if name == "fpn" else {}
    model = dz.create_model(name, ENCODER, **fields)
    variables = random_variables(model, IMAGE[None])
    found = words(viz.feature_maps(model, variables, IMAGE, channels=1))
    assert [word.split()[0] for word in found if "ARROW" in ascii(word) or word[-1] in "↑↓"] == columns
    assert expected in found


def test_most_varied_channels():
    x = np.zeros((4, 4, 5), np.float32)
    x[0, 0] = [1, -3, 0, 3, np.nan]
    # Of equal ones the first; a constant one before one that is not a number.
    assert _most_varied(x, 9) == [1, 3, 0, 2, 4]
    assert _most_varied(x, 2) == [1, 3]


def test_errors(unet):
    model, variables = unet
    with pytest.raises(ValueError, match=r"one image.*\(1, 32, 40, 3\).*images\[0\]"):
        viz.feature_maps(model, variables, IMAGE[None])
    with pytest.raises(ValueError, match="channels"):
        viz.feature_maps(model, variables, IMAGE, channels=0)
    with pytest.raises(ValueError, match="0 class_names, but a mask contains the label"):
        viz.feature_maps(model, variables, IMAGE, class_names=())
