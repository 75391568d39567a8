-- The journal: every file that was acknowledged, until the catalog has it and a while after.
-- States and their moves are core/states.py; the trigger below refuses every other move.

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

-- The worker's question: what may run now, oldest first.
CREATE INDEX files_due ON files (lane, id) WHERE state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');
-- When to look again. What may run at once is not in it: a hand-off writes one page less.
CREATE INDEX files_waiting ON files (not_before_ms)
    WHERE not_before_ms > 0 AND state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');
-- A list's question: what of this experiment the catalog does not have.
CREATE INDEX files_listed ON files (namespace, project, experiment, path, id DESC) WHERE state NOT IN ('DONE', 'CANCELLED');
-- The janitor's question: what is finished and old.
CREATE INDEX files_finished ON files (updated_ms) WHERE state IN ('DONE', 'CANCELLED');

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

-- What happened to a file, for people, in order. Rows go with their file.
CREATE TABLE events (
    file_id    INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL,
    from_state TEXT,
    to_state   TEXT    NOT NULL,
    detail     TEXT,
    PRIMARY KEY (file_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- The table of core/states.py, filled at every start; the trigger reads it.
CREATE TABLE transitions (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER only_known_moves BEFORE UPDATE OF state ON files
WHEN NOT EXISTS (SELECT 1 FROM transitions WHERE from_state = OLD.state AND to_state = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'this move is not in the transition table');
END;

-- ---- step 2: a file's priority

ALTER TABLE files ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
DROP INDEX files_due;
-- The worker's question: what may run now, the highest priority first, then the oldest.
CREATE INDEX files_due ON files (lane, priority DESC, id)
    WHERE state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');

-- ---- step 3: the bytes of inline pins apart from their rows, which every step of a file rewrites

CREATE TABLE contents (
    file_id INTEGER PRIMARY KEY REFERENCES files (id) ON DELETE CASCADE,
    content BLOB NOT NULL
) STRICT;
INSERT INTO contents SELECT id, content FROM files WHERE content IS NOT NULL;
ALTER TABLE files DROP COLUMN content;
UPDATE files SET lane = 'inline' WHERE pin_kind = 'inline' AND state NOT IN ('DONE', 'CANCELLED');
-- ---- step 4: experiments take turns

DROP INDEX files_due;
-- The worker's question: what may run now, the highest priority first, then by experiments (edge/due.py).
CREATE INDEX files_due ON files (lane, priority DESC, namespace, project, experiment, not_before_ms, id)
    WHERE state IN ('QUEUED', 'SENDING', 'COMPLETING', 'VERIFIED');

-- ---- step 5: what is finished is counted without its rows

DROP INDEX files_finished;
-- The janitor's question, and a count for status: what is finished and old, and how much it is.
CREATE INDEX files_finished ON files (updated_ms, state, size_bytes) WHERE state IN ('DONE', 'CANCELLED');

-- ---- step 6: archives in slots whose checksums are put right before they are read

ALTER TABLE files ADD COLUMN seal INTEGER NOT NULL DEFAULT 0;

-- ---- step 7: what is said of a file may change while it is on its way

ALTER TABLE files ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

-- ---- step 8: a newer version of a path may take the place of older ones that are on their way

ALTER TABLE files ADD COLUMN supersedes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE files ADD COLUMN superseded_by INTEGER;     -- the newer one
-- A count for status.
CREATE INDEX files_superseded ON files (superseded_by) WHERE superseded_by IS NOT NULL;

-- ---- step 9: a file that comes from elsewhere keeps the time at which it was changed last

ALTER TABLE files ADD COLUMN said_ms INTEGER;

-- ---- step 10: verified files that wait for the catalog are in a lane of their own, `outbox`

-- In the order of their ids.
CREATE INDEX files_outbox ON files (id) WHERE lane = 'outbox' AND state = 'VERIFIED';

-- ---- step 11: ids of files that were left in the inbox

-- A file keeps the id that it got when it was first seen, and is found by its key for a month.
CREATE TABLE numbers (
    owner_uid   INTEGER NOT NULL,
    request_key BLOB    NOT NULL,
    id          INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    PRIMARY KEY (owner_uid, request_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX numbers_by_id ON numbers (id);

-- ---- step 12: files of sets, and the shares that ranks have ended and the catalog does not have

ALTER TABLE files ADD COLUMN share TEXT;                -- its key, and JSON: edge/rows.py
ALTER TABLE files ADD COLUMN pending INTEGER NOT NULL DEFAULT 0;
-- The question of a share that is ended: its files.
CREATE INDEX files_by_share ON files (substr(share, 1, 32)) WHERE share IS NOT NULL;

CREATE TABLE shares (
    number     INTEGER PRIMARY KEY,             -- the order in which they were ended
    key        TEXT    NOT NULL UNIQUE,
    owner_uid  INTEGER NOT NULL,
    namespace  TEXT    NOT NULL,
    project    TEXT    NOT NULL,
    experiment TEXT    NOT NULL,
    share      TEXT    NOT NULL,                -- as a file's
    ids        TEXT    NOT NULL,                -- JSON array: its files
    stuck      INTEGER NOT NULL DEFAULT 0       -- one of them has failed
) STRICT;

-- ---- step 13: of files in the catalog, when their objects were found to be missing; here never

ALTER TABLE files ADD COLUMN missing_ms INTEGER;

-- ---- step 14: a move that leaves a file on its way leaves its indexes alone

-- How its state is asked for: 2 on its way, 1 failed, 0 ended (edge/due.py). An index over states would be written anew
-- at every move, since SQLite can't know that its condition holds as before.
ALTER TABLE files ADD COLUMN open INTEGER NOT NULL DEFAULT 2;
UPDATE files SET open = state = 'FAILED' WHERE state IN ('DONE', 'CANCELLED', 'FAILED');
DROP INDEX files_due;
-- The worker's question: what may run now, the highest priority first, then by experiments (edge/due.py).
CREATE INDEX files_due ON files (lane, priority DESC, namespace, project, experiment, not_before_ms, id) WHERE open = 2;
DROP INDEX files_waiting;
CREATE INDEX files_waiting ON files (not_before_ms) WHERE not_before_ms > 0 AND open = 2;
DROP INDEX files_listed;
CREATE INDEX files_listed ON files (namespace, project, experiment, path, id DESC) WHERE open > 0;

DROP TRIGGER only_known_moves;
DROP TABLE transitions;
CREATE TABLE transitions (
    from_state TEXT    NOT NULL,
    to_state   TEXT    NOT NULL,
    open       INTEGER NOT NULL,                -- of `to_state`
    PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER only_known_moves BEFORE UPDATE OF state, open ON files
WHEN NOT EXISTS (SELECT 1 FROM transitions WHERE from_state = OLD.state AND to_state = NEW.state AND open = NEW.open)
BEGIN
    SELECT RAISE(ABORT, 'this move is not in the transition table');
END;
