-- Writes events with their resources, and says which of them it did not write and why.
--
-- One array element is one event, or one resource in the r_ arrays; r_events holds the number of each
-- resource's event, counted from 1 and ascending. Events are sorted by id, equal ids next to each other.
-- JSON comes as text, so that what is no JSON to PostgreSQL fails in here and not for the whole call.
--
-- Most batches hold nothing that is refused or there already: they go in by two plain statements. When
-- one of these raises an error that is an event's own fault, its range of events is split until the
-- culprits stand alone; they are left out and returned. Whatever else is raised is raised again: then
-- nothing is written.
--
-- Returned are the events that were not written: with a code those that the database refuses, without
-- one those whose id was there already.
CREATE FUNCTION event_persister_store_v1(
    ids uuid[],
    occurred_at timestamptz[],
    received_at timestamptz[],
    names text[],
    resource_ids text[],
    resources text[],
    relateds text[],
    related_ids text[],
    payloads text[],
    followed uuid[],
    r_ids uuid[],
    r_events integer[],
    r_event_ids uuid[],
    r_occurred_at timestamptz[],
    r_resource_ids text[],
    r_roles text[],
    r_labels text[],
    expects_duplicates boolean
) RETURNS TABLE (event_number integer, code text, reason text)
LANGUAGE plpgsql
AS $function$
DECLARE
    -- Ours: rows were given, fewer were inserted, and nothing was raised.
    swallowed CONSTANT text := 'EPV01';
    num_events CONSTANT integer := cardinality(ids);
    num_resources CONSTANT integer := cardinality(r_events);
    -- A range that fails is split into this many.
    num_parts CONSTANT integer := 8;
    -- The ranges that are still to be written, the next one last.
    firsts integer[] := ARRAY[1];
    lasts integer[] := ARRAY[num_events];
    depth integer := 1;
    lo integer;
    hi integer;
    step integer;
    r_lo integer;
    r_hi integer;
    -- The event that is tried once more after it was swallowed.
    tried_again integer := 0;
    -- Takes duplicates as they come; slower where there are none.
    tolerant boolean := expects_duplicates;
    num_written integer;
    num_expected integer;
    written uuid[];
    -- Of the range: which events are new, and the ids of the others.
    is_new boolean[];
    known uuid[];
    at integer;
    -- Of the error.
    detail text;
    hint text;
    table_of_error text;
    constraint_of_error text;
    is_own_key boolean;
