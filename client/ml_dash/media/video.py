"""Videos by FFmpeg's libraries (PyAV), frame by frame: neither all frames nor the whole file are ever in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import chain
from numbers import Rational
from typing import Any, BinaryIO

from ml_dash.errors import Code, error
from ml_dash.media.cursor import Cursor
from ml_dash.media.encoding import Encoding
from ml_dash.media.libraries import library
from ml_dash.media.pixels import CHANNELS, pixels

MOST_FPS = 1000
MOST_THREADS = 4
"""Each holds a few frames, and the trainer wants its cores."""
BT709 = 1
"""The number of these colours in H.273, for matrix, primaries and transfer alike: what players assume of HD."""
LIMITED = 1
"""AVCOL_RANGE_MPEG: 16 to 235, as yuv420p has it everywhere."""


def rate_of(fps: Any) -> Fraction:
    """Frames a second, as the ratio that the file states."""
    try:
        rate = Fraction(fps if isinstance(fps, Rational) else float(fps)).limit_denominator(1001)  # 30000/1001 is exact
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if isinstance(fps, str) or not 0 < rate <= MOST_FPS:
        raise error(Code.INVALID_ARGUMENT, f"fps={fps!r}", f"pass a number above 0, up to {MOST_FPS}")
    return rate


def write_video(out: BinaryIO, frames: Iterable[Any], to: str, rate: Fraction, encoding: Encoding) -> None:
    """Encodes frames into a file that can be read and written anywhere. Raises ValueError for what is no video.

    What the frames' generator raises is raised.
    """
    av = library("av", "PyAV")
    pictures = _pictures(frames, _steps(av, encoding))
    first = next(pictures, None)
    if first is None:
        raise error(Code.INVALID_ARGUMENT, "there are no frames", "pass one at least")
    file = Cursor(out)
    with _translated(av, file, to), closing(_Encoder(av, file, encoding, rate, first.shape[:2])) as encoder:
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

    def __init__(self, av: Any, file: Cursor, encoding: Encoding, rate: Fraction, size: tuple[int, int]) -> None:
        self._av = av
        self._file = file
        self._pixels = encoding.pixels
        self._tick = 1 / rate
        self._count = 0
        # faststart moves what was written, and opens the file once more to read it.
        self._container = av.open(
            file,
            "w",
            format=encoding.container,
            options=dict(encoding.container_options),
            io_open=lambda *_: file.beside(),
        )
        self._stream = stream = self._container.add_stream(encoding.encoder, rate=rate, options=dict(encoding.options))
        stream.height, stream.width = size
        stream.pix_fmt = encoding.pixels
        if encoding.bit_rate:
            stream.bit_rate = encoding.bit_rate
        if encoding.tag:
            stream.codec_context.codec_tag = encoding.tag
        stream.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
        stream.thread_type = "FRAME"
        stream.codec_context.time_base = self._tick
        self._palette = _palette(av, size, self._tick) if encoding.pixels == "pal8" else None
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
            frames = [frame.reformat(format=self._pixels, dst_colorspace=BT709, dst_color_range=LIMITED)]
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


def _pictures(frames: Any, steps: tuple[int, int]) -> Iterator[Any]:
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
        yield _padded(picture, steps)


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


def _steps(av: Any, encoding: Encoding) -> tuple[int, int]:
    """Of which numbers height and width have to be multiples: how many pixels share a colour, down and across."""
    if not encoding.even:
        return 1, 1
    stored = av.VideoFormat(encoding.pixels, 2, 2)
    return 2 // stored.chroma_height(2), 2 // stored.chroma_width(2)


def _padded(picture: Any, steps: tuple[int, int]) -> Any:
    """A picture whose last row and column stand there once more, where the encoder needs them."""
    rows, columns = (-size % step for size, step in zip(picture.shape, steps, strict=False))
    if not rows and not columns:
        return picture
    return library("numpy", "numpy").pad(picture, ((0, rows), (0, columns), (0, 0)), mode="edge")
