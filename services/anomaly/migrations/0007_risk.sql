-- What speaks against hosts, services and users. Risk is worked out when it is asked for: it falls with time, and people's
-- verdicts on alerts change it.

-- Up to which count an alert has been added to risks.
ALTER TABLE alert ADD COLUMN counted bigint NOT NULL DEFAULT 0;
CREATE INDEX alert_uncounted ON alert (tenant_id, detected) WHERE counted < count;

CREATE TABLE risk_entry (
    tenant_id    text             NOT NULL,
    -- garrison.alert.v1.EntityKind
    entity_kind  smallint         NOT NULL,
    entity       text             NOT NULL,
    kind         text             NOT NULL,
    -- What makes it one entry: an alert, or an hour of logins.
    reference    text             NOT NULL,
    -- The entity that it comes through; 0 and empty for the entity's own.
    through_kind smallint         NOT NULL,
    through      text             NOT NULL,
    time         timestamptz      NOT NULL,
    weight       double precision NOT NULL,
    count        bigint           NOT NULL,
    summary      text             NOT NULL,
    alert_id     uuid,
    PRIMARY KEY (tenant_id, entity_kind, entity, kind, reference, through_kind, through)
);
CREATE INDEX risk_entry_time ON risk_entry (tenant_id, time);

-- How a user usually logs in.
CREATE TABLE login_profile (
    tenant_id text        NOT NULL,
    login     text        NOT NULL,
    updated   timestamptz NOT NULL,
    profile   jsonb       NOT NULL,
    PRIMARY KEY (tenant_id, login)
);

-- Who logged in from where last: what is found on a host is told of its users, and the other way round.
CREATE TABLE presence (
    tenant_id text        NOT NULL,
    login     text        NOT NULL,
    address   text        NOT NULL,
    time      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, login, address)
);
CREATE INDEX presence_address ON presence (tenant_id, address, time);

ALTER TABLE risk_entry ENABLE ROW LEVEL SECURITY;
ALTER TABLE risk_entry FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON risk_entry
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
ALTER TABLE login_profile ENABLE ROW LEVEL SECURITY;
ALTER TABLE login_profile FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON login_profile
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
ALTER TABLE presence ENABLE ROW LEVEL SECURITY;
ALTER TABLE presence FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON presence
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
