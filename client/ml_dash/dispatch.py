"""Which saver takes what, for `save()`. Libraries are told by their classes' names: none is imported for it."""

from __future__ import annotations

import os
from typing import Any

from ml_dash.errors import Code, error
from ml_dash.media import encoding, image

KEEPS_ARRAYS = "to keep the numbers: save_npz() or save_pkl()"
SAVERS = {
    "torch": "call save_torch(), or save_image() for pixels",
    "jax": "call save_image(), save_npz() or save_pkl()",
    "jaxlib": "call save_image(), save_npz() or save_pkl()",
    "matplotlib": "call save_fig()",
    "plotly": "call save_fig()",
}


def saver_of(content: Any, to: str) -> str:
    """The name of the method that saves it under that name. Raises ValueError where none does; it says what to do."""
    if isinstance(content, bytes | bytearray | memoryview):
        return "save_blob"
    if isinstance(content, dict | list):
        if any(_is_tensor(each) for each in (content.values() if isinstance(content, dict) else content)):
            raise error(Code.UNSUPPORTED_TYPE, "save() does not take tensors", "call save_torch()")
        return "save_json"
    names = _names(content)
    if "numpy.ndarray" in names or "PIL.Image.Image" in names:
        _check_image(content, to)
        return "save_image"
    libraries = [name.partition(".")[0] for name in names]
    saver = next((SAVERS[each] for each in libraries if each in SAVERS), None)
    raise error(
        Code.UNSUPPORTED_TYPE,
        f"save() does not take {type(content).__name__}",
        saver or "call save_json, save_text, save_blob or save_pkl",
    )


def _check_image(content: Any, to: str) -> None:
    suffix = os.path.splitext(to)[1].lower()  # noqa: PTH122 a name, no path
    if suffix in encoding.FORMATS and suffix not in image.FORMATS:
        hint = "call save_video()"
    else:
        hint = f"end it with one of {', '.join(image.FORMATS)}; {KEEPS_ARRAYS}"
    if suffix not in image.FORMATS:
        raise error(
            Code.UNSUPPORTED_TYPE, f"save() makes an image of {type(content).__name__}, and {to!r} is none's name", hint
        )


def _is_tensor(value: Any) -> bool:
    """One of several numbers: a scalar is JSON's."""
    return "torch.Tensor" in _names(value) and getattr(value, "ndim", 0) > 0


def _names(value: Any) -> list[str]:
    """What its class is called, and those that it is made from."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
