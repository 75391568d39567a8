"""One table of error codes, shared by the client, the daemon and the wire.

Every failure that a user can meet has a `Code`. The table gives it the exception that is raised for it and a hint:
what to do about it. The message, made where the failure is seen, names the thing that failed. The exceptions
subclass the built-ins that scripts written for earlier releases catch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """What went wrong, in one word that never changes between releases."""

    # What the caller passed
    INVALID_PREFIX = "INVALID_PREFIX"
    INVALID_PATH = "INVALID_PATH"
    INVALID_METADATA = "INVALID_METADATA"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNSUPPORTED_TYPE = "UNSUPPORTED_TYPE"
    FILE_NOT_FOUND = "FILE_NOT_FOUND"
    NOT_A_FILE = "NOT_A_FILE"
    NOT_READABLE = "NOT_READABLE"
    IS_A_FOLDER = "IS_A_FOLDER"
    NOT_A_FOLDER = "NOT_A_FOLDER"
    TOO_LARGE = "TOO_LARGE"
    NO_MATCH = "NO_MATCH"
    UNKNOWN_FILE = "UNKNOWN_FILE"
    RUN_NOT_OPEN = "RUN_NOT_OPEN"
    MISSING_LIBRARY = "MISSING_LIBRARY"
    # What became of the file
    SOURCE_CHANGED = "SOURCE_CHANGED"
    SOURCE_LOST = "SOURCE_LOST"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"
    NOT_STORED_YET = "NOT_STORED_YET"
    ALREADY_STORED = "ALREADY_STORED"
    ID_TAKEN = "ID_TAKEN"
    SET_MISMATCH = "SET_MISMATCH"
    SET_INCOMPLETE = "SET_INCOMPLETE"
    # The store
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STORE_UNREACHABLE = "STORE_UNREACHABLE"
    STORE_UNTRUSTED = "STORE_UNTRUSTED"
    STORE_CREDENTIALS = "STORE_CREDENTIALS"
    STORE_DENIED = "STORE_DENIED"
    STORE_CLOCK = "STORE_CLOCK"
    STORE_NO_BUCKET = "STORE_NO_BUCKET"
    STORE_NOT_MOUNTED = "STORE_NOT_MOUNTED"
    STORE_FULL = "STORE_FULL"
    STORE_UNSUPPORTED = "STORE_UNSUPPORTED"
    STORE_CORRUPTED = "STORE_CORRUPTED"
    STORE_REFUSED = "STORE_REFUSED"
    OBJECT_MISSING = "OBJECT_MISSING"
    # The catalog of a fleet
    CATALOG_UNREACHABLE = "CATALOG_UNREACHABLE"
    CATALOG_DENIED = "CATALOG_DENIED"
    CATALOG_FULL = "CATALOG_FULL"
    # The daemon and the way to it
    ACCESS_DENIED = "ACCESS_DENIED"
    CONFIG = "CONFIG"
    DAEMON_UNAVAILABLE = "DAEMON_UNAVAILABLE"
    DAEMON_NOT_INSTALLED = "DAEMON_NOT_INSTALLED"
    ROOT_HELD = "ROOT_HELD"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    RETRY_LATER = "RETRY_LATER"
    DISK_FULL = "DISK_FULL"
    DISK_FAILED = "DISK_FAILED"
    CONNECTION_LOST = "CONNECTION_LOST"
    PROTOCOL = "PROTOCOL"
    UNSUPPORTED_VERSION = "UNSUPPORTED_VERSION"
    TIMEOUT = "TIMEOUT"
    INTERNAL = "INTERNAL"


class MLDashError(Exception):
    """A failure with a code, a message that names the thing, and a hint that says what to do."""

    def __init__(self, code: Code, message: str, hint: str | None = None) -> None:
        super().__init__(message)  # alone: of more, an OSError would make errno and filename
        self.code = code
        self.message = message
        self.hint = TABLE[code].hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint}) [{self.code}]" if self.hint else f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[type[MLDashError], tuple[Code, str, str]]:
        return type(self), (self.code, self.message, self.hint)


class InvalidError(MLDashError, ValueError):
    """An argument that can't be taken, or a file that is not there."""


class NotJSONError(MLDashError, TypeError):
    """Metadata or content that JSON can't hold."""


class MissingError(MLDashError, FileNotFoundError):
    """A file id, or an object, that is not known."""


