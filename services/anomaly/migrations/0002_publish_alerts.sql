-- Keeps alerts as they are now and appends their messages, as one transaction of its own: containment waits for it.
-- What is there already with the same or a higher count, because its messages were taken before a crash and are taken
-- again now, is left out. Answers with the positions of the others, from 1.
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
    delivery      uuid
) RETURNS integer[] LANGUAGE plpgsql
-- The plan is made once for each connection: an attack comes when nobody has asked for long.
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    news integer[];
BEGIN
    PERFORM set_config('garrison.tenant', tenant, true);
    -- The last part sees the table as it was before: what each alert's count was.
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(alert_ids, fingerprints, detectors, severities, counts, triggers, detections, bodies)
            WITH ORDINALITY
            AS a (alert_id, fingerprint, detector, severity, count, triggered, detected, body, position)
    ), kept AS (
        INSERT INTO alert (tenant_id, alert_id, fingerprint, detector, severity, count, triggered, detected, body)
        SELECT DISTINCT ON (g.alert_id) tenant, g.alert_id, g.fingerprint, g.detector, g.severity, g.count,
               g.triggered, g.detected, g.body
        FROM given g ORDER BY g.alert_id, g.count DESC
        ON CONFLICT (tenant_id, alert_id) DO UPDATE SET severity = excluded.severity, count = excluded.count,
            triggered = excluded.triggered, detected = excluded.detected, body = excluded.body
        WHERE excluded.count > alert.count
    )
    SELECT coalesce(array_agg(g.position::integer ORDER BY g.position), '{}') INTO news
    FROM given g LEFT JOIN alert ON alert.tenant_id = tenant AND alert.alert_id = g.alert_id
    WHERE alert.count IS NULL OR alert.count < g.count;

    PERFORM append_messages(
        tenant, array_agg(message_ids[p] ORDER BY p), array_agg(subjects[p] ORDER BY p),
        array_agg(kinds[p] ORDER BY p), array_agg(sources[p] ORDER BY p), array_agg(times[p] ORDER BY p),
        array_agg(times_nanos[p] ORDER BY p), array_agg(content_types[p] ORDER BY p),
        array_agg(traceparents[p] ORDER BY p), array_agg(payloads[p] ORDER BY p), consumer, delivery)
    FROM unnest(news) AS p;
    RETURN news;
END
$$;
