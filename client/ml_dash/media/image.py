"""Images by Pillow."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, BinaryIO

from ml_dash.arguments import whole_number
from ml_dash.errors import Code, MLDashError, error
from ml_dash.media.libraries import library
from ml_dash.media.pixels import is_array, pixels

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
WITH_QUALITY = ("JPEG", "WEBP")
SIXTEEN_BITS = ("PNG", "TIFF")
NO_ALPHA = ("JPEG", "BMP")


def format_of(to: str) -> str:
    """Pillow's name of the format that a file's name asks for. Raises ValueError for one that there is not."""
    suffix = PurePosixPath(to).suffix.lower()
    if suffix not in FORMATS:
        raise error(Code.INVALID_ARGUMENT, f"{to!r} is no name of an image", f"end it with one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def image_of(content: Any, to: str) -> Any:
    """A PIL image as it is, or one of an array. Raises ValueError for what is neither, or does not fit the format."""
    kind = library("PIL.Image", "Pillow")
    if isinstance(content, kind.Image):
        return content
    if not (is_array(content) or hasattr(content, "detach")):
        raise error(
            Code.UNSUPPORTED_TYPE,
            f"save_image takes an array or a PIL image, not {type(content).__name__}",
            "call upload() for a file, save_fig() for a figure",
        )
    array = pixels(content, "the image")
    if array.dtype.itemsize > 1 and (array.ndim > 2 or format_of(to) not in SIXTEEN_BITS):  # noqa: PLR2004
        raise error(
            Code.INVALID_ARGUMENT,
            f"{to!r} can't hold an image of {array.dtype} and shape {array.shape}",
            "16 bits go into a gray .png or .tiff; for others pass uint8",
        )
    if array.ndim > 2 and array.shape[2] == 4 and format_of(to) in NO_ALPHA:  # noqa: PLR2004
        raise error(
            Code.INVALID_ARGUMENT, f"{to!r} can't hold an alpha channel", "use a .png, or leave it out: array[..., :3]"
        )
    return kind.fromarray(array)


def quality_of(value: Any) -> int:
    """On Pillow's scale."""
    return whole_number(value, "quality", 1, 100)


def write_image(out: BinaryIO, image: Any, to: str, quality: int) -> None:
    """Writes a PIL image in the format of its name. Raises ValueError where the format can't hold it."""
    name = format_of(to)
    try:
        image.save(out, format=name, **({"quality": quality} if name in WITH_QUALITY else {}))
    except MLDashError:
        raise
    except (OSError, ValueError) as failure:
        raise error(
            Code.INVALID_ARGUMENT,
            f"{to!r} can't be written from an image of mode {image.mode} and size {image.size}: {failure}",
            'use a .png, or convert it first: image.convert("RGB")',
        ) from failure
