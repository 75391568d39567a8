"""Savers of what is not a file yet: text, bytes, objects, pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Unpack

from ml_dash import checkpoint, json_text, serialize
from ml_dash.arguments import PathLike, Words, split_words, text
from ml_dash.dispatch import saver_of, why_refused
from ml_dash.errors import Code, MLDashError, error
from ml_dash.handoff import HandOff
from ml_dash.media import encoding, figure, image, video
from ml_dash.result import FileResult


class Savers(HandOff):
    """The calls that save one object each, at a place of an experiment."""

    def save_json(self, content: Any, *, to: str, **described: Unpack[Words]) -> FileResult:
        """Saves what JSON can hold: dict, list, str, numbers, bool, None. Raises TypeError for the rest."""
        hint = json_text.about(content)
        return self._stream(to, described, lambda out: out.writelines(serialize.json_pieces(content)), size_hint=hint)

    def save_text(self, content: str, *, to: str, encoding: str = "utf-8", **described: Unpack[Words]) -> FileResult:
        """Saves text."""
        return self._save(memoryview(serialize.text_bytes(content, encoding)), to, described)

    def save_blob(self, content: Any, *, to: str, **described: Unpack[Words]) -> FileResult:
        """Saves bytes, a bytearray, a memoryview, or anything else that has a buffer."""
        return self._save(serialize.blob_view(content), to, described)

    def save_pkl(self, content: Any, *, to: str, **described: Unpack[Words]) -> FileResult:
        """Pickles an object (protocol 5) straight into the daemon's file; `pickle.load` reads it back.

        Raises ValueError for what can't be pickled. Load pickles of people whom you trust only.
        """
        size = checkpoint.pickle_size(content)
        return self._stream(to, described, lambda out: checkpoint.write_pickle(content, out), size_hint=size)

    def save_image(self, content: Any, *, to: str, quality: int = 95, **described: Unpack[Words]) -> FileResult:
        """Saves pixels or a PIL image in the format of its name: .png, .jpg, .webp, .bmp, .gif, .tif.

        `content` is an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): numpy's, a tensor, one of jax; uint8,
        bool, floats from 0 to 1, for a gray .png uint16. A PIL image is saved as its own save() does it. `quality`, 1
        to 100, is that of .jpg and .webp. Raises ValueError for what the format can't hold.
        """
        image.format_of(text(to, "to"))
        pixels, quality = image.image_of(content, to), image.quality_of(quality)
        return self._stream(to, described, lambda out: image.write_image(out, pixels, to, quality))

    def save_fig(self, fig: Any = None, *, to: str, **savefig_kw: Any) -> FileResult:
        """Saves a figure in the format of its name, .png, .pdf, .svg, …; by default pyplot's current one.

        A figure of plotly becomes a page, .html. What is no word of upload()'s (`metadata` is) goes to the figure's own
        savefig, or to_html. pyplot forgets a figure that was handed over (plt.close); one whose saving failed stays
        open, so that it can be saved again. Raises ValueError for a format that there is not.
        """
        described, options = split_words(savefig_kw, taken=("format", "fname"))
        drawn = figure.figure_of(fig)
        figure.format_of(drawn, text(to, "to"))
        saved = self._stream(to, described, lambda out: figure.write_figure(out, drawn, to, options))
        figure.close(drawn)
        return saved

    def save_video(
        self,
        frames: Iterable[Any],
        *,
        to: str,
        fps: float = 30,
        codec: str | None = None,
        quality: float | None = None,
        bitrate: int | None = None,
        pixelformat: str | None = None,
        **described: Unpack[Words],
    ) -> FileResult:
        """Encodes frames as a video: .mp4 (H.264, for any browser and player), .webm (VP9) or .gif.

        `frames` is an array of shape (T, H, W) or (T, H, W, 3), or any iterable of such frames, all of one size; uint8,
        bool, or floats from 0 to 1. They are taken and encoded one by one, so a generator's are never in memory
        together. `fps` is frames a second, up to 1,000; a .gif counts in hundredths of a second. H.264 has even sizes
        alone: an odd width or height of an .mp4 grows by one pixel, the last column or row once more. Encoding takes
        the caller's time.

        `codec` "h265" makes an .mp4 smaller, and fewer players show it. `quality` is 0 to 10, the best (default: about
        6), or `bitrate` bits a second. `pixelformat` "yuv444p" keeps the colour of each pixel, and an odd size; of
        browsers, few show it. A .gif has none of these. Raises ValueError for what is no video; what a generator raises
        passes, and nothing is saved.
        """
        how = encoding.encoding_of(text(to, "to"), codec, quality, bitrate, pixelformat)
        rate = video.rate_of(fps)
        return self._stream(to, described, lambda out: video.write_video(out, frames, to, rate, how))

    def save(self, content: Any, *, to: str | None = None, **described: Unpack[Words]) -> FileResult:
        """Saves by content: a path is uploaded, bytes become a blob, a dict or list JSON, pixels an image.

        Pixels are an array of numpy or a PIL image. Raises ValueError for anything else, and names the saver to call;
        TypeError for a dict or a list with something in it that JSON can't hold.
        """
        if isinstance(content, str | os.PathLike):
            return self._save_path(content, to, described)
        if to is None:
            raise error(Code.INVALID_PATH, "save() of an object needs to=", 'pass a name, such as to="config.json"')
        saver: Callable[..., FileResult] = getattr(self, saver_of(content, text(to, "to")))
        try:
            return saver(content, to=to, **described)
        except MLDashError as refused:
            better = why_refused(content, refused)
            if better is refused:
                raise
            raise better from None

    def _save_path(self, content: PathLike, to: str | None, described: Words) -> FileResult:
        if isinstance(content, str) and not os.path.exists(content):  # noqa: PTH110
            raise error(
                Code.FILE_NOT_FOUND,
                f"save() took {content[:120]!r} for a path, and there is no such file",
                "to save the text itself, call save_text()",
            )
        return self.upload(content, to=to, **described)
