//! A segment's octets to the parser of its protocol.

use super::{Facts, News, Service, UPGRADE_SEGMENTS, dns::DnsFacts, http, http2::Http2Facts, stream::Step, tls};

/// What a segment told.
pub(super) struct Told {
    pub(super) side: usize,
    pub(super) service: Service,
    pub(super) news: News,
    pub(super) over: bool,
}

impl Told {
    /// Lets the parser work on the octets at the front of its stream.
    pub(super) fn step(&mut self, facts: &mut Facts, front: &[u8], full: bool) -> Step {
        match facts {
            Facts::Http(http) => {
                let mut found = http::Found::default();
                let step = http.step(self.side, front, full, &mut found);
                self.news.facts |= found.facts;
                self.news.refused |= found.refused;
                self.over |= found.over;
                if found.http2 {
                    self.service = Service::Http2;
                    let http = std::mem::take(http.as_mut());
                    *facts = Facts::Http2(Box::new(Http2Facts::upgraded(http, 1 - self.side)));
                }
                step
            }
            Facts::Http2(http2) => {
                let mut found = http::Found::default();
                let step = http2.step(self.side, front, &mut found);
                self.news.facts |= found.facts;
                self.news.refused |= found.refused;
                step
            }
            Facts::Tls(tls) => tls.step(front, full, &mut self.news.facts),
            Facts::Upgrade(upgrade) => {
                if tls::begins(front) != Some(false) {
                    return upgrade.tls.step(front, full, &mut self.news.facts);
                }
                upgrade.segments = upgrade.segments.saturating_add(1);
                match upgrade.segments >= UPGRADE_SEGMENTS {
                    true => {
                        self.over = true;
                        Step::Stop
                    }
                    // Asked again with the first octets of each later segment.
                    false => Step::Lost,
                }
            }
            Facts::Dns(dns) => self.dns(dns, front),
            Facts::Ssh(ssh) => ssh.step(self.side, front, &mut self.news.facts),
            Facts::Stun(_) => {
                self.over = true;
                Step::Stop
            }
            Facts::Probing | Facts::Media(_) | Facts::Quic(_) => Step::Stop,
        }
    }

    fn dns(&mut self, dns: &mut DnsFacts, front: &[u8]) -> Step {
        let Some(&[high, low]) = front.first_chunk::<2>() else {
            return Step::More;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(message) = front.get(2..2 + length) else {
            return Step::More;
        };
        match dns.message(message) {
            Some(facts) => {
                self.news.facts |= facts;
                Step::Take(2 + length)
            }
            None => Step::Stop,
        }
    }
}
