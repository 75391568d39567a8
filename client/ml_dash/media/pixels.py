"""Arrays into pixels: numpy's, torch's and jax's, and whatever else numpy can read."""

from __future__ import annotations

from typing import Any

from ml_dash.errors import Code, error
from ml_dash.media.libraries import library

SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
CHANNELS = (3, 4)


def is_array(value: Any) -> bool:
    """Whether numpy can read it; text and lists are something else."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def pixels(value: Any, name: str) -> Any:
    """A numpy array of shape (H, W) or (H, W, C), uint8 or uint16, of an image's array; `name` is the caller's for it.

    bool becomes 0 and 255, floats from 0 to 1 become 0 to 255, rounded. Raises ValueError for anything else: nothing is
    scaled or cut off by a guess.
    """
    array = _array(value, name)
    if array.ndim == 3 and array.shape[2] == 1:  # noqa: PLR2004
        array = array[:, :, 0]
    flat = array.ndim == 2  # noqa: PLR2004
    if not (flat or (array.ndim == 3 and array.shape[2] in CHANNELS)) or not array.size:  # noqa: PLR2004
        raise error(Code.INVALID_ARGUMENT, f"{name} has the shape {array.shape}, not {SHAPES}", _hint_for(array.shape))
    return _depth(array, name)


def _array(value: Any, name: str) -> Any:
    numpy = library("numpy", "numpy")
    if hasattr(value, "detach"):  # a tensor: out of its graph, off its device, in a type that numpy has
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not is_array(value):
        raise error(
            Code.UNSUPPORTED_TYPE, f"{name} is {type(value).__name__}, not an array", f"pass an array of shape {SHAPES}"
        )
    array = numpy.asarray(value)
    return array.astype(numpy.float32) if array.dtype.name == "bfloat16" else array  # jax's


def _depth(array: Any, name: str) -> Any:
    kind = array.dtype.kind
    if kind == "b":
        return array.astype("uint8") * 255
    if kind == "f":
        return _from_floats(array, name)
    if kind == "u" and array.dtype.itemsize <= 2:  # noqa: PLR2004 16 bits
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    raise error(
        Code.INVALID_ARGUMENT,
        f"{name} has the type {array.dtype}",
        'pass uint8, bool, or floats from 0 to 1; numbers from 0 to 255: .astype("uint8")',
    )


def _from_floats(array: Any, name: str) -> Any:
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        found = "NaN in it" if low != low else f"values from {low:g} to {high:g}"  # noqa: PLR0124
        raise error(
            Code.INVALID_ARGUMENT,
            f"{name} has {found}; floats are taken from 0 to 1",
            'scale it, as in array / 255, or pass array.astype("uint8")',
        )
    numpy = library("numpy", "numpy")
    return numpy.rint(array * 255).astype("uint8")


def _hint_for(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, *CHANNELS):  # noqa: PLR2004
        return "put the channels last: array.transpose(1, 2, 0), or .permute(1, 2, 0) of a tensor"
    return "pass one image, its channels last"
