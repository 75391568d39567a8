"""Which versions are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ml_dashd.core.model import FileRecord
from ml_dashd.core.retention import Rule, Sieve


def version(number: int, path: str = "best.pt", tags: tuple[str, ...] = (), owner_uid: int = 0) -> FileRecord:
    return FileRecord(number, owner_uid, "a", "b", "c", "", path, 5, "", 0, 0, tags=tags)


def surplus(rule: Rule, versions: list[FileRecord]) -> list[int]:
    sieve = Sieve(rule)
    return [each.id for each in versions if sieve.is_surplus(each)]


def test_the_newest_of_each_path_stay() -> None:
    versions = [version(9), version(5), version(3), version(8, "last.pt"), version(4, "last.pt"), version(1, "z")]
    assert surplus(Rule(1), versions) == [5, 3, 4]
    assert surplus(Rule(2), versions) == [3]
    assert surplus(Rule(3), versions) == []


def test_a_tag_keeps_an_old_version_and_takes_no_newer_ones_place() -> None:
    versions = [version(9, tags=("best",)), version(8), version(7, tags=("x", "best")), version(6, tags=("x",))]
    assert surplus(Rule(1, frozenset({"best", "gold"})), versions) == [8, 6]
    assert surplus(Rule(2, frozenset({"gold"})), versions) == [7, 6]


def test_nobodys_versions_push_out_anothers() -> None:
    """Whoever shares a service may save at any path: with as many versions as are kept, others' would be deleted."""
    versions = [version(number, owner_uid=number % 2) for number in range(9, 3, -1)]
    assert surplus(Rule(1), versions) == [7, 6, 5, 4]
    assert surplus(Rule(2), versions) == [5, 4]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=30).map(sorted),
    st.integers(1, 4),
    st.integers(0, 30),
)
def test_a_sieve_goes_on_where_another_has_stopped(paths: list[tuple[str, int]], keep: int, cut: int) -> None:
    """A page ends anywhere; what is known of the last path is enough."""
    versions = [version(100 - at, path, owner_uid=uid) for at, (path, uid) in enumerate(paths)]
    first = Sieve(Rule(keep))
    before = [each.id for each in versions[:cut] if first.is_surplus(each)]
    last = versions[:cut][-1].path if versions[:cut] else ""
    second = Sieve(Rule(keep), last, first.kept)
    after = [each.id for each in versions[cut:] if second.is_surplus(each)]
    assert before + after == surplus(Rule(keep), versions)
