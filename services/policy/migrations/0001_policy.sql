-- Policies and their versions, how often each rule decided, and the alerts raised.

-- Counts the changes of a tenant's policies. Every change takes this row first, so that changes are in order and
-- a replica that knows an epoch knows everything up to it.
CREATE TABLE ruleset (
    tenant_id   text    NOT NULL PRIMARY KEY,
    epoch       bigint  NOT NULL CHECK (epoch > 0)
);

CREATE TABLE policy (
    tenant_id   text    NOT NULL,
    name        text    NOT NULL,
    version     bigint  NOT NULL CHECK (version > 0),
    withdrawn   boolean NOT NULL,
    -- The epoch of its last change.
    epoch       bigint  NOT NULL,
    PRIMARY KEY (tenant_id, name)
);
CREATE INDEX policy_epoch ON policy (tenant_id, epoch);

CREATE TABLE policy_version (
    tenant_id   text        NOT NULL,
    name        text        NOT NULL,
    version     bigint      NOT NULL,
    mode        smallint    NOT NULL,
    document    text        NOT NULL,
    sha256      text        NOT NULL,
    author      text        NOT NULL,
    created     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name, version),
    FOREIGN KEY (tenant_id, name) REFERENCES policy
);

CREATE TABLE verdict_count (
    tenant_id   text        NOT NULL,
    -- Both empty for flows that no policy governs.
    policy      text        NOT NULL,
    rule        text        NOT NULL,
    verdict     smallint    NOT NULL,
    flows       bigint      NOT NULL,
    last_seen   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, policy, rule, verdict)
);

CREATE TABLE alert (
    tenant_id   text        NOT NULL,
    alert_id    uuid        NOT NULL,
    -- The alert as it grew: garrison.alert.v1.Alert.
    body        bytea       NOT NULL,
    -- The count that was last published.
    announced   bigint      NOT NULL,
    last_seen   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, alert_id)
);
CREATE INDEX alert_age ON alert (tenant_id, last_seen);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ruleset', 'policy', 'policy_version', 'verdict_count', 'alert'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''garrison.tenant'', true)) '
            'WITH CHECK (tenant_id = current_setting(''garrison.tenant'', true))', name);
    END LOOP;
END
$$;
