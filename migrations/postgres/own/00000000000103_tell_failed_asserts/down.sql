DO $$
BEGIN
    EXECUTE replace(
        pg_get_functiondef('event_persister_store_v1'::regproc),
        'WHEN OTHERS OR query_canceled OR assert_failure THEN',
        'WHEN OTHERS OR query_canceled THEN'
    );
END
$$;
