"""Placement of a training run on a mesh of devices.

The names of the mesh's axes define what they share (`space` is another name for `rows`):

| axis | shares |
| --- | --- |
| `data` | the batch |
| `fsdp` | the batch, and by the rules also the parameters, their average and the optimizer state |
| `rows`, `columns` | the rows and the columns of images and maps |

Batches and states are global arrays, so the train step is the same on every mesh, and XLA adds the communication. Batch
norms use the global batch.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from densezoo.messages import option, shortened
from densezoo.ops.sharding import SPATIAL

FSDP = "fsdp"
AXES = ("data", FSDP, *SPATIAL)
Rules = tuple[tuple[str, P | Callable[[tuple[int, ...], Mesh], P]], ...]


def over_fsdp(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Shards the longest axis that `fsdp` divides; arrays of fewer than 1024 numbers are replicated.

    Example:
        >>> import jax
        >>> mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
        >>> over_fsdp((3, 3, 64, 128), mesh) == jax.P(None, None, None, "fsdp"), over_fsdp((128,), mesh) == jax.P()
        (True, True)
    """
    parts = mesh.shape.get(FSDP, 1)
    divided = [axis for axis, side in enumerate(shape) if side % parts == 0]
    if parts == 1 or math.prod(shape) < 1024 or not divided:
        return P()
    axis = max(divided, key=lambda axis: (shape[axis], axis))
    return P(*[None] * axis, FSDP)


