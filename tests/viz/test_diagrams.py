from collections import Counter

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

import densezoo as dz
from densezoo import viz
from densezoo.viz.layout import arrange, box_height, box_width, rows, terminals

ENCODER = dz.PlainEncoder(features=(8, 16, 32, 64))
UNET = dz.create_model("unet", ENCODER, num_classes=7)


@pytest.fixture(scope="module")
def figure():
    # One canvas for all, so that texts have extents.
    # Next to 4096 channels, 128 are few, but their number needs room.
    models = {
        "first": UNET,
        "second": dz.create_model("fpn", ENCODER, features=4096),
        "third": dz.create_model("segnet", ENCODER),
    }
    figure = viz.diagram(models)
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_words_are_read_off_the_models(figure):
    found = Counter(texts(figure))
    assert {"first", "second", "third", "up: Nearest", "up: Bilinear"} <= set(found)
    # Below each part, and in the legend of colours.
    assert found["encoder"] == 3 + 1 and found["decoder"] == 3 + 1 and found["top_down"] == 1 + 1
    assert f"PlainEncoder, UNetDecoder, {viz.architecture(UNET).parameters:,} parameters" in found
    assert found["concat"] == 3 and found["indices"] == 3
    assert found["1x1, add"] == 3 and found["add"] == 1  # The laterals, and where the branches are added up.
    assert found["image\n3 channels"] == 3 and found["head\n7 channels"] == 1 and found["head\n1 channel"] == 2
    assert found["1/8"] == 1
    assert found["skip: concat"] == found["skip: 1x1 convolution, add"] == found["skip: indices"] == 1


def test_parts_of_one_name_have_one_colour_which_the_legend_shows(figure):
    boxes = {patch.get_facecolor() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)}
    keys = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert len(keys) == 3 and boxes == {to_rgba(key) for key in keys}


def test_the_step_up_of_a_head_is_shown():
    figure = viz.diagram(dz.create_model("fpn", ENCODER, features=16, levels=2))
    assert "up x4: Bilinear" in texts(figure)
    assert_readable(figure)
    assert not any(text.startswith("up x") for text in texts(viz.diagram(UNET)))


def test_the_heads_of_a_detector_stand_beside_its_pyramid():
    model = dz.create_model("faster_rcnn", ENCODER, 3, features=16, hidden=(8,), levels=2).clone(proposals=(50, 50))
    figure = viz.diagram([model, UNET])
    found = texts(figure)
    assert {"rpn", "box_head", "detections", "deltas 50 x 3 x 4", "boxes 100 x 4"} <= set(found)
    # The legend names the readers of each line, the arrows between heads, and the image that the shapes belong to.
    assert {"maps read by rpn", "maps read by box_head", "a head's result, for the next step"} <= set(found)
    assert any(text.startswith("round: head") and text.endswith("an image of 256x256") for text in found)
    assert_readable(figure)


def test_a_part_has_the_same_colour_in_every_diagram():
    def colours(model):
        figure = viz.diagram(model)
        keys = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "s"]
        found = texts(figure)
        end = found.index("number and width: channels")
        return dict(zip(found[end - len(keys) : end], keys, strict=True))

    neck = dz.PyramidModel(ENCODER, dz.FPNNeck(features=24, levels=2))
    fpn, alone = colours(dz.create_model("fpn", ENCODER)), colours(neck)
    assert fpn["top_down"] == alone["top_down"] != fpn["decoder"] and fpn["encoder"] == alone["encoder"]


def test_another_skip_is_another_picture():
    added = Counter(texts(viz.diagram(dz.create_model("unet", ENCODER, skip=dz.LateralAdd))))
    assert added["1x1, add"] == 3 and added["skip: 1x1 convolution, add"] == 1
    assert not added["concat"] and not added["skip: concat"]


def assert_readable(figure):
    """No text is cut off or overlaps another."""
    FigureCanvasAgg(figure).draw()
    extents = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    for number, (words, box) in enumerate(extents):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, words
        for other, other_box in extents[number + 1 :]:
            assert not box.overlaps(other_box), (words, other)


def test_no_texts_overlap_and_all_are_on_the_page(figure):
    assert_readable(figure)


def test_boxes_hold_their_numbers_and_do_not_overlap(figure):
    axes = figure.axes[0]
    patches = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(patches) == (4 + 3) + (4 + 4 + 7) + (4 + 4)
    numbers = [text.get_window_extent() for text in axes.texts if text.get_text().isdigit() and text.get_zorder() == 5]
    for number, box in enumerate(patches):
        assert not any(box.overlaps(other) for other in patches[number + 1 :])
        assert sum(box.x0 < n.x0 and n.x1 < box.x1 and box.y0 < n.y0 and n.y1 < box.y1 for n in numbers) == 1


def test_rows_and_sizes_of_boxes():
    read = viz.architecture(UNET)
    middles = rows([read])
    layout = arrange(read, middles, most=64)
    assert list(middles) == [1, 2, 4, 8]
    for box, place in zip(read.boxes, layout.places, strict=True):
        if box.column in ("encoder", "decoder"):
            assert place.y == middles[box.stride]
            assert (place.width, place.height) == (box_width(box.channels, 64), box_height(box.stride))
    assert [name for name, _ in layout.columns] == ["encoder", "decoder"]
    # The image is above the encoder, the logits above the decoder.
    places = dict(zip((box.name for box in read.boxes), layout.places, strict=True))
    assert places["image"].x == places["encoder.maps[0]"].x
    assert places["head"].x == places["decoder.block2"].x
    assert terminals(read) == {0: 1, 8: 7}
    assert box_width(64, 64) > box_width(32, 64) and box_height(1) > box_height(2)


def test_branches_stand_side_by_side():
    read = viz.architecture(dz.create_model("fpn", ENCODER))
    layout = arrange(read, rows([read]), most=256)
    x = {box.name: place.x for box, place in zip(read.boxes, layout.places, strict=True)}
    # Each branch goes straight up, the longest on the outside.
    assert x["decoder.level3_conv0"] == x["decoder.level3_conv1"] == x["decoder.level3_conv2"]
    assert x["decoder.level2_conv0"] == x["decoder.level2_conv1"]
    assert x["decoder.top_down[0]"] < x["decoder"] == x["decoder.level1_conv0"]
    assert x["decoder.level1_conv0"] < x["decoder.level2_conv0"] < x["decoder.level3_conv0"]


def test_lines():
    one, two = viz.diagram([UNET, UNET]), viz.diagram([UNET, UNET], per_line=1)
    assert one.get_size_inches()[0] > two.get_size_inches()[0]
    assert one.get_size_inches()[1] < two.get_size_inches()[1]
    assert texts(two).count("PlainEncoder, UNetDecoder") == 2


def test_same_picture_every_time(tmp_path):
    files = [viz.save(viz.diagram(UNET), tmp_path / name, dpi=60).read_bytes() for name in ("a.png", "b.png")]
    assert files[0] == files[1]


def test_errors():
    with pytest.raises(ValueError, match="at least one model"):
        viz.diagram([])
    with pytest.raises(ValueError, match="per_line"):
        viz.diagram(UNET, per_line=0)
    with pytest.raises(TypeError, match="got str"):
        viz.diagram(["unet"])  # pyright: ignore[reportArgumentType]
    assert np.isfinite(viz.diagram(UNET, channels=1).get_size_inches()).all()
