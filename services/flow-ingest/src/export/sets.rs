//! The sets of NetFlow 9 and IPFIX: templates, options templates, records.

use super::{
    Malformed, Outcome, Reader, TEMPLATES_EACH, be16, be32,
    field::Slot,
    plan::{FieldSpec, Plan, Values},
    record::Header,
};
use crate::domain::Sink;

/// What was in the sets of a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read {
    /// Records, of flows and of options.
    pub(super) data_records: u32,
    /// Sets without a template.
    pub(super) unread: u32,
}

impl From<Read> for Outcome {
    fn from(read: Read) -> Self {
        match read.unread {
            0 => Self::Parsed,
            _ => Self::NoTemplate,
        }
    }
}

/// The two formats number their sets of templates differently.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    NetFlow9,
    Ipfix,
}

impl<S: Sink> Reader<'_, S> {
    /// Reads sets; `base` is where they begin in the datagram, `most` how many there can be at most.
    pub(super) fn sets(
        &mut self,
        header: &Header,
        data: &[u8],
        base: usize,
        mut most: usize,
    ) -> Result<Read, Malformed> {
        let format = match header.uptime {
            Some(_) => Format::NetFlow9,
            None => Format::Ipfix,
        };
        let mut read = Read::default();
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            // Some exporters send buffers of fixed size, with zeros behind what is used.
            if rest.len() < 4 || rest[..4] == [0; 4] {
                return match rest.iter().all(|&b| b == 0) {
                    true => Ok(read),
                    false => Err(Malformed::new(base + at, "a set has no length")),
                };
            }
            let (id, length) = (be16(rest, 0), usize::from(be16(rest, 2)));
            if length < 4 || length > rest.len() {
                return Err(Malformed::new(
                    base + at + 2,
                    "a set's length contradicts the datagram's",
                ));
            }
            if most == 0 {
                return Err(Malformed::new(
                    base + at,
                    "there are more sets than the header counts records",
                ));
            }
            most -= 1;
            let (body, place) = (&rest[4..length], base + at + 4);
            match (format, id) {
                (Format::NetFlow9, 0) | (Format::Ipfix, 2) => self.templates(format, body, place)?,
                (Format::NetFlow9, 1) | (Format::Ipfix, 3) => self.options_templates(format, body, place)?,
                (_, 256..) => self.records(header, id, body, place, &mut read)?,
                // Numbers that no specification uses yet are passed over (RFC 7011 §3.3.2).
                _ => {}
            }
            at += length;
        }
        Ok(read)
    }

    fn templates(&mut self, format: Format, body: &[u8], base: usize) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(head) = body.get(at..at + 4) {
            let (id, count) = (be16(head, 0), usize::from(be16(head, 2)));
            if id == 0 && count == 0 {
                return padding(body, at, base);
            }
            at += 4;
            if count == 0 && format == Format::Ipfix {
                self.withdraw(id, false);
                continue;
            }
            let fields = fields(format, body, &mut at, count, base)?;
            self.learn(id, fields, 0, base + at)?;
        }
        // Less than a template's head is padding, whatever is in it.
        Ok(())
    }

    fn options_templates(&mut self, format: Format, body: &[u8], base: usize) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(head) = body.get(at..at + 6) {
            let (id, first, second) = (be16(head, 0), be16(head, 2), be16(head, 4));
            if id == 0 && first == 0 {
                return padding(body, at, base);
            }
            let (count, scopes) = match format {
                // Octets of scopes and of options.
                Format::NetFlow9 => (usize::from(first / 4) + usize::from(second / 4), first / 4),
                // Fields with scopes, and scopes among them.
                Format::Ipfix => (usize::from(first), second),
            };
            if count == 0 && format == Format::Ipfix {
                // A withdrawal has no scope count (RFC 7011 §8.1).
                at += 4;
                self.withdraw(id, true);
                continue;
            }
            at += 6;
            let fields = fields(format, body, &mut at, count, base)?;
            // An options template without scopes would pass for one of flows.
            self.learn(id, fields, scopes.max(1), base + at)?;
        }
        Ok(())
    }

    fn withdraw(&mut self, id: u16, options: bool) {
        let before = self.stream.templates.len();
        match id {
            // All of a kind.
            2 | 3 => self
                .stream
                .templates
                .retain(|_, plan| (plan.scopes() > 0) != (options || id == 3)),
            _ => drop(self.stream.templates.remove(&id)),
        }
        let gone = before - self.stream.templates.len();
        *self.room -= gone;
        *self.changed |= gone > 0;
    }

    fn learn(&mut self, id: u16, fields: Vec<FieldSpec>, scopes: u16, place: usize) -> Result<(), Malformed> {
        if id < 256 {
            return Err(Malformed::new(place, "a template has a number below 256"));
        }
        if let Some(known) = self.stream.templates.get(&id)
            && known.scopes() == scopes
            && known.fields() == fields
        {
            return Ok(());
        }
        let plan = Plan::compile(fields, scopes).map_err(|problem| Malformed::new(place, problem))?;
        let replaced = self.stream.templates.contains_key(&id);
        if !replaced && (*self.room >= self.limit || self.stream.templates.len() >= TEMPLATES_EACH) {
            self.tally.templates_refused += 1;
            return Ok(());
        }
        *self.room += usize::from(!replaced);
        self.stream.templates.insert(id, plan);
        self.tally.templates += 1;
        *self.changed = true;
        Ok(())
    }

    fn records(
        &mut self,
        header: &Header,
        id: u16,
        body: &[u8],
        base: usize,
        read: &mut Read,
    ) -> Result<(), Malformed> {
        let Some(plan) = self.stream.templates.get(&id) else {
            read.unread += 1;
            self.tally.sets_without_template += 1;
            return Ok(());
        };
        let mut values = Values::new();
        let mut header = *header;
        let otherwise = self.stream.sampling.unwrap_or(header.sampling);
        let mut learnt = Vec::new();
        let mut at = 0;
        while body.len() - at >= plan.length() {
            // With short records the padding may be as long as one.
            if body.len() - at < 4 && body[at..].iter().all(|&b| b == 0) {
                break;
            }
            at += plan
                .read(&body[at..], &mut values, self.scratch, self.keep_extra)
                .map_err(|malformed| malformed.at(base + at))?;
            read.data_records += 1;
            let rate = rate(&values);
            let sampler = values.get(Slot::SamplerId).or(values.get(Slot::SelectorId));
            if plan.scopes() > 0 {
                self.tally.options += 1;
                learnt.extend(rate.map(|rate| (sampler, rate)));
                continue;
            }
            header.sampling = rate.or_else(|| self.stream.sampler(sampler?)).unwrap_or(otherwise);
            match self.emitter.flow(&header, &values, self.scratch, self.sink) {
                true => self.tally.records += 1,
                false => self.tally.without_flow += 1,
            }
        }
        for (sampler, rate) in learnt {
            *self.changed |= self.stream.note_sampling(sampler, rate);
        }
        Ok(())
    }
}