BEGIN
    IF num_events IS NULL OR num_resources IS NULL
        OR num_events <> ANY (ARRAY[
            cardinality(occurred_at), cardinality(received_at), cardinality(names),
            cardinality(resource_ids), cardinality(resources), cardinality(relateds),
            cardinality(related_ids), cardinality(payloads), cardinality(followed)])
        OR num_resources <> ANY (ARRAY[
            cardinality(r_ids), cardinality(r_event_ids), cardinality(r_occurred_at),
            cardinality(r_resource_ids), cardinality(r_roles), cardinality(r_labels)])
    THEN
        RAISE EXCEPTION 'the arrays differ in length' USING ERRCODE = 'internal_error';
    END IF;
    IF num_events = 0 THEN
        RETURN;
    END IF;
    WHILE depth > 0 LOOP
        lo := firsts[depth];
        hi := lasts[depth];
        depth := depth - 1;
        BEGIN
            IF NOT tolerant THEN
                -- The whole batch, straight from the arrays.
                INSERT INTO events (
                    id, occurred, received, event, resource_id, resource, related,
                    related_resource_ids, payload, follows, recorded, created, updated
                )
                SELECT
                    unnest(ids), unnest(occurred_at), unnest(received_at), unnest(names),
                    unnest(resource_ids), unnest(resources)::jsonb, unnest(relateds)::jsonb,
                    unnest(related_ids)::jsonb, unnest(payloads)::jsonb, unnest(followed),
                    now(), now(), now();
                GET DIAGNOSTICS num_written = ROW_COUNT;
                num_expected := num_events;
                IF num_written = num_expected THEN
                    INSERT INTO event_resources (
                        id, event_id, occurred, resource_id, resource_role, resource, created, updated
                    )
                    SELECT
                        unnest(r_ids), unnest(r_event_ids), unnest(r_occurred_at),
                        unnest(r_resource_ids), unnest(r_roles), unnest(r_labels)::json, now(), now();
                    GET DIAGNOSTICS num_written = ROW_COUNT;
                    num_expected := num_resources;
                END IF;
                is_new := NULL;
            ELSE
                WITH inserted AS (
                    INSERT INTO events (
                        id, occurred, received, event, resource_id, resource, related,
                        related_resource_ids, payload, follows, recorded, created, updated
                    )
                    SELECT
                        unnest(ids[lo:hi]), unnest(occurred_at[lo:hi]), unnest(received_at[lo:hi]),
                        unnest(names[lo:hi]), unnest(resource_ids[lo:hi]),
                        unnest(resources[lo:hi])::jsonb, unnest(relateds[lo:hi])::jsonb,
                        unnest(related_ids[lo:hi])::jsonb, unnest(payloads[lo:hi])::jsonb,
                        unnest(followed[lo:hi]), now(), now(), now()
                    ON CONFLICT (id) DO NOTHING
                    RETURNING id
                )
                SELECT array_agg(inserted.id) INTO written FROM inserted;
                -- What was inserted comes back in the order of the ids; of equal ones the first went in.
                is_new := ARRAY[]::boolean[];
                known := ARRAY[]::uuid[];
                at := 1;
                FOR number IN lo .. hi LOOP
                    IF ids[number] = written[at] THEN
                        is_new := array_append(is_new, true);
                        at := at + 1;
                    ELSE
                        is_new := array_append(is_new, false);
                        known := array_append(known, ids[number]);
                    END IF;
                END LOOP;
                num_expected := 0;
                num_written := 0;
                IF cardinality(known) > 0 THEN
                    -- A trigger may have swallowed a row; that must not pass for a duplicate.
                    SELECT count(DISTINCT id) INTO num_expected FROM unnest(known) AS id;
                    SELECT count(*) INTO num_written FROM events WHERE events.id = ANY (known);
                END IF;
                IF num_written = num_expected AND written IS NOT NULL THEN
                    r_lo := array_position(r_events, lo);
                    r_hi := COALESCE(array_position(r_events, hi + 1) - 1, num_resources);
                    SELECT count(*) INTO num_expected
                    FROM unnest(r_events[r_lo:r_hi]) AS number WHERE is_new[number - lo + 1];
                    INSERT INTO event_resources (
                        id, event_id, occurred, resource_id, resource_role, resource, created, updated
                    )
                    SELECT
                        r.id, r.event_id, r.occurred, r.resource_id, r.resource_role,
                        r.labels::json, now(), now()
                    FROM (
                        SELECT
                            unnest(r_events[r_lo:r_hi]) AS number,
                            unnest(r_ids[r_lo:r_hi]) AS id,
                            unnest(r_event_ids[r_lo:r_hi]) AS event_id,
                            unnest(r_occurred_at[r_lo:r_hi]) AS occurred,
                            unnest(r_resource_ids[r_lo:r_hi]) AS resource_id,
                            unnest(r_roles[r_lo:r_hi]) AS resource_role,
                            unnest(r_labels[r_lo:r_hi]) AS labels
                    ) AS r
                    WHERE is_new[r.number - lo + 1];
                    GET DIAGNOSTICS num_written = ROW_COUNT;
                END IF;
            END IF;
            IF num_written <> num_expected THEN
                RAISE EXCEPTION
                    'of the rows given, the database inserted fewer and raised no error: a trigger or a rule on events or event_resources ignores them'
                    USING ERRCODE = swallowed;
            END IF;
            code := NULL;
            reason := NULL;
            FOR number IN 1 .. COALESCE(cardinality(is_new), 0) LOOP
                IF NOT is_new[number] THEN
                    event_number := lo + number - 1;
                    RETURN NEXT;
                END IF;
            END LOOP;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            -- A cancelled query is only told like any other error: others does not stand for it.
            GET STACKED DIAGNOSTICS
                code = RETURNED_SQLSTATE,
                reason = MESSAGE_TEXT,
                detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT,
                table_of_error = TABLE_NAME,
                constraint_of_error = CONSTRAINT_NAME;
            is_own_key := code = '23505' AND EXISTS (
                SELECT FROM pg_catalog.pg_constraint
                WHERE conname = constraint_of_error AND contype = 'p'
                    AND conrelid IN ('events'::regclass, 'event_resources'::regclass)
            );
            IF is_own_key AND NOT tolerant THEN
                -- An id that is there already.
                tolerant := true;
                depth := depth + 1;
            ELSIF is_own_key OR code = '23502'
                OR NOT (left(code, 2) IN ('22', '23', '54') OR code IN ('P0001', swallowed))
            THEN
                -- Not an event's fault. The client's library does not show the SQLSTATE, so that it is
                -- told in the detail too.
                RAISE EXCEPTION USING
                    ERRCODE = code,
                    MESSAGE = reason,
                    DETAIL = concat_ws(E'\n', 'SQLSTATE ' || code, nullif(detail, '')),
                    HINT = hint,
                    TABLE = table_of_error,
                    CONSTRAINT = constraint_of_error;
            ELSIF code = swallowed AND lo = hi AND tried_again <> lo THEN
                -- Its id may have been there, and trimmed before it was looked for. A trigger swallows
                -- it again.
                tried_again := lo;
                depth := depth + 1;
            ELSIF lo = hi THEN
                event_number := lo;
                RETURN NEXT;
            ELSE
                tolerant := true;
                step := (hi - lo) / num_parts + 1;
                FOR part IN REVERSE (hi - lo) / step .. 0 LOOP
                    depth := depth + 1;
                    firsts[depth] := lo + part * step;
                    lasts[depth] := least(lo + (part + 1) * step - 1, hi);
                END LOOP;
            END IF;
        END;
    END LOOP;
END
$function$;

-- The tables are those of the schema in which this ran, whatever the caller's search_path.
ALTER FUNCTION event_persister_store_v1 SET search_path FROM CURRENT;

-- Compresses large values with lz4, which costs a third of pglz, where this server was built with it.
DO $$
BEGIN
    ALTER FUNCTION event_persister_store_v1 SET default_toast_compression = 'lz4';
EXCEPTION WHEN undefined_object OR invalid_parameter_value THEN
    NULL;
END
$$;
