//! The application layer: recognised by content first, port second; state only for flows that have some.
//!
//! The first payloads of an undecided flow are shown to the probes of [`protocol`]. Once one is sure, or enough were
//! shown, the flow is decided; where no deep parser wants more, its further packets do not come here.

pub mod certificate;
pub mod dns;
pub mod http;
pub mod http2;
pub mod probe;
pub mod protocol;
pub mod quic;
pub mod service;
pub mod ssh;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
mod told;

pub use self::service::Service;
use self::{
    dns::DnsFacts,
    http::HttpFacts,
    http2::Http2Facts,
    probe::{Guess, Look, media::rtp_header},
    protocol::{Transport, recognise},
    quic::QuicFacts,
    ssh::SshFacts,
    stream::{Step, Stream},
    tls::TlsFacts,
    told::Told,
};
use super::{
    flow::{Flow, NONE, mark},
    packet::{Decoded, TCP, UDP, flag},
    prefetch::fetch,
};

/// What a flow's application layer told.
#[derive(Debug, Default)]
pub enum Facts {
    /// It is not yet clear what it speaks.
    #[default]
    Probing,
    /// What may be RTP: payload type, sequence number and source of each side's latest.
    Media([Option<(u8, u16, u32)>; 2]),
    /// HTTP/1.
    Http(Box<HttpFacts>),
    /// HTTP/2 without TLS.
    Http2(Box<Http2Facts>),
    /// TLS or DTLS.
    Tls(Box<TlsFacts>),
    /// STUN, which DTLS may follow on the same ports (RFC 7983): datagrams that are still looked at.
    Stun(u8),
    /// A protocol that may turn into TLS.
    Upgrade(Box<Upgrade>),
    /// QUIC.
    Quic(Box<QuicFacts>),
    /// DNS and what uses its messages.
    Dns(Box<DnsFacts>),
    /// SSH.
    Ssh(Box<SshFacts>),
}

/// Waits for a connection to turn into TLS.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Its hellos, once they came.
    pub tls: TlsFacts,
    segments: u8,
}

// Segments after which a connection is not expected to turn into TLS any more.
const UPGRADE_SEGMENTS: u8 = 64;
// Datagrams behind a STUN message among which a hello of DTLS is looked for.
const STUN_DATAGRAMS: u8 = 32;

impl Facts {
    /// What TLS told, whatever carried it.
    pub fn tls(&self) -> Option<&TlsFacts> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Upgrade(upgrade) => Some(&upgrade.tls),
            Self::Quic(quic) => Some(&quic.tls),
            _ => None,
        }
    }

    /// What HTTP told, whichever version.
    pub fn http(&self) -> Option<&HttpFacts> {
        match self {
            Self::Http(http) => Some(http),
            Self::Http2(http2) => Some(&http2.http),
            _ => None,
        }
    }

    // The deep parser of a service. `None` where its name is all there is to tell.
    fn of(service: Service) -> Option<Self> {
        Some(match service {
            Service::Http => Self::Http(Box::default()),
            Service::Http2 => Self::Http2(Box::default()),
            Service::Tls | Service::Dtls => Self::Tls(Box::default()),
            Service::Quic => Self::Quic(Box::default()),
            Service::Dns | Service::Mdns | Service::Llmnr | Service::NetbiosNs => Self::Dns(Box::default()),
            Service::Ssh => Self::Ssh(Box::default()),
            Service::Stun => Self::Stun(STUN_DATAGRAMS),
            _ if service.upgrades_to_tls() => Self::Upgrade(Box::default()),
            _ => return None,
        })
    }
}

/// The application state of one flow.
#[derive(Debug, Default)]
pub struct App {
    /// What is known.
    pub facts: Facts,
    streams: [Stream; 2],
}

/// What a payload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// A fact is known for the first time.
    pub facts: bool,
    /// A login was refused.
    pub refused: bool,
}

const KNOWN: News = News {
    facts: true,
    refused: false,
};

/// The application states of a table, in slots that are used again.
pub struct Applications {
    apps: Vec<App>,
    free: Vec<u32>,
    budget: usize,
    limit: usize,
    /// Flows whose application layer was not looked at because all slots were taken.
    pub refused: u64,
}

// Payload packets of a flow after which a hello of DTLS is not waited for any more.
const LAST_FLIGHT: u8 = 64;

/// Payload packets of a flow after which an unknown protocol stays unknown.
const TRIES: u8 = 8;

