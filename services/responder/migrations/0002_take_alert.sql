-- An alert is decided about in two round trips: `surroundings` looks without a lock, `take_alert` writes if nothing that was
-- looked at has changed since. Each is a transaction of its own: containment waits for them.

-- Raised whenever the tenant's lock is taken: who holds the lock may change anything of the tenant's alerts, incidents,
-- responses and rules.
ALTER TABLE tenant_state ADD COLUMN revision bigint NOT NULL DEFAULT 0;

-- What decides about actions on some targets. Settled responses of the given incidents count.
CREATE FUNCTION situation(tenant text, aims text[], within uuid[], at timestamptz, heard_since timestamptz)
RETURNS TABLE (addresses float8, last_hour bigint, alive text[], in_play jsonb) LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT
        (SELECT coalesce(sum(r.hosts), 0)::float8 FROM response r
         WHERE r.tenant_id = tenant AND r.state IN (2, 3, 4, 5)
           AND r.nodes <> '{}' AND (r.expires IS NULL OR r.expires > at)),
        (SELECT count(*) FROM response r
         WHERE r.tenant_id = tenant AND r.dispatched > at - interval '1 hour'),
        ARRAY(SELECT n.node FROM node n
              WHERE n.tenant_id = tenant AND n.last_heartbeat >= heard_since ORDER BY n.node),
        (SELECT coalesce(jsonb_agg(jsonb_build_array(k.response_id, k.action, k.target, k.state, k.settled)), '[]')
         FROM (SELECT r.response_id, r.action, r.target, r.state, NULL::uuid AS settled FROM response r
               WHERE r.tenant_id = tenant AND r.target = ANY(aims) AND r.state IN (1, 2, 3)
               UNION ALL
               SELECT r.response_id, r.action, r.target, r.state, r.incident_id FROM response r
               WHERE r.tenant_id = tenant AND r.incident_id = ANY(within) AND r.target = ANY(aims)
                 AND (r.state IN (8, 9) OR (r.state IN (5, 6) AND r.ending = 1))) AS k);
END
$$;

-- Everything that taking an alert in depends on. It is stable, so that all of it is of one moment.
CREATE FUNCTION surroundings(
    tenant      text,
    alert       uuid,
    source      text,
    victims     text[],
    from_minute bigint,
    to_minute   bigint,
    most        bigint,
    aims        text[],
    at          timestamptz,
    heard_since timestamptz
) RETURNS TABLE (
    generation bigint, revision bigint, present uuid, nearby jsonb, addresses float8, last_hour bigint, alive text[],
    in_play jsonb
) LANGUAGE plpgsql STABLE
-- The plan is made once for each connection: an attack comes when nobody has asked for long.
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_variable
DECLARE
    homes uuid[];
BEGIN
    PERFORM set_config('garrison.tenant', tenant, true);
    SELECT s.generation, s.revision INTO generation, revision FROM tenant_state s WHERE s.tenant_id = tenant;
    SELECT a.incident_id INTO present FROM alert a WHERE a.tenant_id = tenant AND a.alert_id = alert;
    SELECT coalesce(jsonb_agg(jsonb_build_array(f.host, f.role, f.minute, f.stage, f.incident_id)), '[]'),
           array_agg(DISTINCT f.incident_id)
    INTO nearby, homes
    FROM ((SELECT n.* FROM fact n
           WHERE n.tenant_id = tenant AND n.host = source AND n.minute BETWEEN from_minute AND to_minute LIMIT most)
          UNION ALL
          (SELECT n.* FROM fact n
           WHERE n.tenant_id = tenant AND n.host = ANY(victims) AND n.role = 0
             AND n.minute BETWEEN from_minute AND to_minute LIMIT most)) AS f;
    SELECT s.addresses, s.last_hour, s.alive, s.in_play INTO addresses, last_hour, alive, in_play
    FROM situation(tenant, aims, homes || present, at, heard_since) AS s;
    RETURN NEXT;
END
$$;

-- Incidents by id.
CREATE FUNCTION incidents(tenant text, ids uuid[]) RETURNS SETOF incident LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM set_config('garrison.tenant', tenant, true);
    RETURN QUERY SELECT i.* FROM incident i WHERE i.tenant_id = tenant AND i.incident_id = ANY(ids);
END
$$;

