"""Which certificates are trusted: those of the system, or of a file that takes their place."""

from __future__ import annotations

import ssl

from aiobotocore.httpsession import AIOHTTPSession


def trusting(ca_bundle: str | None) -> ssl.SSLContext:
    """A client's context. It reads the system's roots, some 20 ms: not for the event loop.

    Raises OSError (ssl.SSLError is one) when the file can't be read or holds no certificate.
    """
    context = ssl.create_default_context(cafile=ca_bundle)
    context.set_alpn_protocols(["http/1.1"])
    return context


class SystemTrust(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's sessions, trusting what the data path trusts: by themselves they know only a list of their own.

    They ask for the context in a thread.
    """

    def _build_verify_context(self) -> ssl.SSLContext:
        if self._verify is False:  # for endpoints without TLS: no roots are read for them
            return super()._build_verify_context()  # type: ignore[no-any-return]
        return trusting(None if self._verify is True else self._verify)
