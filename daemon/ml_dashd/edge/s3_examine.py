"""How an S3 server is reached, and what of it the daemon does without: asked when somebody wants to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto

from ml_dashd.core.checkup import Reach
from ml_dashd.core.redact import redact
from ml_dashd.core.retry import StoreError
from ml_dashd.edge.s3_client import Clients, S3Settings
from ml_dashd.edge.s3_errors import sorted_error
from ml_dashd.edge.system import SystemClock


class S3Examiner:
    """The port `Examiner`."""

    def __init__(self, settings: S3Settings, clients: Clients, clock: SystemClock) -> None:
        self._settings = settings
        self._clients = clients
        self._clock = clock

    async def reach(self) -> Reach:
        """Asks for the bucket, whatever the answer. Never fails: what goes wrong is what is to be known."""
        what = "reach the server"
        try:
            control, provider = await self._clients.control(), await self._clients.provider()
        except Exception as failure:  # noqa: BLE001 a profile or a process that should give credentials, for example
            endpoint = redact(self._settings.endpoint_url or "AWS")
            return Reach(endpoint, None, failure=_sorted(failure, what))
        endpoint = str(control.meta.endpoint_url)
        trusts = ""
        if endpoint.startswith("https"):
            trusts = self._settings.ca_bundle or "the system's certificates, or AWS_CA_BUNDLE's"
        endpoint = redact(endpoint)
        before = self._clock.now_ms()
        try:
            answer = await control.head_bucket(Bucket=self._settings.bucket)
        except boto.ClientError as failure:
            answer = failure.response  # whatever it says, it is an answer
            await self._clients.follow(failure)  # it may be that the bucket is in another region
        except Exception as failure:  # noqa: BLE001
            return Reach(endpoint, provider, failure=_sorted(failure, what), trusts=trusts)
        return Reach(
            endpoint,
            provider,
            answered=True,
            skew_s=_skew(answer, (before + self._clock.now_ms()) / 2),
            trusts=trusts,
        )

    async def optional(self, key: str, upload_id: str) -> dict[str, StoreError | None]:
        """Copies of an object that is there, onto itself and into a part."""
        bucket = self._settings.bucket
        source = {"Bucket": bucket, "Key": key}
        control = await self._clients.control()
        return {
            "CopyObject": await _tried(
                "copy", lambda: control.copy_object(**source, CopySource=source, MetadataDirective="REPLACE")
            ),
            "UploadPartCopy": await _tried(
                "copy a part",
                lambda: control.upload_part_copy(**source, CopySource=source, UploadId=upload_id, PartNumber=1),
            ),
        }


def _sorted(failure: Exception, what: str) -> StoreError:
    return failure if isinstance(failure, StoreError) else sorted_error(failure, what)


async def _tried(what: str, call: Callable[[], Awaitable[Any]]) -> StoreError | None:
    try:
        await call()
    except Exception as failure:  # noqa: BLE001 sorted, and shown
        return sorted_error(failure, what)
    return None


def _skew(answer: dict[str, Any], at_ms: float) -> float | None:
    """How far this machine is ahead, in seconds; a Date has whole ones, cut off."""
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        moment = parsedate_to_datetime(said or "")
    except ValueError:
        return None
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    ahead_s = at_ms / 1000 - moment.timestamp()
    return 0.0 if 0 <= ahead_s < 1 else ahead_s
