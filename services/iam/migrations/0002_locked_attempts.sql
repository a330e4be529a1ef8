-- Attempts on a locked login: the first is recorded at once, the others are counted and recorded together when the lock
-- is over, so that whoever keeps trying fills nobody's audit log.
ALTER TABLE login_attempts
    -- The end of the lock whose first refusal was recorded.
    ADD COLUMN recorded_lock timestamptz,
    -- Refusals since then that are in no record yet.
    ADD COLUMN refused       integer NOT NULL DEFAULT 0,
    -- Whom they were for; null for a name that does not exist.
    ADD COLUMN refused_user  uuid;
CREATE INDEX login_attempts_refused ON login_attempts (tenant_id, locked_until) WHERE refused > 0;
