"""The registry: names, arguments, and messages that help."""

import jax
import jax.numpy as jnp
import pytest

import densezoo as dz


def test_lists_match_patterns():
    assert dz.list_models("*net") == ["hrnet", "linknet", "manet", "pspnet", "segnet", "unet", "upernet"]
    assert len(dz.list_models()) == 14
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
        (lambda: dz.create_model("xyz"), ValueError, "there are: deeplabv3, deeplabv3plus, dpt, fpn,"),
        (
            lambda: dz.create_model("unet", upsampel=dz.Bilinear),
            TypeError,
            "no argument 'upsampel'; did you mean 'upsample'",
        ),
        (lambda: dz.create_encoder("resnet18", nrom=None), TypeError, "no argument 'nrom'; did you mean 'norm'"),
        (lambda: dz.create_model("unet", num_classes=0), ValueError, "num_classes"),
        (lambda: dz.create_model("unet", num_classes=2.0), ValueError, "num_classes"),
        (lambda: dz.create_model("unet", dz.PlainEncoder), TypeError, "a name or an encoder"),
        (lambda: dz.create_model("unet", dz.PlainEncoder(), dtype=jnp.bfloat16), ValueError, "computes in dtype=None"),
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
        jax.eval_shape(dz.create_model("segnet", "resnet18").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_unet_says_how_many_blocks_it_needs():
    for features, message in (((8, 8), "a block for each"), ((8,) * 6, "1 fewer")):
        model = dz.create_model("unet", "resnet18", features=features)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_every_field_of_a_named_encoder_can_be_changed():
    for name in dz.list_encoders("res*") + dz.list_encoders("wide*"):
        assert dz.create_encoder(name, stage_sizes=(1, 1, 1, 1), width=16).reductions == (2, 4, 8, 16, 32)
