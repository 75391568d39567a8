"""Credentials for S3: AWS's chain (environment, profile, web identity, container, instance), or a file of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.session import AioSession
from botocore import exceptions as boto

from ml_dashd.edge.tls import SystemTrust

DEFAULT_PROFILE = "default"


class Chain(AioCredentials):  # type: ignore[misc]
    """What signs, as one object that outlives any one set of keys.

    Providers of temporary keys renew them 10 to 15 minutes before they end. Keys that the store refuses are dropped by
    `renew`, and the next request asks the whole chain anew: they may have been revoked early, or mended by an operator.
    """

    def __init__(self, profile: str | None, credentials_file: str | None, proxies: dict[str, str] | None) -> None:
        super().__init__("", "", method="ml-dash")
        self._profile = profile
        self._file = credentials_file
        self._proxies = proxies
        self._loading = asyncio.Lock()
        self._loaded: Any = None
        self.generation = 0
        """Counts the sets of keys. What it was before a request tells `renew` whether there are newer ones by now."""

    async def session(self) -> AioSession:
        """A session whose clients sign with this. Raises CredentialRetrievalError when the file can't be read."""
        await self._check_file()
        session = self._new_session()
        session.register_component("credential_provider", self)
        return session

    async def load_credentials(self) -> Chain:
        """As a session asks its provider."""
        return self

    async def get_frozen_credentials(self) -> Any:
        """The keys of this moment. Raises CredentialRetrievalError, whatever it was that failed, or NoCredentialsError.

        Where keys can't be renewed early, those that have not ended yet are used on.
        """
        try:
            if self._loaded is None:
                await self._load()
            return await self._loaded.get_frozen_credentials()
        except (boto.NoCredentialsError, boto.CredentialRetrievalError):
            raise
        except Exception as failure:
            method = getattr(self._loaded, "method", None) or self._file or "the AWS chain"
            raise boto.CredentialRetrievalError(provider=method, error_msg=str(failure)) from failure

    @property
    def provider(self) -> str:
        """What gave the keys that are in use: the file, or botocore's name of where in the chain they were found."""
        return self._file or str(getattr(self._loaded, "method", "the AWS chain"))

    def renew(self, generation: int) -> None:
        """Has the chain asked anew, unless it was since a request of that generation. Idempotent."""
        if generation == self.generation:
            self._loaded = None

    async def _load(self) -> None:
        async with self._loading:
            if self._loaded is not None:
                return
            await self._check_file()
            loaded = await self._new_session().get_credentials()
            if loaded is None:
                raise boto.NoCredentialsError
            self._loaded = loaded
            self.generation += 1

    async def _check_file(self) -> None:
        """Without it botocore takes a file that can't be read for an empty one, and goes on to what comes after it."""
        if self._file is not None:
            try:
                await asyncio.to_thread(Path(self._file).read_bytes)
            except OSError as failure:
                raise boto.CredentialRetrievalError(provider=self._file, error_msg=str(failure)) from failure

    def _new_session(self) -> AioSession:
        session = AioSession()
        if self._file is not None:
            session.set_config_variable("credentials_file", self._file)
        if self._profile is not None or self._file is not None:
            # A profile that is named goes before the environment's keys, which is what naming the file means, too.
            session.set_config_variable("profile", self._profile or DEFAULT_PROFILE)
        session.set_default_client_config(
            AioConfig(proxies=self._proxies, http_session_cls=SystemTrust, warm_up_loader_caches=True)
        )
        return session
