-- The schema and some rows of the first release (user_version 1); never to be changed.
BEGIN TRANSACTION;
CREATE TABLE files (
        id INTEGER PRIMARY KEY, owner_uid INTEGER NOT NULL,
        namespace TEXT NOT NULL, project TEXT NOT NULL, experiment TEXT NOT NULL,
        prefix TEXT NOT NULL, filename TEXT NOT NULL, path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, content_type TEXT NOT NULL,
        created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, uploaded_ms INTEGER, deleted_ms INTEGER,
        description TEXT, tags TEXT NOT NULL, bindrs TEXT NOT NULL, metadata TEXT,
        sha256 TEXT NOT NULL, crc64nvme BLOB, key TEXT NOT NULL, etag TEXT
    ) STRICT;
INSERT INTO "files" VALUES(1099511627779,0,'alice','cv','resnet','','stored.txt','stored.txt',6,'text/plain',1767225600000,1767225600000,1767225605000,NULL,NULL,'[]','[]',NULL,'87b04e58961f9a99d853d4046a0b5b793e7c3e4bbd21f5aca8fb17c20cdb1d8b',X'0000000000000000','alice/cv/resnet/files/1099511627779/stored.txt','');
CREATE INDEX files_by_path ON files (namespace, project, experiment, path, id DESC) WHERE deleted_ms IS NULL;
CREATE INDEX files_by_sha256 ON files (sha256);
CREATE INDEX files_deleted ON files (deleted_ms) WHERE deleted_ms IS NOT NULL;
COMMIT;
PRAGMA user_version=1;
