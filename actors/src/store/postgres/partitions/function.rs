//! The store function for partitioned tables.
//!
//! It is the same function with a few words changed, so that whoever calls it knows nothing of partitions:
//!
//! - an id is a duplicate only together with its moment, by whatever key there is;
//! - a row whose partition came or went while it was under way is written again, since that is no fault of
//!   its event;
//! - while a table is on its way to become a partition, what occurs behind that partition's end is
//!   written to the default partition, which is not attached yet.
//!
//! It works before, while and after the tables are partitioned.

const CHANGES: [(&str, &str); 8] = [
    (
        "    written uuid[];\n",
        "    written uuid[];
    written_at timestamptz[];
    known_at timestamptz[];
    -- How often a row's partition came or went while it was under way.
    times_moved integer := 0;
    is_partition_gone boolean;
",
    ),
    (
        "ON CONFLICT (id) DO NOTHING
                    RETURNING id
",
        "ON CONFLICT DO NOTHING
                    RETURNING id, occurred
",
    ),
    (
        "SELECT array_agg(inserted.id) INTO written FROM inserted;",
        "SELECT array_agg(inserted.id), array_agg(inserted.occurred)
                INTO written, written_at FROM inserted;",
    ),
    (
        "known := ARRAY[]::uuid[];",
        "known := ARRAY[]::uuid[];
                known_at := ARRAY[]::timestamptz[];",
    ),
    (
        "IF ids[number] = written[at] THEN",
        "IF ids[number] = written[at] AND occurred_at[number] = written_at[at] THEN",
    ),
    (
        "known := array_append(known, ids[number]);",
        "known := array_append(known, ids[number]);
                        known_at := array_append(known_at, occurred_at[number]);",
    ),
    (
        "SELECT count(DISTINCT id) INTO num_expected FROM unnest(known) AS id;
                    SELECT count(*) INTO num_written FROM events WHERE events.id = ANY (known);
",
        "IF EXISTS (SELECT FROM pg_catalog.pg_partitioned_table
                        WHERE partrelid = 'events'::regclass)
                    THEN
                        SELECT count(*), count(*) FILTER (WHERE (SELECT true FROM events
                            WHERE events.id = one.id AND events.occurred = one.moment LIMIT 1))
                        INTO num_expected, num_written
                        FROM unnest(known, known_at) AS one (id, moment);
                    ELSE
                        SELECT count(DISTINCT id) INTO num_expected FROM unnest(known) AS id;
                        SELECT count(*) INTO num_written FROM events WHERE events.id = ANY (known);
                    END IF;
",
    ),
    (
        "AND conrelid IN ('events'::regclass, 'event_resources'::regclass)
            );
            IF is_own_key AND NOT tolerant THEN
",
        "AND conrelid IN (
                    SELECT 'events'::regclass::oid UNION ALL SELECT 'event_resources'::regclass::oid
                    UNION ALL SELECT relid::oid FROM pg_catalog.pg_partition_tree('events'::regclass)
                    UNION ALL
                    SELECT relid::oid FROM pg_catalog.pg_partition_tree('event_resources'::regclass))
            );
            -- A constraint of somebody has a name.
            is_partition_gone := code = '23514' AND coalesce(constraint_of_error, '') = '';
            IF is_partition_gone AND times_moved < 5 THEN
                times_moved := times_moved + 1;
                depth := depth + 1;
            ELSIF is_partition_gone THEN
                RAISE EXCEPTION USING
                    ERRCODE = 'serialization_failure',
                    MESSAGE = reason,
                    DETAIL = concat_ws(E'\\n', 'SQLSTATE 40001', nullif(detail, '')),
                    TABLE = table_of_error;
            ELSIF lo = hi AND code = '23514' AND constraint_of_error = 'event_persister_bound' THEN
                INSERT INTO events_default (
                    id, occurred, received, event, resource_id, resource, related,
                    related_resource_ids, payload, follows, recorded, created, updated
                )
                SELECT
                    ids[lo], occurred_at[lo], received_at[lo], names[lo], resource_ids[lo],
                    resources[lo]::jsonb, relateds[lo]::jsonb, related_ids[lo]::jsonb,
                    payloads[lo]::jsonb, followed[lo], now(), now(), now()
                ON CONFLICT DO NOTHING;
                GET DIAGNOSTICS num_written = ROW_COUNT;
                IF num_written = 0 THEN
                    event_number := lo;
                    code := NULL;
                    reason := NULL;
                    RETURN NEXT;
                ELSE
                    r_lo := array_position(r_events, lo);
                    r_hi := COALESCE(array_position(r_events, hi + 1) - 1, num_resources);
                    INSERT INTO event_resources_default (
                        id, event_id, occurred, resource_id, resource_role, resource, created, updated
                    )
                    SELECT
                        unnest(r_ids[r_lo:r_hi]), unnest(r_event_ids[r_lo:r_hi]),
                        unnest(r_occurred_at[r_lo:r_hi]), unnest(r_resource_ids[r_lo:r_hi]),
                        unnest(r_roles[r_lo:r_hi]), unnest(r_labels[r_lo:r_hi])::json, now(), now();
                END IF;
            ELSIF is_own_key AND NOT tolerant THEN
",
    ),
];

/// The function, or its body, with all words changed; `None` if it is not the one that is known.
pub(in crate::store::postgres) fn for_partitions(function: &str) -> Option<String> {
    CHANGES
        .iter()
        .try_fold(function.to_owned(), |text, (old, new)| {
            (text.matches(old).count() == 1).then(|| text.replacen(old, new, 1))
        })
}
