"""Which saver takes what, for `save()`. Libraries are told by their classes' names: none is imported for it."""

from __future__ import annotations

import os
from typing import Any

from ml_dash.errors import Code, MLDashError, error
from ml_dash.json_values import CONTAINERS, LEAVES
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


def why_refused(content: Any, refused: MLDashError) -> MLDashError:
    """Why save() does not take what is refused as JSON: the tensors in it, where there are any.

    They are looked for now and not before: in what JSON takes there are none, and the look takes a seventh of its time.
    """
    as_json = isinstance(content, dict | list) and refused.code is Code.INVALID_METADATA
    if not (as_json and _holds_tensors(content)):
        return refused
    return error(Code.UNSUPPORTED_TYPE, "save() does not take tensors or modules", "call save_torch()")


def _holds_tensors(content: Any) -> bool:
    """Whether tensors, or modules, are in it at whatever depth, as in {"model": model.state_dict(), "epoch": 3}."""
    waiting, seen = [content], set[int]()
    while waiting:
        outer = waiting.pop()
        if id(outer) in seen:
            continue
        seen.add(id(outer))
        for each in outer.values() if isinstance(outer, dict) else outer:
            if isinstance(each, CONTAINERS):
                waiting.append(each)
            elif type(each) not in LEAVES and _is_torchs(each):
                return True
    return False


def _is_torchs(value: Any) -> bool:
    """A tensor of several numbers, or a module: a scalar is JSON's."""
    names = _names(value)
    return ("torch.Tensor" in names and getattr(value, "ndim", 0) > 0) or "torch.nn.modules.module.Module" in names


def _names(value: Any) -> list[str]:
    """What its class is called, and those that it is made from."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
