"""A Selection as questions to SQLite: whatever is asked for is there, in order, and read from an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dashd.core import names, narrow
from ml_dashd.core.model import EVERYBODY, FileRecord, Scope, Selection
from ml_dashd.edge.catalog_sqlite import MIGRATIONS, SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.listing import ENDING, read_selection
from ml_dashd.edge.rows import RECORD_COLUMNS, insert, record_values

EXPERIMENT = ("alice", "cv", "resnet")
LISTED = "deleted_ms IS NULL"


def record(number: int, path: str, owner: int = 1000, deleted_ms: int | None = None) -> FileRecord:
    prefix, _, filename = path.rpartition("/")
    return FileRecord(
        number, owner, *EXPERIMENT, prefix, filename, 5, "text/plain", 1, 2,
        sha256="ab" * 32, key=f"files/{number}", uploaded_ms=3, deleted_ms=deleted_ms,
    )  # fmt: skip


# ---- what is asked for is there

segments = st.text(alphabet="ab.[*é", min_size=1, max_size=3).filter(lambda segment: segment not in (".", ".."))
globs = st.text(alphabet="ab.*?[]é", min_size=1, max_size=4).filter(lambda glob: glob not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)
patterns = st.lists(globs | segments | st.just("**"), min_size=1, max_size=3).map("/".join)


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        made.row_factory = sqlite3.Row
        made.executescript(";".join(MIGRATIONS))
        yield made


@st.composite
def selections(draw: st.DrawFn, some: list[str]) -> tuple[Selection, str, str | None]:
    """What Browse asks for a place and a pattern, which come with it."""
    prefix = draw(st.just("") | paths | st.sampled_from(some).map(lambda path: path.rpartition("/")[0]))
    pattern = draw(st.none() | patterns | st.sampled_from(["**/*.a", "*", "*.b", "**/a", *some]))
    literal, rest = ("", None) if pattern is None else narrow.split(pattern)
    return (
        Selection(
            *EXPERIMENT,
            prefix="/".join(part for part in (prefix, literal) if part),
            pattern=rest,
            latest=draw(st.booleans()),
            limit=draw(st.integers(1, 5)),
            scope=draw(st.sampled_from([EVERYBODY, Scope(1000), Scope(2000, frozenset({"bob"}))])),
        ),
        prefix,
        pattern,
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.lists(st.tuples(paths, st.sampled_from([1000, 2000]), st.booleans()), min_size=1, max_size=20))
@pytest.mark.parametrize("narrows", [True, False])
def test_pages_have_what_fits_in_order(
    connection: sqlite3.Connection, narrows: bool, data: st.DataObject, files: list[tuple[str, int, bool]]
) -> None:
    records = [
        record(number, path, owner, 9 if deleted else None)
        for number, (path, owner, deleted) in enumerate(files, start=1)
    ]
    connection.execute("DELETE FROM files")
    for each in records:
        values = record_values(each)
        connection.execute(insert("files", values), list(values.values()))
    selection, prefix, pattern = data.draw(selections([path for path, _, _ in files]))
    try:
        names.matches("", "", pattern)
    except ValueError:  # a set that can't be
        return

    found: list[tuple[str, int]] = []
    while True:
        asked = Selection(
            **{name: getattr(selection, name) for name in Selection.__slots__}
            | {"cursor": found[-1] if found else None}
        )
        page = read_selection(connection, asked, RECORD_COLUMNS, LISTED, narrows=narrows)
        found += [(FileRecord(**{name: row[name] for name in RECORD_COLUMNS}).path, row["id"]) for row in page]
        if len(page) < selection.limit:
            break

    scope = selection.scope
    seen = [
        (each.path, each.id)
        for each in sorted(records, key=lambda each: (each.path, -each.id))
        if each.deleted_ms is None and (scope.owner_uid is None or each.owner_uid == scope.owner_uid)
        if names.matches(each.path, prefix, pattern)
    ]
    if selection.latest:
        seen = [each for at, each in enumerate(seen) if not at or seen[at - 1][0] != each[0]]
    assert [each for each in found if names.matches(each[0], prefix, pattern)] == seen
    assert len(set(found)) == len(found)


@given(st.text(alphabet="ab.é-", min_size=1, max_size=9))
def test_the_ending_in_sql_is_the_one_of_core(filename: str) -> None:
    with closing(sqlite3.connect(":memory:")) as made:
        (ending,) = made.execute(f"SELECT {ENDING} FROM (SELECT ? AS filename)", (filename,)).fetchone()
    assert ending == narrow.ending(filename)


# ---- and read from an index

SCOPES = [EVERYBODY, Scope(1000), Scope(2000, frozenset({"bob", "carol"}))]
BY_PATH = "files_by_path (namespace=? AND project=? AND experiment=? AND path"
OF_FOLDER = "files_by_folder (namespace=? AND project=? AND experiment=? AND prefix=?"
BY_FOLDER = f"{OF_FOLDER} AND path"
BY_ENDING = "files_by_ending (namespace=? AND project=? AND experiment=? AND <expr>=? AND path"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("asked", "ranges"),
    [
        ({}, [f"{BY_PATH}>?)"]),
        ({"cursor": ("b/7.png", 7)}, [f"{BY_PATH}=? AND id<?)", f"{BY_PATH}>?)"]),
        ({"prefix": "b"}, [f"{BY_PATH}=?)", f"{BY_PATH}>? AND path<?)"]),
        ({"prefix": "b", "cursor": ("b/7.png", 7)}, [f"{BY_PATH}=? AND id<?)", f"{BY_PATH}>? AND path<?)"]),
        ({"prefix": "model.pt", "pattern": ""}, [f"{BY_PATH}=?)"]),
        ({"pattern": "**/*.json"}, [f"{BY_ENDING}>?)"]),
        ({"pattern": "**/*.json", "cursor": ("b/7.json", 7)}, [f"{BY_ENDING}=? AND id<?)", f"{BY_ENDING}>?)"]),
        ({"pattern": "*"}, [f"{BY_FOLDER}>?)"]),
        ({"pattern": "*", "cursor": ("b.png", 7)}, [f"{BY_FOLDER}=? AND id<?)", f"{BY_FOLDER}>?)"]),
        ({"prefix": "b", "pattern": "7*"}, [f"{BY_FOLDER}>? AND path<?)"]),
        ({"prefix": "b", "pattern": "*.png"}, [f"{OF_FOLDER})", f"{BY_FOLDER}>? AND path<?)"]),
        ({"prefix": "b", "pattern": "*/*.png"}, [f"{BY_ENDING}>? AND path<?)"]),
        ({"prefix": "b", "pattern": "*/*"}, [f"{BY_PATH}>? AND path<?)"]),
        ({"latest": True}, [f"{BY_PATH}>?)"] * 2),
        ({"latest": True, "cursor": ("b/7.png", 7)}, [f"{BY_PATH}>?)"] * 2),
        ({"latest": True, "pattern": "**/*.json"}, [f"{BY_ENDING}>?)"] * 2),
        ({"latest": True, "pattern": "*"}, [f"{BY_FOLDER}>?)"] * 2),
        ({"latest": True, "prefix": "model.pt", "pattern": ""}, [f"{BY_PATH}=?)"]),
    ],
)
async def test_each_question_reads_its_range_of_an_index(
    tmp_path: Path, asked: dict[str, object], ranges: list[str], scope: Scope
) -> None:
    """What is asked is taken from SQLite itself, and no question sorts more than a page."""
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    questions: list[str] = []
    await catalog.commit([record(number, f"b/{number}.{'png' if number % 2 else 'json'}") for number in range(1, 10)])
    await catalog._database.call(lambda made: made.set_trace_callback(questions.append))
    await catalog.select(Selection(*EXPERIMENT, scope=scope, **asked))  # type: ignore[arg-type]
    await catalog.close()
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as made:
        plans = [
            [step[3] for step in made.execute(f"EXPLAIN QUERY PLAN {question}")]
            for question in questions
            if "SELECT" in question
        ]
    steps = [step.partition("USING INDEX ")[2] for plan in plans for step in plan if "USING INDEX" in step]
    assert steps == ranges
    for plan in plans:
        assert not [
            step for step in plan if step.startswith("SCAN") and step not in ("SCAN newest", "SCAN (subquery-1)")
        ]
        assert ("USE TEMP B-TREE FOR ORDER BY" in plan) <= ("SCAN newest" in plan)