class AccessError(MLDashError, PermissionError):
    """The caller may not do this."""


class FolderInTheWayError(MLDashError, IsADirectoryError, FileExistsError):
    """A folder is where a file should go."""


class FileInTheWayError(MLDashError, NotADirectoryError, FileExistsError):
    """A file is where a folder should be."""


class StorageError(MLDashError, RuntimeError):
    """The bytes could not be kept, or are not the ones that were recorded."""


class NetworkError(MLDashError, ConnectionError):
    """The daemon or the store can't be reached."""


class WaitTimeoutError(MLDashError, TimeoutError):
    """The time given for waiting is over; the work goes on."""


class StateError(MLDashError, RuntimeError):
    """The call does not fit the state of the run or the program."""


class LibraryError(MLDashError, ImportError):
    """A library that this call needs is not installed."""


class ProtocolError(MLDashError, ConnectionError):
    """The peer broke the protocol; the connection is closed."""


class Entry(NamedTuple):
    """A row of the table: what is raised for a code, and what to do about it."""

    exception: type[MLDashError]
    hint: str


TABLE: dict[Code, Entry] = {
    Code.INVALID_PREFIX: Entry(InvalidError, 'use "namespace/project/experiment", for example "alice/cv/resnet"'),
    Code.INVALID_PATH: Entry(
        InvalidError, 'use a relative path with "/" between names, without "..", such as "models/best.pt"'
    ),
    Code.INVALID_METADATA: Entry(
        NotJSONError,
        "use dict, list, str, int, float, bool and None; convert arrays with .tolist() or .item()",
    ),
    Code.INVALID_ARGUMENT: Entry(InvalidError, "see the call's documentation"),
    Code.UNSUPPORTED_TYPE: Entry(InvalidError, "call the saver for this type, such as save_json or save_blob"),
    Code.FILE_NOT_FOUND: Entry(InvalidError, "check the path and the working directory"),
    Code.NOT_A_FILE: Entry(InvalidError, "pass a regular file; for a folder, use upload_many() or `ml-dash put -r`"),
    Code.NOT_READABLE: Entry(InvalidError, "check the file's owner and mode"),
    Code.IS_A_FOLDER: Entry(FolderInTheWayError, "name another path, or remove that folder"),
    Code.NOT_A_FOLDER: Entry(FileInTheWayError, "name another path, or remove that file"),
    Code.TOO_LARGE: Entry(InvalidError, "split the file: the largest is 100 GB (100,000,000,000 bytes)"),
    Code.NO_MATCH: Entry(InvalidError, "list the files with files().list() or `ml-dash ls`"),
    Code.UNKNOWN_FILE: Entry(MissingError, "list the files with files().list() or `ml-dash ls`"),
    Code.RUN_NOT_OPEN: Entry(StateError, "use `with Experiment(prefix=...).run as exp:`, or call run.start() first"),
    Code.MISSING_LIBRARY: Entry(LibraryError, 'pip install "ml-dash[media]"'),
    Code.SOURCE_CHANGED: Entry(
        StorageError,
        'write to a new name and rename, or hand it over with snapshot="copy", and upload it again',
    ),
    Code.SOURCE_LOST: Entry(StorageError, "upload the file again"),
    Code.CHECKSUM_MISMATCH: Entry(StorageError, "download it again; if it repeats, the stored bytes are damaged"),
    Code.CANCELLED: Entry(StateError, "it was deleted before it was stored; save it again if you need it"),
    Code.SUPERSEDED: Entry(StateError, "wait for the newer version; to keep each, save without supersede"),
    Code.NOT_STORED_YET: Entry(StateError, "wait for it with .wait() or `ml-dash wait`"),
    Code.ALREADY_STORED: Entry(StateError, "delete it with .delete() or `ml-dash rm`"),
    Code.ID_TAKEN: Entry(StateError, "hand it over with `ml-dash put`: it gets an id of its own"),
    Code.SET_MISMATCH: Entry(
        InvalidError, "every rank of an attempt passes the same world_size; where it has changed, pass another attempt="
    ),
    Code.SET_INCOMPLETE: Entry(StateError, "save that rank's share again; `ml-dash status` lists incomplete sets"),
    Code.STORE_UNAVAILABLE: Entry(NetworkError, "the daemon tries again by itself"),
    Code.STORE_UNREACHABLE: Entry(
        NetworkError, "check store.endpoint_url, store.proxy and the network; the daemon tries again by itself"
    ),
    Code.STORE_UNTRUSTED: Entry(
        NetworkError,
        "name the endpoint's authority in store.ca_bundle, check the host in store.endpoint_url; restart the daemon",
    ),
    Code.STORE_CREDENTIALS: Entry(
        AccessError,
        "give the daemon valid credentials (store.credentials_file, AWS_ACCESS_KEY_ID, a profile or a role); "
        "it goes on by itself",
    ),
    Code.STORE_DENIED: Entry(
        AccessError,
        "allow the S3 actions that docs/s3-servers.md lists, under SSE-KMS those of the key, too; it goes on by itself",
    ),
    Code.STORE_CLOCK: Entry(
        NetworkError, "set this machine's clock, and keep it right (chrony, systemd-timesyncd); it goes on by itself"
    ),
    Code.STORE_NO_BUCKET: Entry(
        NetworkError, "create the bucket or mend store.url; the daemon goes on by itself once it is there"
    ),
    Code.STORE_NOT_MOUNTED: Entry(
        StorageError,
        "mount the disk of store.url, it goes on by itself; or put an empty .ml-dash-store into what replaces it",
    ),
    Code.STORE_FULL: Entry(StorageError, "free space in the store, or raise its quota; the daemon goes on by itself"),
    Code.STORE_UNSUPPORTED: Entry(
        StorageError,
        "change or remove store.sse, store.sse_kms_key_id, store.storage_class or store.checksum; restart the daemon",
    ),
    Code.STORE_CORRUPTED: Entry(StorageError, "the bytes arrived damaged several times: check memory and network"),
    Code.STORE_REFUSED: Entry(StorageError, "the store will not take this file; see the message"),
    Code.OBJECT_MISSING: Entry(MissingError, "the store no longer has the bytes; restore them there"),
    Code.CATALOG_UNREACHABLE: Entry(
        NetworkError, "check catalog.url, the network and MongoDB's primary; stored files wait and are listed later"
    ),
    Code.CATALOG_DENIED: Entry(
        AccessError,
        "check user, password and authSource in catalog.url, and that the user has the role that docs/fleet.md lists",
    ),
    Code.CATALOG_FULL: Entry(StorageError, "free space on MongoDB's disks; it goes on by itself"),
    Code.ACCESS_DENIED: Entry(AccessError, "ask the operator to name your uid in [access]"),
    Code.CONFIG: Entry(InvalidError, "see config/ml-dashd.toml for every key and its default"),
    Code.DAEMON_UNAVAILABLE: Entry(NetworkError, "start it with `ml-dashd run`, or unset ML_DASH_SOCKET"),
    Code.DAEMON_NOT_INSTALLED: Entry(NetworkError, "pip install 'ml-dash[daemon]'"),
    Code.ROOT_HELD: Entry(
        NetworkError,
        "save there, or wait: it lets go when it ends, or five minutes after it was last heard of",
    ),
    Code.SHUTTING_DOWN: Entry(NetworkError, "try again when the daemon is back"),
    Code.RETRY_LATER: Entry(NetworkError, "the daemon's queue is full; try again in a moment"),
    Code.DISK_FULL: Entry(StorageError, "free space on the spool's file system"),
    Code.DISK_FAILED: Entry(StorageError, "the disk reported an error: check it before going on"),
    Code.CONNECTION_LOST: Entry(NetworkError, "the daemon may have restarted; call again"),
    Code.PROTOCOL: Entry(ProtocolError, "use the same release of ml-dash on both sides"),
    Code.UNSUPPORTED_VERSION: Entry(ProtocolError, "install the same release of ml-dash on both sides"),
    Code.TIMEOUT: Entry(WaitTimeoutError, "the work goes on; wait again, or see `ml-dash status`"),
    Code.INTERNAL: Entry(MLDashError, "this is a defect: please report it with the daemon's log"),
}


def error(code: Code, message: str, hint: str | None = None) -> MLDashError:
    """The exception for `code`, to be raised by the caller; `hint` replaces the table's."""
    return TABLE[code].exception(code, message, hint)


def parse_code(text: str) -> Code:
    """The code of that name; one that this release does not know is INTERNAL."""
    try:
        return Code(text)
    except ValueError:
        return Code.INTERNAL
