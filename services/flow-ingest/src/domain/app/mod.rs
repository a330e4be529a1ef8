//! The application layer: recognised by content first, port second; state only for flows that have some.

pub mod dns;
pub mod http;
pub mod stream;
pub mod tls;

use self::{
    dns::DnsFacts,
    http::HttpFacts,
    stream::{Step, Stream},
    tls::TlsFacts,
};
use super::{
    flow::{Flow, NONE, mark},
    packet::{Decoded, TCP, UDP, flag},
    tunnel,
};

/// Application protocols this meter names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// Not known.
    #[default]
    Unknown,
    /// HTTP/1.
    Http,
    /// TLS.
    Tls,
    /// DNS, multicast DNS and LLMNR.
    Dns,
    /// SSH.
    Ssh,
    /// Teredo, a tunnel.
    Teredo,
    /// VXLAN, a tunnel.
    Vxlan,
    /// Geneve, a tunnel.
    Geneve,
    /// GTP-U, a tunnel.
    Gtpu,
}

impl Service {
    /// What it carries is packets.
    pub fn is_tunnel(self) -> bool {
        matches!(self, Self::Teredo | Self::Vxlan | Self::Geneve | Self::Gtpu)
    }

    /// The name in the `service` column. `None` while it is not known.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Http => Some("http"),
            Self::Tls => Some("tls"),
            Self::Dns => Some("dns"),
            Self::Ssh => Some("ssh"),
            Self::Teredo => Some("teredo"),
            Self::Vxlan => Some("vxlan"),
            Self::Geneve => Some("geneve"),
            Self::Gtpu => Some("gtpu"),
        }
    }

    /// From the number a flow holds.
    pub fn from_number(number: u8) -> Self {
        [
            Self::Unknown,
            Self::Http,
            Self::Tls,
            Self::Dns,
            Self::Ssh,
            Self::Teredo,
            Self::Vxlan,
            Self::Geneve,
            Self::Gtpu,
        ]
        .into_iter()
        .find(|service| *service as u8 == number)
        .unwrap_or_default()
    }
}

/// What a flow's application layer told.
#[derive(Debug, Default)]
pub enum Facts {
    /// It is not yet clear what it speaks.
    #[default]
    Probing,
    /// HTTP/1.
    Http(Box<HttpFacts>),
    /// TLS.
    Tls(Box<TlsFacts>),
    /// DNS.
    Dns(Box<DnsFacts>),
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

/// The application states of a table, in slots that are used again.
pub struct Applications {
    apps: Vec<App>,
    free: Vec<u32>,
    budget: usize,
    limit: usize,
    /// Flows whose application layer was not looked at because all slots were taken.
    pub refused: u64,
}

/// Payload packets of a flow after which an unknown protocol stays unknown.
const TRIES: u8 = 8;

enum Guess {
    Sure(Service),
    Maybe,
    No,
}

fn guess(data: &[u8], dns_port: bool) -> Guess {
    if data.starts_with(b"SSH-") {
        return Guess::Sure(Service::Ssh);
    }
    let beginnings = [
        (Service::Http, http::begins_request(data)),
        (Service::Http, http::begins_response(data)),
        (Service::Tls, tls::begins(data)),
    ];
    let mut maybe = false;
    for (service, begins) in beginnings {
        match begins {
            Some(true) => return Guess::Sure(service),
            None => maybe = true,
            Some(false) => {}
        }
    }
    if dns_port && data.len() >= 2 {
        return match data.get(2..14) {
            Some(_) if dns_over_tcp(data) => Guess::Sure(Service::Dns),
            Some(_) => Guess::No,
            None => Guess::Maybe,
        };
    }
    if maybe || (data.len() < 4 && b"SSH-".starts_with(data)) {
        return Guess::Maybe;
    }
    Guess::No
}

fn dns_over_tcp(data: &[u8]) -> bool {
    let length = usize::from(u16::from_be_bytes([data[0], data[1]]));
    length >= 12 && data[4] >> 3 & 0x0f <= 6 && u16::from_be_bytes([data[6], data[7]]) <= 4
}

fn is_dns_port(flow: &Flow) -> bool {
    let dns = |port| matches!(port, 53 | 5353 | 5355);
    dns(flow.key.dst_port) || dns(flow.key.src_port)
}

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

    /// Takes a payload from `side`. `payloads` is how many packets with payload the flow has had.
    pub fn payload(&mut self, flow: &mut Flow, side: usize, packet: &Decoded<'_>, payloads: u8) -> News {
        if flow.is(mark::APP_DONE) {
            return News::default();
        }
        let (data, claimed) = (packet.payload, packet.payload_len);
        match flow.key.protocol {
            TCP => {
                let syn = packet.tcp.flags & flag::SYN != 0;
                let seq = packet.tcp.seq.wrapping_add(u32::from(syn));
                self.segment(flow, side, seq, data, claimed, payloads)
            }
            UDP => self.datagram(flow, data, claimed, payloads),
            _ => {
                flow.marks |= mark::APP_DONE;
                News::default()
            }
        }
    }