// One in how many packets, as the record itself says.
fn rate(values: &Values<'_>) -> Option<u32> {
    let some = |slot| values.get(slot).filter(|value| *value > 0);
    if let (Some(taken), Some(passed)) = (some(Slot::PacketInterval), values.get(Slot::PacketSpace)) {
        // RFC 5477 §8.2: so many are taken, then so many passed over.
        return u32::try_from(taken.saturating_add(passed) / taken).ok();
    }
    let rate = some(Slot::SamplingInterval)
        .or(some(Slot::RandomInterval))
        .or(some(Slot::PacketInterval))?;
    u32::try_from(rate).ok()
}

fn fields(format: Format, body: &[u8], at: &mut usize, count: usize, base: usize) -> Result<Vec<FieldSpec>, Malformed> {
    let cut = |at: usize| Malformed::new(base + at, "a template is cut short");
    // A count that the set has no room for is refused before anything is reserved for it.
    if body.len() - *at < count * 4 {
        return Err(cut(*at));
    }
    let mut fields = Vec::with_capacity(count);
    for _ in 0..count {
        let head = body.get(*at..*at + 4).ok_or_else(|| cut(*at))?;
        let (mut id, length) = (be16(head, 0), be16(head, 2));
        *at += 4;
        let mut enterprise = 0;
        if format == Format::Ipfix && id & 0x8000 != 0 {
            id &= 0x7fff;
            enterprise = be32(body.get(*at..*at + 4).ok_or_else(|| cut(*at))?, 0);
            *at += 4;
        }
        fields.push(FieldSpec { enterprise, id, length });
    }
    Ok(fields)
}

fn padding(body: &[u8], at: usize, base: usize) -> Result<(), Malformed> {
    match body[at..].iter().all(|&b| b == 0) {
        true => Ok(()),
        false => Err(Malformed::new(base + at, "a template is cut short")),
    }
}
