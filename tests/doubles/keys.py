"""Who gives temporary keys: a container's endpoint and a token service; and a gate that lets only those keys pass."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs

from tests.doubles.gate import Answer, Asked, refusal

HOUR_S = 3600


class Keys:
    """Gives other keys each time it is asked, over HTTP, and knows which are still good.

    GET answers as a container's endpoint does, POST as AssumeRoleWithWebIdentity.
    """

    def __init__(self, life_s: float = HOUR_S) -> None:
        self.life_s = life_s
        self.given: list[str] = []
        self.tokens: list[str] = []
        """What a workload proved itself with."""
        self.refused = 0
        self.good: set[str] = set()
        self.broken = False
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"keys": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def give(self) -> dict[str, str]:
        with self._lock:
            key = f"ASIA{len(self.given):012}"
            self.given.append(key)
            self.good.add(key)
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.life_s))
        return {"AccessKeyId": key, "SecretAccessKey": f"secret of {key}", "Token": f"token-{key}", "Expiration": ends}

    def revoke_all(self) -> None:
        """What was given is refused from now on, as keys that have ended are."""
        with self._lock:
            self.good.clear()

    def judge(self, asked: Asked) -> Answer | None:
        """For a Gate: only good keys pass, and only with the token that belongs to them."""
        key = asked.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
        with self._lock:
            if key in self.good and asked.headers.get("x-amz-security-token") == f"token-{key}":
                return None
            self.refused += 1
        return refusal(400, "ExpiredToken")


class _Handler(BaseHTTPRequestHandler):
    keys: Keys

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.keys.tokens.append(self.headers.get("authorization", ""))
        self._say(json.dumps(self.keys.give()))

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        assert form["Action"] == ["AssumeRoleWithWebIdentity"]
        self.keys.tokens += form["WebIdentityToken"]
        given = self.keys.give()
        given["SessionToken"] = given.pop("Token")
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
        self._say(
            "<AssumeRoleWithWebIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'>"
            f"<AssumeRoleWithWebIdentityResult><Credentials>{inner}</Credentials></AssumeRoleWithWebIdentityResult>"
            "</AssumeRoleWithWebIdentityResponse>"
        )

    def _say(self, text: str) -> None:
        self.send_response(500 if self.keys.broken else 200)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
