"""What an S3 server really does with a bucket: asked with small objects and one upload in two parts.

Whether a checksum is verified shows only when a wrong one is sent. About twenty requests and 5 MiB, S3's least for a
part that is not the last.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from ml_dashd.core.capabilities import CANDIDATES, Capabilities, Trial
from ml_dashd.core.checksum import Digest, combine, digest, part_etag
from ml_dashd.core.model import Algorithm
from ml_dashd.core.plan import MIB
from ml_dashd.core.retry import Fault, StoreError, backoff_ms
from ml_dashd.edge.s3_client import S3Settings
from ml_dashd.edge.s3_errors import as_placed, code_of
from ml_dashd.ports import Clock

T = TypeVar("T")

log = logging.getLogger("ml_dashd.edge")

SMALL = memoryview(bytes(range(256)) * 4)
LARGE = memoryview(bytes(range(256)) * (5 * MIB // 256))
OTHER = memoryview(b"these are other bytes")
TELLING = (Fault.CORRUPT, Fault.REFUSED, Fault.UNSUPPORTED, Fault.GONE)
"""Refusals that are an answer; others say nothing of what the server can do."""
ABANDONED = timedelta(days=1)
"""What is left of a probe whose daemon never came back is anybody's to remove then."""

TRIES = 8
"""Of one request at a store that asks for patience. Another failure may have been a success: all is asked anew then."""

Ask = Callable[[Callable[[], Awaitable[Any]], str], Awaitable[Any]]
Send = Callable[[str, dict[str, str], dict[str, str], memoryview, Digest, str], Awaitable[Mapping[str, str]]]


