"""The table in docs/s3-servers.md is what the servers really answer."""

from pathlib import Path

import pytest

from tests.servers.differences import observe, read_table, table

PAGE = Path(__file__).parents[2] / "docs" / "s3-servers.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swift", "ceph", "localstack"])
def test_a_server_answers_as_the_page_says(name: str, request: pytest.FixtureRequest) -> None:
    assert observe(request.getfixturevalue(name)) == read_table(PAGE.read_text())[name]


def test_the_table_is_as_it_is_printed() -> None:
    """A row that nobody asks about any more would be lost in the comparison above."""
    assert table(read_table(PAGE.read_text())) in PAGE.read_text()
