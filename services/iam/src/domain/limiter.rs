use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
};

use chrono::{DateTime, TimeDelta, Utc};
use garrison_proto::TenantId;

/// Bounds of an [`AttemptLimiter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimiterSettings {
    /// Attempts that one address may make on one tenant in a minute; at least 1.
    pub per_minute: u32,
    /// Addresses that are remembered. Beyond it the one that was seen first is forgotten.
    pub max_addresses: usize,
}

/// What the limiter says about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Admitted,
    /// Too many. `first` is true once for each window, so that a flood is reported once and not with every attempt.
    Refused {
        /// When the next attempt is admitted.
        retry_after: TimeDelta,
        /// No other attempt was refused in this window.
        first: bool,
    },
}

/// Counts login attempts by tenant and client address in windows of a minute.
///
/// An IPv6 client counts by its /64, because a single host has all of it.
#[derive(Debug)]
pub struct AttemptLimiter {
    settings: LimiterSettings,
    windows: HashMap<Key, Window>,
    order: VecDeque<Key>,
}

type Key = (TenantId, IpAddr);

#[derive(Debug)]
struct Window {
    began: DateTime<Utc>,
    attempts: u32,
}

const WINDOW: TimeDelta = TimeDelta::minutes(1);

impl AttemptLimiter {
    /// An empty limiter.
    pub fn new(settings: LimiterSettings) -> Self {
        Self {
            settings,
            windows: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Counts an attempt and says whether it may go on.
    pub fn attempt(&mut self, tenant: &TenantId, address: IpAddr, now: DateTime<Utc>) -> Verdict {
        let key = (tenant.clone(), network_of(address));
        if !self.windows.contains_key(&key) {
            if self.windows.len() >= self.settings.max_addresses
                && let Some(oldest) = self.order.pop_front()
            {
                self.windows.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        let window = self.windows.entry(key).or_insert(Window {
            began: now,
            attempts: 0,
        });
        if now - window.began >= WINDOW || now < window.began {
            *window = Window {
                began: now,
                attempts: 0,
            };
        }
        window.attempts = window.attempts.saturating_add(1);
        if window.attempts <= self.settings.per_minute {
            Verdict::Admitted
        } else {
            Verdict::Refused {
                retry_after: window.began + WINDOW - now,
                first: window.attempts == self.settings.per_minute + 1,
            }
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> AttemptLimiter {
        AttemptLimiter::new(LimiterSettings {
            per_minute: 3,
            max_addresses: 2,
        })
    }

    #[test]
    fn refuses_beyond_the_rate_and_reports_it_once() {
        let (mut limiter, acme, now) = (limiter(), "acme".parse().unwrap(), DateTime::UNIX_EPOCH);
        let address = "192.0.2.7".parse().unwrap();
        for _ in 0..3 {
            assert_eq!(limiter.attempt(&acme, address, now), Verdict::Admitted);
        }
        let later = now + TimeDelta::seconds(20);
        let refused = |first| Verdict::Refused {
            retry_after: TimeDelta::seconds(40),
            first,
        };
        assert_eq!(limiter.attempt(&acme, address, later), refused(true));
        assert_eq!(limiter.attempt(&acme, address, later), refused(false));
        assert_eq!(limiter.attempt(&acme, address, now + WINDOW), Verdict::Admitted);
    }

    #[test]
    fn tenants_and_addresses_count_apart_but_a_v6_network_counts_as_one() {
        let (mut limiter, now) = (limiter(), DateTime::UNIX_EPOCH);
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        for host in 1..=3 {
            let address = format!("2001:db8::{host}").parse().unwrap();
            assert_eq!(limiter.attempt(&acme, address, now), Verdict::Admitted);
        }
        let neighbour = "2001:db8::ffff".parse().unwrap();
        assert_ne!(limiter.attempt(&acme, neighbour, now), Verdict::Admitted);
        assert_eq!(limiter.attempt(&other, neighbour, now), Verdict::Admitted);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut limiter, acme) = (limiter(), "acme".parse().unwrap());
        for host in 0..1000u32 {
            let address = std::net::Ipv4Addr::from_bits(host).into();
            limiter.attempt(&acme, address, DateTime::UNIX_EPOCH);
        }
        assert_eq!((limiter.windows.len(), limiter.order.len()), (2, 2));
    }
}