class S3Probe:
    """The port `Prober`. `ask` and `send` are the store's own calls, so that what is tried is what is used.

    `folder` is what the keys of all probes begin with. The settings' placement goes with whatever is made: a bucket's
    policy may refuse what is not encrypted.
    """

    def __init__(
        self,
        settings: S3Settings,
        folder: str,
        control: Callable[[], Awaitable[Any]],
        *,
        ask: Ask,
        send: Send,
        clock: Clock,
    ) -> None:
        self.place = f"{settings.endpoint_url or 'AWS'} {settings.bucket}"
        self._bucket = settings.bucket
        self._folder = folder
        self._placement = settings.placement
        self._control = control
        self._ask = ask
        self._sending = send
        self._clock = clock

    async def probe(self, key: str, now_ms: int) -> Capabilities:
        """Asks. What it makes is left at the key, for the caller to remove. Raises StoreError."""
        await self._sweep(now_ms)
        put_condition = await self._put_twice(key)
        trials = [await self._try_object(key, algorithm) for algorithm in CANDIDATES]
        again: str | None = None
        for index, trial in enumerate(trials):
            if trial.put_refused and trial.put_stated:
                trials[index], again = await self._try_parts(key, trial)
            if trials[index].verified:
                break
        return Capabilities(now_ms, tuple(trials), put_condition, await self._complete_condition(key), again)

    # ---- objects in one request

    async def _put_twice(self, key: str) -> bool:
        words = {"Key": key, "Body": bytes(SMALL)} | self._placement.arguments
        try:
            await self._call("put_object", **words)
        except StoreError as refused:
            raise as_placed(refused, self._placement.headers) from refused.__cause__
        return await self._refused_by_condition("put_object", **words)

    async def _try_object(self, key: str, algorithm: Algorithm) -> Trial:
        trial = Trial(algorithm, await self._refuses(key, {}, algorithm))
        if not trial.put_refused:
            return trial
        right = digest(SMALL, algorithm)
        stored = await _unless_refused(self._send(key, {}, self._placement.headers, SMALL, right))
        return replace(trial, put_stated=stored is not None and await self._states(key, right))

    # ---- an object in parts

    async def _try_parts(self, key: str, trial: Trial) -> tuple[Trial, str | None]:
        """The trial's other half, and what a Complete that came again was answered with."""
        algorithm = trial.algorithm
        upload_id = await _unless_refused(self._begin(key, algorithm))
        if upload_id is None:
            return trial, None
        trial = replace(trial, part_refused=await self._refuses(key, _part(2, upload_id), algorithm))
        if not trial.part_refused:
            return trial, None
        digests = [digest(LARGE, algorithm), digest(SMALL, algorithm)]
        etags = []
        for number, (body, right) in enumerate(zip((LARGE, SMALL), digests, strict=True), start=1):
            answer = await _unless_refused(self._send(key, _part(number, upload_id), {}, body, right))
            if answer is None:
                return trial, None
            etags.append(answer.get("etag", ""))
        trial = replace(trial, listed=await self._lists(key, upload_id, digests))
        return await self._try_complete(key, upload_id, trial, etags, digests)

    async def _try_complete(
        self, key: str, upload_id: str, trial: Trial, etags: list[str], digests: list[Digest]
    ) -> tuple[Trial, str | None]:
        whole = combine(digests, trial.algorithm)
        parts = [
            {"PartNumber": number, "ETag": etag} | _checksum_of(right)
            for number, (etag, right) in enumerate(zip(etags, digests, strict=True), start=1)
        ]
        words: dict[str, Any] = {"Key": key, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        if trial.algorithm is not Algorithm.MD5:
            words |= {"ChecksumType": "FULL_OBJECT", "MpuObjectSize": whole.size_bytes} | _checksum_of(whole)
        if await _unless_refused(self._call("complete_multipart_upload", **words)) is None:
            return replace(trial, whole_stated=False), None
        trial = replace(trial, whole_stated=await self._states(key, whole))
        try:
            await self._call("complete_multipart_upload", **words)
        except StoreError as failure:
            return trial, _code(failure)
        return trial, ""

    async def _lists(self, key: str, upload_id: str, digests: list[Digest]) -> bool:
        listed = (await self._call("list_parts", Key=key, UploadId=upload_id)).get("Parts", [])
        return len(listed) == len(digests) and all(
            _is_stated(each, right) for each, right in zip(listed, digests, strict=True)
        )

    async def _complete_condition(self, key: str) -> bool:
        """Whether a Complete is refused that asks for a key of which nothing is there yet. Something is."""
        upload_id = await self._begin(key, Algorithm.NONE)
        sent = await self._call("upload_part", Key=key, UploadId=upload_id, PartNumber=1, Body=bytes(SMALL))
        parts = {"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}
        return await self._refused_by_condition(
            "complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload=parts
        )

    async def _begin(self, key: str, algorithm: Algorithm) -> str:
        words = self._placement.arguments
        if algorithm in (Algorithm.CRC64NVME, Algorithm.CRC32C):
            words |= {"ChecksumType": "FULL_OBJECT", "ChecksumAlgorithm": algorithm.value.upper()}
        return str((await self._call("create_multipart_upload", Key=key, **words))["UploadId"])

    # ---- what all have in common

    async def _refuses(self, key: str, query: dict[str, str], algorithm: Algorithm) -> bool:
        """Whether a body is refused because of its checksum; one whose header is not understood is not verified."""
        try:
            headers = {} if query else self._placement.headers
            await self._send(key, query, headers, SMALL, digest(OTHER, algorithm))
        except StoreError as failure:
            if failure.fault in TELLING:
                return failure.fault is Fault.CORRUPT
            raise
        return False

    async def _states(self, key: str, right: Digest) -> bool:
        mode = {} if right.algorithm is Algorithm.MD5 else {"ChecksumMode": "ENABLED"}
        return _is_stated(await self._call("head_object", Key=key, **mode), right)

    async def _refused_by_condition(self, operation: str, **words: Any) -> bool:
        try:
            await self._call(operation, IfNoneMatch="*", **words)
        except StoreError as failure:
            if _code(failure) in ("PreconditionFailed", "412"):
                return True
            if failure.fault in TELLING:
                return False
            raise
        return False

    async def _call(self, operation: str, **words: Any) -> Any:
        async def ask() -> Any:
            return await getattr(await self._control(), operation)(Bucket=self._bucket, **words)

        return await self._patiently(lambda: self._ask(ask, "probe the bucket"))

    async def _send(
        self, key: str, query: dict[str, str], headers: dict[str, str], body: memoryview, sent: Digest
    ) -> Mapping[str, str]:
        return await self._patiently(lambda: self._sending(key, query, dict(headers), body, sent, "probe the bucket"))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, TRIES):
            try:
                return await ask()
            except StoreError as failure:
                if failure.fault is not Fault.THROTTLED:
                    raise
                await self._clock.sleep(backoff_ms(attempt, self._clock.jitter()) / 1000)
        return await ask()

    async def _sweep(self, now_ms: int) -> None:
        """Removes what the probes of daemons have left that are gone for good, their journals with them."""
        before = datetime.fromtimestamp(now_ms / 1000, UTC) - ABANDONED
        try:
            for each in (await self._call("list_objects_v2", Prefix=self._folder)).get("Contents", []):
                if each["LastModified"] < before:
                    await self._call("delete_object", Key=each["Key"])
            for each in (await self._call("list_multipart_uploads", Prefix=self._folder)).get("Uploads", []):
                if each["Initiated"] < before:
                    await self._call("abort_multipart_upload", Key=each["Key"], UploadId=each["UploadId"])
        except StoreError as failure:
            if failure.fault not in (Fault.DENIED, *TELLING):
                raise
            log.debug("scratch_left", extra={"key": self._folder, "error": failure})


def _part(number: int, upload_id: str) -> dict[str, str]:
    return {"partNumber": str(number), "uploadId": upload_id}


def _checksum_of(right: Digest) -> dict[str, str]:
    """A CRC as requests and answers of S3 name it; an MD5 is in the ETag."""
    if right.algorithm is Algorithm.MD5 or right.proof is None:
        return {}
    return {f"Checksum{right.algorithm.value.upper()}": right.proof}


def _is_stated(answer: Mapping[str, Any], right: Digest) -> bool:
    """Whether an object or a part is said to have this checksum; a composite ETag is told by its dash."""
    if right.algorithm is not Algorithm.MD5:
        return all(answer.get(field) == proof for field, proof in _checksum_of(right).items())
    proof = right.proof or ""
    return str(answer.get("ETag", "")).strip('"') == (proof if "-" in proof else part_etag(proof))


async def _unless_refused(asked: Awaitable[T]) -> T | None:
    try:
        return await asked
    except StoreError as failure:
        if failure.fault in TELLING:
            return None
        raise


def _code(failure: StoreError) -> str:
    """S3's own code of a failure; its family where there is none."""
    return code_of(failure.__cause__ or failure) or failure.fault.value