impl Applications {
    /// Makes room for at most `limit` states with `budget` octets of held stream in each direction.
    pub fn new(limit: usize, budget: usize) -> Self {
        Self {
            apps: Vec::new(),
            free: Vec::new(),
            budget,
            limit,
            refused: 0,
        }
    }

    /// A flow's state.
    pub fn get(&self, slot: u32) -> Option<&App> {
        self.apps.get(slot as usize)
    }

    /// Has a flow's state brought near.
    #[inline(always)]
    pub fn fetch(&self, slot: u32) {
        if let Some(app) = self.apps.get(slot as usize) {
            fetch(app);
        }
    }

    /// Has brought near what is known of a flow, whose state is near already.
    #[inline(always)]
    pub fn fetch_facts(&self, slot: u32) {
        match self.apps.get(slot as usize).map(|app| &app.facts) {
            Some(Facts::Http(facts)) => fetch(facts.as_ref()),
            Some(Facts::Tls(facts)) => fetch(facts.as_ref()),
            Some(Facts::Dns(facts)) => fetch(facts.as_ref()),
            Some(Facts::Quic(facts)) => fetch(facts.as_ref()),
            _ => {}
        }
    }

    /// States in use.
    pub fn used(&self) -> usize {
        self.apps.len() - self.free.len()
    }

    /// Gives a flow's slot back.
    pub fn release(&mut self, flow: &mut Flow) {
        if flow.app != NONE {
            self.apps[flow.app as usize] = App::default();
            self.free.push(flow.app);
            flow.app = NONE;
        }
    }

    fn claim(&mut self, flow: &mut Flow) -> Option<&mut App> {
        if flow.app == NONE {
            flow.app = match self.free.pop() {
                Some(slot) => slot,
                None if self.apps.len() < self.limit => {
                    self.apps.push(App::default());
                    // So that giving a slot back never allocates.
                    self.free.reserve(self.apps.len());
                    self.apps.len() as u32 - 1
                }
                None => {
                    self.refused += 1;
                    flow.marks |= mark::APP_DONE;
                    return None;
                }
            };
        }
        self.apps.get_mut(flow.app as usize)
    }

    /// Takes a payload from `side`. `payloads` is how many packets with payload the flow has had, `gap` whether some of the
    /// stream before this one has not come yet.
    pub fn payload(&mut self, flow: &mut Flow, side: usize, packet: &Decoded<'_>, payloads: u8, gap: bool) -> News {
        if flow.is(mark::APP_DONE) {
            return News::default();
        }
        match flow.key.protocol {
            TCP => self.segment(flow, side, packet, payloads, gap),
            UDP => self.datagram(flow, side, packet, payloads),
            _ => {
                flow.marks |= mark::APP_DONE;
                News::default()
            }
        }
    }

