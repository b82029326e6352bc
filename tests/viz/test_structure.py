from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import densezoo as dz
from densezoo import viz

ENCODER = dz.PlainEncoder(features=(8, 16, 32, 64))


def boxes(read, column):
    return [(box.name, box.stride, box.channels) for box in read.boxes if box.column == column]


def skips(read):
    return [
        (read.boxes[link.start].name, read.boxes[link.end].name, link.join)
        for link in read.links
        if link.kind == "skip"
    ]


def test_unet():
    read = viz.architecture(dz.create_model("unet", ENCODER, num_classes=5), image_size=(64, 32), channels=4)
    assert read.columns == ("image", "encoder", "decoder", "head")
    assert read.title == "PlainEncoder, UNetDecoder"
    assert read.encoder == "encoder"
    assert boxes(read, "image") == [("image", 1, 4)]
    assert boxes(read, "encoder") == [(f"encoder.maps[{level}]", 2**level, 8 * 2**level) for level in range(4)]
    assert boxes(read, "decoder") == [("decoder.block0", 4, 32), ("decoder.block1", 2, 16), ("decoder.block2", 1, 8)]
    assert boxes(read, "head") == [("head", 1, 5)]
    assert [box.size for box in read.boxes if box.column == "encoder"] == [(64, 32), (32, 16), (16, 8), (8, 4)]
    assert skips(read) == [(f"encoder.maps[{2 - i}]", f"decoder.block{i}", "concat") for i in range(3)]
    assert {box.upsample for box in read.boxes if box.column == "decoder"} == {"Nearest"}
    # Only the skips, the encoder's path, the decoder's path, and the ends.
    assert [link.kind for link in read.links] == ["forward", *["down"] * 3, *["up", "skip"] * 3, "head"]


def test_parameters_are_counted():
    model = dz.create_model("unet", dz.PlainEncoder(features=(4, 8)))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert viz.architecture(model).parameters == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("skip, join", [(dz.ConcatSkip, "concat"), (partial(dz.LateralAdd), "add")])
def test_skips_follow_the_model(skip, join):
    read = viz.architecture(dz.create_model("unet", ENCODER, skip=skip))
    assert [found for *_, found in skips(read)] == [join] * 3
    # Only a lateral is projected, and only on its way from the encoder.
    projected = [link.kind for link in read.links if link.projection == "1x1"]
    assert projected == (["skip"] * 3 if join == "add" else [])


def test_upsamplers_follow_the_model():
    # PixelShuffle convolves at the coarse size first, which is not a box of its own.
    read = viz.architecture(dz.create_model("unet", ENCODER, upsample=dz.PixelShuffle))
    assert [box.upsample for box in read.boxes if box.column == "decoder"] == ["PixelShuffle"] * 3
    assert len(read.boxes) == 1 + 4 + 3 + 1
    read = viz.architecture(dz.create_model("unet", ENCODER, upsample=dz.ResizeConv))
    assert {box.upsample for box in read.boxes if box.column == "decoder"} == {"ResizeConv"}


def test_fpn():
    read = viz.architecture(dz.create_model("fpn", ENCODER, features=48, segmentation_features=32, levels=3))
    assert read.columns == ("image", "encoder", "decoder.top_down", "decoder", "head")
    assert boxes(read, "decoder.top_down") == [
        ("decoder.top_down[2]", 8, 48),
        ("decoder.top_down[1]", 4, 48),
        ("decoder.top_down[0]", 2, 48),
    ]
    # The finest encoder map takes no part; the coarsest has nothing to be added to.
    assert skips(read) == [
        ("encoder.maps[2]", "decoder.top_down[1]", "add"),
        ("encoder.maps[1]", "decoder.top_down[0]", "add"),
    ]
    # A branch for each level: none, one and two steps up to the finest, where they are added.
    assert sorted(stride for _, stride, _ in boxes(read, "decoder")) == [2, 4, 4, 8]
    end = next(i for i, box in enumerate(read.boxes) if box.name == "decoder")
    into = [(read.boxes[link.start].name, link.kind, link.join) for link in read.links if link.end == end]
    assert sorted(into) == [
        ("decoder.level1_conv0", "up", "add"),
        ("decoder.level2_conv1", "up", "add"),
        ("decoder.top_down[0]", "forward", "add"),
    ]
    assert [box.upsample for box in read.boxes if box.column == "head"] == ["Bilinear"]


def test_segnet_skips_by_indices():
    vgg = dz.VGG(depths=(1, 1, 2), widths=(4, 8, 16))
    read = viz.architecture(dz.create_model("segnet", vgg))
    # From the map that was pooled, which at the image's size is not even a feature of the encoder.
    assert [(start, join) for start, _, join in skips(read)] == [
        ("encoder.maps[1]", "indices"),
        ("encoder.maps[0]", "indices"),
        ("encoder.features_0", "indices"),
    ]
    assert {link.join for link in read.links if link.kind == "up"} == {"indices"}
    read = viz.architecture(dz.create_model("segnet", ENCODER))
    assert [join for *_, join in skips(read)] == ["indices"] * 3


def test_neck_without_a_head():
    read = viz.architecture(dz.PyramidModel(ENCODER, dz.FPNNeck(features=24, levels=2)))
    assert boxes(read, "neck") == [("neck[0]", 4, 24), ("neck[1]", 8, 24)]
    assert {box.upsample for box in read.boxes if box.column == "neck"} == {""}
    assert not any(link.kind == "head" for link in read.links)


def test_tokens_beside_the_maps_are_no_head():
    encoder = dz.ViT(embed_dim=16, depth=4, num_heads=2, grid=4)
    read = viz.architecture(dz.create_model("dpt", encoder, 2, features=8), image_size=(64, 64))
    assert not read.heads
    decoder = [box.name for box in read.boxes].index("decoder")
    into = {read.boxes[link.start].name for link in read.links if link.end == decoder}
    assert into == {f"encoder.maps[{i}]" for i in range(4)}


