-- PL/pgSQL's "others" stands for neither a cancelled query nor a failed ASSERT. With both named, the store
-- function tells the code of whatever a trigger raises.
--
-- The rest of the function, with its settings, stays as it was made.
DO $$
BEGIN
    EXECUTE replace(
        pg_get_functiondef('event_persister_store_v1'::regproc),
        'WHEN OTHERS OR query_canceled THEN',
        'WHEN OTHERS OR query_canceled OR assert_failure THEN'
    );
END
$$;
