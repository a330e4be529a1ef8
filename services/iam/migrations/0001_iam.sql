-- People, tenants, factors, sessions and signing keys.
--
-- Every table is split by tenant with forced row-level security. Two tables may also be read by transactions of the
-- tenant `system`, and say so in a policy of their own: `tenants`, which the installation's administrators manage, and
-- `revocations`, which every service needs for the tokens of all tenants.

CREATE TABLE tenants (
    tenant_id    text        NOT NULL PRIMARY KEY,
    display_name text        NOT NULL,
    disabled     boolean     NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL
);
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tenants
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
CREATE POLICY installation ON tenants FOR SELECT
    USING (current_setting('garrison.tenant', true) = 'system');

CREATE TABLE users (
    tenant_id           text        NOT NULL REFERENCES tenants (tenant_id),
    id                  uuid        NOT NULL,
    login               text        NOT NULL,
    display_name        text        NOT NULL,
    roles               text[]      NOT NULL,
    disabled            boolean     NOT NULL DEFAULT false,
    -- PHC string: algorithm, parameters, salt and hash.
    password_hash       text        NOT NULL,
    created_at          timestamptz NOT NULL,
    last_login_at       timestamptz,
    -- Sealed under the key file. The pending one waits for a first code.
    totp_secret         bytea,
    totp_pending_secret bytea,
    -- The last time step that was used; none at or before it is taken again.
    totp_last_step      bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, login)
);
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON users
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

CREATE TABLE recovery_codes (
    tenant_id text  NOT NULL,
    user_id   uuid  NOT NULL,
    -- HMAC-SHA256 under the key file.
    code_mac  bytea NOT NULL,
    PRIMARY KEY (tenant_id, user_id, code_mac),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE
);
ALTER TABLE recovery_codes ENABLE ROW LEVEL SECURITY;
ALTER TABLE recovery_codes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON recovery_codes
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

-- Failed attempts by login name, for accounts that exist and for names that do not: both behave alike.
CREATE TABLE login_attempts (
    tenant_id    text        NOT NULL,
    -- HMAC-SHA256 of the login under the key file: an unknown name may be a mistyped password.
    login_mac    bytea       NOT NULL,
    failures     integer     NOT NULL,
    last_at      timestamptz NOT NULL,
    locked_until timestamptz,
    PRIMARY KEY (tenant_id, login_mac)
);
CREATE INDEX login_attempts_by_age ON login_attempts (tenant_id, last_at);
ALTER TABLE login_attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE login_attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON login_attempts
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

-- A password was right and a factor must follow.
CREATE TABLE challenges (
    tenant_id      text        NOT NULL,
    id             uuid        NOT NULL,
    user_id        uuid        NOT NULL,
    -- SHA-256 of the secret part of the challenge.
    secret_sha256  bytea       NOT NULL,
    attempts       integer     NOT NULL DEFAULT 0,
    expires_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX challenges_by_expiry ON challenges (tenant_id, expires_at);
ALTER TABLE challenges ENABLE ROW LEVEL SECURITY;
ALTER TABLE challenges FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON challenges
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

CREATE TABLE sessions (
    tenant_id      text        NOT NULL,
    id             uuid        NOT NULL,
    user_id        uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    last_used_at   timestamptz NOT NULL,
    -- The absolute limit.
    expires_at     timestamptz NOT NULL,
    -- When the last access token that was handed out expires.
    access_until   timestamptz NOT NULL,
    client_address text        NOT NULL,
    second_factor  boolean     NOT NULL,
    -- SHA-256 of the secret part of the one refresh token that still works.
    refresh_sha256 bytea       NOT NULL,
    ended_at       timestamptz,
    end_reason     text,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX sessions_of_user ON sessions (tenant_id, user_id, created_at) WHERE ended_at IS NULL;
CREATE INDEX sessions_by_expiry ON sessions (tenant_id, expires_at);
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON sessions
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));

-- Sessions that ended while an access token of theirs still lived.
CREATE TABLE revocations (
    tenant_id  text        NOT NULL,
    session_id uuid        NOT NULL,
    revoked_at timestamptz NOT NULL,
    until      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, session_id)
);
CREATE INDEX revocations_by_until ON revocations (until);
ALTER TABLE revocations ENABLE ROW LEVEL SECURITY;
ALTER TABLE revocations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON revocations
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
CREATE POLICY installation ON revocations FOR SELECT
    USING (current_setting('garrison.tenant', true) = 'system');

-- The token signing keys belong to the installation, so to the tenant `system`.
CREATE TABLE signing_keys (
    tenant_id      text        NOT NULL,
    key_id         text        NOT NULL,
    public_key     bytea       NOT NULL,
    -- PKCS #8, sealed under the key file.
    private_key    bytea       NOT NULL,
    created_at     timestamptz NOT NULL,
    -- Set when a younger key took over: the last token it signed has expired by then.
    verifies_until timestamptz,
    PRIMARY KEY (tenant_id, key_id)
);
ALTER TABLE signing_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE signing_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON signing_keys
    USING (tenant_id = current_setting('garrison.tenant', true))
    WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