    fn datagram(&mut self, flow: &mut Flow, side: usize, packet: &Decoded<'_>, payloads: u8) -> News {
        let (data, claimed) = (packet.payload, packet.payload_len);
        let mut decided = false;
        if flow.service == Service::Unknown as u8 {
            let mut look = look(flow, side, data, claimed);
            match recognise(Transport::Udp, &mut look) {
                (Guess::Yes, service) => {
                    flow.service = service as u8;
                    decided = true;
                    let Some(facts) = Facts::of(service) else {
                        return self.done(flow);
                    };
                    let Some(app) = self.claim(flow) else { return KNOWN };
                    app.facts = facts;
                }
                (Guess::Maybe, _) => return self.media(flow, side, data, payloads),
                (Guess::No, _) => {
                    if payloads >= TRIES {
                        self.release(flow);
                        flow.marks |= mark::APP_DONE;
                    }
                    return News::default();
                }
            }
        }
        let Some(app) = self.apps.get_mut(flow.app as usize) else {
            flow.marks |= mark::APP_DONE;
            return News::default();
        };
        let mut facts = decided;
        if let Facts::Stun(_) = app.facts
            && tls::is_dtls(data, claimed as usize)
        {
            flow.service = Service::Dtls as u8;
            app.facts = Facts::Tls(Box::default());
            facts = true;
        }
        let over = match &mut app.facts {
            Facts::Stun(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            Facts::Dns(dns) => {
                facts |= dns.message(data).unwrap_or(false);
                false
            }
            Facts::Quic(quic) => quic.datagram(side, data, &mut facts),
            Facts::Tls(tls) => {
                facts |= tls.datagram(data);
                (tls.ja4.is_some() && tls.ja4s.is_some()) || payloads >= LAST_FLIGHT
            }
            _ => true,
        };
        if over {
            flow.marks |= mark::APP_DONE;
        }
        News { facts, refused: false }
    }

    // A flow whose name is all there is to tell.
    fn done(&mut self, flow: &mut Flow) -> News {
        self.release(flow);
        flow.marks |= mark::APP_DONE;
        KNOWN
    }

    // Two datagrams that follow each other from one source are RTP.
    fn media(&mut self, flow: &mut Flow, side: usize, data: &[u8], payloads: u8) -> News {
        let Some(header) = rtp_header(data) else {
            return News::default();
        };
        let Some(app) = self.claim(flow) else {
            return News::default();
        };
        if let Facts::Probing = app.facts {
            app.facts = Facts::Media([None; 2]);
        }
        let Facts::Media(latest) = &mut app.facts else {
            return News::default();
        };
        let follows = latest[side].is_some_and(|(kind, number, source)| {
            source == header.2 && kind == header.0 && (1..=4).contains(&header.1.wrapping_sub(number))
        });
        latest[side] = Some(header);
        if follows {
            flow.service = Service::Rtp as u8;
            return self.done(flow);
        }
        if payloads >= TRIES {
            self.release(flow);
            flow.marks |= mark::APP_DONE;
        }
        News::default()
    }

    fn segment(&mut self, flow: &mut Flow, side: usize, packet: &Decoded<'_>, payloads: u8, gap: bool) -> News {
        let syn = packet.tcp.flags & flag::SYN != 0;
        let seq = packet.tcp.seq.wrapping_add(u32::from(syn));
        let (data, claimed, budget) = (packet.payload, packet.payload_len, self.budget);
        let began = flow.sides[side].start_seq.wrapping_add(1);
        let syn = flow.is([mark::SRC_SYN, mark::DST_SYN][side]);
        let near = syn && seq.wrapping_sub(began) < budget as u32;
        let mut guess = look(flow, side, data, data.len() as u32);
        let ports = guess.ports;
        let mut asked = None;
        if flow.app == NONE {
            let answer = recognise(Transport::Tcp, &mut guess);
            // What the stream begins with was looked at already, or may still come.
            let behind = near && seq != began;
            match answer {
                (Guess::Yes, service) if Facts::of(service).is_none() => {
                    flow.service = service as u8;
                    return self.done(flow);
                }
                (Guess::Yes | Guess::Maybe, _) if !behind || gap => {}
                (Guess::No, _) if behind && gap && payloads < TRIES => {}
                _ => {
                    if payloads >= TRIES {
                        flow.marks |= mark::APP_DONE;
                    }
                    return News::default();
                }
            }
            asked = Some(answer);
        }
        let Some(app) = self.claim(flow) else {
            return News::default();
        };
        if app.streams[side].is_before() {
            app.streams[side].start(if near { began } else { seq });
        }
        let App { facts, streams } = app;
        let mut told = Told {
            side,
            service: Service::from_number(flow.service),
            news: News::default(),
            over: false,
        };
        streams[side].feed(seq, data, claimed, budget, |front, full| {
            if let Facts::Probing = facts {
                let mut look = Look {
                    data: front,
                    claimed: front.len() as u32,
                    side,
                    ports,
                    on_port: false,
                };
                // Nearly always these octets were just asked about.
                let answer = asked.take().filter(|_| front.len() == data.len());
                match answer.unwrap_or_else(|| recognise(Transport::Tcp, &mut look)) {
                    (Guess::Yes, service) => {
                        told.service = service;
                        told.news.facts = true;
                        match Facts::of(service) {
                            Some(deep) => *facts = deep,
                            None => {
                                told.over = true;
                                return Step::Stop;
                            }
                        }
                    }
                    (Guess::Maybe, _) if !full => return Step::More,
                    (Guess::Maybe | Guess::No, _) => return Step::Stop,
                }
            }
            told.step(facts, front, full)
        });
        let Told {
            service, news, over, ..
        } = told;
        flow.service = service as u8;
        if over {
            streams.iter_mut().for_each(Stream::stop);
        }
        let nothing = matches!(facts, Facts::Probing) && streams[side].is_off();
        if nothing {
            self.release(flow);
            if over || payloads >= TRIES {
                flow.marks |= mark::APP_DONE;
            }
        } else if streams.iter().all(Stream::is_off) {
            flow.marks |= mark::APP_DONE;
        }
        news
    }
}

fn look<'a>(flow: &Flow, side: usize, data: &'a [u8], claimed: u32) -> Look<'a> {
    Look {
        data,
        claimed,
        side,
        ports: (flow.key.src_port, flow.key.dst_port),
        on_port: false,
    }
}
