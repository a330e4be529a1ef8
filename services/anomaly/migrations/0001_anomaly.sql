-- What anomaly knows of a tenant. The state tables hold checkpoints of what lives in memory: the service writes what
-- changed every few seconds in one transaction, with the stream position that it stands for.

CREATE TABLE tenant_state (
    tenant_id  text        NOT NULL PRIMARY KEY,
    -- Position in the FLOWS stream of the last message that the state includes.
    applied    bigint      NOT NULL,
    -- Phase, learnt sample, threshold, recent message ids: garrison.anomaly.state, see store/snapshot.rs.
    state      bytea       NOT NULL,
    saved      timestamptz NOT NULL
);
ALTER TABLE tenant_state ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_state FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tenant_state
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

CREATE TABLE shard_state (
    tenant_id text     NOT NULL,
    shard     smallint NOT NULL,
    state     bytea    NOT NULL,
    PRIMARY KEY (tenant_id, shard)
);
ALTER TABLE shard_state ENABLE ROW LEVEL SECURITY;
ALTER TABLE shard_state FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON shard_state
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

CREATE TABLE model (
    tenant_id text        NOT NULL,
    version   bigint      NOT NULL,
    -- Data window, features, scaling, metrics, seed, SHA-256 of the weights.
    manifest  jsonb       NOT NULL,
    -- safetensors.
    weights   bytea       NOT NULL,
    trained   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, version)
);
ALTER TABLE model ENABLE ROW LEVEL SECURITY;
ALTER TABLE model FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON model
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

-- Every alert as it was published. Its id comes from its content, so that a replay finds it here.
CREATE TABLE alert (
    tenant_id   text        NOT NULL,
    alert_id    uuid        NOT NULL,
    fingerprint text        NOT NULL,
    detector    text        NOT NULL,
    severity    smallint    NOT NULL,
    count       bigint      NOT NULL,
    triggered   timestamptz NOT NULL,
    detected    timestamptz NOT NULL,
    -- garrison.alert.v1.Alert.
    body        bytea       NOT NULL,
    PRIMARY KEY (tenant_id, alert_id)
);
CREATE INDEX alert_detected ON alert (tenant_id, detected);
ALTER TABLE alert ENABLE ROW LEVEL SECURITY;
ALTER TABLE alert FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON alert
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
