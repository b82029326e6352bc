"""The training state as one pytree."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import unfreeze
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from densezoo import freezing
from densezoo.compiling import jitted_once
from densezoo.messages import indented, option
from densezoo.train.sharding import Layout


class TrainState(struct.PyTreeNode):
    """Parameters, statistics, optimizer state and random key of a training run. Created by `create_state`.

    Attributes:
        step: number of completed updates.
        params: all parameters, including frozen ones.
        collections: the model's other collections by name, such as `batch_stats`, the running statistics of norms.
        opt_state: optimizer state of the trainable parameters.
        ema: moving average of the trainable parameters, or None.
        key: random key of the run. It never changes: a step uses `fold_in(key, step)`.
        apply_fn: the model's `apply`.
        optimizer: optax gradient transformation.
        frozen: names of the parts that are not trained, as in `SegmentationModel`.
        ema_decay: decay of the moving average, or None.
        layout: the mesh and how the state is sharded over it, or None.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    collections: dict[str, Any]
    opt_state: PyTree
    ema: dict[str, Any] | None
    key: Key[Array, ""]
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())
    ema_decay: float | None = struct.field(pytree_node=False, default=None)
    layout: Layout | None = struct.field(pytree_node=False, default=None)

    @property
    def trainable(self) -> dict[str, Any]:
        """The parameters that the optimizer updates."""
        return freezing.trainable(self.params, self.frozen)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for `model.apply`, after the last step."""
        return {"params": self.params, **self.collections}

    @property
    def ema_variables(self) -> dict[str, Any]:
        """Variables for `model.apply` with averaged parameters; equal to `variables` if there is no average."""
        return {"params": freezing.merged(self.params, self.ema or {}), **self.collections}

    @property
    def batch_stats(self) -> dict[str, Any]:
        """Running statistics of the norms; an empty dict for a model without any."""
        return self.collections.get("batch_stats", {})


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *inputs: Any,
    variables: Mapping[str, Any] | None = None,
    ema_decay: float | None = None,
    mesh: Mesh | Layout | None = None,
) -> TrainState:
    """Creates the state of a training run at step 0.

    Parameters are initialised in one compiled function. The parts named by `model.frozen` (if it has that field) get
    neither gradients nor optimizer state.

    Args:
        model: a Linen module.
        optimizer: optax gradient transformation, for instance from `make_optimizer`.
        key: random key (`jax.random.key(seed)`), for the parameters and for every step's randomness.
        *inputs: the model's inputs, arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.
        variables: initial variables (for instance pretrained), which are copied, instead of random ones.
        ema_decay: decay of a moving average of the parameters, for instance 0.999. In the first steps the decay is
            smaller, `min(ema_decay, (1 + step) / (10 + step))`, to forget the random initialisation quickly. Batch
            statistics are running means already and are not averaged again.
        mesh: devices to train on, with axes `data`, `fsdp`, `rows` and `columns`, or a `Layout` with your own rules.
            Each device only creates its part of the state, and `fit` places the batches. See the page "Several
            devices".

    Returns:
        The state. Without a mesh, it is not committed to a device. If you place it on one yourself, with
        `jax.device_put`, do it before the first step; otherwise the second step recompiles.

    Raises:
        TypeError: if `key` is not a typed random key.
        ValueError: if `model.frozen` names an unknown part, or `variables` belong to another model.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, images, *, train=False):
        ...         return nn.Conv(2, (3, 3))(images)
        >>> state = create_state(Net(), optax.sgd(0.1), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> state.params["Conv_0"]["kernel"].shape
        (3, 3, 3, 2)
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a random key such as jax.random.key(0); got {type(key).__name__}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"{option('ema_decay')} must be between 0 and 1, for instance 0.999; got {ema_decay}")

    layout = Layout.of(mesh)

    def init(key) -> dict[str, Any]:
        return unfreeze(model.init(key, *(jnp.zeros(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for x in inputs)))

    expected = jax.eval_shape(init, key)
    frozen = getattr(model, "frozen", ())
    freezing.check_names(expected["params"], frozen)
    if not freezing.trainable(expected["params"], frozen):
        raise ValueError(f"model.frozen = {tuple(frozen)} leaves nothing to train")
    if variables is not None:
        variables = unfreeze(dict(variables))
        _check_variables(variables, expected)

    def create(key, variables):
        init_key, step_key = jax.random.split(key)
        if variables is None:
            variables = init(init_key)
        else:  # Copies, because a train step donates the state and the caller keeps its variables.
            variables = jax.tree.map(lambda x, like: jnp.array(x, like.dtype, copy=True), variables, expected)
        trainable = freezing.trainable(variables["params"], frozen)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats.
            opt_state = optimizer.init(trainable)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            collections={name: tree for name, tree in variables.items() if name != "params"},
            opt_state=opt_state,
            ema=None if ema_decay is None else jax.tree.map(jnp.copy, trainable),
            key=step_key,
            apply_fn=model.apply,
            optimizer=optimizer,
            frozen=tuple(frozen),
            ema_decay=ema_decay,
            layout=layout,
        )

    if layout is None:
        return jitted_once(create)(key, variables)
    return jitted_once(create, layout.shardings(jax.eval_shape(create, key, variables)))(key, variables)


def describe_differences(here: PyTree, given: PyTree, given_name: str) -> list[str]:
    """Lines that describe how two trees of arrays differ in structure, shape or dtype; none if they agree."""

    def leaves(tree):
        named = jax.tree.leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in named}

    expected, found, lines = leaves(here), leaves(given), []
    for name in sorted(expected.keys() | found.keys(), key=lambda name: (not name.startswith("params"), name)):
        if name not in found:
            lines.append(f"{name}: missing in {given_name}")
        elif name not in expected:
            lines.append(f"{name}: only in {given_name}")
        elif tuple(expected[name].shape) != tuple(found[name].shape) or expected[name].dtype != found[name].dtype:
            want, have = (f"{tuple(x.shape)} {x.dtype}" for x in (expected[name], found[name]))
            lines.append(f"{name}: {want} expected, {have} in {given_name}")
    return lines


def _check_variables(variables: PyTree, expected: PyTree) -> None:
    def shapes(tree):  # Dtypes may differ, because arrays are cast to the model's.
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.float32), tree)

    if lines := describe_differences(shapes(expected), shapes(variables), "variables"):
        raise ValueError(
            f"variables are of another model: {len(lines)} arrays differ.\n{indented(lines)}\n"
            "Build the model with the options that the variables were made with."
        )
