"""How a video is encoded: what its name asks for, and what the caller asks for beside that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_dash.arguments import number_of
from ml_dash.errors import Code, MLDashError, error

Options = Mapping[str, str]
NONE: Options = MappingProxyType({})
BEST_QUALITY = 10
LEAST_CRF = 1
"""0 is lossless, of a profile that hardly any player knows."""
PIXELS = ("yuv420p", "yuv422p", "yuv444p")
"""How colours are stored: of each four pixels once, of each two, of each. Browsers show the first."""


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoder of FFmpeg, and how it is asked. `even`: it takes no odd number of pixels where colours are shared."""

    encoder: str
    crf: int
    worst_crf: int
    options: Options
    even: bool = False
    tag: str = ""


CODECS = {
    "h264": Codec("libx264", 20, 51, {"preset": "veryfast"}, even=True),
    "h265": Codec("libx265", 24, 51, {"preset": "veryfast", "x265-params": "log-level=error"}, even=True, tag="hvc1"),
    "vp9": Codec("libvpx-vp9", 32, 63, {"deadline": "good", "cpu-used": "5"}),
}
ALIASES = {"libx264": "h264", "libx265": "h265", "hevc": "h265", "libvpx-vp9": "vp9"}


class Format(NamedTuple):
    """What a suffix asks for; the first of its codecs unless another is named."""

    container: str
    codecs: tuple[str, ...]
    options: Options = NONE


FORMATS = {
    ".mp4": Format("mp4", ("h264", "h265"), {"movflags": "+faststart"}),
    ".webm": Format("webm", ("vp9",)),
    ".gif": Format("gif", ()),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """All that an encoder is told but the pictures. `bit_rate` 0 leaves it to the quality."""

    container: str
    container_options: Options
    encoder: str
    options: Options
    pixels: str
    bit_rate: int = 0
    even: bool = False
    tag: str = ""


def encoding_of(
    to: str, codec: Any = None, quality: Any = None, bitrate: Any = None, pixelformat: Any = None
) -> Encoding:
    """How a file of that name is encoded. Raises ValueError for what there is not, or does not go together."""
    form = _format_of(to)
    if not form.codecs:
        given = {"codec": codec, "quality": quality, "bitrate": bitrate, "pixelformat": pixelformat}
        if (name := next((name for name, value in given.items() if value is not None), None)) is not None:
            raise _wrong(name, given[name], f"{to!r} is a .gif, which has 256 colours a frame; leave {name} out")
        return Encoding(form.container, form.options, "gif", NONE, "pal8")
    if quality is not None and bitrate is not None:
        raise error(Code.INVALID_ARGUMENT, "quality and bitrate are both given", "one follows from the other: give one")
    chosen = _codec_of(codec, to, form)
    rate = _bit_rate_of(bitrate)
    crf = {"crf": str(_crf_of(quality, chosen))} if not rate else {}
    constant = {"b": "0"} if not rate and chosen.encoder == "libvpx-vp9" else {}  # else it aims at 256 kbit/s as well
    return Encoding(
        form.container,
        form.options,
        chosen.encoder,
        {**chosen.options, **crf, **constant},
        _pixels_of(pixelformat),
        rate,
        chosen.even,
        chosen.tag,
    )


def _format_of(to: str) -> Format:
    suffix = PurePosixPath(to).suffix.lower()
    if suffix not in FORMATS:
        raise error(Code.INVALID_ARGUMENT, f"{to!r} is no name of a video", f"end it with one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _codec_of(codec: Any, to: str, form: Format) -> Codec:
    name = form.codecs[0] if codec is None else ALIASES.get(str(codec), str(codec))
    if name not in form.codecs:
        raise _wrong("codec", codec, f"for {to!r} it is one of {', '.join(form.codecs)}")
    return CODECS[name]


def _crf_of(quality: Any, codec: Codec) -> int:
    if quality is None:
        return codec.crf
    value = number_of(quality)
    if not 0 <= value <= BEST_QUALITY:
        raise _wrong("quality", quality, f"pass a number from 0 to {BEST_QUALITY}, the best")
    return max(LEAST_CRF, round(codec.worst_crf * (1 - value / BEST_QUALITY)))


def _bit_rate_of(bitrate: Any) -> int:
    if bitrate is None:
        return 0
    if type(bitrate) is not int or not 0 < bitrate < 2**31:
        raise _wrong("bitrate", bitrate, "pass a whole number of bits a second, such as 4_000_000")
    return bitrate


def _pixels_of(pixelformat: Any) -> str:
    if pixelformat is None:
        return PIXELS[0]
    if pixelformat not in PIXELS:
        raise _wrong("pixelformat", pixelformat, f"it is one of {', '.join(PIXELS)}; browsers show {PIXELS[0]}")
    return str(pixelformat)


def _wrong(name: str, value: Any, hint: str) -> MLDashError:
    return error(Code.INVALID_ARGUMENT, f"{name}={value!r}", hint)
