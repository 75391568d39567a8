"""Videos by FFmpeg's libraries (PyAV), frame by frame: neither all frames nor the whole file are ever in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import chain
from numbers import Rational
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from ml_dash.errors import Code, error
from ml_dash.media.cursor import Cursor
from ml_dash.media.libraries import library
from ml_dash.media.pixels import CHANNELS, pixels

Options = Mapping[str, str]
MOST_FPS = 1000
MOST_THREADS = 4
"""Each holds a few frames, and the trainer wants its cores."""
BT709 = 1
"""The number of these colours in H.273, for matrix, primaries and transfer alike: what players assume of HD."""
LIMITED = 1
"""AVCOL_RANGE_MPEG: 16 to 235, as yuv420p has it everywhere."""


class Format(NamedTuple):
    """What a suffix asks for. `even`: its encoder takes even sizes alone."""

    container: str
    encoder: str
    pixels: str
    even: bool = False
    container_options: Options = MappingProxyType({})
    options: Options = MappingProxyType({})


FORMATS = {
    ".mp4": Format("mp4", "libx264", "yuv420p", True, {"movflags": "+faststart"}, {"crf": "20", "preset": "veryfast"}),
    ".webm": Format(
        "webm", "libvpx-vp9", "yuv420p", options={"crf": "32", "b": "0", "deadline": "good", "cpu-used": "5"}
    ),
    ".gif": Format("gif", "gif", "pal8"),
}


def format_of(to: str) -> Format:
    """The format that a file's name asks for. Raises ValueError for one that there is not."""
    suffix = PurePosixPath(to).suffix.lower()
    if suffix not in FORMATS:
        raise error(Code.INVALID_ARGUMENT, f"{to!r} is no name of a video", f"end it with one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def rate_of(fps: Any) -> Fraction:
    """Frames a second, as the ratio that the file states."""
    try:
        rate = Fraction(fps if isinstance(fps, Rational) else float(fps)).limit_denominator(1001)  # 30000/1001 is exact
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if isinstance(fps, str) or not 0 < rate <= MOST_FPS:
        raise error(Code.INVALID_ARGUMENT, f"fps={fps!r}", f"pass a number above 0, up to {MOST_FPS}")
    return rate


def write_video(out: BinaryIO, frames: Iterable[Any], to: str, rate: Fraction) -> None:
    """Encodes frames into a file that can be read and written anywhere. Raises ValueError for what is no video.

    What the frames' generator raises is raised.
    """
    av = library("av", "PyAV")
    form = format_of(to)
    pictures = _pictures(frames, form)
    first = next(pictures, None)
    if first is None:
        raise error(Code.INVALID_ARGUMENT, "there are no frames", "pass one at least")
    file = Cursor(out)
    with _translated(av, file, to), closing(_Encoder(av, file, form, rate, first.shape[:2])) as encoder:
        for picture in chain([first], pictures):
            encoder.add(picture)
        encoder.finish()


@contextmanager
def _translated(av: Any, file: Cursor, to: str) -> Iterator[None]:
    """What FFmpeg refuses, in our words; what has interrupted it, as it was."""
    try:
        yield
    except Exception as failure:
        file.check()
        if not isinstance(failure, av.FFmpegError):
            raise
        raise error(
            Code.INVALID_ARGUMENT, f"{to!r} can't be encoded: {failure}", "see what the encoder says"
        ) from failure


class _Encoder:
    """One video on its way into a file."""

    def __init__(self, av: Any, file: Cursor, form: Format, rate: Fraction, size: tuple[int, int]) -> None:
        self._av = av
        self._file = file
        self._form = form
        self._tick = 1 / rate
        self._count = 0
        # faststart moves what was written, and opens the file once more to read it.
        self._container = av.open(
            file, "w", format=form.container, options=dict(form.container_options), io_open=lambda *_: file.beside()
        )
        self._stream = stream = self._container.add_stream(form.encoder, rate=rate, options=dict(form.options))
        stream.height, stream.width = size
        stream.pix_fmt = form.pixels
        stream.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
        stream.thread_type = "FRAME"
        stream.codec_context.time_base = self._tick
        self._palette = _palette(av, size, self._tick) if form.pixels == "pal8" else None
        if self._palette is None:
            codec = stream.codec_context
            codec.colorspace = codec.color_primaries = codec.color_trc = BT709
            codec.color_range = LIMITED

    def add(self, picture: Any) -> None:
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = self._count, self._tick
        self._count += 1
        self._encode(frame)

    def finish(self) -> None:
        """Writes what the encoder holds back, then what stands at the start of the file."""
        if self._palette is not None:
            self._encode(None)
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def close(self) -> None:
        """Of a video that is not finished, nothing more is written."""
        self._file.close()
        self._container.close()

    def _encode(self, frame: Any) -> None:
        if self._palette is None:
            frames = [frame.reformat(format=self._form.pixels, dst_colorspace=BT709, dst_color_range=LIMITED)]
        else:
            self._palette.push(frame)
            frames = [*_drawn(self._av, self._palette)]
        for each in frames:
            self._container.mux(self._stream.encode(each))


def _drawn(av: Any, palette: Any) -> Iterator[Any]:
    """The frames that have their colours by now."""
    while True:
        try:
            yield palette.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _palette(av: Any, size: tuple[int, int], tick: Fraction) -> Any:
    """A graph that gives each frame the 256 colours that suit it best."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format=av.VideoFormat("rgb24"), time_base=tick)
    split, palette, use = (
        graph.add("split"),
        graph.add("palettegen", "stats_mode=single"),
        graph.add("paletteuse", "new=1"),
    )
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _pictures(frames: Any, form: Format) -> Iterator[Any]:
    """Arrays of shape (H, W, 3) and uint8, all of one size."""
    _check_shape(getattr(frames, "shape", ()))
    try:
        given = iter(frames)
    except TypeError:
        raise error(
            Code.UNSUPPORTED_TYPE, f"save_video takes frames, not {type(frames).__name__}", "pass arrays, one a frame"
        ) from None
    shape = None
    for number, frame in enumerate(given):
        picture = _picture(frame, f"frame {number}")
        shape = shape or picture.shape
        if picture.shape != shape:
            raise error(
                Code.INVALID_ARGUMENT,
                f"frame {number} has the shape {picture.shape}, those before it {shape}",
                "pass frames of one size",
            )
        yield _even(picture) if form.even else picture


def _check_shape(shape: tuple[int, ...]) -> None:
    """A single image is no video, though its rows could be taken for gray frames."""
    if len(shape) == 3 and shape[2] in (1, *CHANNELS):  # noqa: PLR2004
        raise error(
            Code.INVALID_ARGUMENT,
            f"frames has the shape {tuple(shape)}, that of one image",
            "call save_image(), or pass frames of shape (T, H, W, C)",
        )


def _picture(frame: Any, name: str) -> Any:
    numpy = library("numpy", "numpy")
    if isinstance(mode := getattr(frame, "mode", None), str) and mode not in ("RGB", "L"):  # PIL's
        raise error(Code.INVALID_ARGUMENT, f"{name} is an image of mode {mode}", 'pass image.convert("RGB")')
    picture = pixels(frame, name)
    if picture.dtype.itemsize > 1:
        raise error(Code.INVALID_ARGUMENT, f"{name} has the type {picture.dtype}", "pass uint8, or floats from 0 to 1")
    if picture.ndim == 2:  # noqa: PLR2004
        picture = picture[:, :, None].repeat(3, axis=2)
    if picture.shape[2] != 3:  # noqa: PLR2004
        raise error(Code.INVALID_ARGUMENT, f"{name} has an alpha channel, and a video has none", "pass frame[..., :3]")
    return numpy.ascontiguousarray(picture)


def _even(picture: Any) -> Any:
    height, width, _ = picture.shape
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return library("numpy", "numpy").pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
