"""The registry: names, arguments and error messages."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz


def test_lists_match_patterns():
    assert dz.list_models("deeplab*") == ["deeplabv3", "deeplabv3plus"]
    assert {"unet", "unetplusplus"} <= set(dz.list_models("unet*")) and "fpn" not in dz.list_models("unet*")
    assert dz.list_encoders("vgg1?_bn") == ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    assert dz.list_models("nothing*") == []


def test_blueprints_describe_every_model():
    summaries = dz.blueprints()
    assert sorted(b.name for b in summaries) == dz.list_models()
    for summary in summaries:
        assert summary.description
        assert summary.skip_strategy
        assert summary.excels_at
        assert "https://" in summary.paper


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dz.create_model("unte"), ValueError, "unknown model 'unte'; did you mean 'unet'"),
        (
            lambda: dz.create_model("unet", "resnet43"),
            ValueError,
            "unknown encoder 'resnet43'; did you mean 'resnet34'",
        ),
        (lambda: dz.create_model("UnetPlusPlus"), ValueError, r"did you mean 'unetplusplus'\?"),
        (lambda: dz.create_model("deeplabv3+"), ValueError, r"did you mean 'deeplabv3plus'\?"),
        (lambda: dz.create_model("unet", "tu-resnet34"), ValueError, r"did you mean 'resnet34'\?"),
        (lambda: dz.create_model("unet", encoder_name="resnet18"), TypeError, "use encoder, the second"),
        (lambda: dz.create_model("unet", classes=3), TypeError, "use num_classes"),
        (lambda: dz.create_encoder("resnet18", classes=3), TypeError, "'classes'; did you mean 'coarsest'"),
        (lambda: dz.create_encoder("resnet18", in_channels=1), TypeError, "the images passed to init"),
        (lambda: dz.create_model("unet", encoder_depth=3), TypeError, "coarsest="),
        (lambda: dz.create_model("linknet", skip=dz.LateralAdd), TypeError, "'skip'; there are: act, .* upsample$"),
        (lambda: dz.create_model("fpn", decoder_attention_type="scse"), TypeError, "'decoder_attention_type'; there"),
        (lambda: dz.create_model("unet", "ResNet43"), ValueError, "did you mean 'resnet34'"),
        (lambda: dz.create_model("xyz"), ValueError, "there are: .*deeplabv3, .*unet"),
        (
            lambda: dz.create_model("unet", upsampel=dz.Bilinear),
            TypeError,
            "no argument 'upsampel'; did you mean 'upsample'",
        ),
        (lambda: dz.create_encoder("resnet18", nrom=None), TypeError, "no argument 'nrom'; did you mean 'norm'"),
        (lambda: dz.create_model("unet", num_classes=0), ValueError, "num_classes"),
        (lambda: dz.create_model("unet", num_classes=2.0), ValueError, "num_classes"),
        (lambda: dz.create_model("unet", dz.PlainEncoder), TypeError, "a name or a module"),
        (lambda: dz.create_model("unet", dz.PlainEncoder(), dtype=jnp.bfloat16), ValueError, "has dtype=None"),
        (lambda: dz.create_model("unet", frozen="encoder"), ValueError, "tuple of names among encoder"),
        (lambda: dz.create_model("unet", frozen=("enc",)), ValueError, "tuple of names among encoder"),
    ],
)
def test_mistakes_are_named_with_the_nearest_choice(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_fields_reach_the_decoder():
    model = dz.create_model("unet", "resnet18", 2, skip=dz.LateralAdd, upsample=dz.TransposedConv)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    block = variables["params"]["decoder"]["block0"]
    assert set(block) == {"convs", "skip", "upsample"}
    # Added, so the convolution sees as many channels as come from below, not those of the skip too.
    assert block["convs"]["conv1"]["conv"]["kernel"].shape == (3, 3, 512, 256)


def test_segnet_says_which_encoders_it_takes():
    with pytest.raises(ValueError, match="vgg11"):
        dz.create_model("segnet", "resnet18")


def test_an_encoder_that_lacks_what_the_family_asks_for_is_warned_of():
    with pytest.warns(UserWarning, match="deeplabv3 is designed for an encoder with output_stride=8,"):
        dz.create_model("deeplabv3", dz.create_encoder("resnet18"))
    # No warning, which would fail here: another stride was chosen, or the encoder has no such field.
    dz.create_model("deeplabv3", dz.create_encoder("resnet18", output_stride=16))
    dz.create_model("pspnet", dz.PlainEncoder((4, 8, 16)))


def test_remat_reaches_what_can_have_it_and_says_so_if_nothing_can():
    assert dz.create_model("unet", "vgg11", remat=True).decoder.remat
    assert dz.create_model("deeplabv3", "resnet18", remat=True).encoder.remat
    with pytest.raises(ValueError, match="neither this encoder nor segnet's decoder"):
        dz.create_model("segnet", remat=True)


def test_unet_says_how_many_blocks_it_needs():
    for features, message in (((8, 8), "a block for each"), ((8,) * 6, "remove 1")):
        model = dz.create_model("unet", "resnet18", features=features)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_every_field_of_a_named_encoder_can_be_changed():
    for name in dz.list_encoders("res*") + dz.list_encoders("wide*"):
        assert dz.create_encoder(name, depths=(1, 1, 1, 1), width=16).reductions == (2, 4, 8, 16, 32)


def test_segnet_mirrors_what_is_left_of_a_shortened_vgg():
    model = dz.create_model("segnet", dz.create_encoder("vgg16_bn", coarsest=8), 2)
    assert model.decoder.depths == (3, 2, 1)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 33, 40, 3)))
    assert logits.shape == (1, 33, 40, 2)


def test_numpys_whole_numbers_are_whole_numbers():
    assert dz.create_model("unet", "resnet18", np.int64(3)).head.num_classes == 3
    with pytest.raises(ValueError, match=r"got 2\.5"):
        dz.create_model("unet", "resnet18", 2.5)
    with pytest.raises(ValueError, match="auxiliary, the number of"):
        dz.create_model("unet", "resnet18", auxiliary=-1)


class Halves(nn.Module):
    """An encoder that is a plain module and only returns a pyramid."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = dz.Conv(4, strides=2)(images)
        return dz.Pyramid((x, dz.Conv(8, strides=2)(x)), reductions=(2, 4))


