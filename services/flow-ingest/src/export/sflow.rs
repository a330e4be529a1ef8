//! sFlow version 5 (sflow.org, "sFlow Version 5", July 2004): samples of packets, and counters of interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use garrison_flow::{FlowRow, FlowState};

use super::{Collector, Malformed, Outcome, stream::StreamKey};
use crate::domain::{
    Sink,
    key::FlowKey,
    packet::{Decoded, LinkType, Packet, TCP, Verdict, address, decode},
};

/// Most samples in a datagram, and most records in a sample, that are looked at.
const MAX_PARTS: u32 = 1024;

/// The counters of an interface as an agent last sent them (`if_counters`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the interfaces MIB (RFC 2863)
pub struct InterfaceCounters {
    pub in_octets: u64,
    pub out_octets: u64,
    pub in_packets: u64,
    pub out_packets: u64,
    pub in_discards: u64,
    pub out_discards: u64,
    pub in_errors: u64,
    pub out_errors: u64,
}

// A reader of XDR (RFC 4506).
struct Xdr<'a> {
    data: &'a [u8],
    at: usize,
    base: usize,
}

impl<'a> Xdr<'a> {
    fn cut(&self) -> Malformed {
        Malformed::new(self.base + self.at, "an sFlow structure is cut short")
    }

    fn word(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn double(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from(self.word()?) << 32 | u64::from(self.word()?))
    }

    fn skip(&mut self, words: usize) -> Result<(), Malformed> {
        self.take(words * 4).map(drop)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or_else(|| self.cut())?;
        let bytes = self.data.get(self.at..end).ok_or_else(|| self.cut())?;
        self.at = end;
        Ok(bytes)
    }

    // A structure whose length stands before it.
    fn opaque(&mut self) -> Result<Xdr<'a>, Malformed> {
        let length = self.word()? as usize;
        let base = self.base + self.at;
        let data = self.take(length)?;
        // Padding to a multiple of four; the last structure of a datagram is seen without it.
        self.at = self.data.len().min(self.at + length.wrapping_neg() % 4);
        Ok(Xdr { data, at: 0, base })
    }

    fn address(&mut self) -> Result<Option<IpAddr>, Malformed> {
        match self.word()? {
            0 => Ok(None),
            1 => {
                let bytes = self.take(4)?;
                Ok(Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()))
            }
            2 => {
                let bytes: [u8; 16] = self.take(16)?.try_into().map_err(|_| self.cut())?;
                Ok(Some(Ipv6Addr::from(bytes).to_canonical()))
            }
            _ => Err(Malformed::new(
                self.base + self.at - 4,
                "an address is of no known kind",
            )),
        }
    }

    fn parts(&mut self) -> Result<u32, Malformed> {
        let count = self.word()?;
        match count <= MAX_PARTS {
            true => Ok(count),
            false => Err(Malformed::new(self.base + self.at - 4, "a count is over 1024")),
        }
    }
}

// What the records of one sample say together.
struct Sample {
    rate: u32,
    input: u32,
    output: u32,
    packet: Option<Seen>,
    vlan: Option<u16>,
}

// The packet that was sampled.
struct Seen {
    key: FlowKey,
    ip_version: u8,
    ip_len: u32,
    payload_len: Option<u32>,
    flags: u8,
    macs: Option<([u8; 6], [u8; 6])>,
    vlan: Option<u16>,
}

impl Seen {
    fn of(packet: &Decoded<'_>) -> Self {
        Self {
            key: FlowKey {
                src: packet.src,
                dst: packet.dst,
                src_port: packet.src_port,
                dst_port: packet.dst_port,
                protocol: packet.protocol,
            },
            ip_version: packet.ip_version,
            ip_len: packet.ip_len,
            payload_len: Some(packet.payload_len),
            flags: packet.tcp.flags,
            macs: packet.macs,
            vlan: packet.vlan,
        }
    }
}

impl Collector {
    pub(super) fn sflow(
        &mut self,
        exporter: IpAddr,
        received: i64,
        data: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Outcome, Malformed> {
        let mut xdr = Xdr { data, at: 4, base: 0 };
        let agent = xdr.address()?.unwrap_or(exporter);
        let (sub_agent, sequence) = (xdr.word()?, xdr.word()?);
        xdr.word()?;
        let samples = xdr.parts()?;
        let key = StreamKey {
            exporter,
            version: 105,
            domain: sub_agent,
        };
        if !self.admit(key, received) {
            return Ok(Outcome::TooMany);
        }
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.count(sequence, 1, &mut self.tally);
        }
        for _ in 0..samples {
            let kind = xdr.word()?;
            let mut body = xdr.opaque()?;
            match kind {
                1 | 3 => {
                    let sample = Self::flow_sample(kind == 3, received, &mut body)?;
                    self.sampled(agent, received, &sample, sink);
                }
                2 | 4 => self.counter_sample(kind == 4, agent, &mut body)?,
                // Samples of vendors, and of discarded packets.
                _ => self.tally.samples_unread += 1,
            }
        }
        Ok(Outcome::Parsed)
    }

