-- When each was last kept here: retention goes by it, as other clocks may be wrong and captures may be old.
ALTER TABLE alert    ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
ALTER TABLE event    ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
ALTER TABLE incident ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
ALTER TABLE response ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
CREATE INDEX alert_stored    ON alert    (tenant_id, stored);
CREATE INDEX event_stored    ON event    (tenant_id, stored);
CREATE INDEX incident_stored ON incident (tenant_id, stored);
CREATE INDEX response_stored ON response (tenant_id, stored);
