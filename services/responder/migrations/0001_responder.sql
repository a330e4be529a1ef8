-- What the responder remembers. Every table carries its tenant and enforces it by row-level security.

CREATE TABLE tenant_state (
    tenant_id             text PRIMARY KEY,
    -- Raised with every change, so that what is cached in memory can be told stale.
    generation            bigint NOT NULL DEFAULT 1
);

CREATE TABLE alert (
    tenant_id   text NOT NULL,
    alert_id    uuid NOT NULL,
    incident_id uuid NOT NULL,
    detector    text NOT NULL,
    severity    smallint NOT NULL,
    title       text NOT NULL,
    source      text NOT NULL,
    -- Every entity value and host in it, for searching.
    hosts       text[] NOT NULL,
    last_seen   timestamptz NOT NULL,
    received    timestamptz NOT NULL,
    -- garrison.alert.v1.Alert
    body        bytea NOT NULL,
    PRIMARY KEY (tenant_id, alert_id)
);
CREATE INDEX alert_by_time ON alert (tenant_id, received DESC, alert_id DESC);
CREATE INDEX alert_by_incident ON alert (tenant_id, incident_id);
CREATE INDEX alert_by_host ON alert USING gin (hosts);

-- Correlation facts of open incidents: who acted or suffered, at which stage, in which minute.
CREATE TABLE fact (
    tenant_id   text NOT NULL,
    host        text NOT NULL,
    role        smallint NOT NULL,
    minute      bigint NOT NULL,
    stage       smallint NOT NULL,
    incident_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, host, role, minute, stage, incident_id)
);
CREATE INDEX fact_by_incident ON fact (tenant_id, incident_id);
CREATE INDEX fact_by_age ON fact (tenant_id, minute);

CREATE TABLE incident (
    tenant_id   text NOT NULL,
    incident_id uuid NOT NULL,
    status      smallint NOT NULL,
    worst       smallint NOT NULL,
    entities    jsonb NOT NULL,
    techniques  jsonb NOT NULL,
    alert_ids   uuid[] NOT NULL,
    responses   uuid[] NOT NULL,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL,
    created     timestamptz NOT NULL,
    updated     timestamptz NOT NULL,
    score       double precision NOT NULL,
    alert_count bigint NOT NULL,
    root        text NOT NULL,
    headline    text NOT NULL,
    merged_into uuid,
    PRIMARY KEY (tenant_id, incident_id)
);
CREATE INDEX incident_by_time ON incident (tenant_id, created DESC, incident_id DESC);

-- What happened to an incident besides alerts and responses: opened, merged, closed.
CREATE TABLE incident_note (
    tenant_id   text NOT NULL,
    note_id     uuid NOT NULL,
    incident_id uuid NOT NULL,
    time        timestamptz NOT NULL,
    summary     text NOT NULL,
    subject     text NOT NULL,
    actor       text NOT NULL,
    PRIMARY KEY (tenant_id, note_id)
);
CREATE INDEX incident_note_by_incident ON incident_note (tenant_id, incident_id);

CREATE TABLE response (
    tenant_id    text NOT NULL,
    response_id  uuid NOT NULL,
    incident_id  uuid,
    action       smallint NOT NULL,
    target       text NOT NULL,
    state        smallint NOT NULL,
    priority     integer NOT NULL,
    ttl_ms       bigint,
    packets_per_second bigint NOT NULL,
    playbook     text NOT NULL,
    reason       text NOT NULL,
    created      timestamptz NOT NULL,
    -- When it was first sent, for the limit per hour.
    dispatched   timestamptz,
    applied      timestamptz,
    expires      timestamptz,
    alert_id     uuid,
    trigger_time timestamptz,
    error        text NOT NULL,
    -- {"node": state}; see NodeState.
    nodes        jsonb NOT NULL,
    deadline     timestamptz,
    attempts     integer NOT NULL,
    ending       smallint,
    -- How many hosts the target holds, for the blast radius.
    hosts        bigint NOT NULL,
    request_id   uuid,
    PRIMARY KEY (tenant_id, response_id)
);
CREATE INDEX response_by_time ON response (tenant_id, created DESC, response_id DESC);
CREATE INDEX response_by_incident ON response (tenant_id, incident_id);
-- 1 pending approval, 2 dispatched, 3 applied, 4 failed, 5 reverting.
CREATE INDEX response_in_play ON response (tenant_id, target) WHERE state IN (1, 2, 3);
CREATE INDEX response_in_force ON response (tenant_id) WHERE state IN (2, 3, 4, 5);
CREATE INDEX response_due ON response (tenant_id, deadline) WHERE deadline IS NOT NULL;
CREATE INDEX response_sent ON response (tenant_id, dispatched) WHERE dispatched IS NOT NULL;
CREATE UNIQUE INDEX response_by_request ON response (tenant_id, request_id) WHERE request_id IS NOT NULL;

CREATE TABLE response_transition (
    tenant_id   text NOT NULL,
    response_id uuid NOT NULL,
    -- Order within the table.
    sequence    bigint GENERATED ALWAYS AS IDENTITY,
    state       smallint NOT NULL,
    time        timestamptz NOT NULL,
    actor       text NOT NULL,
    detail      text NOT NULL,
    PRIMARY KEY (tenant_id, response_id, sequence)
);

CREATE TABLE playbook (
    tenant_id text NOT NULL,
    name      text NOT NULL,
    version   bigint NOT NULL,
    document  text NOT NULL,
    enabled   boolean NOT NULL,
    author    text NOT NULL,
    created   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name, version)
);

CREATE TABLE protected_host (
    tenant_id text NOT NULL,
    network   text NOT NULL,
    reason    text NOT NULL,
    author    text NOT NULL,
    PRIMARY KEY (tenant_id, network)
);

CREATE TABLE node (
    tenant_id      text NOT NULL,
    node           text NOT NULL,
    last_heartbeat timestamptz NOT NULL,
    applied_digest text NOT NULL,
    PRIMARY KEY (tenant_id, node)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant_state', 'alert', 'fact', 'incident', 'incident_note', 'response',
                                'response_transition', 'playbook', 'protected_host', 'node']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''garrison.tenant'', true)) '
                       'WITH CHECK (tenant_id = current_setting(''garrison.tenant'', true))', name);
    END LOOP;
END
$$;