RULES: Rules = (("^(params|ema|opt_state)/", over_fsdp),)
"""The default rules: shard the parameters, their average and the optimizer state over `fsdp`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and rules that shard the arrays of a training state over it.

    Attributes:
        mesh: a mesh with any of the axes `data`, `fsdp`, `rows` and `columns`, such as
            `jax.make_mesh((2, 4), ("data", "fsdp"))`.
        rules: pairs of a regular expression and a `PartitionSpec`, or a function from (shape, mesh) to one. The first
            expression that is found in an array's name, such as `params/encoder/block0/conv1/conv/kernel`, shards it.
            The names of the optimizer's arrays end like those of the parameters. Other arrays are replicated.

    Raises:
        TypeError: if the mesh is not a `jax.sharding.Mesh`.
        ValueError: if the mesh has another axis, or both `rows` and `space`; if a rule is not a regular expression.

    Example:
        >>> import jax
        >>> mesh = jax.make_mesh((1, 1), ("data", "fsdp"))
        >>> layout = Layout(mesh, (("head/.*kernel", jax.P()), *RULES))
        >>> layout.parts, layout.shard
        (1, (0, 1))
    """

    mesh: Mesh
    rules: Rules = RULES

    def __post_init__(self):
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"expected a mesh, such as jax.make_mesh((4,), ('data',)); got {self.mesh!r}")
        for pattern, _ in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the rule {pattern!r} is not a valid regular expression: {error}") from error
        names = self.mesh.axis_names
        if unknown := [name for name in names if name not in AXES]:
            raise ValueError(f"the mesh has axes {unknown}; expected some of {', '.join(AXES)}")
        if {"rows", "space"} <= set(names):
            raise ValueError("the mesh has the axes rows and space, which are two names for the same: keep one of them")
        # XLA distributes the operations. Explicit axes would need a sharding for each operation on mixed arrays.
        automatic = Mesh(self.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        object.__setattr__(self, "mesh", automatic)

    @classmethod
    def of(cls, mesh: "Mesh | Layout | None") -> "Layout | None":
        """The layout itself, or that of a mesh with the default rules."""
        return mesh if mesh is None or isinstance(mesh, Layout) else cls(mesh)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The axes that share the batch."""
        return tuple(name for name in self.mesh.axis_names if name not in SPATIAL)

    @property
    def parts(self) -> int:
        """The number of parts into which a batch is split."""
        return math.prod(self.mesh.shape[name] for name in self.batch_axes)

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count): this process reads the index-th of count equal parts of every batch.

        Processes that only share the rows or columns of images read the same part.

        Raises:
            ValueError: if the devices of two processes share some but not all parts of the batch.
        """
        held: dict[int, set[int]] = {}
        whole = NamedSharding(self.mesh, P(self.batch_axes)).devices_indices_map((self.parts,))
        for device, (part,) in whole.items():
            held.setdefault(device.process_index, set()).add(part.start or 0)
        groups = sorted({tuple(sorted(parts)) for parts in held.values()})
        if sum(map(len, groups)) != self.parts or len({len(group) for group in groups}) > 1:
            raise ValueError(
                f"the processes' devices share the batch unequally in the mesh {dict(self.mesh.shape)}: order the"
                " devices so that each process has whole parts, as in jax.devices()"
            )
        return groups.index(tuple(sorted(held[jax.process_index()]))), len(groups)

    def check(self, batch_size: int, crop: tuple[int, int], accumulate: int = 1) -> None:
        """Raises a ValueError if a training batch cannot be split over the mesh."""
        if batch_size % (self.parts * accumulate):
            parts = f"{accumulate} x {self.parts}" if accumulate > 1 else f"{self.parts}"
            raise ValueError(
                f"{option('batch_size', batch_size)} must be a multiple of {parts}, the parts of a batch on the mesh"
                f" {dict(self.mesh.shape)}"
            )
        for name, axis in self._spatial.items():
            if crop[axis - 1] % self.mesh.shape[name]:
                raise ValueError(
                    f"{option('crop_size')} has {crop[axis - 1]} {'rows' if axis == 1 else 'columns'}, which the axis"
                    f" {name} of the mesh {dict(self.mesh.shape)} does not divide"
                )

    @property
    def _spatial(self) -> dict[str, int]:
        """The axes of the mesh that share an axis of maps, and which one."""
        return {name: axis for name, axis in SPATIAL.items() if self.mesh.shape.get(name, 1) > 1}

    def shardings(self, state: PyTree) -> PyTree:
        """The sharding of each array of a state, by the rules.

        Raises:
            ValueError: if a rule does not fit an array, or one that is not in `RULES` matches no array.
        """
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]
        ]
        default = [pattern for pattern, _ in RULES]
        for pattern, _ in self.rules:
            if pattern not in default and not any(re.search(pattern, name) for name in names):
                raise ValueError(
                    f"the rule {pattern!r} matches no array of the state: names are such as"
                    f" {shortened(names, ', ', 3)}. Correct the rule, or leave it out"
                )

        def sharding(path, x):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            rule = next((rule for pattern, rule in self.rules if re.search(pattern, name)), P())
            spec = rule if isinstance(rule, P) else rule(x.shape, self.mesh)
            try:
                result = NamedSharding(self.mesh, spec)
                result.check_compatible_aval(x.shape)
                result.shard_shape(x.shape)
            except ValueError as error:
                raise ValueError(f"the rules shard {name} of shape {x.shape} by {spec}: {error}") from error
            return result

        return jax.tree.map_with_path(sharding, state)

    def keep(self, state: PyTree) -> PyTree:
        """The state with its sharding by the rules, inside `jit`."""
        return jax.lax.with_sharding_constraint(state, self.shardings(state))

    def batch(self, batch: Any) -> Any:
        """Places a batch on the mesh. Each process passes its own part, see `shard`.

        A `jax.ShapeDtypeStruct` gets its sharding, to compile a step without data.
        """
        _, count = self.shard
        return {name: jax.tree.map(lambda x, name=name: self._placed(name, x, count), x) for name, x in batch.items()}

    def _placed(self, name: str, x: Any, count: int) -> jax.Array | jax.ShapeDtypeStruct:
        shape = np.shape(x)
        shape = (shape[0] * count, *shape[1:]) if shape else shape
        if shape and shape[0] % self.parts:
            raise ValueError(
                f"a batch must be a multiple of {self.parts}, the parts of a batch on the mesh {dict(self.mesh.shape)};"
                f" {name} has shape {shape}"
            )
        spec = P(self.batch_axes, *self._sides(name, shape)) if shape else P()
        sharding = NamedSharding(self.mesh, spec)
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(shape=shape, sharding=sharding)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), shape)

    def _sides(self, name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        """The axes of the mesh that share the rows and the columns of this field; none if they do not divide them."""
        fit = {
            axis: name
            for name, axis in self._spatial.items()
            if len(shape) > 2 and not shape[axis] % self.mesh.shape[name]
        }
        if not fit:
            return ()
        from densezoo.data.fields import Image, Map, kind_of  # late, because not every training reads data from files

        return tuple(fit.get(axis) for axis in range(1, max(fit) + 1)) if isinstance(kind_of(name), Image | Map) else ()


def replicated(tree: PyTree, layout: Layout | None) -> PyTree:
    """The arrays, inside `jit`, whole on every device of a layout; unchanged without one."""
    return tree if layout is None else jax.lax.with_sharding_constraint(tree, NamedSharding(layout.mesh, P()))
