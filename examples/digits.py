"""Shared by the scripts about scikit-learn's digits: the images, a classifier, and the Frechet distance."""

import itertools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from densezoo.extras import require
from densezoo.losses import cross_entropy
from densezoo.train import create_state, fit, make_optimizer, make_train_step

PREPROCESSING = dz.Preprocessing(1, mean=(0.5,), std=(0.5,))
"""Maps images in 0..1 to -1..1."""
HELD_OUT = 500
"""Number of test digits."""


def digits() -> tuple[Any, Any]:
    """The 1797 digits of scikit-learn, 8x8 pixels, as samples for training and for tests."""
    found = require("sklearn.datasets").load_digits()
    images = (found.images / 16).astype(np.float32)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    samples = [{"image": images[index], "label": np.int32(found.target[index])} for index in order]
    return samples[HELD_OUT:], samples[:HELD_OUT]


class Classifier(nn.Module):
    """A small network from digits (b, 8, 8, 1), from -1 to 1, to logits. `features` are the 32 numbers before them."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, features: bool = False) -> jax.Array:
        x = dz.ConvNormAct(32)(images, train=train)
        x = dz.ConvNormAct(64, strides=2)(x, train=train)
        x = dz.ConvNormAct(64)(x, train=train)
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return x if features else nn.Dense(10)(x)


def classifier(samples: Any, steps: int) -> tuple[Any, Any]:
    """Trains the classifier on real digits, shifted by up to a pixel; returns functions to classes and to features."""
    images, labels = (np.stack([sample[name] for sample in samples]) for name in ("image", "label"))
    images = 2 * images - 1

    def batches(done: int) -> Iterator[dict[str, np.ndarray]]:
        for step in itertools.count(done):
            rng = np.random.default_rng([1, step])
            chosen = rng.integers(0, len(images), 64)
            shift = tuple(rng.integers(-1, 2, 2))
            padded = np.pad(images[chosen], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
            yield {"image": np.roll(padded, shift, (1, 2))[:, 1:-1, 1:-1], "label": labels[chosen]}

    def loss(apply: Any, batch: Any, key: Any) -> jax.Array:
        del key
        return cross_entropy(apply(batch["image"])[:, None, None], batch["label"][:, None, None])

    model = Classifier()
    optimizer = make_optimizer(3e-3, steps)
    state = create_state(model, optimizer, jax.random.key(0), jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32))
    state, _ = fit(state, make_train_step(loss), batches, steps=steps, progress=False)
    logits = jax.jit(model.apply)
    features = jax.jit(lambda variables, images: model.apply(variables, images, features=True))
    return (
        lambda images: np.asarray(logits(state.variables, images)).argmax(-1),
        lambda images: np.asarray(features(state.variables, images), float),
    )


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """The Frechet distance of two sets of features (n, d), as if both were normally distributed.

    Heusel et al., 2017, https://arxiv.org/abs/1706.08500, with the features of a classifier of digits.
    """
    covariance, other = (np.cov(x, rowvar=False) for x in (features, others))
    shared = np.sqrt(np.maximum(np.real(np.linalg.eigvals(covariance @ other)), 0)).sum()
    distance = np.square(features.mean(0) - others.mean(0)).sum()
    return float(distance + np.trace(covariance) + np.trace(other) - 2 * shared)


def with_interval(features: np.ndarray, others: np.ndarray, resamples: int = 200) -> tuple[float, float, float]:
    """The Frechet distance, and the 95% interval of its bootstrap over `features`, shifted to be centred on it.

    A resample has fewer different images, which makes its distance larger, so the interval is that of the differences.
    """
    rng = np.random.default_rng(0)
    value = frechet_distance(features, others)
    found = [
        frechet_distance(features[rng.integers(0, len(features), len(features))], others) for _ in range(resamples)
    ]
    low, high = np.percentile(np.array(found) - np.median(found), [2.5, 97.5])
    return value, value + float(low), value + float(high)
