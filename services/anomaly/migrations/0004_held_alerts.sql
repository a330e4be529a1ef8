-- Alerts that the budget held back. They are written with the checkpoint that includes them, so that a batch without an
-- alert costs no transaction, and what came since is made anew when the stream is read back.

CREATE TABLE held_alert (
    tenant_id   text             NOT NULL,
    alert_id    uuid             NOT NULL,
    fingerprint text             NOT NULL,
    detector    text             NOT NULL,
    -- Whose budget: model, behaviour.
    budget      text             NOT NULL,
    -- 1 ahead of the promise, 2 outranked, 3 below the floor.
    reason      smallint         NOT NULL CHECK (reason BETWEEN 1 AND 3),
    rarity      double precision NOT NULL,
    bound       double precision NOT NULL,
    ahead       double precision NOT NULL,
    count       bigint           NOT NULL,
    -- When it was held back first, by the broker's clock.
    held        timestamptz      NOT NULL,
    -- When it was told after all, and by whom: a person, or the budget when a repeat was let through.
    told        timestamptz,
    told_by     text             NOT NULL DEFAULT '',
    -- garrison.alert.v1.Alert as it would have been published.
    body        bytea            NOT NULL,
    PRIMARY KEY (tenant_id, alert_id)
);
CREATE INDEX held_alert_order ON held_alert (tenant_id, held DESC, alert_id DESC);
ALTER TABLE held_alert ENABLE ROW LEVEL SECURITY;
ALTER TABLE held_alert FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON held_alert
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
