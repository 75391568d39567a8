"""save_image: what is stored decodes to the pixels that were passed, or says why it can't be."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ml_dash import Experiment
from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.conftest import path_in_store
from tests.scenario.test_files import paths, refused

pytestmark = pytest.mark.slow

CHANCE = np.random.default_rng(7)
RGB = CHANCE.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GRAY = CHANCE.integers(0, 256, (9, 13), dtype=np.uint8)
DEEP = CHANCE.integers(0, 65536, (9, 13), dtype=np.uint16)
MASK = CHANCE.random((9, 13)) > 0.5
SHADES = np.linspace(0, 255, 64).astype(np.uint8)
SMOOTH = np.stack([np.tile(SHADES, (48, 1)), np.tile(SHADES[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], axis=2)
"""Without edges, which JPEG would blur."""


class Tensor:
    """A tensor of torch's as far as it goes: in a graph and on a device, it is no array yet."""

    def __init__(self, array: Any, attached: bool = True) -> None:
        self._array = array
        self._attached = attached

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")

    def is_floating_point(self) -> bool:
        return bool(self._array.dtype.kind == "f")

    def detach(self) -> Tensor:
        return Tensor(self._array, attached=False)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self._array.astype(np.float32), self._attached)

    def mode(self) -> None:
        """Of its values; PIL's images have a text of that name."""

    def numpy(self) -> Any:
        assert not self._attached
        return self._array


def tensors() -> list[Any]:
    """Images that are no arrays of numpy: those of the libraries that are installed, too."""
    unit = (RGB / 255).astype(np.float32)
    made: list[Any] = [Tensor(RGB), Tensor(unit)]
    if find_spec("torch"):
        import torch  # noqa: PLC0415

        made += [torch.from_numpy(RGB), torch.from_numpy(unit).requires_grad_()]
    if find_spec("jax"):
        import jax.numpy  # noqa: PLC0415

        made += [jax.numpy.asarray(RGB), jax.numpy.asarray(unit)]
    return made


def stored(service: DaemonProcess, exp: Experiment, content: Any, to: str, **options: Any) -> Image.Image:
    """What a user would see who opens the stored file."""
    result = exp.files("plots").save_image(content, to=to, **options).wait(30)
    assert paths([result]) == [f"plots/{to}"]
    return Image.open(io.BytesIO(path_in_store(service, result).read_bytes()))


@pytest.mark.parametrize(
    ("array", "seen"),
    [
        (RGB, RGB),
        (GRAY, GRAY),
        (GRAY[:, :, None], GRAY),
        (np.dstack([RGB, GRAY]), np.dstack([RGB, GRAY])),
        (DEEP, DEEP),
        (DEEP.astype(">u2"), DEEP),
        (MASK, MASK * np.uint8(255)),
        (RGB / 255, RGB),
        ((GRAY / 255).astype(np.float32), GRAY),
        (np.float16([[0, 0.25], [0.5, 1]]), np.uint8([[0, 64], [128, 255]])),
        (np.repeat(RGB, 2, axis=0)[::2, ::-1], RGB[:, ::-1]),
        (np.asfortranarray(RGB), RGB),
        (RGB.transpose(1, 0, 2), RGB.transpose(1, 0, 2)),
    ],
    ids=["rgb", "gray", "one channel", "rgba", "16 bits", "16 bits, the other end first", "bool", "float64", "float32",
         "float16", "strided", "by columns", "transposed"],
)  # fmt: skip
def test_a_png_holds_the_very_pixels(service: DaemonProcess, exp: Experiment, array: Any, seen: Any) -> None:
    before = array.copy()
    image = stored(service, exp, array, "a.png")
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), seen)
    assert np.array_equal(array, before)


def test_tensors_are_arrays_too(service: DaemonProcess, exp: Experiment) -> None:
    for tensor in tensors():
        assert np.array_equal(np.asarray(stored(service, exp, tensor, "a.png")), RGB)


