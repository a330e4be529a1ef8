use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// How long sessions and tokens live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Life of an access token.
    pub access: TimeDelta,
    /// A session that is not refreshed for this long ends.
    pub idle: TimeDelta,
    /// No session lives longer, however busy.
    pub absolute: TimeDelta,
    /// Life of a challenge between the password and the factor.
    pub challenge: TimeDelta,
    /// Sessions of one person at a time; a further login ends the oldest.
    pub per_user: usize,
}

/// One login of a person on one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// UUIDv7.
    pub id: Uuid,
    /// Whose it is.
    pub user: Uuid,
    /// When the person logged in.
    pub created: DateTime<Utc>,
    /// When tokens were last handed out.
    pub last_used: DateTime<Utc>,
    /// The absolute limit.
    pub expires: DateTime<Utc>,
    /// When the last access token that was handed out expires.
    pub access_until: DateTime<Utc>,
    /// Where the person logged in from; empty when unknown.
    pub client_address: String,
    /// A second factor was proven at login.
    pub second_factor: bool,
    /// When it ended, if it has.
    pub ended: Option<DateTime<Utc>>,
}

/// Whether a session may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Live,
    /// It was ended by somebody.
    Ended,
    /// It was not used for longer than the idle limit.
    Idle,
    /// It reached the absolute limit.
    Expired,
}

impl Session {
    /// Judges the session at a time.
    pub fn standing(&self, limits: &SessionLimits, now: DateTime<Utc>) -> Standing {
        if self.ended.is_some() {
            Standing::Ended
        } else if now >= self.expires {
            Standing::Expired
        } else if now - self.last_used >= limits.idle {
            Standing::Idle
        } else {
            Standing::Live
        }
    }

    /// When an access token that is handed out now expires: never after the session.
    pub fn access_expiry(&self, limits: &SessionLimits, now: DateTime<Utc>) -> DateTime<Utc> {
        (now + limits.access).min(self.expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SessionLimits = SessionLimits {
        access: TimeDelta::minutes(5),
        idle: TimeDelta::minutes(30),
        absolute: TimeDelta::hours(12),
        challenge: TimeDelta::minutes(5),
        per_user: 10,
    };

    fn session(created: DateTime<Utc>) -> Session {
        Session {
            id: Uuid::nil(),
            user: Uuid::nil(),
            created,
            last_used: created,
            expires: created + LIMITS.absolute,
            access_until: created + LIMITS.access,
            client_address: String::new(),
            second_factor: false,
            ended: None,
        }
    }

    #[test]
    fn limits_hold_to_the_second() {
        let start = DateTime::UNIX_EPOCH;
        let mut session = session(start);
        let at = |session: &Session, minutes, seconds| {
            session.standing(
                &LIMITS,
                start + TimeDelta::minutes(minutes) + TimeDelta::seconds(seconds),
            )
        };
        assert_eq!(at(&session, 29, 59), Standing::Live);
        assert_eq!(at(&session, 30, 0), Standing::Idle);
        session.last_used = start + TimeDelta::minutes(719);
        assert_eq!(at(&session, 719, 59), Standing::Live);
        assert_eq!(at(&session, 720, 0), Standing::Expired);
        session.ended = Some(start);
        assert_eq!(at(&session, 0, 1), Standing::Ended);
    }

    #[test]
    fn no_token_outlives_its_session() {
        let session = session(DateTime::UNIX_EPOCH);
        let late = session.expires - TimeDelta::minutes(1);
        assert_eq!(session.access_expiry(&LIMITS, late), session.expires);
        assert_eq!(
            session.access_expiry(&LIMITS, session.created),
            session.created + LIMITS.access
        );
    }
}
