//! An interpreter of the part of nft(8)'s language that the compiler writes, reading the text itself.
//!
//! It knows sets, verdict maps, chains, and what each match means for the first packet of a connection without
//! address translation. Anything else in the text is a panic: nothing is skipped unread.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

#[derive(Debug, Default)]
pub(crate) struct Ruleset {
    sets: HashMap<String, Vec<String>>,
    maps: HashMap<String, Vec<(String, String)>>,
    chains: HashMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
}

pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

enum Flow {
    Next,
    Return,
    End(Verdict),
}

impl Ruleset {
    pub(crate) fn read(text: &str) -> Self {
        let mut set = Self::default();
        let text: String = text
            .lines()
            .filter(|l| !l.trim_start().starts_with('#'))
            .map(|l| format!("{l}\n"))
            .collect();
        let head = "\ntable inet garrison_policy\ndelete table inet garrison_policy\n\ntable inet garrison_policy {\n";
        let body = text
            .strip_prefix(head)
            .expect("the transaction that replaces the table")
            .trim_end();
        let body = body.strip_suffix('}').expect("the table's end");
        let mut lines = body.lines().map(str::trim).filter(|l| !l.is_empty());
        while let Some(line) = lines.next() {
            let (kind, rest) = line.split_once(' ').unwrap();
            let name = rest.strip_suffix(" {").unwrap().to_owned();
            let mut inner = Vec::new();
            let mut depth = 0;
            loop {
                let line = lines.next().expect("an end");
                if line == "}" && depth == 0 {
                    break;
                }
                depth += i32::from(line.ends_with('{')) - i32::from(line == "}");
                inner.push(line.to_owned());
            }
            match kind {
                "chain" => {
                    assert!(set.chains.insert(name, inner).is_none(), "a chain twice");
                }
                "set" => {
                    set.sets.insert(name, elements(&inner));
                }
                "map" => {
                    let pairs = elements(&inner).into_iter().map(|e| {
                        let (key, verdict) = e.split_once(" : ").unwrap();
                        (key.to_owned(), verdict.to_owned())
                    });
                    set.maps.insert(name, pairs.collect());
                }
                other => panic!("the table has a {other}"),
            }
        }
        set
    }

    /// What the forward hook does with a connection's first packet.
    pub(crate) fn forward(&self, packet: &Packet) -> Verdict {
        match self.run("forward", packet) {
            Flow::End(verdict) => verdict,
            _ => Verdict::Accept, // policy accept
        }
    }

    fn run(&self, chain: &str, packet: &Packet) -> Flow {
        for rule in &self.chains[chain] {
            match self.rule(rule, packet) {
                Flow::Next => {}
                Flow::Return => return Flow::Next,
                end => return end,
            }
        }
        Flow::Next
    }

    fn rule(&self, rule: &str, packet: &Packet) -> Flow {
        let rule = rule.split(" comment \"").next().unwrap();
        let mut words = rule.split(' ').peekable();
        let mut protocol_known = false;
        while let Some(word) = words.next() {
            let mut next = || words.next().unwrap_or_else(|| panic!("{rule}: something is missing"));
            match word {
                "counter" => {}
                "drop" => return Flow::End(Verdict::Drop),
                "accept" => return Flow::End(Verdict::Accept),
                "return" => return Flow::Return,
                "jump" => return self.run(next(), packet),
                // Neighbour discovery never is a connection between two others.
                "icmpv6" => return Flow::Next,
                "type" => {
                    assert!(rule.starts_with("type filter hook forward priority filter + 10; policy accept;"));
                    return Flow::Next;
                }
                "meta" => match next() {
                    "nfproto" => {
                        let v4 = next() == "ipv4";
                        if packet.src.is_ipv4() != v4 {
                            return Flow::Next;
                        }
                    }
                    "l4proto" => {
                        protocol_known = true;
                        let mut wanted = vec![next()];
                        if wanted[0] == "{" {
                            wanted.clear();
                            loop {
                                match next() {
                                    "}" => break,
                                    word => wanted.push(word.trim_end_matches(',')),
                                }
                            }
                        }
                        let hit = wanted.iter().any(|w| match *w {
                            "tcp" => packet.protocol == 6,
                            "udp" => packet.protocol == 17,
                            "sctp" => packet.protocol == 132,
                            number => in_range(number, packet.protocol.into()),
                        });
                        if !hit {
                            return Flow::Next;
                        }
                    }
                    other => panic!("meta {other}"),
                },
                "ct" => match next() {
                    // A first packet is neither.
                    "state" => {
                        assert!(["invalid,untracked", "related"].contains(&next()));
                        return Flow::Next;
                    }
                    side @ ("original" | "reply") => match next() {
                        "proto-src" => {
                            assert!(protocol_known && side == "reply", "{rule}");
                            let ports = next();
                            let hit = match ports.strip_prefix('@') {
                                Some(set) => self.sets[set].iter().any(|e| in_range(e, packet.port.into())),
                                None => in_range(ports, packet.port.into()),
                            };
                            if !hit {
                                return Flow::Next;
                            }
                        }
                        family @ ("ip" | "ip6") => {
                            assert_eq!(next(), "saddr");
                            let address = if side == "original" { packet.src } else { packet.dst };
                            if address.is_ipv4() != (family == "ip") {
                                return Flow::Next;
                            }
                            match next() {
                                "vmap" => {
                                    let map = &self.maps[next().strip_prefix('@').unwrap()];
                                    let hits: Vec<_> = map.iter().filter(|(key, _)| in_net(key, address)).collect();
                                    assert!(hits.len() < 2, "the kernel refuses overlapping elements");
                                    let Some((_, verdict)) = hits.first() else {
                                        return Flow::Next;
                                    };
                                    return self.run(verdict.strip_prefix("jump ").unwrap(), packet);
                                }
                                set => {
                                    let set = &self.sets[set.strip_prefix('@').unwrap()];
                                    if !set.iter().any(|e| in_net(e, address)) {
                                        return Flow::Next;
                                    }
                                }
                            }
                        }
                        other => panic!("ct {side} {other}"),
                    },
                    other => panic!("ct {other}"),
                },
                other => panic!("{rule}: {other}"),
            }
        }
        Flow::Next
    }
}

fn elements(lines: &[String]) -> Vec<String> {
    let start = lines.iter().position(|l| l == "elements = {").expect("elements");
    let list = lines[start + 1..].iter().take_while(|l| *l != "}");
    list.map(|l| l.trim_end_matches(',').to_owned()).collect()
}

fn in_range(range: &str, value: u32) -> bool {
    match range.split_once('-') {
        Some((from, to)) => (from.parse().unwrap()..=to.parse::<u32>().unwrap()).contains(&value),
        None => range.parse::<u32>().unwrap() == value,
    }
}

fn in_net(net: &str, address: IpAddr) -> bool {
    net.parse::<IpNet>().map_or_else(
        |_| net.parse::<IpAddr>().unwrap() == address,
        |net| net.contains(&address),
    )
}
