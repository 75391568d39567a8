"""That the catalog's server is real: it keeps what a majority has journaled, and a set goes on without its primary."""

from pathlib import Path

import pymongo
import pytest

from tests.servers.mongodb import MongoDB


@pytest.mark.slow
def test_a_server_that_was_killed_has_kept_all(tmp_path: Path) -> None:
    with MongoDB(tmp_path) as server:
        with pymongo.MongoClient(server.url("kept"), w="majority", journal=True) as client:
            client["kept"]["files"].insert_one({"_id": 7})
        server.kill()
        assert not server.pids
        server.start()
        with pymongo.MongoClient(server.url("kept")) as client:
            assert client["kept"]["files"].find_one() == {"_id": 7}
