-- The manifests of the archive that retention writes to. Made where an archive is configured.
CREATE TABLE event_persister_archives (
    file TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('writing', 'removing', 'removed', 'archived')),
    -- 1 while the file is being written or its rows are being removed: of at most one at a time.
    open BOOLEAN CHECK (open = 1),
    -- Grows while somebody is at work on the file.
    beats BIGINT DEFAULT 0 NOT NULL,
    schema_version INTEGER,
    events BIGINT,
    bytes BIGINT,
    sha256 TEXT,
    first_occurred DATETIME,
    first_id TEXT,
    last_occurred DATETIME,
    last_id TEXT,
    begun DATETIME NOT NULL,
    CONSTRAINT pk_event_persister_archives PRIMARY KEY (file),
    CONSTRAINT uq_event_persister_archives UNIQUE (open)
);

-- Which archive it is: one row.
CREATE TABLE event_persister_archive (
    one INTEGER DEFAULT 1 NOT NULL CHECK (one = 1),
    archive_id TEXT NOT NULL,
    CONSTRAINT pk_event_persister_archive PRIMARY KEY (one)
);
