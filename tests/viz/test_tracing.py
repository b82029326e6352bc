import flax.linen as nn
import jax
import jax.numpy as jnp

import densezoo as dz
from densezoo.viz.tracing import run_with_maps, trace

MODEL = dz.create_model("fpn", dz.PlainEncoder(features=(4, 8, 16)), features=8, segmentation_features=32)
KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct((1, 13, 10, 3), jnp.float32)


class Sum(nn.Module):
    """Data flow through the elements of programs: jit, custom derivatives, a loop, a residual connection."""

    @nn.compact
    def __call__(self, x, *, train=False):
        a = nn.Conv(4, (1, 1), name="a")(x)
        b = nn.Conv(4, (1, 1), name="b")(jax.jit(nn.relu)(a) + a)
        c = nn.Conv(4, (1, 1), name="c")(jax.lax.fori_loop(0, 2, lambda _, y: y * 2, b))
        return nn.Conv(4, (1, 1), name="d")(jax.jit(jnp.add)(c, jnp.ones_like(x[..., :1])) * a)


def test_sources():
    model = Sum()
    found = trace(model, jax.eval_shape(model.init, KEY, IMAGE), IMAGE)
    names = [".".join(m.path) for m in found.maps]
    sources = {name: {names[s]: p for s, p in m.sources.items()} for name, m in zip(names, found.maps, strict=True)}
    # A map and a map computed only from it do not "meet" in a residual connection.
    assert sources == {"": {}, "a": {"": ""}, "b": {"a": ""}, "c": {"b": ""}, "d": {"c": "mul", "a": "mul"}}
    assert found.parts == {()}


def test_parts_and_upsamplers():
    found = trace(MODEL, jax.eval_shape(MODEL.init, KEY, IMAGE), IMAGE)
    assert found.parts == {(), ("encoder",), ("decoder",), ("decoder", "top_down")}
    assert found.upsamplers[("decoder", "top_down", "upsample0")] == "Nearest"
    assert found.upsamplers[("decoder", "level2_upsample0")] == "Bilinear"
    assert ("decoder", "top_down", "skip0") not in found.upsamplers
    # Nothing from inside of blocks.
    assert all(m.path[:-1] in found.parts or m.path in found.parts for m in found.maps)


def test_keys_find_the_same_maps_in_a_run():
    traced = {m.key: m.shape for m in trace(MODEL, jax.eval_shape(MODEL.init, KEY, IMAGE), IMAGE).maps[1:]}
    found = {}

    def keep(key, x, module, inside, arguments):
        found[key] = x.shape
        return x

    def run(key, images):
        # In a run that also initialises, with another batch size.
        return run_with_maps(MODEL, MODEL.init(key, images), [images], keep)

    logits = jax.eval_shape(run, KEY, jax.ShapeDtypeStruct((2, 13, 10, 3), jnp.float32))
    assert {key: (1, *found[key][1:]) for key in traced} == traced
    assert logits.shape == (2, 13, 10, 1)
