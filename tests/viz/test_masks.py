import numpy as np
import pytest
from PIL import Image

from densezoo import viz

TRUTH = np.array([[0, 1], [2, 255]])
GUESS = np.array([[0, 0], [2, 1]])
IMAGE = np.full((2, 2, 3), 0.5, np.float32)


def test_rows_and_errors():
    figure = viz.predictions(
        [IMAGE, IMAGE[..., :1]],
        [TRUTH, TRUTH],
        [GUESS, TRUTH % 255],
        class_names=["sky", "tree", "road"],
        ignore_index=255,
    )
    # The ignored pixel is neither right nor wrong, so one in three is wrong.
    assert [axes.get_title() for axes in figure.axes] == [
        *("image", "truth", "prediction", "errors: 33.3 %"),
        *("", "", "", "errors: 0.0 %"),
    ]
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert all(picture.shape == (2, 2, 3) and picture.dtype == np.uint8 for picture in pictures)
    np.testing.assert_array_equal(pictures[1], viz.colorize(TRUTH, viz.palette(3), ignore_index=255))
    np.testing.assert_array_equal(pictures[2], viz.colorize(GUESS, viz.palette(3)))
    assert [tuple(pixel) == (213, 0, 50) for pixel in pictures[3].reshape(-1, 3)] == [False, True, False, False]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "sky",
        "tree",
        "road",
        "ignored",
        "wrong class",
        "right class: image in grey",
    ]
    assert figure.legends[0].get_patches()[1].get_facecolor() == pytest.approx((*viz.palette(3)[1] / 255, 1))


def test_without_truth():
    figure = viz.predictions(IMAGE[None], None, GUESS[None])
    assert [axes.get_title() for axes in figure.axes] == ["image", "prediction", "overlay"]
    np.testing.assert_array_equal(
        figure.axes[2].images[0].get_array(), viz.overlay(IMAGE, GUESS, palette=viz.palette(3))
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class 0", "class 1", "class 2"]


def test_images_of_several_sizes_and_many_classes_are_drawn(tmp_path):
    masks = [np.arange(24).reshape(4, 6), np.zeros((9, 5), bool)]
    images = [np.zeros((4, 6, 8)), np.zeros((9, 5))]
    names = [f"a class with number {number}" for number in range(24)]
    path = viz.save(viz.predictions(images, masks, masks, class_names=names), tmp_path / "a.png", dpi=40)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_more_classes_than_colours(tmp_path):
    mask = np.concatenate([np.arange(300), np.full(20, 299)]).reshape(16, 20)
    image = np.zeros((16, 20, 3), np.uint8)
    figure = viz.predictions([image], [mask], [mask])
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(entries) == 43 and entries[-4:-1] == ["class 299", "and 260 more", "wrong class"]
    assert viz.save(figure, tmp_path / "a.png", dpi=40).is_file()
    assert viz.overlay(image, mask, palette=viz.palette(300)).shape == image.shape
    # Every mask of one palette has 16 bits, even one with only small labels.
    for labels in (mask, mask % 7):
        written = Image.open(viz.save_mask(labels, tmp_path / "mask.png", palette=viz.palette(300)))
        assert written.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(written), labels)
    np.testing.assert_array_equal(viz.colorize(mask), viz.colorize(mask, viz.palette(300)))
    with pytest.raises(ValueError, match=r"the label 1000000, but the palette has colours for 0\.\.65535"):
        viz.colorize(np.array([[10**6]]))


def test_errors():
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        viz.predictions([IMAGE] * 2, [TRUTH], [GUESS] * 2)
    with pytest.raises(ValueError, match="1 images and 2 predictions"):
        viz.predictions([IMAGE], None, [GUESS] * 2)
    with pytest.raises(ValueError, match="at least one image"):
        viz.predictions([], None, [])
    with pytest.raises(ValueError, match=r"image 0 has \(2, 2\) pixels and its entry in predictions \(2, 1\)"):
        viz.predictions([IMAGE], None, [GUESS[:, :1]])
    with pytest.raises(ValueError, match="2 class_names, but a mask contains the label 2"):
        viz.predictions([IMAGE], None, [GUESS], class_names=["a", "b"])
    with pytest.raises(TypeError, match="argmax"):
        viz.predictions([IMAGE], None, np.zeros((1, 2, 2, 3)))


def test_several_labels_per_pixel_are_a_panel_for_each_class():
    image = np.full((1, 6, 3), 0.5)
    truth = np.array([[[1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [255, 0]]])
    guess = np.array([[[1, 0], [1, 0], [0, 0], [1, 0], [0, 0], [1, 0]]])
    figure = viz.predictions([image] * 2, [truth] * 2, [guess] * 2, class_names=["cat", "dog"], ignore_index=255)
    assert [axes.get_title() for axes in figure.axes] == ["image", "cat: IoU 0.50", "dog: in neither"] * 2
    correct, also, missed, false, none, ignored = figure.axes[1].images[0].get_array().reshape(-1, 3).tolist()
    assert [correct, missed, false] == [[0, 114, 178], [240, 228, 66], [213, 0, 50]] and correct == also
    assert none == figure.axes[2].images[0].get_array()[0, 0].tolist() and ignored == [200, 200, 200]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["correct", "missed", "falsely predicted", "ignored"]
    # Many classes need several lines, and without truth there is no score.
    figure = viz.predictions([image], None, [np.tile(guess, (1, 1, 4))])
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert shown == ["image", *(f"class {number}" for number in range(8))]
    with pytest.raises(ValueError, match="there are 3 classes, and the masks and predictions have"):
        viz.predictions([image], [truth], [guess], class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"expected one mask of shape \(h, w, classes\), as the predictions have"):
        viz.predictions([image], [truth[..., 0]], [guess])
