"""Runs blocks with equal fields as one loop, so that XLA compiles them once."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList

from densezoo.blocks.regularize import run_block
from densezoo.ops.implementation import chosen, within_loop
from densezoo.ops.sharding import explicitly_sharded

_separate = jax.make_user_context(False)


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Makes `run_blocks` call every block by itself in this context, for interceptors that read paths of modules."""
    with _separate(True):
        yield


def run_blocks(blocks: Sequence[nn.Module], x: Any, *, train: bool, remat: bool = False) -> Any:
    """Calls one block after the other, `x = block(x, train=train)`.

    In training on CPU, neighbours with equal fields and variables of equal shapes become one `jax.lax.scan` over their
    stacked variables: XLA compiles one block for all of them. Everything else is as without the loop, the names of the
    variables included, except which random numbers are drawn. Blocks are called one by one for initialisation, with
    `impl="reference"`, within `one_by_one`, if other collections than `batch_stats` are mutable (such as captured
    intermediates), and on other platforms.

    Args:
        blocks: modules of the calling module, whose results have the shapes of their inputs.
        x: an array or a tree of arrays.
        train: is passed to every block.
        remat: whether the backward pass recomputes the inner maps of each block.
    """
    start = 0
    while start < len(blocks):
        end = start + 1
        while end < len(blocks) and _are_alike(blocks[start], blocks[end], x, train):
            end += 1
        if end - start == 1:
            x = run_block(blocks[start], x, train=train, remat=remat)
        else:
            x = _scan(blocks[start:end], x, train, remat)
        start = end
    return x


def _are_alike(first: nn.Module, other: nn.Module, x: Any, train: bool) -> bool:
    """Whether both blocks can be parts of one loop."""
    if not train or _separate.value or chosen() == "reference" or jax.default_backend() != "cpu":
        return False
    if first.is_initializing() or explicitly_sharded(*jax.tree.leaves(x)):
        return False
    scope: Any = first.scope
    mutable = {scope.mutable} if isinstance(scope.mutable, str) else scope.mutable or ()
    if mutable is True or isinstance(mutable, DenyList) or not set(mutable) <= {"batch_stats"}:
        return False
    kinds = [jax.tree.map(jax.typeof, dict(block.variables)) for block in (first, other)]
    return _unbound(first) == _unbound(other) and kinds[0] == kinds[1]


def _unbound(block: nn.Module) -> nn.Module:
    return block.clone(parent=None, name=None)


def _scan(blocks: Sequence[nn.Module], x: Any, train: bool, remat: bool) -> Any:
    template = _unbound(blocks[0])
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(dict(block.variables) for block in blocks))
    mutable = ["batch_stats"] if blocks[0].is_mutable_collection("batch_stats") else []
    scope: Any = blocks[0].scope
    keys = {name: jnp.stack([block.make_rng(name) for block in blocks]) for name in scope.rngs}

    def call(x, variables, keys):
        with within_loop():
            y, updated = template.apply(variables, x, train=train, rngs=keys, mutable=mutable)
        return y, dict(updated)

    if {array.dtype for array in jax.tree.leaves((x, stacked))} != {jnp.dtype(jnp.float32)}:
        first = jax.tree.map(lambda array: array[0], (stacked, keys))
        types = [jax.tree.map(lambda array: array.dtype, tree) for tree in (x, jax.eval_shape(call, x, *first)[0])]
        if types[0] != types[1]:  # the first block changes the dtype, which a loop cannot
            x = run_block(blocks[0], x, train=train, remat=remat)
            return run_blocks(blocks[1:], x, train=train, remat=remat)
    if remat:
        call = jax.checkpoint(call, prevent_cse=False)
    x, updated = jax.lax.scan(lambda x, given: call(x, *given), x, (stacked, keys))
    for index, block in enumerate(blocks):
        for collection, tree in updated.items():
            for name, values in tree.items():
                block.put_variable(collection, name, jax.tree.map(lambda array, index=index: array[index], values))
    return x
