"""A ray caster for rooms with boxes and spheres, in JAX. Depth and normals are exact; colours are only plausible.

Axes are the camera's: x right, y down, z forward, with the camera at 0. A ray's direction has z = 1, so the parameter
of a hit is its depth.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

LEVELS = 5
"""Resolutions of each texture, each half of the one before it."""
_NEAR = 1e-3
_AMBIENT = 0.45
_SHADOW = 0.45


class Solids(NamedTuple):
    """The n solids of a scene. The first one is the room, a box seen from inside."""

    center: Float[Array, "n 3"]
    half: Float[Array, "n 3"]  # half the sides of a box; the radius of a sphere, three times
    turn: Float[Array, "n 3 3"]  # from the camera's axes to those of the solid
    sphere: Bool[Array, " n"]
    present: Bool[Array, " n"]
    texture: Int[Array, "n 6"]  # of each face of a box; the first one of a sphere
    density: Float[Array, " n"]  # texels per metre
    shift: Float[Array, "n 2"]  # of the texture, in texels
    tint: Float[Array, "n 3"]


class Hits(NamedTuple):
    """What the p rays meet first."""

    t: Float[Array, " p"]
    solid: Int[Array, " p"]
    local: Float[Array, "3 p"]  # the point in the solid's axes
    face: Int[Array, " p"]
    normal: Float[Array, "3 p"]  # in the camera's axes, towards the ray's origin


def distances(solids: Solids, origin: Float[Array, "3 p"], ray: Float[Array, "3 p"]) -> Float[Array, "n p"]:
    """The parameter at which each ray meets each solid from outside, or the room from inside; infinity for none."""

    def of_solid(solid: Solids) -> tuple[Array, Array]:
        start, step = solid.turn @ (origin - solid.center[:, None]), solid.turn @ ray
        safe, half = jnp.where(jnp.abs(step) < 1e-9, 1e-9, step), solid.half[:, None]
        low, high = (-half - start) / safe, (half - start) / safe
        enter, leave = jnp.minimum(low, high).max(0), jnp.maximum(low, high).min(0)
        box = jnp.where((enter < leave) & (enter > _NEAR), enter, jnp.inf)
        a, b, c = (step * step).sum(0), (start * step).sum(0), (start * start).sum(0) - solid.half[0] ** 2
        root = b * b - a * c
        near = (-b - jnp.sqrt(jnp.maximum(root, 0))) / a
        ball = jnp.where((root > 0) & (near > _NEAR), near, jnp.inf)
        return jnp.where(solid.present, jnp.where(solid.sphere, ball, box), jnp.inf), leave

    met, leave = jax.vmap(of_solid)(solids)
    return met.at[0].set(leave[0])


def cast(solids: Solids, ray: Float[Array, "3 p"]) -> Hits:
    """Follows rays from the camera."""
    every = distances(solids, jnp.zeros_like(ray), ray)
    t, solid = every.min(0), every.argmin(0).astype(jnp.int32)
    turn = jnp.take(solids.turn.reshape(-1, 9).T, solid, 1).reshape(3, 3, -1)
    local = (turn * (t * ray - jnp.take(solids.center.T, solid, 1))).sum(1)
    share = local / jnp.take(solids.half.T, solid, 1)
    axis = jnp.abs(share).argmax(0).astype(jnp.int32)
    sign = jnp.sign(jnp.take_along_axis(share, axis[None], 0)[0])
    face = jnp.arange(3, dtype=jnp.int32)[:, None] == axis
    outward = jnp.where(face, jnp.where(solid == 0, -sign, sign), 0)
    sphere = solids.sphere[solid]
    outward = jnp.where(sphere, share / jnp.sqrt((share * share).sum(0)), outward)
    normal = (turn * outward[:, None]).sum(0)
    return Hits(t, solid, local, jnp.where(sphere, 0, 2 * axis + (sign > 0)), normal)


def colours(
    solids: Solids,
    hits: Hits,
    ray: Float[Array, "3 p"],
    light: Float[Array, "3"],
    textures: UInt8[Array, "levels k side side 3"],
    spacing: float,
) -> Float[Array, "p 3"]:
    """Textured colours under a lamp, with shadows. `spacing` is the distance of neighbouring rays at depth 1."""
    x, y, z = hits.local
    radius = solids.half[hits.solid, 0]
    angles = jnp.stack([jnp.arctan2(x, z), jnp.arcsin(jnp.clip(y / radius, -1, 1))]) * radius
    axis = hits.face // 2
    flat = [jnp.stack(pair) for pair in ((z, y), (x, z), (x, y))]
    place = jnp.where(axis == 0, flat[0], jnp.where(axis == 1, flat[1], flat[2]))
    place = jnp.where(solids.sphere[hits.solid], angles, place)
    density = solids.density[hits.solid]
    texels = place * density + jnp.take(solids.shift.T, hits.solid, 1)
    facing = jnp.abs((hits.normal * ray).sum(0)) / jnp.sqrt((ray * ray).sum(0))
    footprint = spacing * hits.t * density / jnp.maximum(facing, 0.15)
    level = jnp.clip(jnp.round(jnp.log2(footprint)), 0, LEVELS - 1).astype(jnp.int32)
    albedo = _sample(textures, level, solids.texture[hits.solid, hits.face], texels) * solids.tint[hits.solid]

    point = hits.t * ray
    to_light = light[:, None] - point
    reach = jnp.sqrt((to_light * to_light).sum(0))
    lambert = jnp.maximum((hits.normal * to_light).sum(0) / reach, 0)
    between = distances(solids, point + 1e-2 * hits.normal, to_light)[1:]
    lambert = jnp.where((between < 1).any(0), _SHADOW * lambert, lambert)
    return albedo * (_AMBIENT + (1 - _AMBIENT) * lambert * 4 / (2 + 0.15 * reach * reach))[:, None]


@functools.partial(jax.jit, static_argnames=("size", "focal"))
def render(
    solids: Solids,
    light: Float[Array, "3"],
    textures: UInt8[Array, "levels k side side 3"],
    *,
    size: tuple[int, int],
    focal: float,
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Float[Array, "h w 3"]]:
    """Renders a scene: colours (0 is black; 1 and more is white), depth, and normals.

    Four rays give the colour of a pixel, so that edges are smooth; a fifth one through its middle gives the geometry.
    """
    height, width = size
    middle = _rays(size, focal, 1)
    hits = cast(solids, middle)
    fine = _rays(size, focal, 2)
    picture = colours(solids, cast(solids, fine), fine, light, textures, 0.5 / focal)
    picture = picture.reshape(height, 2, width, 2, 3).mean((1, 3))
    return picture, hits.t.reshape(size), hits.normal.T.reshape(*size, 3)


def levels_of(pictures: UInt8[np.ndarray, "k side side 3"]) -> UInt8[np.ndarray, "levels k side side 3"]:
    """Textures at lower and lower resolutions, all stored at the full size, against moire."""
    levels = [pictures]
    for level in range(1, LEVELS):
        step = 2**level
        k, side = pictures.shape[:2]
        small = pictures.reshape(k, side // step, step, side // step, step, 3).astype(np.float32).mean((2, 4))
        levels.append(np.rint(small).astype(np.uint8).repeat(step, 1).repeat(step, 2))
    return np.stack(levels)


def _rays(size: tuple[int, int], focal: float, parts: int) -> Float[Array, "3 p"]:
    height, width = size
    x = ((jnp.arange(width * parts, dtype=jnp.float32) + 0.5) / parts - width / 2) / focal
    y = ((jnp.arange(height * parts, dtype=jnp.float32) + 0.5) / parts - height / 2) / focal
    x, y = jnp.meshgrid(x, y)
    return jnp.stack([x, y, jnp.ones_like(x)]).reshape(3, -1)


def _sample(textures: Array, level: Array, texture: Array, texels: Array) -> Float[Array, "p 3"]:
    """Linear interpolation of a texture that is mirrored at its borders."""
    side = textures.shape[2]
    low = jnp.floor(texels)
    weight = texels - low

    def texel(dx: int, dy: int) -> Array:
        x, y = (jnp.mod(low[i] + d, 2 * side).astype(jnp.int32) for i, d in ((0, dx), (1, dy)))
        x, y = (jnp.where(i < side, i, 2 * side - 1 - i) for i in (x, y))
        return textures[level, texture, y, x].astype(jnp.float32) / 255

    wx, wy = weight[0][:, None], weight[1][:, None]
    upper = (1 - wx) * texel(0, 0) + wx * texel(1, 0)
    return (1 - wy) * upper + wy * ((1 - wx) * texel(0, 1) + wx * texel(1, 1))
