"""Handing files over: `upload`, and `save_*` for what is not a file yet."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, Unpack

from ml_dash import checkpoint, json_text, serialize
from ml_dash import messages as m
from ml_dash.arguments import (
    ManyWords,
    PathLike,
    Said,
    Words,
    absolute,
    distinct,
    durability_of,
    flag,
    name_of,
    only_known,
    open_source,
    opened,
    priority_of,
    split_words,
    text,
    texts,
    words,
)
from ml_dash.connection import Connection, new_key
from ml_dash.dispatch import saver_of
from ml_dash.errors import Code, MLDashError, error
from ml_dash.inbox import Inbox, inbox_after, inbox_of_outage
from ml_dash.many import OF_ONE_FILE, Basket, Refused, Taken
from ml_dash.media import encoding, figure, image, video
from ml_dash.result import FileResult, Written
from ml_dash.slot_writer import slot_writer

Many = Mapping[str, PathLike] | Iterable[PathLike]
"""Files for `upload_many`: paths, or names below the prefix and the paths they are read from."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a builder was given: where, and what every file of it gets. None is what it was not given."""

    prefix: str = ""
    file_id: int | None = None
    description: str | None = None
    tags: tuple[str, ...] | None = None
    bindrs: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] | None = None
    supersede: bool = False

    def merged(
        self,
        description: str | None,
        tags: Sequence[str] | None,
        bindrs: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> Defaults:
        """The call's words, checked, else these."""
        return replace(
            self,
            description=self.description if description is None else words(description, "description"),
            tags=self.tags if tags is None else texts(tags, "tags"),
            bindrs=self.bindrs if bindrs is None else texts(bindrs, "bindrs"),
            metadata=self.metadata if metadata is None else metadata,
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What is said of content that is handed over, in a message of its own or in a slot."""

    file: m.Described
    key: bytes
    durability: str
    seal: bool

    def put(self, content: bytes) -> Callable[[int], m.Put]:
        sha256 = hashlib.sha256(content).digest()
        return lambda number: m.Put(request=number, key=self.key, file=self.file, content=content, sha256=sha256)

    def commit(self, size_bytes: int) -> Callable[..., m.CommitSlot]:
        return lambda number, slot: m.CommitSlot(
            request=number,
            key=self.key,
            slot=slot,
            file=self.file,
            size_bytes=size_bytes,
            durability=self.durability,
            seal=self.seal,
        )


class HandOff:
    """The calls that hand files over, at a place of an experiment."""

    def __init__(self, connection: Connection, place: m.Place, defaults: Defaults, durability: str = "") -> None:
        self._connection = connection
        self._place = place
        self._defaults = defaults
        self._durability = durability

    def __repr__(self) -> str:
        place, file_id = self._place, self._defaults.file_id
        where = "/".join(part for part in (place.namespace, place.project, place.experiment, place.prefix) if part)
        which = "" if file_id is None else f" file {file_id}"
        return f"<{type(self).__name__} {where}{which}>" if where else f"<{type(self).__name__}{which}>"

    @property
    def place(self) -> m.Place:
        """Where these files belong."""
        return self._place

    def upload(
        self,
        fpath: PathLike,
        *,
        to: str | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        snapshot: str | None = None,
        protect: str | None = None,
        priority: int = 0,
        supersede: bool | None = None,
    ) -> FileResult:
        """Hands an existing file over and returns its record, in one or two milliseconds whatever its size.

        `to` is its name below the prefix (default: its own). The file itself is never changed; until it is stored it
        may be renamed or deleted, but not overwritten: that fails with SOURCE_CHANGED, unless `snapshot="copy"` took
        a copy first, or `protect="lease"` got a lease (the result's `pin` says so): whoever opens it to write waits
        while it is copied. `durability="disk"` returns only when the bytes are on stable storage. A higher `priority`
        (-100 to 100) is sent first. With `supersede` older versions of this path that are not stored yet are dropped.

        Raises ValueError for a file that is missing, no regular file, or over 100 GB.
        """
        source = text(fpath, "fpath")
        name = name_of(source) if to is None else to
        file = self._describe(
            name,
            description=description,
            tags=tags,
            bindrs=bindrs,
            metadata=metadata,
            priority=priority,
            supersede=supersede,
        )
        key, where = new_key(), absolute(source)
        descriptor = open_source(source)
        try:
            accepted = self._connection.hand_over(
                m.Accepted,
                lambda number: m.Upload(
                    request=number,
                    key=key,
                    file=file,
                    source=where,
                    durability=durability_of(durability or self._durability),
                    snapshot=snapshot or "",
                    protect=protect or "",
                ),
                (descriptor,),
            )
        except MLDashError as failure:
            return self._inbox_after(failure).leave_copy(file, key, where, descriptor)
        finally:
            os.close(descriptor)
        return self._result(accepted.record)

    def upload_many(self, fpaths: Many, **described: Unpack[ManyWords]) -> list[FileResult]:
        """Hands many files over and returns their records in order; thousands go several times as quick.

        `fpaths` are paths, or a mapping of names below the prefix to paths; the other arguments are `upload`'s, for
        each of them. They travel many in a message, larger ones than 64 KiB sixteen, and one where `durability`,
        `snapshot` or `protect` may take long. An error names its file: those before it are handed over,
        those after it are not. Two that would get one name are an error that names both, and none is
        handed over.
        """
        return [*self.each_uploaded(fpaths, **described)]

    def each_uploaded(self, fpaths: Many, **described: Unpack[ManyWords]) -> Iterator[FileResult]:
        """`upload_many`, a message at a time: each file is the daemon's when it is yielded."""
        if isinstance(fpaths, str | bytes | os.PathLike) or not isinstance(fpaths, Iterable):
            what = f"upload_many() was given {type(fpaths).__name__}, not several paths"
            raise error(Code.INVALID_ARGUMENT, what, "pass a list of paths; upload() takes one")
        named = fpaths.items() if isinstance(fpaths, Mapping) else ((name_of(path), path) for path in fpaths)
        yield from self.each_of(distinct(named), None, **described)

    def each_of(
        self,
        named: Iterable[tuple[str, PathLike]],
        refused: Refused | None,
        *,
        durability: str | None = None,
        snapshot: str | None = None,
        protect: str | None = None,
        **described: Unpack[Said],
    ) -> Iterator[FileResult]:
        """`each_uploaded` of names and paths; with `refused`, what can't be taken is told, and the rest goes on."""
        durability_of(durability or "")
        kept: dict[str, Any] = {"durability": durability, "snapshot": snapshot, "protect": protect}
        if (tags := described.get("tags")) is not None:
            described["tags"] = texts(tags, "tags")  # once for all: a generator has them no second time
        if (bindrs := described.get("bindrs")) is not None:
            described["bindrs"] = texts(bindrs, "bindrs")
        alone = any(kept.values()) or self._durability == "disk"
        with Basket(self._connection, refused, self._leave) as basket:
            for name, path in named:
                try:
                    file, source = self._describe(name, **only_known(described)), text(path, "a path")
                    content, descriptor = opened(source)
                except MLDashError as failure:
                    if failure.code in OF_ONE_FILE and refused is not None:
                        refused(name, failure)
                        continue
                    if failure.code in OF_ONE_FILE:  # those before it are handed over
                        yield from map(self._result, basket.empty())
                    raise
                if descriptor is None:
                    yield from map(self._result, basket.add(file, content))
                elif not alone:
                    yield from map(self._result, basket.add_open(file, descriptor, absolute(source)))
                else:
                    os.close(descriptor)
                    yield from map(self._result, basket.empty())
                    yield from self._unless_refused(
                        partial(self.upload, path, to=name, **kept, **described), name, refused
                    )
            yield from map(self._result, basket.empty())

    def _unless_refused(
        self, upload: Callable[[], FileResult], name: str, refused: Refused | None
    ) -> Iterator[FileResult]:
        try:
            yield upload()
        except MLDashError as failure:
            if refused is None or failure.code not in OF_ONE_FILE:
                raise
            refused(name, failure)

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

        Pixels are an array of numpy or a PIL image. Raises ValueError for anything else, and names the saver to call.
        """
        if isinstance(content, str | os.PathLike):
            return self._save_path(content, to, described)
        if to is None:
            raise error(Code.INVALID_PATH, "save() of an object needs to=", 'pass a name, such as to="config.json"')
        saver: Callable[..., FileResult] = getattr(self, saver_of(content, text(to, "to")))
        return saver(content, to=to, **described)

    def _save_path(self, content: PathLike, to: str | None, described: Words) -> FileResult:
        if isinstance(content, str) and not os.path.exists(content):  # noqa: PTH110
            raise error(
                Code.FILE_NOT_FOUND,
                f"save() took {content[:120]!r} for a path, and there is no such file",
                "to save the text itself, call save_text()",
            )
        return self.upload(content, to=to, **described)

    def _save(self, data: memoryview, to: str, described: Words) -> FileResult:
        saved, connection = self._saved(to, described), self._connection
        try:
            if len(data) <= m.INLINE_BYTES:
                accepted = connection.hand_over(m.Accepted, saved.put(bytes(data)))
            else:
                accepted = connection.save(data, saved.commit(len(data)))
        except MLDashError as failure:
            return self._inbox_after(failure).leave_bytes(saved.file, saved.key, data)
        return self._result(accepted.record)

    def _stream(
        self,
        to: str,
        described: Words,
        write: Callable[[BinaryIO], None],
        *,
        size_hint: int = 0,
    ) -> FileResult:
        """Saves what `write` writes into the file that it is given, straight into a slot of the daemon's.

        `size_hint` is how many bytes it will be, as far as that is known: a slot that is too small has to grow, one
        that is too large takes room until it is used again. `write` is called once; what it raises passes, and nothing
        is left behind.
        """
        with self.writing(to, size_hint=size_hint, **described) as written:
            write(written.out)
        return written.file

    @contextmanager
    def writing(
        self, to: str, *, size_hint: int = 0, seal: bool = False, key: bytes | None = None, **described: Unpack[Words]
    ) -> Iterator[Written]:
        """Saves what the block writes to `.out`; once it has ended without an error, `.file` is the record.

        With `seal` it is a zip archive, whose checksums the daemon puts right, where `.seal` says so.
        """
        saved = self._saved(to, described, seal=seal, key=key)
        if (inbox := self._inbox_of_outage()) is not None:
            with inbox.writing(saved.file, saved.key) as written:
                yield written
            return
        with slot_writer(self._connection, size_hint) as (slot, buffered):
            written = Written(buffered, seal=seal)
            yield written
            if not buffered.closed:
                buffered.flush()
            try:
                written.file = self._result(slot.hand_over(None if seal else saved.put, saved.commit).record)
            except MLDashError as failure:
                if seal:
                    raise
                written.file = self._inbox_after(failure).leave_bytes(saved.file, saved.key, slot.left)

    def _saved(
        self,
        to: str,
        described: Words,
        *,
        seal: bool = False,
        key: bytes | None = None,
        in_order: bool = False,
    ) -> Saved:
        """`in_order`: it is handed over behind those that go on in the background, so it need not wait for them."""
        durability = durability_of(described.pop("durability", None) or self._durability)
        say = self._say if in_order else self._describe
        return Saved(say(to, **only_known(described)), key or new_key(), durability, seal)

    def _leave(self, failure: MLDashError, taken: Taken) -> FileResult:
        """Leaves a file in the inbox of a service that is down. Raises the failure where there is none."""
        inbox, one = self._inbox_after(failure), taken.content
        if taken.descriptor is None:
            return inbox.leave_bytes(one.file, one.key, one.content)
        return inbox.leave_copy(one.file, one.key, one.source, taken.descriptor)

    def _inbox_after(self, failure: MLDashError) -> Inbox:
        """Where to leave what the service does not take now. Raises the failure where there is no such place."""
        return inbox_after(failure, self._connection)

    def _inbox_of_outage(self) -> Inbox | None:
        """The same, asked before much is written; None where the service answers, or has none."""
        return inbox_of_outage(self._connection)

    # ---- the pieces

    def _describe(self, to: str, **said: Unpack[Said]) -> m.Described:
        """What is said of a file: the call's words, else the builder's.

        A save of that path that goes on in the background is waited for: this one is to be the newer version.
        """
        described = self._say(to, **said)
        self._connection.background.wait_for(path_of(described))
        return described

    def _say(
        self,
        to: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        supersede: bool | None = None,
    ) -> m.Described:
        given = self._defaults
        described = m.Described(
            place=self._place,
            to=text(to, "to"),
            description=given.description if description is None else words(description, "description"),
            tags=(given.tags or ()) if tags is None else texts(tags, "tags"),
            bindrs=(given.bindrs or ()) if bindrs is None else texts(bindrs, "bindrs"),
            metadata=serialize.metadata_text(given.metadata if metadata is None else metadata),
            priority=priority_of(priority),
            supersede=given.supersede if supersede is None else flag(supersede, "supersede"),
        )
        m.check(described)
        return described

    def _result(self, record: m.Record | FileResult) -> FileResult:
        return record if isinstance(record, FileResult) else FileResult(record, self._connection)


def path_of(file: m.Described) -> str:
    """Where a file goes, below its experiment."""
    return unicodedata.normalize("NFC", f"{file.place.prefix}/{file.to}".strip("/"))
