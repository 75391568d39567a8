"""Many small files in one message: whatever they are, every message fits its frame, and each file is in one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ml_dash import messages as m
from ml_dash import wire
from ml_dash.errors import MLDashError
from ml_dash.many import Basket, Taken, read_small

PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")
LEAST = {
    "namespace": "a", "project": "b", "experiment": "c", "path": "/", "filename": "d", "size_bytes": 0,
    "content_type": "text/plain", "created_ms": 0, "updated_ms": 0, "state": "QUEUED", "ack": "disk", "pin": "inline",
}  # fmt: skip

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
described = st.builds(
    m.Described,
    place=st.builds(m.Place, namespace=texts, project=texts, experiment=texts, prefix=texts),
    to=texts,
    description=st.one_of(st.none(), texts, st.just("数" * 16_000)),
    tags=st.lists(texts, max_size=5).map(tuple),
    metadata=st.one_of(st.none(), st.just("m" * 200_000)),
)
contents = st.one_of(st.binary(max_size=300), st.integers(0, m.INLINE_BYTES).map(bytes), st.none())
"""None for a file that travels open."""


def never(failure: MLDashError, _: Taken) -> m.Record:
    """The daemon is there."""
    raise failure


class Daemon:
    """Takes what is sent, as the wire would."""

    def __init__(self) -> None:
        self.messages: list[m.PutMany] = []

    def hand_over(
        self, _: type[m.Message], build: Callable[[int], m.Message], descriptors: Sequence[int]
    ) -> m.AcceptedMany:
        (frame,) = wire.Decoder(m.REQUEST_LIMITS).feed(m.encode(build(1), len(descriptors)), descriptors)
        message = m.decode(frame, m.REQUESTS)
        assert isinstance(message, m.PutMany)
        first = sum(len(one.files) for one in self.messages)
        self.messages.append(message)
        return m.AcceptedMany(
            request=1, records=tuple(m.Record(id=first + at, **LEAST) for at in range(len(message.files)))
        )


def put_in(basket: Basket[m.Record], file: m.Described, content: bytes | None) -> Iterator[m.Record]:
    if content is not None:
        return basket.add(file, content)
    return basket.add_open(file, os.open(os.devnull, os.O_RDONLY), file.to)


@given(st.lists(st.tuples(described, contents), max_size=30))
def test_every_message_fits_and_every_file_is_in_one(files: list[tuple[m.Described, bytes | None]]):
    daemon = Daemon()
    basket = Basket(daemon, None, never)  # type: ignore[arg-type]
    ids = [record.id for file, content in files for record in put_in(basket, file, content)]
    ids += [record.id for record in basket.empty()]
    assert ids == list(range(len(files)))
    sent = [one for message in daemon.messages for one in message.files]
    assert [(one.file, None if one.source else one.content) for one in sent] == files
    assert len({one.key for one in sent}) == len(files)
    assert not list(basket.empty())


def test_a_message_holds_as_many_as_the_protocol_allows():
    daemon = Daemon()
    basket = Basket(daemon, None, never)  # type: ignore[arg-type]
    for number in range(2 * m.MANY + 1):
        list(basket.add(m.Described(place=PLACE, to=f"{number}"), b""))
    list(basket.empty())
    assert [len(message.files) for message in daemon.messages] == [m.MANY, m.MANY, 1]


def test_what_is_small_is_read_whole(tmp_path: Path):
    for size, small in ((0, True), (1, True), (m.INLINE_BYTES, True), (m.INLINE_BYTES + 1, False)):
        path = tmp_path / str(size)
        path.write_bytes(bytes(size))
        with path.open("rb") as file:
            assert read_small(file.fileno()) == (bytes(size) if small else None)


def test_a_file_that_says_that_it_is_empty_is_read_to_its_end():
    """As those of /proc do: a size is a hint."""
    with Path("/proc/self/status").open("rb") as file:
        assert b"Name:" in (read_small(file.fileno()) or b"")
