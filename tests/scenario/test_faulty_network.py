"""Whatever the network and the server do, every file arrives once, and right, without an operator; nothing is left."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.faults import (
    BODIES,
    Delay,
    ErrorIn200,
    FlipBit,
    Late,
    LoseAnswer,
    NoContinue,
    Rate,
    Refuse,
    Reset,
    Rule,
    Script,
    Side,
    StopReading,
    Truncate,
    Twice,
)
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.measured import loop_lag, measured

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZES = {"inline.bin": 1000, "small.bin": 70_000, "one-request.bin": 2 * MIB, "parts.bin": 11 * MIB + 5}
SETTINGS = f"part_size = {5 * MIB}\n"
CHECKSUM = {"s3_double": "crc64nvme", "swift": "md5"}
"""What each server verifies. It is said, so that the files meet the faults, and not the probe before them."""
PROBED = ("every other request refused", "no 100 Continue")
"""The scripts that the probe goes through, too."""
SLOW = ("1 MB/s",)
"""The scripts under which a daemon needs its patience as it is shipped: a part waits for others' bytes on the line."""
STATEFUL = ("CreateMultipartUpload", *BODIES, "CompleteMultipartUpload")
"""The operations after which the server is another."""
SLOW_DOWN_S, LONG_SLOW_DOWN_S = 5.0, 60.0

SCRIPTS = (
    Script("every other request refused", (Rule(Refuse(503, "SlowDown"), probability=0.5, seconds=SLOW_DOWN_S),)),
    Script("internal errors", (Rule(Refuse(500, "InternalError"), probability=0.3, times=20),)),
    Script("reset in a body", (Rule(Reset(Side.REQUEST), probability=0.4, times=12),)),
    Script("reset in an answer", (Rule(Reset(Side.ANSWER), probability=0.4, times=12),)),
    Script("truncated answers", (Rule(Truncate(), probability=0.4, times=12),)),
    Script("zero window", (Rule(StopReading(), least_body=MIB, times=2),)),
    Script("no 100 Continue", (Rule(NoContinue()),)),
    Script("200 with an error", tuple(Rule(ErrorIn200(), (each,), times=2) for each in STATEFUL)),
    Script("answers lost", tuple(Rule(LoseAnswer(), (each,), times=2) for each in STATEFUL)),
    Script("delivered twice", (Rule(Twice(), (*BODIES, "CompleteMultipartUpload")),)),
    Script("delivered late", (Rule(Late(behind="UploadPart"), ("CreateMultipartUpload",), times=1),)),
    Script("200 ms away", (Rule(Delay(0.2)),)),
    Script("1 MB/s", (Rule(Rate(1_000_000)),)),
    Script("bits flipped", tuple(Rule(FlipBit(), (each,), probability=0.5, times=4) for each in BODIES)),
)


@pytest.mark.parametrize("server", ["s3_double", "swift"])
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name.replace(" ", "-") for script in SCRIPTS])
def test_every_file_arrives_once_and_right(
    request: pytest.FixtureRequest, server: str, script: Script, tmp_path: Path, full_size: bool
) -> None:
    settings = SETTINGS
    if script.name not in PROBED:
        settings += f'checksum = "{CHECKSUM[server]}"\n'
    if full_size:
        script = prolonged(script)
    expected = {name: make_file(tmp_path / name, size, seed) for seed, (name, size) in enumerate(SIZES.items())}
    with FaultProxy(request.getfixturevalue(server).endpoint, script) as proxy:
        store = Bucket(request.getfixturevalue(server), endpoint=proxy.endpoint)
        daemon = DaemonProcess(tmp_path / "daemon", store, settings)
        if not full_size and script.name not in SLOW:  # what takes a minute as it is shipped
            daemon.module = ["tests.doubles.impatient"]
        with daemon:
            loop_lag(daemon)  # what answers is loaded for the first who asks
            idle = Counter(measured(daemon).descriptors)
            hand_over(daemon, tmp_path, expected)
            assert {action for action, _ in proxy.injected} == {type(rule.action).__name__ for rule in script.rules}
            print(dict(proxy.injected), loop_lag(daemon))
            gc.collect()  # results keep their connection
            eventually(lambda: proxy.end_idle() or Counter(measured(daemon).descriptors) <= idle, timeout=40)
            assert "Traceback" not in daemon.log()


def prolonged(script: Script) -> Script:
    """What goes on for seconds goes on for a minute."""
    rules = tuple(replace(rule, seconds=rule.seconds and LONG_SLOW_DOWN_S) for rule in script.rules)
    return replace(script, rules=rules)


def hand_over(daemon: DaemonProcess, folder: Path, expected: dict[str, str]) -> None:
    """All files at once, until they are stored."""
    with daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(folder / name)
        exp.files.flush(timeout=150)
        assert_whole(daemon, exp, expected)
