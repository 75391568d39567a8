"""The store on S3. A key holds the file's id, so whatever is repeated writes the same bytes.

What a server answers is sorted into a Fault by s3_errors.py. What it can verify is found out: see `prepare`.
Permissions: PutObject, GetObject, AbortMultipartUpload, ListMultipartUploadParts, DeleteObject (for cancelled files and
the probe); of the bucket ListBucketMultipartUploads and ListBucket (else HEAD of a missing object is a denial).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from ml_dashd.core import about, names
from ml_dashd.core.checksum import Digest
from ml_dashd.core.model import Algorithm, Evidence, FileRecord, OpenUpload, SentPart, Stored, Target
from ml_dashd.core.names import RESERVED, s3_key
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.s3_client import Clients, S3Settings
from ml_dashd.edge.s3_errors import as_placed, code_of, sorted_error
from ml_dashd.edge.s3_examine import S3Examiner
from ml_dashd.edge.s3_probe import S3Probe
from ml_dashd.edge.s3_send import Sender
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Offer

T = TypeVar("T")

ID_FIELD = "ml-dash-id"
"""The object's metadata that holds the file's id: x-amz-meta-ml-dash-id."""
ABOUT_FIELD = "ml-dash-about"
"""And what else it says of itself (core/about.py)."""
CHECKSUM_FIELDS = {Algorithm.CRC64NVME: "ChecksumCRC64NVME", Algorithm.CRC32C: "ChecksumCRC32C"}
CHECKSUM_HEADERS = {
    Algorithm.CRC64NVME: "x-amz-checksum-crc64nvme",
    Algorithm.CRC32C: "x-amz-checksum-crc32c",
    Algorithm.MD5: "content-md5",
}
ALGORITHM_NAMES = {Algorithm.CRC64NVME: "CRC64NVME", Algorithm.CRC32C: "CRC32C"}
LIST_PAGE = 1000
CALL_DEADLINE_S = 600.0
"""For all of one call: a proxy that is asked for a tunnel and says nothing has no timeout of aiohttp's."""
RENEWED = (Fault.EXPIRED, Fault.CREDENTIALS, Fault.DENIED)
"""After these the next call asks for credentials anew: they may have been mended. The last is a HEAD's word for all."""
ABORT_TRIES = 5
"""Parts that were on their way when an upload was aborted may appear after it: abort again until none is listed."""


