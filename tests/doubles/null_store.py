"""The benchmarks' null S3 server as a store under test: it keeps no body, but verifies each, and knows what came."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

from tests.harness import StoreUnderTest

SINK = Path(__file__).parent.parent.parent / "benchmarks" / "null_sink.py"
BUCKET = "null"
PATIENCE_S = 60


class NullStore(StoreUnderTest):
    """Runs while it is entered."""

    url = f"s3://{BUCKET}/some"
    key_prefix = "some/"
    credentials: ClassVar[dict[str, str]] = {
        "AWS_ACCESS_KEY_ID": "null",
        "AWS_SECRET_ACCESS_KEY": "null",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def __enter__(self) -> Self:
        command = [sys.executable, str(SINK), "--verify"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self._port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=PATIENCE_S)  # it ends when its stdin does

    def stats(self) -> dict[str, Any]:
        """What the server counts: "bytes" of bodies that came whole, "objects", "uploads" that are open, "requests"."""
        return json.loads(self._ask("GET", "/_stats")[1])

    def head(self, key: str) -> tuple[int, str]:
        """Size and CRC64NVME of an object, as the server computed it of what came."""
        headers, _ = self._ask("HEAD", quote(f"/{BUCKET}/{key}"))
        return int(headers["Content-Length"]), headers["x-amz-checksum-crc64nvme"]

    def open_uploads(self) -> list[str]:
        return ["?"] * self.stats()["uploads"]

    def key_of(self, result: dict[str, Any]) -> str:
        parts = ("files", result["experimentId"], result["path"].strip("/"), result["id"], result["filename"])
        return self.key_prefix + "/".join(part for part in parts if part)

    def _ask(self, method: str, target: str) -> tuple[http.client.HTTPMessage, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)) as connection:
            connection.request(method, target, headers={"x-amz-checksum-mode": "ENABLED"})
            answer = connection.getresponse()
            assert answer.status == 200, f"{method} {target}: {answer.status}"
            return answer.headers, answer.read()