    fn flow_sample(expanded: bool, received: i64, body: &mut Xdr<'_>) -> Result<Sample, Malformed> {
        body.skip(if expanded { 3 } else { 2 })?;
        let rate = body.word()?.max(1);
        // The pool and what the agent dropped, both since its start.
        body.skip(2)?;
        let mut interface = || -> Result<u32, Malformed> {
            match expanded {
                true => {
                    let format = body.word()?;
                    Ok(body.word()?).map(|value| if format == 0 { value } else { 0 })
                }
                // The upper two bits are the format: 0 for an interface's index.
                false => body.word().map(|value| if value >> 30 == 0 { value } else { 0 }),
            }
        };
        let mut sample = Sample {
            rate,
            input: interface()?,
            output: interface()?,
            packet: None,
            vlan: None,
        };
        for _ in 0..body.parts()? {
            let kind = body.word()?;
            let mut record = body.opaque()?;
            match kind {
                1 => {
                    let (protocol, frame) = (record.word()?, record.word()?);
                    record.word()?;
                    let header = record.opaque()?.data;
                    let link = match protocol {
                        1 => LinkType::Ethernet,
                        11 | 12 => LinkType::Raw,
                        _ => continue,
                    };
                    let packet = Packet {
                        time: received,
                        link,
                        data: header,
                        wire_len: frame.max(header.len() as u32),
                        vlan_tci: None,
                    };
                    if let Verdict::Flow(decoded) = decode(&packet) {
                        sample.packet = Some(Seen::of(&decoded));
                    }
                }
                3 | 4 if sample.packet.is_none() => sample.packet = sampled_ip(kind == 4, &mut record)?,
                1001 => {
                    let vlan = record.word()?;
                    sample.vlan = u16::try_from(vlan).ok().filter(|id| (1..4095).contains(id));
                }
                _ => {}
            }
        }
        Ok(sample)
    }

    fn sampled(&mut self, agent: IpAddr, received: i64, sample: &Sample, sink: &mut impl Sink) {
        let Some(packet) = &sample.packet else {
            self.tally.samples_unread += 1;
            return;
        };
        let key = packet.key;
        let rate = u64::from(sample.rate);
        let mut extra = String::new();
        for (name, interface) in [("ingressInterface", sample.input), ("egressInterface", sample.output)] {
            if interface != 0 && self.keep_extra {
                extra.push_str(if extra.is_empty() { "{" } else { "," });
                extra.push_str(&format!("\"{name}\":{interface}"));
            }
        }
        if !extra.is_empty() {
            extra.push('}');
        }
        let (src_mac, dst_mac) = packet.macs.unzip();
        let row = FlowRow {
            state: FlowState::Ended as u8,
            origin: "sflow",
            first_seen: received,
            last_seen: received,
            ip_version: packet.ip_version,
            protocol: key.protocol,
            src_ip: address(&key.src),
            dst_ip: address(&key.dst),
            src_port: key.src_port,
            dst_port: key.dst_port,
            src_mac,
            dst_mac,
            vlan: packet.vlan.or(sample.vlan),
            src_packets: Some(rate),
            src_bytes: packet.payload_len.map(|octets| u64::from(octets).saturating_mul(rate)),
            src_ip_bytes: Some(u64::from(packet.ip_len).saturating_mul(rate)),
            src_tcp_flags: (key.protocol == TCP).then_some(packet.flags),
            sampling: sample.rate,
            exporter: Some(agent).filter(|address| !address.is_unspecified()),
            extra: (!extra.is_empty()).then_some(extra.as_str()),
            ..FlowRow::default()
        };
        self.emitter.finish(&key, row, sink);
        self.tally.records += 1;
    }

    fn counter_sample(&mut self, expanded: bool, agent: IpAddr, body: &mut Xdr<'_>) -> Result<(), Malformed> {
        body.skip(if expanded { 3 } else { 2 })?;
        for _ in 0..body.parts()? {
            let kind = body.word()?;
            let mut record = body.opaque()?;
            if kind != 1 {
                continue;
            }
            let index = record.word()?;
            record.skip(5)?;
            let in_octets = record.double()?;
            let input = packets(&mut record)?;
            record.word()?;
            let out_octets = record.double()?;
            let output = packets(&mut record)?;
            let counters = InterfaceCounters {
                in_octets,
                out_octets,
                in_packets: input[0],
                out_packets: output[0],
                in_discards: input[1],
                out_discards: output[1],
                in_errors: input[2],
                out_errors: output[2],
            };
            if self.interfaces.len() < self.limits.interfaces || self.interfaces.contains_key(&(agent, index)) {
                self.interfaces.insert((agent, index), counters);
                self.interfaces_changed = true;
            }
        }
        Ok(())
    }
}

// Unicast, multicast and broadcast packets together, discards, errors.
fn packets(record: &mut Xdr<'_>) -> Result<[u64; 3], Malformed> {
    let packets = u64::from(record.word()?) + u64::from(record.word()?) + u64::from(record.word()?);
    Ok([packets, record.word()?.into(), record.word()?.into()])
}

// `sampled_ipv4` and `sampled_ipv6`: for agents that do not send headers.
fn sampled_ip(six: bool, record: &mut Xdr<'_>) -> Result<Option<Seen>, Malformed> {
    let (length, protocol) = (record.word()?, record.word()?);
    let width = if six { 16 } else { 4 };
    let mut address = || -> Result<[u8; 16], Malformed> {
        let bytes = record.take(width)?;
        let mut whole = [0; 16];
        whole[16 - width..].copy_from_slice(bytes);
        if !six {
            whole[10..12].fill(0xff);
        }
        Ok(whole)
    };
    let (src, dst) = (address()?, address()?);
    let (src_port, dst_port, flags) = (record.word()?, record.word()?, record.word()?);
    Ok(u8::try_from(protocol).ok().map(|protocol| Seen {
        key: FlowKey {
            src,
            dst,
            src_port: src_port as u16,
            dst_port: dst_port as u16,
            protocol,
        },
        ip_version: if six { 6 } else { 4 },
        ip_len: length,
        payload_len: None,
        flags: flags as u8,
        macs: None,
        vlan: None,
    }))
}
