-- The transparency log: entries, the hashes of the perfect subtrees over them, and signed checkpoints.
-- These tables only ever grow. A trigger refuses every other change, whoever asks.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the transparency log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TABLE log_entry (
    tenant_id   text        NOT NULL,
    index       bigint      NOT NULL CHECK (index >= 0),
    record_id   uuid        NOT NULL,
    -- The bytes that are hashed.
    body        bytea       NOT NULL,
    leaf_hash   bytea       NOT NULL CHECK (octet_length(leaf_hash) = 32),
    logged      timestamptz NOT NULL,
    -- When the record says that it happened; what reports select by.
    occurred    timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, index),
    UNIQUE (tenant_id, record_id)
);
CREATE INDEX log_entry_occurred ON log_entry (tenant_id, occurred);

CREATE TABLE log_node (
    tenant_id   text        NOT NULL,
    level       smallint    NOT NULL CHECK (level BETWEEN 0 AND 62),
    index       bigint      NOT NULL CHECK (index >= 0),
    hash        bytea       NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, level, index)
);

CREATE TABLE log_checkpoint (
    tenant_id   text        NOT NULL,
    size        bigint      NOT NULL CHECK (size >= 0),
    root        bytea       NOT NULL CHECK (octet_length(root) = 32),
    note        text        NOT NULL,
    signed      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, size)
);

CREATE TABLE report (
    tenant_id   text        NOT NULL,
    report_id   uuid        NOT NULL,
    framework   text        NOT NULL,
    since       timestamptz NOT NULL,
    until       timestamptz NOT NULL,
    created     timestamptz NOT NULL,
    oscal_json  text        NOT NULL,
    html        text        NOT NULL,
    checkpoint  text        NOT NULL,
    findings    bigint      NOT NULL,
    PRIMARY KEY (tenant_id, report_id)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['log_entry', 'log_node', 'log_checkpoint', 'report'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''garrison.tenant'', true))
                        WITH CHECK (tenant_id = current_setting(''garrison.tenant'', true))', name);
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
        EXECUTE format('COMMENT ON TABLE %I IS ''append-only''', name);
    END LOOP;
END
$$;
