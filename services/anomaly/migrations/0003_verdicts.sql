-- What people said of alerts. The latest of a person and alert counts.

CREATE TABLE verdict (
    tenant_id   text        NOT NULL,
    alert_id    uuid        NOT NULL,
    actor       text        NOT NULL,
    -- 1 true, 2 false, 3 benign: it happened, and is meant to.
    verdict     smallint    NOT NULL CHECK (verdict BETWEEN 1 AND 3),
    comment     text        NOT NULL,
    given       timestamptz NOT NULL,
    -- What the alert was about, because alerts are forgotten before verdicts are.
    fingerprint text        NOT NULL,
    detector    text        NOT NULL,
    entity      text        NOT NULL,
    PRIMARY KEY (tenant_id, alert_id, actor)
);
CREATE INDEX verdict_given ON verdict (tenant_id, given DESC);
ALTER TABLE verdict ENABLE ROW LEVEL SECURITY;
ALTER TABLE verdict FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON verdict
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