    fn datagram(&mut self, flow: &mut Flow, data: &[u8], claimed: u32, payloads: u8) -> News {
        let on = |port| flow.key.dst_port == port || flow.key.src_port == port;
        let carrier = match () {
            () if on(4789) && tunnel::is_vxlan(data) => Service::Vxlan,
            () if on(6081) && tunnel::is_geneve(data) => Service::Geneve,
            () if on(2152) && tunnel::is_gtpu(data, claimed) => Service::Gtpu,
            () if tunnel::is_teredo(data, claimed) => Service::Teredo,
            () => Service::Unknown,
        };
        if carrier != Service::Unknown {
            flow.service = carrier as u8;
            flow.marks |= mark::APP_DONE;
            return News {
                facts: true,
                refused: false,
            };
        }
        if flow.app == NONE && !is_dns_port(flow) && !dns::is_message(data) {
            if payloads >= 2 {
                flow.marks |= mark::APP_DONE;
            }
            return News::default();
        }
        let Some(app) = self.claim(flow) else {
            return News::default();
        };
        if let Facts::Probing = app.facts {
            app.facts = Facts::Dns(Box::default());
        }
        let Facts::Dns(dns) = &mut app.facts else {
            return News::default();
        };
        match dns.message(data) {
            Some(facts) => {
                flow.service = Service::Dns as u8;
                News { facts, refused: false }
            }
            None => {
                if flow.service == Service::Unknown as u8 {
                    self.release(flow);
                    if payloads >= 2 {
                        flow.marks |= mark::APP_DONE;
                    }
                }
                News::default()
            }
        }
    }

    fn segment(&mut self, flow: &mut Flow, side: usize, seq: u32, data: &[u8], claimed: u32, payloads: u8) -> News {
        let budget = self.budget;
        let dns_port = is_dns_port(flow);
        let began = flow.sides[side].start_seq.wrapping_add(1);
        let syn = flow.is([mark::SRC_SYN, mark::DST_SYN][side]);
        if flow.app == NONE {
            let early = syn && seq != began && seq.wrapping_sub(began) < budget as u32;
            match guess(data, dns_port) {
                Guess::Sure(Service::Ssh) => {
                    flow.service = Service::Ssh as u8;
                    flow.marks |= mark::APP_DONE;
                    return News {
                        facts: true,
                        refused: false,
                    };
                }
                Guess::Sure(_) | Guess::Maybe => {}
                // The stream's first segment may still come.
                Guess::No if early && payloads < TRIES => {}
                Guess::No => {
                    if payloads >= TRIES {
                        flow.marks |= mark::APP_DONE;
                    }
                    return News::default();
                }
            }
        }
        let Some(app) = self.claim(flow) else {
            return News::default();
        };
        if app.streams[side].is_before() {
            let near = syn && seq.wrapping_sub(began) < budget as u32;
            app.streams[side].start(if near { began } else { seq });
        }
        let App { facts, streams } = app;
        let mut news = News::default();
        let mut over = false;
        let mut service = Service::Unknown;
        streams[side].feed(seq, data, claimed, budget, |front, full| {
            if let Facts::Probing = facts {
                match guess(front, dns_port) {
                    Guess::Sure(Service::Http) => *facts = Facts::Http(Box::default()),
                    Guess::Sure(Service::Tls) => *facts = Facts::Tls(Box::default()),
                    Guess::Sure(Service::Dns) => *facts = Facts::Dns(Box::default()),
                    Guess::Sure(other) => {
                        service = other;
                        news.facts = true;
                        over = true;
                        return Step::Stop;
                    }
                    Guess::Maybe if !full => return Step::More,
                    Guess::Maybe | Guess::No => return Step::Stop,
                }
            }
            match facts {
                Facts::Http(http) => {
                    service = Service::Http;
                    let mut found = http::Found::default();
                    let step = http.step(side, front, full, &mut found);
                    news.facts |= found.facts;
                    news.refused |= found.refused;
                    over |= found.over;
                    step
                }
                Facts::Tls(tls) => {
                    let step = tls.step(front, &mut news.facts);
                    if news.facts {
                        service = Service::Tls;
                    }
                    step
                }
                Facts::Dns(dns) => dns_step(dns, front, &mut news, &mut service),
                Facts::Probing => Step::Stop,
            }
        });
        if service != Service::Unknown {
            flow.service = service as u8;
        }
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

fn dns_step(dns: &mut DnsFacts, front: &[u8], news: &mut News, service: &mut Service) -> Step {
    let Some(&[high, low]) = front.first_chunk::<2>() else {
        return Step::More;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some(message) = front.get(2..2 + length) else {
        return Step::More;
    };
    match dns.message(message) {
        Some(facts) => {
            news.facts |= facts;
            *service = Service::Dns;
            Step::Take(2 + length)
        }
        None => Step::Stop,
    }
}
