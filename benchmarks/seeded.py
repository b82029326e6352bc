"""Numbers that all processes of a benchmark generate identically; needs neither jax nor torch."""

import numpy as np

STEPS = 1_000_000  # length of the learning rate's cycle: all samples are near its start, where weights barely change
PEAK = 1e-3
WEIGHT_DECAY = 1e-4


def random_images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standardised images, (b, h, w, 3), float32."""
    return np.random.default_rng(seed).standard_normal((*shape, 3), np.float32)


def perturbed(name: str, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Statistics of a batch norm that differ from 0 and 1, so that a missing norm is detected."""
    noise = generator.uniform(-0.3, 0.3, x.shape).astype(np.float32)
    return x + noise if "mean" in name else x * (1 + noise)
