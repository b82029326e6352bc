"""Rendered rooms with boxes and spheres: pictures with exact depth and normals, any number, without downloads."""

from __future__ import annotations

import functools
from typing import Any, SupportsIndex

import jax
import numpy as np
from PIL import Image

from densezoo.data import _render
from densezoo.data._scene_parts import Split, photographs, scene_number

_SIDE = 256  # of the textures
_REAL = "motorcycle_left.png"  # a picture with true depth, kept for tests on real pictures
_SPLITS = ("train", "val")


class RenderedScenes:
    """Rooms with boxes and spheres under a lamp, seen by a pinhole camera, as a random-access source.

    The surfaces have textures from photographs in the wheels of scikit-image and scikit-learn. Scene i depends only on
    the arguments and i, and the number of scenes is unlimited. The splits share no photograph. The camera is 1.3 to
    1.7 m above the floor, and looks up to 3 degrees up or 18 degrees down.

    An item contains:

    - image: (height, width, 3) uint8.
    - depth: (height, width) float32, z in metres: the distance along the camera's axis.
    - normals: (height, width, 3) float32, unit vectors towards the camera; x right, y down, z forward.

    Attributes:
        focal: the focal length in pixels, for `ops.points_from_depth`; the principal point is the picture's middle.
        sizes: the (height, width) of the scenes, in order.

    Example:
        >>> scenes = RenderedScenes(1000, size=(24, 32))
        >>> scene = scenes[7]
        >>> scene["image"].shape, scene["depth"].shape, scene["normals"].shape
        ((24, 32, 3), (24, 32), (24, 32, 3))
        >>> bool((scene["depth"] > 0).all()), scenes.focal
        (True, 32.0)
    """

    def __init__(
        self,
        num_scenes: int,
        *,
        size: tuple[int, int] = (96, 128),
        split: Split = "train",
        seed: int = 0,
        objects: tuple[int, int] = (3, 7),
    ):
        """Reads the textures.

        Args:
            num_scenes: the length of the source.
            size: height and width of the scenes in pixels. The width is also the focal length.
            split: which photographs to use.
            seed: seed of the scenes.
            objects: minimum and maximum number of boxes and spheres.

        Raises:
            ValueError: if an argument is out of its range.
            FileNotFoundError: if the installed scikit-image or scikit-learn lacks a picture.
        """
        if num_scenes < 1:
            raise ValueError(f"num_scenes={num_scenes}; expected 1 or more.")
        if min(size) < 1:
            raise ValueError(f"size={size}; expected a height and a width of 1 or more.")
        if split not in _SPLITS:
            raise ValueError(f"split={split!r}; expected 'train' or 'val'.")
        if seed < 0:
            raise ValueError(f"seed={seed}; expected 0 or more.")
        if not 0 <= objects[0] <= objects[1]:
            raise ValueError(f"objects={objects}; expected (least, most) with 0 <= least <= most.")
        self.num_scenes = num_scenes
        self.size = (int(size[0]), int(size[1]))
        self.split: Split = split
        self.seed = seed
        self.objects = (int(objects[0]), int(objects[1]))
        self.focal = float(size[1])
        self._textures = _textures(split)

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"RenderedScenes({self.num_scenes}, size={self.size}, split={self.split!r}, seed={self.seed}, "
            f"objects={self.objects})"
        )

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return self.num_scenes

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of the scenes, in order."""
        return (self.size,) * self.num_scenes

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Renders one scene, on the CPU.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such scene.
        """
        number = scene_number(index, self.num_scenes)
        rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), number])
        solids, light = _arrange(rng, self.objects, self._textures.shape[1])
        # On the CPU, beside the training on an accelerator, and equal on all machines of a run.
        with jax.default_device(_cpu()):
            rendered = _render.render(solids, light, self._textures, size=self.size, focal=self.focal)
        picture, depth, normals = map(np.asarray, rendered)
        picture = picture * np.float32(rng.uniform(0.8, 1.5))
        picture = picture + rng.normal(scale=rng.uniform(0, 0.02), size=picture.shape).astype(np.float32)
        return {
            "image": np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8),
            "depth": depth.copy(),
            "normals": normals.copy(),
        }


