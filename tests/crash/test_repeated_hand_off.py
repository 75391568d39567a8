"""A hand-off that comes again, because its answer was lost: what its pin holds open is the first request's file's."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from ml_dash import messages as m
from tests.crash.test_kill_daemon import revived
from tests.doubles.counting_proxy import CountingProxy
from tests.doubles.raw_client import RawClient
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.measured import measured

WITHOUT_COPIES = "[spool]\ncopy_after = 600\ntouch_leases = 0\n"
"""And without leases, each of which is a descriptor of its own."""


@pytest.mark.parametrize("count", [1, 3], ids=["alone", "several in a message"])
def test_a_source_that_is_held_open_outlives_its_name_though_the_daemon_died_before_it_answered(
    count: int, s3_double, tmp_path: Path, elsewhere: Path
) -> None:
    expected = {f"{at}.bin": make_file(elsewhere / f"{at}.bin", 100_000, at) for at in range(count)}
    with CountingProxy(s3_double.endpoint) as proxy:
        store = Bucket(s3_double, endpoint=proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store, WITHOUT_COPIES) as daemon, daemon.experiment().run as exp:
            daemon.kill()
            proxy.stall()  # none is read before its name is gone
            daemon.start(faults="accept.journaled=kill")
            with revived(daemon):
                paths = [elsewhere / name for name in expected]
                results = exp.files.upload_many(paths) if count > 1 else [exp.files.upload(paths[0])]
            assert {one["pin"] for one in results} == {"fd"}
            for path in paths:
                path.unlink()
            proxy.go_on()
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, expected)


def test_a_request_that_comes_again_leaves_no_descriptor_open(s3_double, tmp_path: Path, elsewhere: Path) -> None:
    make_file(elsewhere / "a.bin", 100_000)
    store = Bucket(s3_double, endpoint="http://127.0.0.1:1")
    with DaemonProcess(tmp_path / "daemon", store, WITHOUT_COPIES) as daemon:
        file = m.Described(place=m.Place(namespace="alice", project="cv", experiment="resnet"), to="a.bin")
        asked = m.Upload(request=1, key=secrets.token_bytes(16), file=file, source=str(elsewhere / "a.bin"))
        with RawClient(daemon.socket).greet() as client, (elsewhere / "a.bin").open("rb") as opened:
            first = client.ask(m.Accepted, asked, [opened.fileno()])
            again = [client.ask(m.Accepted, asked, [opened.fileno()]) for _ in range(3)]
            assert {one.record.id for one in again} == {first.record.id}
            eventually(lambda: measured(daemon).descriptors.count(str(elsewhere / "a.bin")) == 1)