def test_a_plain_module_that_returns_a_pyramid_is_an_encoder():
    for name in dz.list_models(task="segmentation"):
        # SegNet needs indices, DPT four maps.
        model = dz.create_model(name, Halves(), 2)
        if name in ("segnet", "dpt"):
            with pytest.raises(ValueError, match=r"pool_indices|needs 4 of the encoder's maps .* gives 2"):
                jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 17, 16, 3)))
            continue
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 17, 16, 3)))
        assert logits.shape == (1, 17, 16, 2), name
        if name == "unet":
            assert set(variables["params"]["decoder"]) == {"block0", "block1"}


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (lambda **fields: dz.ResNet(block=dz.BasicBlock, **fields), {"stage_sizes": (1, 2)}, {"depths": (1, 2)}),
        (dz.SENet, {"stage_sizes": (1,)}, {"depths": (1,)}),
        (dz.VGG, {"stage_sizes": (1,)}, {"depths": (1,)}),
        (dz.DenseNet, {"stage_sizes": (1,)}, {"depths": (1,)}),
        (lambda **fields: dz.HRNet(8, **fields), {"stage_sizes": (1,)}, {"depths": (1,)}),
        (dz.ConvNeXt, {"stage_sizes": (1,), "widths": (4,)}, {"depths": (1,), "dims": (4,)}),
        (
            dz.Swin,
            {"stage_sizes": (1,), "width": 4, "heads": (2,), "window": 3},
            {"depths": (1,), "embed_dim": 4, "num_heads": (2,), "window_size": 3},
        ),
        (
            lambda **fields: dz.MixTransformer((1,), **fields),
            {"widths": (4,), "heads": (2,)},
            {"embed_dims": (4,), "num_heads": (2,)},
        ),
        (
            lambda **fields: dz.ViT(depth=4, **fields),
            {"width": 4, "heads": 2},
            {"embed_dim": 4, "num_heads": 2},
        ),
        (dz.SegNetDecoder, {"stage_sizes": (1,)}, {"depths": (1,)}),
        (dz.Pyramid, {"features": (1,)}, {"maps": (1,)}),
        (partial(dz.create_encoder, "swin_tiny_patch4_window7_224"), {"width": 4}, {"embed_dim": 4}),
        (partial(dz.Pyramid((2,)).replace), {"features": (1,)}, {"maps": (1,)}),
    ],
)
def test_old_names_of_fields_go_on_working_with_a_warning(make, old, new):
    with pytest.warns(DeprecationWarning) as caught:
        made = make(**old)
    said = [str(warning.message).partition(".")[2] for warning in caught]
    assert said == [f"{name} has been renamed to {current}" for name, current in zip(old, new, strict=True)]
    for name, current in zip(old, new, strict=True):
        assert getattr(made, current) == new[current]
        with pytest.warns(DeprecationWarning, match=f"{name} has been renamed to {current}"):
            assert getattr(made, name) == new[current]
    make(**new)  # without a warning, which would fail here


def test_decoders_without_norms_have_biases():
    model = dz.create_model("fpn", "resnet18", norm=None)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert "bias" in variables["params"]["decoder"]["level0_conv0"]["conv"]
