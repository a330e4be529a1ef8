-- Appends messages to the outbox in the order of the arrays. With a delivery, its consumer notes it in the inbox in the
-- same step; false says that it was noted before, and then nothing is appended.
CREATE FUNCTION append_messages(
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
    consumer      text DEFAULT NULL,
    delivery      uuid DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF delivery IS NOT NULL THEN
        INSERT INTO inbox (tenant_id, consumer, message_id) VALUES (tenant, append_messages.consumer, delivery)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    INSERT INTO outbox (tenant_id, message_id, subject, kind, source, time, time_nanos, content_type, traceparent,
                        payload)
    SELECT tenant, m.message_id, m.subject, m.kind, m.source, m.time, m.time_nanos, m.content_type, m.traceparent,
           m.payload
    FROM unnest(message_ids, subjects, kinds, sources, times, times_nanos, content_types, traceparents, payloads)
         WITH ORDINALITY AS m (message_id, subject, kind, source, time, time_nanos, content_type, traceparent, payload,
                               position)
    ORDER BY m.position;
    RETURN true;
END
$$;
