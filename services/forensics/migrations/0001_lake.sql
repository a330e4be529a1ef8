-- The catalogue of flow files. One row for each Parquet file; its id is that of the segment it was made from.
CREATE TABLE flow_file (
    tenant_id   text        NOT NULL,
    file_id     uuid        NOT NULL,
    -- Below the tenant's folder.
    path        text        NOT NULL,
    -- Nanoseconds since 1970: earliest first packet, latest last packet.
    first_seen  bigint      NOT NULL,
    last_seen   bigint      NOT NULL,
    rows        bigint      NOT NULL,
    bytes       bigint      NOT NULL,
    sha256      text        NOT NULL,
    stored      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, file_id)
);
CREATE INDEX flow_file_time ON flow_file (tenant_id, last_seen, first_seen);
CREATE INDEX flow_file_stored ON flow_file (tenant_id, stored);

-- Alerts as they were last seen.
CREATE TABLE alert (
    tenant_id   text        NOT NULL,
    alert_id    uuid        NOT NULL,
    count       bigint      NOT NULL,
    last_seen   timestamptz NOT NULL,
    -- garrison.alert.v1.Alert
    message     bytea       NOT NULL,
    PRIMARY KEY (tenant_id, alert_id)
);

-- Every event, as it came.
CREATE TABLE event (
    tenant_id   text        NOT NULL,
    event_id    uuid        NOT NULL,
    -- Message name, for example garrison.event.v1.IncidentChanged.
    kind        text        NOT NULL,
    -- What it is about: incidents/…, responses/…, policies/…, users/….
    subject     text        NOT NULL,
    time        timestamptz NOT NULL,
    message     bytea       NOT NULL,
    PRIMARY KEY (tenant_id, event_id)
);
CREATE INDEX event_subject ON event (tenant_id, subject, time);

-- Incidents and responses in their latest state.
CREATE TABLE incident (
    tenant_id   text        NOT NULL,
    incident_id uuid        NOT NULL,
    updated     timestamptz NOT NULL,
    -- garrison.response.v1.Incident
    message     bytea       NOT NULL,
    PRIMARY KEY (tenant_id, incident_id)
);

CREATE TABLE response (
    tenant_id   text        NOT NULL,
    response_id uuid        NOT NULL,
    incident    text        NOT NULL,
    -- Transitions so far; more is newer.
    transitions integer     NOT NULL,
    -- garrison.response.v1.Response
    message     bytea       NOT NULL,
    PRIMARY KEY (tenant_id, response_id)
);
CREATE INDEX response_incident ON response (tenant_id, incident);

CREATE TABLE bundle (
    tenant_id    text        NOT NULL,
    bundle_id    uuid        NOT NULL,
    incident_id  uuid        NOT NULL,
    request_id   uuid        NOT NULL,
    -- garrison.forensics.v1.BundleState
    state        smallint    NOT NULL,
    author       text        NOT NULL,
    created      timestamptz NOT NULL,
    sealed       timestamptz,
    sha256       text        NOT NULL DEFAULT '',
    bytes        bigint      NOT NULL DEFAULT 0,
    flows        bigint      NOT NULL DEFAULT 0,
    packets      bigint      NOT NULL DEFAULT 0,
    alerts       bigint      NOT NULL DEFAULT 0,
    responses    bigint      NOT NULL DEFAULT 0,
    key_id       text        NOT NULL DEFAULT '',
    error        text        NOT NULL DEFAULT '',
    omissions    text[]      NOT NULL DEFAULT '{}',
    attempts     integer     NOT NULL DEFAULT 0,
    next_attempt timestamptz NOT NULL,
    -- Until then a worker has it.
    lease_until  timestamptz,
    PRIMARY KEY (tenant_id, bundle_id),
    UNIQUE (tenant_id, request_id)
);
CREATE INDEX bundle_due ON bundle (tenant_id, next_attempt) WHERE state = 1;

-- The chain of custody only grows.
CREATE TABLE custody_event (
    tenant_id   text        NOT NULL,
    bundle_id   uuid        NOT NULL,
    sequence    bigint      NOT NULL,
    -- RFC 3339 as hashed.
    time        text        NOT NULL,
    actor       text        NOT NULL,
    action      text        NOT NULL,
    detail      text        NOT NULL,
    previous    text        NOT NULL,
    hash        text        NOT NULL,
    PRIMARY KEY (tenant_id, bundle_id, sequence)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the custody log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON custody_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
COMMENT ON TABLE custody_event IS 'append-only';

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['flow_file', 'alert', 'event', 'incident', 'response', 'bundle', 'custody_event'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''garrison.tenant'', true))
                        WITH CHECK (tenant_id = current_setting(''garrison.tenant'', true))', name);
    END LOOP;
END
$$;