def test_an_embedding_of_times_is_no_head():
    model = dz.create_model("diffusion_unet", features=(4, 8), layers=1)
    read = viz.architecture(model, image_size=(16, 16))
    assert len(read.boxes) > 4 and not read.heads
    assert viz.diagram({"diffusion": model}, image_size=(16, 16)).axes


def test_the_heads_of_a_detector():
    encoder = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8)
    model = dz.create_model("mask_rcnn", encoder, 3, features=8, hidden=(16,)).clone(proposals=(50, 50))
    read = viz.architecture(model)
    rpn, box, mask, detections = read.heads
    assert [(head.name, head.kind) for head in (rpn, box, mask)] == [
        ("rpn", "RPNHead"),
        ("box_head", "BoxHead"),
        ("mask_head", "MaskHead"),
    ]
    # Proposals come from all maps, regions from those of the encoder's scales.
    assert sorted(read.boxes[i].stride for i in rpn.maps) == [4, 8, 16, 32, 64]
    assert sorted(read.boxes[i].stride for i in box.maps) == sorted(read.boxes[i].stride for i in mask.maps)
    assert sorted(read.boxes[i].stride for i in box.maps) == [4, 8, 16, 32] and detections.maps == ()
    # Each reads what the one before it found.
    assert [head.heads for head in read.heads] == [(), (0,), (1,), (2,)]
    anchors = 3 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    assert rpn.outputs == (("logits", (anchors, 1)), ("deltas", (anchors, 4)))
    assert box.outputs == (("logits", (50, 3)), ("deltas", (50, 3, 4))) and mask.outputs == (("", (100, 28, 28, 3)),)
    assert detections.outputs[0] == ("boxes", (100, 4)) and detections.outputs[-1] == ("masks", (100, 28, 28))
    # Maps that the neck only hands on are not drawn twice.
    assert len({(box.column, box.stride) for box in read.boxes}) == len(read.boxes)


class FusedBlock(nn.Module):
    """Computes a concatenation followed by a convolution without building the concatenation."""

    skip: type = dz.ConcatSkip

    @nn.compact
    def __call__(self, x, feature, *, train=False):
        x = dz.Nearest()(x, feature.shape[1:3])
        return dz.Conv(8, name="left")(x) + dz.Conv(8, name="right")(feature)


class Gate(nn.Module):
    @nn.compact
    def __call__(self, x, feature, *, train=False):
        return dz.Nearest()(dz.Conv(feature.shape[-1])(x), feature.shape[1:3]) * feature


class OneBlock(nn.Module):
    block: type

    @nn.compact
    def __call__(self, pyramid, *, train=False):
        return self.block(name="block")(pyramid.maps[1], pyramid.maps[0])


@pytest.mark.parametrize("block, join", [(FusedBlock, "concat"), (Gate, "multiply")])
def test_skips_of_other_blocks(block, join):
    model = dz.SegmentationModel(dz.PlainEncoder(features=(4, 8)), OneBlock(block), dz.SegmentationHead(2))
    assert skips(viz.architecture(model)) == [("encoder.maps[0]", "decoder.block", join)]


class Join(nn.Module):
    @nn.compact
    def __call__(self, x, features, *, train=False):
        x = dz.Nearest()(x, features[0].shape[1:3])
        return dz.Conv(4)(jnp.concatenate([x, *features], axis=-1))


class Grid(nn.Module):
    """A U-Net++: at each scale, maps that join all previous maps of this scale."""

    @nn.compact
    def __call__(self, pyramid, *, train=False):
        rows = [[feature] for feature in pyramid.maps]
        for column in range(1, len(rows)):
            for row in range(len(rows) - column):
                rows[row].append(Join(name=f"x{row}_{column}")(rows[row + 1][column - 1], rows[row]))
        return rows[0][-1]


def test_dense_skips():
    model = dz.SegmentationModel(dz.PlainEncoder(features=(4, 8, 16)), Grid(), dz.SegmentationHead(2))
    assert skips(viz.architecture(model)) == [
        ("encoder.maps[0]", "decoder.x0_1", "concat"),
        ("encoder.maps[1]", "decoder.x1_1", "concat"),
        ("encoder.maps[0]", "decoder.x0_2", "concat"),
        ("decoder.x0_1", "decoder.x0_2", "concat"),
    ]


class Single(nn.Module):
    """A network in one module, with rematerialisation, without encoder and decoder."""

    @nn.compact
    def __call__(self, images, *, train=False):
        fine = nn.remat(nn.Conv)(4, (3, 3), name="fine")(images)
        coarse = nn.Conv(8, (3, 3), strides=2, name="coarse")(jax.jit(nn.relu)(fine))
        up = jax.image.resize(coarse, (*fine.shape[:3], 8), "nearest")
        return nn.Conv(2, (3, 3), name="logits")(jnp.concatenate([up, fine], axis=-1))


def test_network_in_one_piece():
    read = viz.architecture(Single())
    assert read.title == "Single"
    assert boxes(read, "model") == [("fine", 1, 4), ("coarse", 2, 8), ("logits", 1, 2)]
    assert skips(read) == [("fine", "logits", "concat")]


class Nothing(nn.Module):
    def __call__(self, images, *, train=False):
        return images


def test_errors():
    with pytest.raises(TypeError, match="expected a Flax Linen module, for example from create_model; got str"):
        viz.architecture("unet")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="returns a map"):
        viz.architecture(Nothing())
    with pytest.raises(ValueError, match="segnet does not work with this encoder"):
        viz.architecture(dz.create_model("segnet", "resnet18"))
