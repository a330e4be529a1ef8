//! Which packets are metered, as an expression in tcpdump's syntax (pcap-filter(7)). libpcap compiles it; the kernel runs the
//! program on live frames, and this process on those of files.

mod libpcap;
mod program;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::libpcap::{Failure, Target, compile};
pub use self::program::{Instruction, MOST, Program};
use super::CaptureError;
use crate::domain::packet::{LinkType, Packet};

// What a program for files answers where it wants a packet: any number but zero.
const ALL: u32 = 262_144;

/// An expression, with a program for each link type that it has met.
#[derive(Clone, Debug)]
pub struct Filter {
    expression: Arc<str>,
    programs: Vec<(LinkType, Arc<Program>)>,
}

impl Filter {
    /// Checks an expression. Some hold for some link types only, so that it is an expression for one of them is enough.
    ///
    /// # Errors
    /// [`CaptureError::NoLibpcap`] where libpcap is not installed, [`CaptureError::Filter`] where it refuses the expression.
    pub fn new(expression: &str) -> Result<Self, CaptureError> {
        let mut filter = Self {
            expression: expression.into(),
            programs: Vec::new(),
        };
        let first = filter.program(LinkType::Ethernet).err();
        if let Some(refused @ CaptureError::Filter { .. }) = first {
            let others = [
                LinkType::Raw,
                LinkType::LinuxCooked,
                LinkType::Ieee80211,
                LinkType::Radiotap,
                LinkType::Ppp,
            ];
            if !others.iter().any(|link| filter.program(*link).is_ok()) {
                return Err(refused);
            }
            return Ok(filter);
        }
        first.map_or(Ok(filter), Err)
    }

    /// The expression.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Whether it wants a packet of a file.
    ///
    /// # Errors
    /// [`CaptureError::Filter`] where the expression does not hold for the packet's link type.
    pub fn wants(&mut self, packet: &Packet<'_>) -> Result<bool, CaptureError> {
        let known = self.programs.iter().find(|(link, _)| *link == packet.link);
        let program = match known {
            Some((_, program)) => program,
            None => &self.program(packet.link)?,
        };
        Ok(program.matches(packet.data, packet.wire_len))
    }

    fn program(&mut self, link: LinkType) -> Result<Arc<Program>, CaptureError> {
        // Linux's number of DLT_RAW; the others are those of files.
        let number = match link {
            LinkType::Raw => 12,
            other => other.number(),
        };
        let program = Arc::new(self.compiled(Target::Link(number.into()), ALL)?);
        self.programs.push((link, Arc::clone(&program)));
        Ok(program)
    }

    /// The program for frames as the kernel shows them on an interface; it takes `snaplen` octets of those it wants.
    ///
    /// # Errors
    /// As [`new`](Self::new), and where the interface cannot be opened.
    pub fn for_interface(&self, name: &str, snaplen: u32) -> Result<Program, CaptureError> {
        self.compiled(Target::Interface(name), snaplen)
    }

    fn compiled(&self, target: Target<'_>, snaplen: u32) -> Result<Program, CaptureError> {
        let refused = |reason: String| CaptureError::Filter {
            expression: self.expression.to_string(),
            reason,
        };
        let instructions = compile(&self.expression, target, snaplen).map_err(|failure| match failure {
            Failure::Missing(reason) => CaptureError::NoLibpcap { reason },
            Failure::Refused(reason) => refused(reason),
        })?;
        Program::new(&instructions).ok_or_else(|| refused("libpcap made a program that is none".to_owned()))
    }
}

/// The program of several interfaces, by their numbers: which one is it, then the program of that one, or so many octets of
/// every frame. Frames of others are refused.
pub(super) fn choose(interfaces: &[(u32, Option<&Program>)], snaplen: u32) -> Vec<Instruction> {
    let step = |code: u32, jt: u8, jf: u8, k: usize| Instruction {
        code: code as u16,
        jt,
        jf,
        k: k as u32,
    };
    let number = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX) as u32;
    let mut steps = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number as usize)];
    // Behind the choice come the refusal, the answer that takes all, and the programs, each once.
    let end = 1 + 2 * interfaces.len();
    let mut programs: Vec<(&Program, usize)> = Vec::new();
    let mut length = end + 2;
    for (index, program) in interfaces {
        let begins = match program {
            None => end + 1,
            Some(program) => match programs.iter().find(|(known, _)| known == program) {
                Some((_, begins)) => *begins,
                None => {
                    programs.push((program, length));
                    length += program.instructions().len();
                    length - program.instructions().len()
                }
            },
        };
        steps.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *index as usize));
        // A jump without a condition reaches any place.
        let behind = steps.len() + 1;
        steps.push(step(libc::BPF_JMP | libc::BPF_JA, 0, 0, begins - behind));
    }
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, snaplen.max(64) as usize));
    for (program, _) in programs {
        steps.extend_from_slice(program.instructions());
    }
    steps
}
