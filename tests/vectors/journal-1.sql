-- The schema and some rows of the first release (user_version 1); never to be changed.
BEGIN TRANSACTION;
CREATE TABLE events (
    file_id    INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL,
    from_state TEXT,
    to_state   TEXT    NOT NULL,
    detail     TEXT,
    PRIMARY KEY (file_id, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "events" VALUES(1099511627783,1,1767225600000,NULL,'QUEUED','inline');
CREATE TABLE files (
    id               INTEGER PRIMARY KEY,       -- snowflake, core/ids.py
    owner_uid        INTEGER NOT NULL,          -- of the process that handed it over, from the kernel
    request_key      BLOB    NOT NULL,          -- a request that comes again finds its first answer
    namespace        TEXT    NOT NULL,
    project          TEXT    NOT NULL,
    experiment       TEXT    NOT NULL,
    prefix           TEXT    NOT NULL,
    filename         TEXT    NOT NULL,
    path             TEXT    NOT NULL,          -- prefix and filename, what lists are ordered by
    size_bytes       INTEGER NOT NULL,
    content_type     TEXT    NOT NULL,
    created_ms       INTEGER NOT NULL,
    updated_ms       INTEGER NOT NULL,
    description      TEXT,
    tags             TEXT    NOT NULL,          -- JSON array
    bindrs           TEXT    NOT NULL,          -- JSON array
    metadata         TEXT,                      -- JSON object
    sha256           TEXT,
    crc64nvme        BLOB,                      -- 8 bytes, big-endian: SQLite's integers are signed
    key              TEXT,
    etag             TEXT,
    uploaded_ms      INTEGER,
    deleted_ms       INTEGER,

    pin_kind         TEXT    NOT NULL,
    pin_name         TEXT    NOT NULL,          -- in the spool
    pin_source       TEXT    NOT NULL,          -- the caller's path, for messages and recovery by identity
    device           INTEGER, inode INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,
    content          BLOB,                      -- of an inline pin

    state            TEXT    NOT NULL DEFAULT 'QUEUED',
    lane             TEXT    NOT NULL,          -- core/schedule.py
    on_disk          INTEGER NOT NULL,
    attempt          INTEGER NOT NULL DEFAULT 0,
    not_before_ms    INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    blocked          INTEGER NOT NULL DEFAULT 0,
    error_code       TEXT, error_message TEXT, error_hint TEXT,
    upload_id        TEXT,                      -- rule 2: here before any part is sent
    part_size        INTEGER NOT NULL DEFAULT 0,
    algorithm        TEXT    NOT NULL DEFAULT 'none',
    proof            TEXT,

    UNIQUE (owner_uid, request_key)
) STRICT;
INSERT INTO "files" VALUES(1099511627783,0,X'000102030405060708090A0B0C0D0E0F','alice','cv','resnet','models','waiting.txt','models/waiting.txt',10,'text/plain',1767225600000,1767225600000,'it waits','["best", "gr\u00f6\u00dfte"]','[]','{"epoch": 3}','a305100c59d5a82df7ead8934aecd2790289c4f7c69e71427a47661809618e2d',NULL,NULL,NULL,NULL,NULL,'inline','','/tmp/waiting.txt',NULL,NULL,NULL,NULL,X'6F6E2069747320776179','QUEUED','small',1,1,1767225601000,0,0,'STORE_UNAVAILABLE','the store''s folder: busy',NULL,NULL,0,'none',NULL);
CREATE TABLE parts (
    file_id    INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    upload_id  TEXT    NOT NULL,                -- parts of an upload that is gone count for nothing
    number     INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    etag       TEXT    NOT NULL,
    checksum   TEXT,
    crc64nvme  BLOB,
    PRIMARY KEY (file_id, upload_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE transitions (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_due ON files (lane, id) WHERE state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');
CREATE INDEX files_waiting ON files (not_before_ms)
    WHERE not_before_ms > 0 AND state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');
CREATE INDEX files_listed ON files (namespace, project, experiment, path, id DESC) WHERE state NOT IN ('DONE', 'CANCELLED');
CREATE INDEX files_finished ON files (updated_ms) WHERE state IN ('DONE', 'CANCELLED');
CREATE TRIGGER only_known_moves BEFORE UPDATE OF state ON files
WHEN NOT EXISTS (SELECT 1 FROM transitions WHERE from_state = OLD.state AND to_state = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'this move is not in the transition table');
END;
COMMIT;
PRAGMA user_version=1;
