"""The store that the settings name: a folder, or a bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ml_dashd.app.base import Base
from ml_dashd.config import Config
from ml_dashd.core.model import Algorithm
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.store_folder import StoreFolder
from ml_dashd.ports import Examiner, Prober, Store


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A store. `prober` finds out what its server does, where that is not named; `examiner` looks at it for doctor.

    `folder` is a service's own, whose disk may not be mounted. A root has its daemon's state in it: both are there.
    """

    store: Store
    folder: StoreFolder | None = None
    prober: Prober | None = None
    examiner: Examiner | None = None


def open_store(base: Base) -> OpenStore:
    """Nothing is asked of it here."""
    config = base.config
    throttle = Throttle(config.limits.bandwidth, base.clock)
    return _in_bucket(config, throttle) if config.bucket else _in_folder(base, throttle)


def _in_folder(base: Base, throttle: Throttle) -> OpenStore:
    config = base.config
    folder = StoreFolder(config.store_root) if config.embedded is None else None
    store = LocalStore(
        config.store_root,
        base.threads,
        base.faults,
        int(config.store.mode, 8),
        config.store.url,
        config.store.part_size,
        throttle=throttle,
        check=check_of(folder),
    )
    return OpenStore(store, folder)


def check_of(folder: StoreFolder | None) -> Callable[[], None]:
    """What raises where the folder is not the store's; of a root nothing does."""
    return (lambda: None) if folder is None else folder.check


def _in_bucket(config: Config, throttle: Throttle) -> OpenStore:
    from ml_dashd.edge.s3 import S3Store  # noqa: PLC0415 its import takes half a second
    from ml_dashd.edge.s3_client import Placement, S3Settings  # noqa: PLC0415

    settings = S3Settings(
        bucket=config.bucket,
        key_prefix=config.key_prefix,
        endpoint_url=config.store.endpoint_url or None,
        region=config.store.region or None,
        checksum=None if config.store.checksum == "auto" else Algorithm(config.store.checksum),
        ca_bundle=config.store.ca_bundle or None,
        connections=config.limits.connections,
        part_bytes=config.store.part_size,
        addressing=config.store.addressing,
        profile=config.store.profile or None,
        credentials_file=config.store.credentials_file or None,
        proxy=config.store.proxy or None,
        placement=Placement(
            config.store.sse or None, config.store.sse_kms_key_id or None, config.store.storage_class or None
        ),
    )
    store = S3Store(settings, throttle)
    return OpenStore(store, None, store.prober if settings.checksum is None else None, store.examiner)
