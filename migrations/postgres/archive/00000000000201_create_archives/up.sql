-- The manifests of the archive that retention writes to. Made where an archive is configured.
-- IF NOT EXISTS: of two processes at once, the one that waited for the other may not know yet that they are there.
CREATE TABLE IF NOT EXISTS event_persister_archives (
    file text NOT NULL,
    state text NOT NULL CHECK (state IN ('writing', 'removing', 'removed', 'archived')),
    -- True while the file is being written or its rows are being removed: of at most one at a time.
    open boolean CHECK (open),
    -- Grows while somebody is at work on the file.
    beats bigint DEFAULT 0 NOT NULL,
    schema_version integer,
    events bigint,
    bytes bigint,
    sha256 text,
    first_occurred timestamp with time zone,
    first_id text,
    last_occurred timestamp with time zone,
    last_id text,
    begun timestamp with time zone NOT NULL,
    CONSTRAINT pk_event_persister_archives PRIMARY KEY (file),
    CONSTRAINT uq_event_persister_archives UNIQUE (open)
);

-- Which archive it is: one row.
CREATE TABLE IF NOT EXISTS event_persister_archive (
    one boolean DEFAULT true CHECK (one),
    archive_id text NOT NULL,
    CONSTRAINT pk_event_persister_archive PRIMARY KEY (one)
);
