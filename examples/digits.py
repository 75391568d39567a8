"""The model of the examples: a small network for scikit-learn's 8 x 8 digits, in numpy. Nothing here knows ML-Dash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

LAYERS = (64, 2800, 2800, 10)
"""Wide for 8 x 8 pixels: eight million weights, so that a checkpoint has a real one's size, 97 MB."""
BATCH_SIZE = 256
LEARNING_RATE = 5e-4
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class Digits(NamedTuple):
    """The images, 64 pixels from 0 to 1 each, and the digits that they show."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass
class Model:
    """All that training needs to go on: the weights, Adam's two moments of each, and the steps taken so far."""

    weights: list[np.ndarray]
    means: list[np.ndarray]
    variances: list[np.ndarray]
    steps: int = 0


def load_data() -> Digits:
    """The 1,797 digits of `sklearn.datasets.load_digits`, in an order that is always the same; 360 are for the test.

    They are read from scikit-learn's file without importing it, which would take a second of each process's life.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed, and the digits come with it")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.float32, delimiter=",")
    np.random.default_rng(0).shuffle(table)
    images, labels = table[:, :-1] / 16, table[:, -1].astype(int)
    return Digits(images[360:], labels[360:], images[:360], labels[:360])


def new_model(seed: int = 0) -> Model:
    """A model that has learnt nothing yet."""
    random = np.random.default_rng(seed)
    weights = []
    for inputs, outputs in pairwise(LAYERS):
        weights.append(random.standard_normal((inputs, outputs), np.float32) * np.float32((2 / inputs) ** 0.5))
        weights.append(np.zeros(outputs, np.float32))
    return Model(weights, [np.zeros_like(each) for each in weights], [np.zeros_like(each) for each in weights])


def train_epoch(model: Model, data: Digits, seed: int) -> float:
    """Goes through the training images once, in an order of its own for each seed; returns the mean loss."""
    order = np.random.default_rng(seed).permutation(len(data.train_labels))
    losses = []
    for batch in np.array_split(order, len(order) // BATCH_SIZE):
        loss, gradients = _gradients(model.weights, data.train_images[batch], data.train_labels[batch])
        _adam_step(model, gradients)
        losses.append(loss)
    return float(np.mean(losses))


def accuracy(model: Model, data: Digits) -> float:
    """The share of the test images that are read right."""
    _, _, scores = _forward(model.weights, data.test_images)
    return float(np.mean(scores.argmax(axis=1) == data.test_labels))


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a .npz file."""
    arrays = {"weights": model.weights, "means": model.means, "variances": model.variances}
    named = {f"{name}.{number}": array for name, group in arrays.items() for number, array in enumerate(group)}
    np.savez(os.fspath(path), steps=np.int64(model.steps), **named)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Reads what `save_model` wrote."""
    count = 2 * (len(LAYERS) - 1)
    with np.load(path) as file:
        weights, means, variances = (
            [file[f"{name}.{number}"] for number in range(count)] for name in ("weights", "means", "variances")
        )
        return Model(weights, means, variances, int(file["steps"]))


# ---- the arithmetic


def _forward(weights: Sequence[np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the two hidden layers make of the images, and ten scores for each."""
    w1, b1, w2, b2, w3, b3 = weights
    first = np.maximum(images @ w1 + b1, 0)
    second = np.maximum(first @ w2 + b2, 0)
    return first, second, second @ w3 + b3


def _gradients(
    weights: Sequence[np.ndarray], images: np.ndarray, labels: np.ndarray
) -> tuple[float, Sequence[np.ndarray]]:
    """The cross-entropy of a batch, and its slope along each weight."""
    first, second, scores = _forward(weights, images)
    rows = np.arange(len(labels))
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    at_scores = np.exp(logs)
    at_scores[rows, labels] -= 1
    at_scores /= len(labels)
    at_second = at_scores @ weights[4].T * (second > 0)
    at_first = at_second @ weights[2].T * (first > 0)
    slopes = []
    for before, after in ((images, at_first), (first, at_second), (second, at_scores)):
        slopes += [before.T @ after, after.sum(axis=0)]
    return float(-logs[rows, labels].mean()), slopes


def _adam_step(model: Model, gradients: Sequence[np.ndarray]) -> None:
    """Moves every weight a step down its slope (Kingma and Ba, 2015, section 2)."""
    model.steps += 1
    rate = LEARNING_RATE * (1 - BETA_2**model.steps) ** 0.5 / (1 - BETA_1**model.steps)
    for arrays in zip(model.weights, model.means, model.variances, gradients, strict=True):
        _move(*arrays, rate)


def _move(weight: np.ndarray, mean: np.ndarray, variance: np.ndarray, slope: np.ndarray, rate: float) -> None:
    """One array's share of the step, in place: large arrays are slow to allocate."""
    mean += (1 - BETA_1) * (slope - mean)
    np.square(slope, out=slope)
    slope -= variance
    slope *= 1 - BETA_2
    variance += slope
    np.sqrt(variance, out=slope)
    slope += EPSILON
    np.divide(mean, slope, out=slope)
    slope *= rate
    weight -= slope
