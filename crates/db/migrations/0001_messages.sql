-- Tables that every service has. `garrison.tenant` is set per transaction; the value '*' is used only by the
-- outbox relay and the inbox's pruning, which work for all tenants. No tenant id can have that form.

CREATE TABLE tenant (
    tenant_id  text        NOT NULL PRIMARY KEY,
    first_seen timestamptz NOT NULL DEFAULT now()
);

-- Messages that were handled, so that a repeat is ignored.
CREATE TABLE inbox (
    tenant_id  text        NOT NULL,
    consumer   text        NOT NULL,
    message_id uuid        NOT NULL,
    received   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, consumer, message_id)
);
CREATE INDEX inbox_received ON inbox (received);

-- Messages to be published, in the order of their ids.
CREATE TABLE outbox (
    id           bigserial   NOT NULL PRIMARY KEY,
    tenant_id    text        NOT NULL,
    message_id   uuid        NOT NULL,
    subject      text        NOT NULL,
    kind         text        NOT NULL,
    source       text        NOT NULL,
    time         timestamptz NOT NULL,
    -- CloudEvents carry nanoseconds; timestamptz holds microseconds.
    time_nanos   integer     NOT NULL,
    content_type text        NOT NULL,
    traceparent  text,
    payload      bytea       NOT NULL,
    appended     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
    -- Rows live for milliseconds: the table is small and must stay so.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 5000
);

-- Messages that the broker will never take, with the reason.
CREATE TABLE outbox_parked (
    id           bigint      NOT NULL PRIMARY KEY,
    tenant_id    text        NOT NULL,
    message_id   uuid        NOT NULL,
    subject      text        NOT NULL,
    kind         text        NOT NULL,
    source       text        NOT NULL,
    time         timestamptz NOT NULL,
    time_nanos   integer     NOT NULL,
    content_type text        NOT NULL,
    traceparent  text,
    payload      bytea       NOT NULL,
    appended     timestamptz NOT NULL,
    parked       timestamptz NOT NULL DEFAULT now(),
    reason       text        NOT NULL
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant', 'inbox', 'outbox', 'outbox_parked'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I
            USING (tenant_id = current_setting(''garrison.tenant'', true)
                OR current_setting(''garrison.tenant'', true) = ''*'')
            WITH CHECK (tenant_id = current_setting(''garrison.tenant'', true)
                OR current_setting(''garrison.tenant'', true) = ''*'')', name);
    END LOOP;
END
$$;
