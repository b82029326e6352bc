"""Blocks as one loop: the same values, gradients and statistics as one after the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.blocks import DropPath, run_blocks

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 4, 4, 3))


class Block(nn.Module):
    drop: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        y = dz.BatchNorm(name="norm")(nn.Dense(3, name="dense")(x), train=train)
        return x + DropPath(self.drop)(jnp.tanh(y), train=train)


class Net(nn.Module):
    drops: tuple[float, ...]
    remat: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        blocks = [Block(drop=drop, name=f"block{index}") for index, drop in enumerate(self.drops)]
        return run_blocks(blocks, x, train=train, remat=self.remat)


def loops(net, variables, mutable, **arguments):
    """The lengths of the loops in training."""
    program = jax.make_jaxpr(lambda v: net.apply(v, X, mutable=mutable, **arguments))(variables)
    return [equation.params["length"] for equation in program.eqns if equation.primitive.name == "scan"]


@pytest.mark.parametrize("remat", [False, True])
def test_values_gradients_and_statistics_are_those_of_one_block_after_the_other(remat):
    net = Net((0.0, 0.0, 0.0, 1e-9, 0.0, 0.0), remat)
    variables = jax.jit(net.init)(KEY, X)
    assert set(variables["params"]) == {f"block{index}" for index in range(6)}

    def trained(collections):
        def loss(params):
            y, updated = net.apply(
                variables | {"params": params}, X, train=True, mutable=collections, rngs={"dropout": KEY}
            )
            return (y * jnp.broadcast_to(jnp.arange(3.0), y.shape)).sum(), (y, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)

    looped, plain = jax.jit(lambda p: (trained(["batch_stats"])(p), trained(["batch_stats", "intermediates"])(p)))(
        variables["params"]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), looped, plain)
    arguments = {"train": True, "rngs": {"dropout": KEY}}
    assert loops(net, variables, ["batch_stats"], **arguments) == [3, 2]


def test_no_loop_where_every_block_must_be_seen():
    net = Net((0.0,) * 3)
    variables = jax.jit(net.init)(KEY, X)
    assert loops(net, variables, ["batch_stats"], train=True) == [3]
    assert loops(net, variables, ["batch_stats", "intermediates"], train=True) == []
    assert loops(net, variables, False) == []
    with dz.ops.implementation("reference"):
        assert loops(net, variables, ["batch_stats"], train=True) == []
    _, kept = net.apply(variables, X, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True)
    assert {"block0", "block1", "block2"} <= set(kept["intermediates"])


def test_each_block_drops_samples_of_its_own():
    net = Net((0.5,) * 4)
    variables = jax.jit(net.init)(KEY, X)

    @jax.jit
    def added(key):  # by how many of the blocks, each of which adds one
        ones = jax.tree.map(jnp.zeros_like, variables["params"])
        for name in ones:
            ones[name]["norm"]["bias"] = jnp.full(3, 20.0)
        y, _ = net.apply({**variables, "params": ones}, X, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return (y - X)[:, 0, 0, 0] / 2

    counts = np.round(np.asarray(added(KEY))).astype(int).tolist()
    assert set(counts) - {0, 4}
    assert (added(KEY) != added(jax.random.key(1))).any()


def test_hrnet_trains_its_blocks_in_loops():
    encoder = dz.HRNet(width=4, layer1_size=1, layer1_features=4, depths=(1, 2), branch_size=2, incre=False)
    x = jax.random.normal(KEY, (2, 32, 24, 3))
    variables = jax.eval_shape(encoder.init, KEY, x)
    program = jax.make_jaxpr(lambda v: encoder.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    found = [equation.params["length"] for equation in program.eqns if equation.primitive.name == "scan"]
    assert found == [2, 2, 2]  # the blocks of stage 2's two branches, and the units of stage 3