class S3Store:
    """The port `Store` on S3."""

    def __init__(self, settings: S3Settings, throttle: Throttle | None = None) -> None:
        self.url = f"s3://{settings.bucket}/{settings.key_prefix}".rstrip("/")
        self.single_bytes = settings.part_bytes
        self.copy_bytes = settings.copy_bytes
        self._settings = settings
        self._clients = Clients(settings)
        self._sender = Sender(settings, self._clients, throttle)
        self._algorithm = settings.checksum
        self._probes = f"{settings.key_prefix}{RESERVED}-probe/"
        self._folder = names.s3_folder(settings.key_prefix)
        self.examiner = S3Examiner(settings, self._clients, SystemClock())
        self.prober = S3Probe(
            settings, self._probes, self._clients.control, ask=self._ask, send=self._send, clock=SystemClock()
        )

    async def prepare(self, known: Algorithm | None = None) -> Algorithm:
        """The checksum to use: the one that the settings name, or the one found out, which is then `known`.

        Where nothing is known the server is asked (s3_probe.py), once.
        """
        if self._settings.checksum is None:
            self._algorithm = known or self._algorithm or await self._find_out()
        return self._algorithm or Algorithm.NONE

    async def _find_out(self) -> Algorithm:
        key = self.scratch(secrets.randbits(62))
        try:
            return (await self.prober.probe(key, SystemClock().now_ms())).chosen()
        finally:
            for upload in [each async for each in self.uploads(key)]:
                await self.abort(Target(key, 0, 0, ""), upload.upload_id)
            await self.delete(key)

    def scratch(self, number: int) -> str:
        return f"{self._probes}{number}"

    def key(self, record: FileRecord) -> str:
        return s3_key(record, self._settings.key_prefix)

    async def put(self, target: Target, body: memoryview, digest: Digest) -> Evidence:
        said = {f"x-amz-meta-{name}": value for name, value in _metadata(target).items()}
        headers = {"content-type": target.content_type, **said, **self._settings.placement.headers}
        try:
            answer = await self._send(target.key, {}, headers, body, digest, f"put {target.key}")
        except StoreError as refused:
            raise as_placed(refused, self._settings.placement.headers) from refused.__cause__
        return Evidence(len(body), _bare(answer.get("etag")), _stated(answer, digest), target.file_id)

    async def copy(self, source: str, target: Target) -> None:
        """Tags of the object are not copied: that would take s3:GetObjectTagging."""

        async def ask() -> None:
            await (await self._clients.control()).copy_object(
                **self._at(target.key),
                CopySource=self._at(source),
                MetadataDirective="REPLACE",
                TaggingDirective="REPLACE",
                ContentType=target.content_type,
                Metadata=_metadata(target),
                **self._settings.placement.arguments,
                **_named(target.algorithm),
            )

        await self._copy(ask, f"copy {source} to {target.key}")

    async def copy_part(self, source: str, target: Target, upload_id: str, part: Part) -> None:
        last = part.offset + part.size_bytes - 1

        async def ask() -> None:
            await (await self._clients.control()).upload_part_copy(
                **self._at(target.key),
                CopySource=self._at(source),
                CopySourceRange=f"bytes={part.offset}-{last}",
                PartNumber=part.number,
                UploadId=upload_id,
            )

        await self._copy(ask, f"copy {source} to part {part.number} of {target.key}")

    async def _copy(self, ask: Callable[[], Awaitable[None]], what: str) -> None:
        try:
            await self._ask(ask, what)
        except StoreError as failure:
            if code_of(failure.__cause__ or failure) == "NoSuchKey":
                raise StoreError(Fault.MISSING, failure.message) from None
            raise as_placed(failure, self._settings.placement.headers) from failure.__cause__

    async def begin(self, target: Target) -> str:
        algorithm = target.algorithm or await self.prepare()

        async def ask() -> str:
            answer = await (await self._clients.control()).create_multipart_upload(
                **self._at(target.key),
                ContentType=target.content_type,
                Metadata=_metadata(target),
                **self._settings.placement.arguments,
                **_full_object(algorithm, ChecksumAlgorithm=ALGORITHM_NAMES.get(algorithm)),
            )
            return str(answer["UploadId"])

        try:
            return await self._ask(ask, f"begin {target.key}")
        except StoreError as refused:
            raise as_placed(refused, self._settings.placement.headers) from refused.__cause__

    async def send_part(self, target: Target, upload_id: str, part: Part, body: memoryview, digest: Digest) -> SentPart:
        query = {"partNumber": str(part.number), "uploadId": upload_id}
        answer = await self._send(target.key, query, {}, body, digest, f"part {part.number} of {target.key}")
        return SentPart(part.number, len(body), _bare(answer["etag"]), _stated(answer, digest), digest.crc64nvme)

    async def list_parts(self, target: Target, upload_id: str, part_size: int) -> list[SentPart]:
        field = CHECKSUM_FIELDS.get(target.algorithm or self._algorithm or Algorithm.NONE, "")

        async def ask() -> list[SentPart]:
            found: list[SentPart] = []
            marker = 0
            while True:
                page = await (await self._clients.control()).list_parts(
                    **self._at(target.key), UploadId=upload_id, PartNumberMarker=marker, MaxParts=LIST_PAGE
                )
                parts = page.get("Parts", [])
                found.extend(
                    SentPart(each["PartNumber"], each["Size"], _bare(each["ETag"]), each.get(field)) for each in parts
                )
                if not page.get("IsTruncated") or not parts:
                    return found
                marker = parts[-1]["PartNumber"]

        try:
            return await self._ask(ask, f"list parts of {target.key}")
        except StoreError as failure:
            if code_of(failure.__cause__ or failure) == "NoSuchKey":  # Ceph's word for an upload that is gone
                raise StoreError(Fault.GONE, failure.message) from None
            raise

    async def complete(self, target: Target, upload_id: str, parts: Sequence[SentPart], whole: Digest) -> None:
        field = CHECKSUM_FIELDS.get(whole.algorithm)
        listed = [
            {"PartNumber": part.number, "ETag": f'"{part.etag}"'} | ({field: part.checksum} if field else {})
            for part in parts
        ]

        async def ask() -> None:
            await (await self._clients.control()).complete_multipart_upload(
                **self._at(target.key),
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
                **_full_object(whole.algorithm, MpuObjectSize=whole.size_bytes),
                **(_checksum_of(whole) if field else {}),
            )

        await self._ask(ask, f"complete {target.key}")

    async def abort(self, target: Target, upload_id: str) -> None:
        async def ask() -> None:
            await (await self._clients.control()).abort_multipart_upload(**self._at(target.key), UploadId=upload_id)

        for _ in range(ABORT_TRIES):
            try:
                await self._ask(ask, f"abort {target.key}")
                if not await self.list_parts(target, upload_id, 0):
                    return
            except StoreError as failure:
                if failure.fault is Fault.GONE or code_of(failure.__cause__ or failure) == "NoSuchKey":
                    return
                raise
        raise StoreError(Fault.TRANSIENT, f"the upload of {target.key} still lists parts after it was aborted")

    async def head(self, key: str, *, glance: bool = False) -> Evidence | None:
        field = CHECKSUM_FIELDS.get(self._algorithm or Algorithm.NONE, "")

        async def ask() -> Evidence | None:
            try:
                mode = {"ChecksumMode": "ENABLED"} if field else {}
                answer = await (await self._clients.control()).head_object(**self._at(key), **mode)
            except Exception as failure:
                if code_of(failure) in ("404", "NoSuchKey", "NotFound"):
                    return None
                if code_of(failure) == "400":  # a HEAD says no more: most often that temporary credentials have ended
                    raise StoreError(Fault.EXPIRED, f"head {key}: the store answers 400 and no reason") from failure
                raise
            said = answer.get("Metadata", {})
            file_id = said.get(ID_FIELD)
            return Evidence(
                answer["ContentLength"],
                _bare(answer.get("ETag")),
                answer.get(field),
                int(file_id) if file_id and file_id.isdigit() else None,
                about.read(said.get(ABOUT_FIELD)),
                answer.get("ContentType", ""),
            )

        return await self._ask(ask, f"head {key}")

    async def read(self, key: str, offset: int, into: memoryview, arrived: Callable[[int], None]) -> None:
        if not into:
            return
        what = f"get {key}"
        generation = self._clients.generation
        try:
            await self._sender.get(key, offset, into, arrived, what)
        except Exception as failure:
            raise self._failed(failure, what, generation) from failure

    async def device(self) -> int | None:
        return None

    async def adopt(self, target: Target, upload_id: str, offer: Offer) -> bool:
        return False  # what is here is elsewhere there

    async def share(self, key: str, descriptor: int) -> bool:
        return False

    async def delete(self, key: str) -> None:
        async def ask() -> None:
            await (await self._clients.control()).delete_object(**self._at(key))

        await self._ask(ask, f"delete {key}")

    async def uploads(self, key: str) -> AsyncIterator[OpenUpload]:
        async for page in self._uploads_below(key):
            for each in page:
                if each.key == key:
                    yield each

    def open_uploads(self) -> AsyncIterator[Sequence[OpenUpload]]:
        return self._uploads_below(self._folder)

    async def _uploads_below(self, prefix: str) -> AsyncIterator[Sequence[OpenUpload]]:
        markers: dict[str, str] = {}
        before: set[str] = set()
        while True:
            page = await self._ask(partial(self._list_uploads, prefix, markers), f"list uploads of {prefix}")
            listed = {each["UploadId"]: each for each in page.get("Uploads", [])}
            fresh = [_open_upload(each) for upload_id, each in listed.items() if upload_id not in before]
            if fresh:
                yield fresh
            if not page.get("IsTruncated") or not fresh:
                return
            before = set(listed)
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def objects(self, after: str = "") -> AsyncIterator[Sequence[Stored]]:
        """Where a page ends is told by its last key: that can be asked for tomorrow, too, and of another server."""
        while True:
            page = await self._ask(partial(self._list_objects, after), f"list {self._folder}")
            found = [
                Stored(each["Key"], each["Size"], _ms(each["LastModified"]))
                for each in page.get("Contents", [])
                if each["Key"] > after
            ]
            if not found:
                return
            yield found
            if not page.get("IsTruncated"):
                return
            after = found[-1].key

    def place(self, key: str, depth: int) -> tuple[str, str, str, str, str] | None:
        return names.place_of(key, self._folder, depth)

    async def close(self) -> None:
        await self._sender.close()
        await self._clients.close()

    async def _send(
        self, key: str, query: dict[str, str], headers: dict[str, str], body: memoryview, digest: Digest, what: str
    ) -> Mapping[str, str]:
        if digest.proof is not None:
            headers[CHECKSUM_HEADERS[digest.algorithm]] = digest.proof
        generation = self._clients.generation
        try:
            return await self._sender.put(key, query, headers, body, what)
        except Exception as failure:
            raise self._failed(failure, what, generation) from failure

    async def _list_uploads(self, key: str, markers: dict[str, str]) -> Any:
        control = await self._clients.control()
        return await control.list_multipart_uploads(Bucket=self._settings.bucket, Prefix=key, **markers)

    async def _list_objects(self, after: str) -> Any:
        control = await self._clients.control()
        begin = {"StartAfter": after} if after > self._folder else {}
        return await control.list_objects_v2(
            Bucket=self._settings.bucket, Prefix=self._folder, MaxKeys=LIST_PAGE, **begin
        )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": key}

    async def _ask(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """A call, its failure sorted into a Fault."""
        generation = self._clients.generation
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                return await call()
        except Exception as failure:
            if await self._clients.follow(failure):
                raise StoreError(Fault.TRANSIENT, f"{what}: the bucket is in another region") from failure
            raise self._failed(failure, what, generation) from failure

    def _failed(self, failure: Exception, what: str, generation: int) -> StoreError:
        error = failure if isinstance(failure, StoreError) else sorted_error(failure, what)
        if error.fault in RENEWED:
            self._clients.renew(generation)
        return error


def _checksum_of(digest: Digest) -> dict[str, str]:
    """The header by which the server verifies what it receives."""
    if digest.proof is None:
        return {}
    return {CHECKSUM_FIELDS.get(digest.algorithm, "ContentMD5"): digest.proof}


def _named(algorithm: Algorithm | None) -> dict[str, str]:
    """Which checksum a copy gets; where none is named, the store keeps the source's."""
    return {"ChecksumAlgorithm": ALGORITHM_NAMES[algorithm]} if algorithm in ALGORITHM_NAMES else {}


def _full_object(algorithm: Algorithm, **more: Any) -> dict[str, Any]:
    """What asks for a checksum over the whole object; nothing where the algorithm has none."""
    return {"ChecksumType": "FULL_OBJECT", **more} if algorithm in CHECKSUM_FIELDS else {}


def _stated(answer: Mapping[str, str], digest: Digest) -> str | None:
    """The checksum that the server echoes; none where it verified an MD5, which is in its ETag."""
    return answer.get(CHECKSUM_HEADERS[digest.algorithm]) if digest.algorithm in CHECKSUM_FIELDS else None


def _metadata(target: Target) -> dict[str, str]:
    """What the object is to say of itself."""
    return {ID_FIELD: str(target.file_id)} | ({ABOUT_FIELD: target.about} if target.about else {})


def _open_upload(listed: Mapping[str, Any]) -> OpenUpload:
    begun = listed.get("Initiated")
    return OpenUpload(
        listed["Key"], listed["UploadId"], None if begun is None else _ms(begun), names.id_of(listed["Key"])
    )


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')
