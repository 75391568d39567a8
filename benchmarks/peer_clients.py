"""One client of peers.py, as a process of its own.

    python benchmarks/peer_clients.py CLIENT SOURCE NAME

Prints "ready" once it is imported and has what it sends with, waits until its stdin ends, sends SOURCE (a file, or
every file of a folder) to keys below NAME, and ends at once. Endpoint, credentials and certificates are in the
environment. Each sends as its own documentation says, one file or many, with the settings that it comes with.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUCKET = "bench"
PREFIX = "bench/marks/run"
PART = 16 << 20
AT_ONCE = 10
"""Requests at once of clients that leave it to the caller: botocore's pool has ten connections."""
COPIED_S = 1.5
"""Copies of what waits begin half a second after a hand-off: when for this long none is made, they are all made."""
LOOK_S = 0.25
Files = list[tuple[str, str]]
"""Paths, and the keys that they go to."""
Send = Callable[[], None]


def awscrt(files: Files) -> Send:
    from awscrt import auth, http, io, s3

    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    group = io.EventLoopGroup()
    bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
    keys = auth.AwsCredentialsProvider.new_static("bench", "bench")
    checksum = s3.S3ChecksumConfig(s3.S3ChecksumAlgorithm.CRC64NVME, s3.S3ChecksumLocation.TRAILER)
    secure = None
    if endpoint.scheme == "https":
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, os.environ["AWS_CA_BUNDLE"])
        secure = io.ClientTlsContext(options).new_connection_options()
        secure.set_server_name(endpoint.hostname)
    client = s3.S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        credential_provider=keys,
        tls_mode=s3.S3RequestTlsMode.ENABLED if secure else s3.S3RequestTlsMode.DISABLED,
        tls_connection_options=secure,
    )

    def begin(path: str, key: str) -> Any:
        size = Path(path).stat().st_size
        headers = http.HttpHeaders([("Host", endpoint.netloc), ("Content-Length", str(size))])
        request = http.HttpRequest("PUT", f"/{BUCKET}/{key}", headers)
        kind = s3.S3RequestType.PUT_OBJECT
        return client.make_request(type=kind, request=request, send_filepath=path, checksum_config=checksum)

    def send() -> None:
        requests = [begin(path, key) for path, key in files]
        for request in requests:
            ended: Future[None] = request.finished_future
            ended.result()

    return send


def obstore(files: Files) -> Send:
    import obstore
    from obstore.store import S3Store

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id="bench",
        secret_access_key="bench",  # noqa: S106
        client_options={"allow_http": True},
    )

    async def one(turn: asyncio.Semaphore, path: str, key: str) -> None:
        async with turn:
            await obstore.put_async(store, key, Path(path))

    return lambda: asyncio.run(all_of(files, one))


def boto3(files: Files) -> Send:
    import boto3
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    client = boto3.client("s3")

    def send() -> None:
        with create_transfer_manager(client, TransferConfig()) as manager:
            for future in [manager.upload(path, BUCKET, key) for path, key in files]:
                future.result()

    return send


def aiobotocore(files: Files) -> Send:
    """A part, or a small file, is read as bytes and passed as Body."""
    from aiobotocore.session import get_session

    async def parts(s3: Any, path: str, key: str) -> None:
        begun = await s3.create_multipart_upload(Bucket=BUCKET, Key=key)
        upload = {"Bucket": BUCKET, "Key": key, "UploadId": begun["UploadId"]}
        with Path(path).open("rb") as file:
            count = -(-os.fstat(file.fileno()).st_size // PART)

            async def one(turn: asyncio.Semaphore, index: int) -> dict[str, Any]:
                async with turn:
                    body = await asyncio.to_thread(os.pread, file.fileno(), PART, index * PART)
                    sent = await s3.upload_part(**upload, PartNumber=index + 1, Body=body)
                    known = {name: value for name, value in sent.items() if name.startswith("Checksum")}
                    return {"PartNumber": index + 1, "ETag": sent["ETag"], **known}

            sent = await all_of([(index,) for index in range(count)], one)
        await s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})

    async def single(s3: Any, turn: asyncio.Semaphore, path: str, key: str) -> None:
        async with turn:
            body = await asyncio.to_thread(Path(path).read_bytes)
            await s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    async def send() -> None:
        async with get_session().create_client("s3") as s3:
            if len(files) == 1:
                await parts(s3, *files[0])
            else:
                await all_of(files, partial(single, s3))

    return lambda: asyncio.run(send())


async def all_of(entries: list[Any], one: Callable[..., Any]) -> list[Any]:
    turn = asyncio.Semaphore(AT_ONCE)
    return await asyncio.gather(*(one(turn, *entry) for entry in entries))


# ---- ours: what is handed over, and what is waited for, are two processes where a queue is filled first


def hand_over(files: Files) -> Send:
    """Returns once nothing more is copied: what waits in the queue is as it will be sent."""
    run = opened()
    put = handing(run, files)

    def send() -> None:
        put()
        place, left, since = run.files(_name(files)), -1, time.monotonic()
        while left and time.monotonic() - since < COPIED_S:
            linked = sum(record["pin"] == "link" for record in place.each())
            if linked != left:
                left, since = linked, time.monotonic()
            time.sleep(LOOK_S)

    return send


def wait(_: Files) -> Send:
    return opened().files.flush


def store(files: Files) -> Send:
    """Hands over, and waits until everything is stored and listed."""
    run = opened()
    put = handing(run, files)

    def send() -> None:
        put()
        run.files.flush()

    return send


def opened() -> Any:
    from ml_dash import Experiment

    return Experiment(PREFIX).run.start()


def handing(run: Any, files: Files) -> Send:
    """The library's call for one file, or for many."""
    place, paths = run.files(_name(files)), [path for path, _ in files]
    return partial(place.upload, paths[0]) if len(paths) == 1 else partial(place.upload_many, paths)


def _name(files: Files) -> str:
    return files[0][1].partition("/")[0]


CLIENTS: dict[str, Callable[[Files], Send]] = {
    client.__name__: client for client in (awscrt, obstore, boto3, aiobotocore, hand_over, wait, store)
}


def main() -> None:
    client, source, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    paths = sorted(map(str, source.iterdir())) if source.is_dir() else [str(source)]
    send = CLIENTS[client]([(path, f"{name}/{Path(path).name}") for path in paths])
    print("ready", flush=True)
    sys.stdin.buffer.read()
    send()
    sys.stdout.flush()
    os._exit(0)  # what follows the last byte is not what is measured


if __name__ == "__main__":
    main()