def test_a_name_says_the_format(service: DaemonProcess, exp: Experiment) -> None:
    formats = {"bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "png": "PNG", "PNG": "PNG"}
    for suffix, name in formats.items():
        image = stored(service, exp, RGB, f"a.{suffix}")
        assert image.format == name
        assert np.array_equal(np.asarray(image), RGB)
    for suffix, name in {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "gif": "GIF"}.items():
        image = stored(service, exp, SMOOTH, f"a.{suffix}")
        assert image.format == name
        away = np.abs(np.asarray(image.convert("RGB")).astype(int) - SMOOTH)
        assert away.mean() < 4, suffix
    assert {record["contentType"] for record in exp.files().list("plots/*.jp*")} == {"image/jpeg"}


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_quality(service: DaemonProcess, exp: Experiment, suffix: str) -> None:
    def distance(**options: Any) -> float:
        image = stored(service, exp, SMOOTH, f"a.{suffix}", **options)
        return float(np.abs(np.asarray(image).astype(int) - SMOOTH).mean())

    assert distance() == distance(quality=95) < distance(quality=5)
    for quality in (0, 101, True, "high"):
        call = lambda quality=quality: exp.files.save_image(SMOOTH, to="a.png", quality=quality)  # noqa: E731
        refused(call, Code.INVALID_ARGUMENT, ValueError, f"quality={quality!r}")


def test_a_pil_image_is_saved_as_it_is(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(8)
    image.info["dpi"] = (300, 300)
    image.save(tmp_path / "expected.png")
    stored(service, exp, image, "a.png")
    exp.files("plots/a.png").download(to=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "to", "named"),
    [
        (RGB, "a.npy", ".png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff"),
        (RGB, "png", "'png' is no name of an image"),
        (RGB / 100, "a.png", "values from 0 to 2.55; floats are taken from 0 to 1"),
        (RGB / -255, "a.png", "values from -1 to "),
        (np.array([[0.5, np.nan]]), "a.png", "NaN"),
        (
            RGB.astype(int),
            "a.png",
            "the type int64 (pass uint8, bool, or floats from 0 to 1; numbers from 0 to 255: .as",
        ),
        (np.zeros((2, 2), complex), "a.png", "complex128"),
        (np.array([["x"]]), "a.png", "<U1"),
        (
            RGB.transpose(2, 0, 1),
            "a.png",
            "shape (3, 9, 13), not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) (put the chan",
        ),
        (RGB[:, :, :2], "a.png", "(9, 13, 2)"),
        (RGB[0, 0], "a.png", "(3,)"),
        (RGB[None], "a.png", "(1, 9, 13, 3)"),
        (RGB[:0], "a.png", "(0, 13, 3)"),
        (np.float32(0.5), "a.png", "()"),
        (DEEP, "a.jpg", "16 bits go into a gray .png"),
        (np.dstack([DEEP] * 3), "a.png", "16 bits go into a gray .png"),
        (np.dstack([RGB, GRAY]), "a.jpg", "alpha"),
        (np.dstack([RGB, GRAY]), "a.bmp", "alpha"),
        (Image.new("RGBA", (3, 2)), "a.jpg", "mode RGBA and size (3, 2)"),
        (Image.new("F", (3, 2)), "a.png", "mode F"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_image(exp: Experiment, content: Any, to: str, named: str) -> None:
    """Nothing is scaled, cut off or left out by a guess."""
    refused(lambda: exp.files.save_image(content, to=to), Code.INVALID_ARGUMENT, ValueError, named)
    assert exp.files().list() == []


@pytest.mark.parametrize("content", ["a.png", b"\x89PNG", [[0, 1]], None, {"a": 1}], ids=repr)
def test_what_is_no_image_at_all(exp: Experiment, content: Any) -> None:
    kind = type(content).__name__
    refused(lambda: exp.files.save_image(content, to="a.png"), Code.UNSUPPORTED_TYPE, ValueError, kind, "upload()")


def test_an_image_larger_than_a_message(service: DaemonProcess, exp: Experiment) -> None:
    noise = CHANCE.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    for name in ("a.png", "a.tif", "a.bmp"):
        assert np.array_equal(np.asarray(stored(service, exp, noise, name)), noise)
