-- Versions that wait for somebody else's approval, and what was decided about them.

-- 0 until a first version takes force.
ALTER TABLE policy DROP CONSTRAINT policy_version_check;
ALTER TABLE policy ADD CONSTRAINT policy_version_check CHECK (version >= 0);
-- The version that waits; 0 for none.
ALTER TABLE policy ADD COLUMN waiting bigint NOT NULL DEFAULT 0 CHECK (waiting >= 0);
CREATE INDEX policy_waiting ON policy (tenant_id, name) WHERE waiting > 0;

-- Whether the version had to be approved before it could take force.
ALTER TABLE policy_version ADD COLUMN reviewed boolean NOT NULL DEFAULT false;

-- One decision a version, bound to the document that was looked at. Never changed.
CREATE TABLE policy_review (
    tenant_id   text        NOT NULL,
    name        text        NOT NULL,
    version     bigint      NOT NULL,
    sha256      text        NOT NULL,
    approved    boolean     NOT NULL,
    reviewer    text        NOT NULL,
    note        text        NOT NULL,
    decided     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name, version),
    FOREIGN KEY (tenant_id, name, version) REFERENCES policy_version
);
ALTER TABLE policy_review ENABLE ROW LEVEL SECURITY;
ALTER TABLE policy_review FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON policy_review USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