-- Writes responses that were decided just now, and the first steps of their histories.
CREATE FUNCTION write_responses(tenant text, decided jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH d AS (
        SELECT * FROM jsonb_to_recordset(decided) AS r (
            response_id uuid, incident_id uuid, action smallint, target text, state smallint, priority integer,
            ttl_ms bigint, packets_per_second bigint, playbook text, reason text, created timestamptz,
            dispatched timestamptz, expires timestamptz, alert_id uuid, trigger_time timestamptz, error text,
            nodes jsonb, deadline timestamptz, attempts integer, ending smallint, hosts bigint, request_id uuid,
            actor text, detail text, time timestamptz)
    ), steps AS (
        INSERT INTO response_transition (tenant_id, response_id, state, time, actor, detail)
        SELECT tenant, d.response_id, d.state, d.time, d.actor, d.detail FROM d
    )
    INSERT INTO response (tenant_id, response_id, incident_id, action, target, state, priority, ttl_ms,
                          packets_per_second, playbook, reason, created, dispatched, expires, alert_id,
                          trigger_time, error, nodes, deadline, attempts, ending, hosts, request_id)
    SELECT tenant, d.response_id, d.incident_id, d.action, d.target, d.state, d.priority, d.ttl_ms,
           d.packets_per_second, d.playbook, d.reason, d.created, d.dispatched, d.expires, d.alert_id,
           d.trigger_time, d.error, d.nodes, d.deadline, d.attempts, d.ending, d.hosts, d.request_id
    FROM d;
END
$$;

-- Writes an alert, its incident, its facts, the responses that it led to and the messages that tell of it. With an expected
-- revision it takes the tenant's lock first. Answers with
--   taken    when it is written;
--   changed  when the revision is another: nothing is written, and what was decided is to be decided anew;
--   repeat   when the delivery was handled before: nothing is written.
CREATE FUNCTION take_alert(
    expected      bigint,
    decided       jsonb,
    alert         uuid,
    incident      uuid,
    detector      text,
    severity      smallint,
    title         text,
    source        text,
    searchable    text[],
    alert_seen    timestamptz,
    taken_at      timestamptz,
    body          bytea,
    status        smallint,
    worst         smallint,
    entities      jsonb,
    techniques    jsonb,
    alerts        uuid[],
    responses     uuid[],
    first_seen    timestamptz,
    last_seen     timestamptz,
    created       timestamptz,
    updated       timestamptz,
    score         float8,
    alert_count   bigint,
    root          text,
    headline      text,
    fact_hosts    text[],
    roles         smallint[],
    minutes       bigint[],
    stages        smallint[],
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
    delivery      uuid
) RETURNS text LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM set_config('garrison.tenant', tenant, true);
    IF expected IS NOT NULL THEN
        UPDATE tenant_state AS s SET revision = s.revision + 1 WHERE s.tenant_id = tenant AND s.revision = expected;
        IF NOT FOUND THEN
            RETURN 'changed';
        END IF;
    END IF;
    IF NOT append_messages(tenant, message_ids, subjects, kinds, sources, times, times_nanos, content_types,
                           traceparents, payloads, consumer, delivery) THEN
        RETURN 'repeat';
    END IF;
    INSERT INTO alert AS a (tenant_id, alert_id, incident_id, detector, severity, title, source, hosts, last_seen,
                            received, body)
    VALUES (tenant, alert, incident, detector, severity, title, source, searchable, alert_seen, taken_at, body)
    ON CONFLICT (tenant_id, alert_id) DO UPDATE
    SET incident_id = excluded.incident_id, severity = excluded.severity, title = excluded.title,
        hosts = excluded.hosts, last_seen = excluded.last_seen, body = excluded.body;
    INSERT INTO incident AS i (tenant_id, incident_id, status, worst, entities, techniques, alert_ids, responses,
                               first_seen, last_seen, created, updated, score, alert_count, root, headline, merged_into)
    VALUES (tenant, incident, status, worst, entities, techniques, alerts, responses, first_seen, last_seen, created,
            updated, score, alert_count, root, headline, NULL)
    ON CONFLICT (tenant_id, incident_id) DO UPDATE
    SET status = excluded.status, worst = excluded.worst, entities = excluded.entities,
        techniques = excluded.techniques, alert_ids = excluded.alert_ids, responses = excluded.responses,
        first_seen = excluded.first_seen, last_seen = excluded.last_seen, updated = excluded.updated,
        score = excluded.score, alert_count = excluded.alert_count, root = excluded.root,
        headline = excluded.headline;
    INSERT INTO fact (tenant_id, host, role, minute, stage, incident_id)
    SELECT tenant, f.host, f.role, f.minute, f.stage, incident
    FROM unnest(fact_hosts, roles, minutes, stages) AS f (host, role, minute, stage)
    ON CONFLICT DO NOTHING;
    PERFORM write_responses(tenant, decided);
    RETURN 'taken';
END
$$;