def _arrange(rng: np.random.Generator, objects: tuple[int, int], textures: int) -> tuple[_render.Solids, np.ndarray]:
    """Draws a scene: the solids, and the position of the lamp."""
    most = objects[1] + 1
    pitch = np.radians(rng.uniform(-3, 18))
    eye = rng.uniform(1.3, 1.7)  # above the floor; y points down, so the floor is at y = eye
    tall = rng.uniform(2.4, 3.6)
    room = np.array([rng.uniform(2, 5), tall / 2, rng.uniform(2.5, 6)])
    # The camera stands in the rear half of the room, and looks along it, more or less.
    place = np.array([rng.uniform(-0.5, 0.5) * room[0], eye - tall / 2, rng.uniform(0.2, 0.8) * room[2]])
    center, half, yaw = np.zeros((most, 3)), np.ones((most, 3)), np.zeros(most)
    yaw[0], half[0] = rng.uniform(-0.6, 0.6), room
    center[0] = _turn(yaw[0]).T @ place
    sphere, present = np.zeros(most, bool), np.zeros(most, bool)
    count = rng.integers(objects[0], objects[1] + 1)
    present[: count + 1] = True
    for k in range(1, most):
        sphere[k] = rng.random() < 0.4
        half[k] = rng.uniform(0.15, 0.5) if sphere[k] else rng.uniform((0.1, 0.1, 0.1), (0.6, 0.8, 0.6))
        yaw[k] = rng.uniform(0, 2 * np.pi)
        away = rng.uniform(1.6, 6.5)
        center[k] = away * rng.uniform(-0.5, 0.5), eye - half[k, 1], away
        if sphere[k] and rng.random() < 0.4:
            center[k, 1] -= rng.uniform(0, 1.2)  # a ball in the air
        inside = _turn(yaw[0]) @ (center[k] - center[0])
        limit = np.maximum(room - np.hypot(half[k, 0], half[k, 2]), 0)
        inside[[0, 2]] = np.clip(inside, -limit, limit)[[0, 2]]
        center[k] = _turn(yaw[0]).T @ inside + center[0]
        # Not around the camera.
        present[k] &= np.hypot(center[k, 0], center[k, 2]) > 0.7 + np.hypot(half[k, 0], half[k, 2])
    lamp = center[0] + _turn(yaw[0]).T @ (room * np.array([rng.uniform(-0.7, 0.7), -0.9, rng.uniform(-0.7, 0.7)]))
    cosine, sine = np.cos(pitch), np.sin(pitch)
    look = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])  # from level axes to the camera's
    solids: dict[str, Any] = {
        "center": (center @ look.T).astype(np.float32),
        "half": half.astype(np.float32),
        "turn": np.stack([_turn(angle) @ look.T for angle in yaw]).astype(np.float32),
        "sphere": sphere,
        "present": present,
        "texture": rng.integers(textures, size=(most, 6)).astype(np.int32),
        "density": (_SIDE / rng.uniform(0.6, 2.5, most)).astype(np.float32),
        "shift": rng.uniform(0, _SIDE, (most, 2)).astype(np.float32),
        "tint": rng.uniform(0.5, 1.3, (most, 3)).astype(np.float32),
    }
    return _render.Solids(**solids), (look @ lamp).astype(np.float32)


def _turn(yaw: float) -> np.ndarray:
    """A rotation about the vertical axis."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])


@functools.lru_cache(maxsize=2)
def _textures(split: Split) -> jax.Array:
    """The middle square of each photograph at several resolutions."""
    squares = []
    for name, picture in photographs(split).items():
        if name != _REAL:
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            box = (left, top, left + side, top + side)
            squares.append(np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box)))
    return jax.device_put(_render.levels_of(np.stack(squares)), _cpu())


def _cpu() -> Any:
    return jax.local_devices(backend="cpu")[0]
