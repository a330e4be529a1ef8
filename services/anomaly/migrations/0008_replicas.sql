-- Which replica judges which tenant. `garrison.tenant` is '*' in the transactions in which replicas agree on it; no tenant id
-- can have that form.

-- The processes that are there. A row is a sign of life that has to be renewed; whose row another one has removed is out,
-- whatever it may believe.
CREATE TABLE replica (
    -- Belongs to no tenant.
    tenant_id text        NOT NULL DEFAULT '*' CHECK (tenant_id = '*'),
    id        uuid        NOT NULL PRIMARY KEY,
    name      text        NOT NULL,
    joined    timestamptz NOT NULL DEFAULT now(),
    expires   timestamptz NOT NULL
);
ALTER TABLE replica ENABLE ROW LEVEL SECURITY;
ALTER TABLE replica FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON replica
    USING (current_setting('garrison.tenant', true) = '*')
    WITH CHECK (current_setting('garrison.tenant', true) = '*');

CREATE TABLE tenant_lease (
    tenant_id text        NOT NULL PRIMARY KEY,
    -- The replica that judges it; none while nobody does.
    owner     uuid,
    -- Grows whenever the owner changes. What is written of a tenant is written in a transaction that holds this row with the
    -- writer's owner and epoch, so that nothing of a former owner is ever committed after the next one has begun.
    epoch     bigint      NOT NULL,
    -- The replica that the owner is to hand it to.
    wanted    uuid,
    -- Position in the FLOWS stream from which the tenant is judged, where nothing was ever saved of it.
    since     bigint      NOT NULL,
    changed   timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE tenant_lease ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_lease FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tenant_lease
    USING (tenant_id = current_setting('garrison.tenant', true) OR current_setting('garrison.tenant', true) = '*')
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true) OR current_setting('garrison.tenant', true) = '*');

-- As before, and only for whom the lease names: NULL says that it names somebody else, and then nothing was done. Whoever knows
-- no lease finds the function of before under its name no more.
ALTER FUNCTION publish_alerts(uuid[], text[], text[], smallint[], bigint[], timestamptz[], timestamptz[], bytea[], text,
    uuid[], text[], text[], text[], timestamptz[], integer[], text[], text[], bytea[], text, uuid)
    RENAME TO publish_alerts_unfenced;
CREATE FUNCTION publish_alerts(
    alert_ids     uuid[],
    fingerprints  text[],
    detectors     text[],
    severities    smallint[],
    counts        bigint[],
    triggers      timestamptz[],
    detections    timestamptz[],
    bodies        bytea[],
    tenant        text,
    message_ids   uuid[],
    subjects      text[],
    kinds         text[],
    sources       text[],
    times         timestamptz[],
    times_nanos   integer[],
    content_types text[],
    traceparents  text[],
    payloads      bytea[],
    consumer      text,
    delivery      uuid,
    lease_owner   uuid,
    lease_epoch   bigint
) RETURNS integer[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM set_config('garrison.tenant', tenant, true);
    -- Until this is committed nobody takes the tenant over.
    PERFORM FROM tenant_lease l
    WHERE l.tenant_id = tenant AND l.owner = lease_owner AND l.epoch = lease_epoch FOR SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN publish_alerts_unfenced(
        alert_ids, fingerprints, detectors, severities, counts, triggers, detections, bodies, tenant, message_ids,
        subjects, kinds, sources, times, times_nanos, content_types, traceparents, payloads, consumer, delivery);
END
$$;
