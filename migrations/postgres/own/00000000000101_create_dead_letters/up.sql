-- Messages that the parser or the database refused, kept with the reason.
-- A message that comes again raises attempts and last_seen: it is the same source, position and bytes.
CREATE TABLE event_persister_dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY,
    source text NOT NULL,
    "position" text NOT NULL,
    raw bytea NOT NULL,
    raw_hash bytea NOT NULL,
    event_id uuid,
    stage text NOT NULL CHECK (stage IN ('parse', 'store')),
    reason text NOT NULL,
    sqlstate text,
    attempts bigint DEFAULT 1 NOT NULL,
    first_seen timestamp with time zone NOT NULL,
    last_seen timestamp with time zone NOT NULL,
    CONSTRAINT pk_event_persister_dead_letters PRIMARY KEY (id),
    CONSTRAINT uq_event_persister_dead_letters UNIQUE (source, "position", raw_hash)
);
