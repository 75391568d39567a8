"""Asks a daemon over HTTP as a probe or a scraper does: at its Unix socket, or at a port of loopback."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from ml_dash.address import reachable

PATIENCE_S = 20.0


class HttpClient:
    """`place` is a socket's path, or an address and a port."""

    def __init__(self, place: Path | tuple[str, int]) -> None:
        self._place = place

    def connect(self) -> socket.socket:
        if isinstance(self._place, tuple):
            return socket.create_connection(self._place, PATIENCE_S)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE_S)
        try:
            with reachable(self._place) as address:
                made.connect(address)
        except BaseException:
            made.close()
            raise
        return made

    def get(self, route: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        try:
            connection.request("GET", route)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def reasons(self, route: str = "/readyz") -> dict[str, dict[str, Any]]:
        """What a verdict names, by check; a 200 names nothing, a 503 something."""
        status, body = self.get(route)
        verdict = json.loads(body)
        assert status == (200 if verdict["ok"] else 503)
        assert verdict["ok"] is (verdict["reasons"] == [])
        return {reason["check"]: reason for reason in verdict["reasons"]}

    def metrics(self) -> dict[str, float]:
        """Every series by its name and, in brackets, its labels."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
