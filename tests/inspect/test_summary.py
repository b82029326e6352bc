import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import densezoo as dz


def test_counts_are_those_of_the_arithmetic():
    encoder = dz.PlainEncoder(features=(4, 8), norm=None)
    table = dz.summary(encoder, (2, 16, 12, 3), depth=3)
    layers = {layer.path: layer for layer in table.layers}
    assert layers["block0", "conv1", "conv"].flops == 2 * (2 * 16 * 12) * 4 * (9 * 3)
    assert layers["block1", "conv2", "conv"].flops == 2 * (2 * 8 * 6) * 8 * (9 * 8)
    assert layers[()].flops == sum(layer.flops for path, layer in layers.items() if len(path) == 3)
    assert layers["block0",].parameters == 9 * 3 * 4 + 4 + 9 * 4 * 4 + 4
    assert layers["block0",].shapes == ((2, 16, 12, 4),)
    assert layers["block0",].bytes == 4 * 2 * 16 * 12 * 4
    assert layers[()].shapes == ((2, 16, 12, 4), (2, 8, 6, 8))
    assert dz.summary(encoder, jnp.zeros((2, 16, 12, 3)), depth=3) == table


def test_all_parameters_are_counted_and_the_fast_form_does_not_change_the_count():
    model = dz.create_model("unet", "resnet18", num_classes=3)
    table = dz.summary(model, (64, 65, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))["params"]
    assert table.layers[0].parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert table.layers[0].flops == dz.summary(model.clone(impl="reference"), (64, 65, 3)).layers[0].flops
    inner = [layer for layer in table.layers if len(layer.path) == 1]
    assert [layer.path for layer in inner] == [("encoder",), ("decoder",), ("head",)]
    assert sum(layer.flops for layer in inner) == table.layers[0].flops


def test_what_runs_in_training_only_is_there_too_and_holders_of_weights_are_not():
    layers = dz.summary(dz.create_model("unet", dz.PlainEncoder((4, 8, 8)), 3, auxiliary=1), (16, 16, 3)).layers
    parts = {layer.path: layer for layer in layers if len(layer.path) == 1}
    assert list(parts) == [("encoder",), ("decoder",), ("head",), ("auxiliary",)]
    assert parts["auxiliary",].parameters == 8 * 3 + 3 and parts["auxiliary",].shapes == ()
    assert layers[0].parameters == sum(layer.parameters for layer in parts.values())
    table = dz.summary(dz.create_model("segformer", dz.PlainEncoder((4, 8)), 3), (16, 16, 3))
    (decoder,) = (layer for layer in table.layers if layer.path == ("decoder",))
    assert decoder.flops > 0 and not any("mlp" in name for layer in table.layers for name in layer.path)


def test_loops_and_groups_are_counted_whole():
    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (8, 8))
            x, _ = jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=5)
            return dz.Conv(8, 3, groups=4, name="grouped")(x)

    layers = {layer.path: layer for layer in dz.summary(Looped(), (1, 4, 4, 8)).layers}
    assert layers["grouped",].flops == 2 * (4 * 4 * 8) * (9 * 2)
    assert layers[()].flops == 5 * 2 * (4 * 4 * 8) * 8 + layers["grouped",].flops


def test_the_table_reads_from_the_whole_inwards():
    lines = str(dz.summary(dz.create_model("fpn", "resnet18"), (32, 32, 3), depth=1)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "module",
        "-" * len(lines[0]),
        "images",
        "encoder",
        "decoder",
        "head",
        "parameters",
    ]
    assert len({len(line) for line in lines[:-1]}) == 1


def test_old_names_go_on_working():
    table = dz.summary(dz.PlainEncoder((4, 8)), (8, 8, 3))
    with pytest.warns(DeprecationWarning, match="renamed to layers"):
        assert table.rooms == table.layers
    with pytest.warns(DeprecationWarning, match="renamed to densezoo.Layer"):
        assert dz.Room is dz.Layer is type(table.layers[0])


@pytest.mark.parametrize("shape", [(224, 224), (1, 0, 224, 3), (1, 1, 1, 1, 1)])
def test_shapes_that_are_no_images_are_named(shape):
    with pytest.raises(ValueError, match="image_shape must be"):
        dz.summary(dz.create_model("unet", "plain"), shape)


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_a_transposed_convolution_counts_what_each_number_of_its_input_is_multiplied_with(kernel_size):
    layer = dz.TransposedConv(kernel_size)
    for impl in ("auto", "reference"):
        with dz.ops.implementation(impl):
            table = dz.summary(Doubled(layer), (4, 4, 8))
        assert table.layers[0].flops == 2 * (4 * 4 * 8) * kernel_size**2 * 8


class Doubled(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x, (2 * x.shape[1], 2 * x.shape[2]))
