"""HTTP is served for this machine alone: whatever might be another's address is refused."""

from __future__ import annotations

import pytest

from ml_dashd.core.listen import Listen, is_loopback, parse_listen


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("unix:/run/ml-dash/http.sock", Listen(path="/run/ml-dash/http.sock")),
        ("unix:/run/größe of x/http:sock", Listen(path="/run/größe of x/http:sock")),
        ("127.0.0.1:9464", Listen(host="127.0.0.1", port=9464)),
        ("127.9.9.9:1", Listen(host="127.9.9.9", port=1)),
        ("[::1]:65535", Listen(host="::1", port=65535)),
        ("[0:0:0:0:0:0:0:1]:80", Listen(host="::1", port=80)),
    ],
)
def test_a_place_on_this_machine(text: str, listen: Listen) -> None:
    assert parse_listen(text) == listen


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:9464",
        "[::]:9464",
        "10.0.0.1:9464",
        "192.168.1.1:9464",
        "[fe80::1]:9464",
        "127.0.0.1",
        ":9464",
        "9464",
        "*:9464",
        "localhost:9464",
        "example.org:9464",
        "::1:9464",
        "[127.0.0.1]:9464",
        "127.1:9464",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:http",
        "127.0.0.1:٩٤٦٤",
        "127.0.0.1:9464/metrics",
        "http://127.0.0.1:9464",
        "unix:",
        "unix:run/http.sock",
        "unix:/run/",
        "unix:/run/a\nb",
        "unix:/run/a\0b",
        "/run/http.sock",
        "auto ",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_listen(text)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:9464", "127.0.0.1", "127.0.0.1:9464", "[::1]", "[::1]:9464"])
def test_a_request_to_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:9464", "localhost.evil.example", "10.0.0.1:80", ":1"]
)
def test_a_request_to_a_name_that_was_bound_anew(host: str) -> None:
    assert not is_loopback(host)
