-- Messages that the parser or the database refused, kept with the reason.
-- A message that comes again raises attempts and last_seen: it is the same source, position and bytes.
CREATE TABLE event_persister_dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    source TEXT NOT NULL,
    position TEXT NOT NULL,
    raw BLOB NOT NULL,
    raw_hash BLOB NOT NULL,
    event_id CHAR(36),
    stage TEXT NOT NULL CHECK (stage IN ('parse', 'store')),
    reason TEXT NOT NULL,
    sqlstate TEXT,
    attempts INTEGER DEFAULT 1 NOT NULL,
    first_seen DATETIME NOT NULL,
    last_seen DATETIME NOT NULL,
    CONSTRAINT uq_event_persister_dead_letters UNIQUE (source, position, raw_hash)
);
