"""save_video: as many frames as were passed, at their rate, playable while it loads, and never all in memory."""

from __future__ import annotations

import gc
import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ml_dash import Experiment, FileResult
from ml_dash.errors import Code
from ml_dash.slot_writer import FIRST_SLOT_BYTES, SlotWriter
from tests.harness import Bucket, DaemonProcess, Folder, StoreUnderTest
from tests.scenario.test_download import peak
from tests.scenario.test_files import refused
from tests.scenario.test_images import Tensor

pytestmark = pytest.mark.slow

MIB = 1 << 20
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


@pytest.fixture(scope="module", params=["local", "s3"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("videos")
    store: StoreUnderTest = Folder(folder / "store")
    if request.param == "s3":
        store = Bucket(request.getfixturevalue("s3_double"))
    with DaemonProcess(folder / "daemon", store) as process:
        yield process


def coloured(height: int = 64, width: int = 98) -> list[Any]:
    return [np.full((height, width, 3), colour, np.uint8) for colour in COLOURS]


def noise(count: int, size: int = 64) -> Iterator[Any]:
    chance = np.random.default_rng(0)
    for _ in range(count):
        yield chance.integers(0, 256, (size, size), dtype=np.uint8)


class Seen:
    """What a player finds in a stored file."""

    def __init__(self, exp: Experiment, result: FileResult, folder: Path) -> None:
        result.wait(30)
        self.content = Path(exp.files(file_id=result["id"]).download(to=folder / "video")).read_bytes()
        with av.open(io.BytesIO(self.content)) as container:
            stream = container.streams.video[0]
            frames = [*container.decode(stream)]
            self.frames = [frame.to_ndarray(format="rgb24") for frame in frames]
            self.at_s = [float(frame.pts * stream.time_base) for frame in frames]
            self.codec = stream.codec_context.name
            self.pixels = stream.codec_context.pix_fmt
            self.size = (stream.height, stream.width)
            self.rate = stream.average_rate


def test_an_mp4_for_a_browser(daemon: DaemonProcess, tmp_path: Path) -> None:
    """H.264, yuv420p, its index before its pictures, the colours that were passed."""
    with daemon.experiment().run as exp:
        result = exp.files("videos").save_video(coloured(), to="a.mp4")
        seen = Seen(exp, result, tmp_path)
    assert (seen.codec, seen.pixels, seen.size, seen.rate) == ("h264", "yuv420p", (64, 98), 30)
    assert seen.content.index(b"ftyp") < seen.content.index(b"moov") < seen.content.index(b"mdat")
    assert seen.at_s == pytest.approx([number / 30 for number in range(len(COLOURS))])
    for frame, colour in zip(seen.frames, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() < 6
    assert result["contentType"] == "video/mp4"


def test_a_video_that_grows_past_its_first_slot(daemon: DaemonProcess, tmp_path: Path) -> None:
    with daemon.experiment().run as exp:
        result = exp.files("videos").save_video(noise(60, 256), to="a.mp4", fps=12.5, durability="disk")
        seen = Seen(exp, result, tmp_path)
    assert result["ack"] == "disk"
    assert len(seen.content) > FIRST_SLOT_BYTES
    assert (len(seen.frames), seen.rate) == (60, Fraction(25, 2))
    assert seen.content.index(b"moov") < seen.content.index(b"mdat")
    for frame, expected in zip(seen.frames, noise(60, 256), strict=True):
        assert np.abs(frame.mean(axis=2) - expected).mean() < 20  # another frame is 80 away


@pytest.mark.parametrize(
    ("frames", "first"),
    [
        (np.full((3, 64, 98), 200, np.uint8), 200),
        (np.full((3, 64, 98, 1), 200, np.uint8), 200),
        (np.full((3, 64, 98, 3), 200, np.uint8), 200),
        (np.full((3, 64, 98, 3), 0.5), 128),
        (np.full((3, 64, 98), True), 255),
        ([Image.new("RGB", (98, 64), (200, 200, 200))] * 3, 200),
        (iter(np.full((3, 64, 98), 200, np.uint8)), 200),
        ([Tensor(np.full((64, 98, 3), 200, np.uint8))] * 3, 200),
    ],
    ids=["gray", "one channel", "rgb", "floats", "bool", "PIL", "an iterator", "tensors"],
)
def test_what_frames_may_be(exp: Experiment, tmp_path: Path, frames: Iterable[Any], first: int) -> None:
    seen = Seen(exp, exp.files.save_video(frames, to="a.mp4"), tmp_path)
    assert len(seen.frames) == 3
    assert np.abs(seen.frames[0].astype(int) - first).max() < 4


def test_an_odd_size_grows_by_its_last_row_and_column(exp: Experiment, tmp_path: Path) -> None:
    frame = np.full((63, 97), 40, np.uint8)
    frame[:, 80:] = frame[50:] = 220
    seen = Seen(exp, exp.files.save_video([frame] * 3, to="a.mp4"), tmp_path)
    assert seen.size == (64, 98)
    grown = np.pad(frame, ((0, 1), (0, 1)), mode="edge")
    assert np.abs(seen.frames[0].mean(axis=2) - grown).mean() < 3
    for size in ((1, 1), (1, 50), (2, 2)):
        assert Seen(exp, exp.files.save_video([np.zeros(size)], to="a.mp4"), tmp_path).frames


def test_other_formats(exp: Experiment, tmp_path: Path) -> None:
    """Both take any size."""
    for suffix, codec, near in (("webm", "vp9", 6), ("gif", "gif", 1)):
        seen = Seen(exp, exp.files.save_video(coloured(63, 97), to=f"a.{suffix}", fps=25), tmp_path)
        assert (seen.codec, seen.size, len(seen.frames)) == (codec, (63, 97), len(COLOURS))
        assert seen.at_s == pytest.approx([number / 25 for number in range(len(COLOURS))])
        for frame, colour in zip(seen.frames, COLOURS, strict=True):
            assert np.abs(frame.astype(int) - colour).max() < near
    with Image.open(tmp_path / "video") as image:
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (len(COLOURS), 40, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fps", [30, 24.0, 29.97, 0.5, Fraction(30000, 1001), np.float32(60), 240])
def test_rates(exp: Experiment, tmp_path: Path, fps: Any) -> None:
    seen = Seen(exp, exp.files.save_video(coloured(), to="a.mp4", fps=fps), tmp_path)
    assert float(seen.rate) == pytest.approx(float(fps), rel=1e-4)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_generator_that_raises_leaves_nothing(exp: Experiment, tmp_path: Path, suffix: str) -> None:
    """More often than a connection may have slots; the next video is whole."""

    class OurError(Exception):
        pass

    def broken() -> Iterator[Any]:
        yield from noise(60 if suffix == "mp4" else 3, 200)
        raise OurError("in the middle")

    for _ in range(9 if suffix == "mp4" else 2):
        with pytest.raises(OurError, match="in the middle"):
            exp.files.save_video(broken(), to=f"a.{suffix}")
    assert exp.files().list() == []
    assert len(Seen(exp, exp.files.save_video(noise(5), to=f"a.{suffix}"), tmp_path).frames) == 5


def test_nothing_is_written_after_a_failure(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the end of the file, by a finalizer: the slot may be another save's by then."""
    failed = False
    late: list[int] = []
    whole = SlotWriter._put

    def put(writer: SlotWriter, data: memoryview) -> None:
        late.extend([len(data)] * failed)
        whole(writer, data)

    def broken() -> Iterator[Any]:
        nonlocal failed
        yield from noise(60)
        failed = True
        raise LookupError

    monkeypatch.setattr(SlotWriter, "_put", put)
    with pytest.raises(LookupError):
        exp.files.save_video(broken(), to="a.mp4")
    gc.collect()
    assert late == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("method", ["write", "readinto"])
def test_an_interruption_passes_through_the_encoder(
    exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException], method: str
) -> None:
    """FFmpeg calls back from C, where Python's Ctrl-C would be lost."""
    with monkeypatch.context() as patched:
        calls = iter(range(10))
        whole = getattr(SlotWriter, method)

        def interrupted(writer: SlotWriter, data: Any) -> Any:
            if next(calls) == 1:
                raise interruption
            return whole(writer, data)

        patched.setattr(SlotWriter, method, interrupted)
        with pytest.raises(interruption):
            exp.files.save_video(noise(60), to="a.mp4")
    assert exp.files().list() == []
    assert len(Seen(exp, exp.files.save_video(noise(5), to="a.mp4"), tmp_path).frames) == 5


def test_a_thousand_frames_do_not_lie_in_memory(exp: Experiment, tmp_path: Path, full_size: bool) -> None:
    """220 MiB of frames, 5.6 GiB at full size, by a generator that says how much of it was taken."""
    height, width = (1080, 1920) if full_size else (240, 320)
    picture = np.zeros((height, width, 3), np.uint8)

    def frames(count: int) -> Iterator[Any]:
        for number in range(count):
            frame = picture.copy()
            frame[: number % height] = number % 251
            yield frame

    exp.files.save_video(frames(60), to="a.mp4")  # libraries, threads, and what the encoder looks ahead
    status = Path("/proc/self/status")
    (status.parent / "clear_refs").write_text("5")  # the peak is from here on
    before = peak(status)
    result = exp.files.save_video(frames(1000), to="a.mp4")
    assert peak(status) - before < (400 if full_size else 40) * MIB
    result.wait(60)
    with av.open(exp.files("a.mp4").download(to=tmp_path / "video")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1000


@pytest.mark.parametrize(
    ("words", "codec", "pixels", "size"),
    [
        ({"codec": "h265"}, "hevc", "yuv420p", (64, 98)),
        ({"codec": "libx264", "quality": 10}, "h264", "yuv420p", (64, 98)),
        ({"pixelformat": "yuv444p"}, "h264", "yuv444p", (63, 97)),
        ({"pixelformat": "yuv422p"}, "h264", "yuv422p", (63, 98)),
        ({"to": "a.webm", "codec": "vp9", "bitrate": 400_000}, "vp9", "yuv420p", (63, 97)),
    ],
    ids=str,
)
def test_what_an_encoder_is_asked_for(
    exp: Experiment, tmp_path: Path, words: dict[str, Any], codec: str, pixels: str, size: tuple[int, int]
) -> None:
    """Sizes grow only where colours are shared by two rows or columns."""
    seen = Seen(exp, exp.files.save_video(coloured(63, 97), **{"to": "a.mp4"} | words), tmp_path)
    assert (seen.codec, seen.pixels, seen.size, len(seen.frames)) == (codec, pixels, size, len(COLOURS))
    for frame, colour in zip(seen.frames, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() < 8


def test_better_is_larger(exp: Experiment) -> None:
    def size(**words: Any) -> int:
        return int(exp.files.save_video(noise(30), **{"to": "a.mp4"} | words)["sizeBytes"])

    assert size(quality=0) < size(quality=5) < size(quality=10)
    assert size(bitrate=100_000) < size(bitrate=2_000_000)
    assert size(to="a.webm", quality=1) < size(to="a.webm", quality=9)


GRAY = np.zeros((64, 98), np.uint8)


@pytest.mark.parametrize(
    ("frames", "named"),
    [
        ([], "no frames"),
        (np.zeros((0, 64, 98), np.uint8), "no frames"),
        (np.zeros((64, 98, 3), np.uint8), "frames has the shape (64, 98, 3), that of one image (call save_image()"),
        ([GRAY, GRAY[:, 1:]], "frame 1 has the shape (64, 97, 3), those before it (64, 98, 3)"),
        ([GRAY, np.zeros((64, 98, 4), np.uint8)], "frame 1 has an alpha channel"),
        ([GRAY, GRAY + 1.5], "frame 1 has values from 1.5 to 1.5"),
        ([GRAY, GRAY.astype(int)], "frame 1 has the type int64"),
        ([GRAY.astype(np.uint16)], "frame 0 has the type uint16"),
        ([Image.new("P", (8, 8))], "frame 0 is an image of mode P"),
        ([np.zeros((2, 20_000), np.uint8)], "'a.mp4' can't be encoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_of_no_video(exp: Experiment, frames: Any, named: str) -> None:
    refused(lambda: exp.files.save_video(frames, to="a.mp4"), Code.INVALID_ARGUMENT, ValueError, named)
    assert exp.files().list() == []


def test_what_is_no_video_at_all(exp: Experiment) -> None:
    for frames, named in ((5, "int"), (None, "NoneType"), ("abc", "frame 0 is str"), ({"a": GRAY}, "frame 0 is str")):
        call = lambda frames=frames: exp.files.save_video(frames, to="a.mp4")  # noqa: E731
        refused(call, Code.UNSUPPORTED_TYPE, ValueError, named)


@pytest.mark.parametrize(
    "wrong",
    [{"to": "a.avi"}, {"to": "a"}, {"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": "30 a second"}, {"fps": 1e6},
     {"fps": None}, {"codec": "divx"}, {"codec": "vp9"}, {"quality": 11}, {"quality": True}, {"bitrate": 0},
     {"bitrate": "4M"}, {"pixelformat": "rgb24"}, {"tags": "tags"}, {"metadata": "metadata"}, {"durability": "rock"}],
    ids=repr,
)  # fmt: skip
def test_a_mistake_is_found_before_the_first_frame(exp: Experiment, wrong: dict[str, Any]) -> None:
    """A generator is not used up by it."""
    frames = iter([GRAY] * 3)
    with pytest.raises((ValueError, TypeError), match=re.escape(str(*wrong.values())[:4])):
        exp.files.save_video(frames, **{"to": "a.mp4"} | wrong)
    assert len([*frames]) == 3


@pytest.mark.parametrize(
    ("to", "words", "said"),
    [
        ("a.mp4", {"codec": "divx"}, "codec='divx' (for 'a.mp4' it is one of h264, h265)"),
        ("a.webm", {"codec": "h264"}, "codec='h264' (for 'a.webm' it is one of vp9)"),
        ("a.gif", {"quality": 5}, "quality=5 ('a.gif' is a .gif, which has 256 colours a frame; leave quality out)"),
        ("a.mp4", {"quality": 5, "bitrate": 1000}, "quality and bitrate are both given (one follows from the other"),
        ("a.mp4", {"pixelformat": "nv12"}, "pixelformat='nv12' (it is one of yuv420p, yuv422p, yuv444p; browsers"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_encoder_can_do_is_said(exp: Experiment, to: str, words: dict[str, Any], said: str) -> None:
    refused(lambda: exp.files.save_video([GRAY], to=to, **words), Code.INVALID_ARGUMENT, ValueError, said)


def test_threads_encode_at_once(exp: Experiment, tmp_path: Path) -> None:
    save: Callable[[int], FileResult] = lambda count: exp.files.save_video(noise(count, 100), to=f"{count}.mp4")  # noqa: E731
    with ThreadPoolExecutor(4) as callers:
        results = [*callers.map(save, range(20, 24))]
    assert [len(Seen(exp, result, tmp_path).frames) for result in results] == [20, 21, 22, 23]
