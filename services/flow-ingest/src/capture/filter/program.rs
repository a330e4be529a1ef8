//! Programs of classic BPF (McCanne and Jacobson 1993; Linux's Documentation/networking/filter.rst), checked once, then run
//! on packets in this process. They have no loops, so a run ends after at most as many steps as there are instructions.

/// An instruction, as libpcap and the kernel have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to pass over where a comparison holds.
    pub jt: u8,
    /// Instructions to pass over where it does not.
    pub jf: u8,
    /// Its constant.
    pub k: u32,
}

/// Most instructions of a program: what the kernel takes (`BPF_MAXINSNS`).
pub const MOST: usize = 4096;
const WORDS: usize = 16;

// What an instruction is of: its three lowest bits.
const LD: u16 = 0;
const LDX: u16 = 1;
const ST: u16 = 2;
const STX: u16 = 3;
const ALU: u16 = 4;
const JMP: u16 = 5;
const RET: u16 = 6;
const MISC: u16 = 7;

/// A program that was checked: every jump lands in it, it ends, and it divides by no constant zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Box<[Instruction]>);

impl Program {
    /// Checks a program. `None` where it is not one.
    pub fn new(instructions: &[Instruction]) -> Option<Self> {
        let length = instructions.len();
        if !(1..=MOST).contains(&length) || instructions.last()?.code & 7 != RET {
            return None;
        }
        let fits = instructions.iter().enumerate().all(|(at, step)| {
            if step.code > 0xff {
                return false;
            }
            // Instructions behind this one.
            let behind = length - at - 1;
            match (step.code & 7, step.code & 0xf8) {
                (LD, 0x00 | 0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0x80) => true,
                (LDX, 0x00 | 0x80 | 0xb0) => true,
                (LD | LDX, 0x60) | (ST | STX, 0) => (step.k as usize) < WORDS,
                // Division and remainder by a constant.
                (ALU, 0x30 | 0x90) => step.k != 0,
                (ALU, 0x60 | 0x70) => step.k < 32,
                (ALU, 0x00..=0xaf) => true,
                (JMP, 0) => (step.k as usize) < behind,
                (JMP, 0x10..=0x4f) => usize::from(step.jt.max(step.jf)) < behind,
                (RET, 0x00 | 0x10) => true,
                (MISC, 0x00 | 0x80) => true,
                _ => false,
            }
        });
        fits.then(|| Self(instructions.into()))
    }

    /// Its instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Whether it wants a packet: `data` as captured, of `wire_len` octets.
    pub fn matches(&self, data: &[u8], wire_len: u32) -> bool {
        self.run(data, wire_len).is_some_and(|octets| octets != 0)
    }

    // `None` where it reads behind the packet's end, which refuses it as 0 does.
    fn run(&self, data: &[u8], wire_len: u32) -> Option<u32> {
        let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; WORDS], 0_usize);
        loop {
            let step = self.0.get(at)?;
            at += 1;
            let k = step.k;
            match (step.code & 7, step.code & 0xf8) {
                (LD, 0x00) => a = k,
                (LD, 0x80) => a = wire_len,
                (LD, 0x60) => a = memory[k as usize],
                (LD, mode) => {
                    let place = if mode & 0x40 != 0 { k.checked_add(x)? } else { k } as usize;
                    a = match mode & 0x18 {
                        0x00 => u32::from_be_bytes(octets(data, place)?),
                        0x08 => u16::from_be_bytes(octets(data, place)?).into(),
                        _ => (*data.get(place)?).into(),
                    };
                }
                (LDX, 0x00) => x = k,
                (LDX, 0x80) => x = wire_len,
                (LDX, 0x60) => x = memory[k as usize],
                // Four times the low half of an octet: the length of a header of IPv4.
                (LDX, _) => x = u32::from(*data.get(k as usize)? & 0x0f) * 4,
                (ST, _) => memory[k as usize] = a,
                (STX, _) => memory[k as usize] = x,
                (ALU, operation) => {
                    let by = if operation & 8 != 0 { x } else { k };
                    a = match operation & 0xf0 {
                        0x00 => a.wrapping_add(by),
                        0x10 => a.wrapping_sub(by),
                        0x20 => a.wrapping_mul(by),
                        0x30 => a.checked_div(by)?,
                        0x40 => a | by,
                        0x50 => a & by,
                        0x60 => a.checked_shl(by).unwrap_or(0),
                        0x70 => a.checked_shr(by).unwrap_or(0),
                        0x80 => a.wrapping_neg(),
                        0x90 => a.checked_rem(by)?,
                        _ => a ^ by,
                    };
                }
                (JMP, 0) => at += k as usize,
                (JMP, comparison) => {
                    let with = if comparison & 8 != 0 { x } else { k };
                    let holds = match comparison & 0xf0 {
                        0x10 => a == with,
                        0x20 => a > with,
                        0x30 => a >= with,
                        _ => a & with != 0,
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                (RET, 0x00) => return Some(k),
                (RET, _) => return Some(a),
                (_, 0x00) => x = a,
                (_, _) => a = x,
            }
        }
    }
}

fn octets<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    // What `tcpdump -d 'ip'` prints for Ethernet.
    fn ip() -> [Instruction; 4] {
        [
            step(0x28, 0, 0, 12),
            step(0x15, 0, 1, 0x0800),
            step(0x06, 0, 0, 262_144),
            step(0x06, 0, 0, 0),
        ]
    }

    #[test]
    fn a_frame_is_asked_for_its_type() {
        let program = Program::new(&ip()).unwrap();
        let mut frame = [0; 60];
        frame[12] = 8;
        assert!(program.matches(&frame, 60));
        frame[13] = 6;
        assert!(!program.matches(&frame, 60));
        // What it reads is not there.
        assert!(!program.matches(&frame[..13], 60));
    }

    #[test]
    fn what_leaves_the_program_or_never_ends_is_none() {
        assert_eq!(Program::new(&[]), None);
        assert_eq!(Program::new(&ip()[..2]), None);
        let mut beyond = ip();
        beyond[1].jf = 2;
        assert_eq!(Program::new(&beyond), None);
        let ends = step(0x06, 0, 0, 0);
        assert_eq!(Program::new(&[step(0x05, 0, 0, 1), ends]), None);
        // Division by nothing, a word that is not there, an unknown code.
        assert_eq!(Program::new(&[step(0x34, 0, 0, 0), ends]), None);
        assert_eq!(Program::new(&[step(0x60, 0, 0, 16), ends]), None);
        assert_eq!(Program::new(&[step(0xffff, 0, 0, 0), ends]), None);
        // Division by X, which is 0, refuses the packet.
        assert!(
            !Program::new(&[step(0x3c, 0, 0, 0), step(0x06, 0, 0, 1)])
                .unwrap()
                .matches(&[], 0)
        );
    }

    proptest! {
        #[test]
        fn any_program_that_is_taken_ends_without_a_panic(
            steps in prop::collection::vec((any::<u8>(), 0_u8..4, 0_u8..4, prop_oneof![0_u32..40, any::<u32>()]), 1..40),
            data in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut program: Vec<_> = steps.iter().map(|&(code, jt, jf, k)| step(code.into(), jt, jf, k)).collect();
            program.push(step(0x16, 0, 0, 0));
            // Those that would not be taken are replaced, so that most programs are.
            let harmless = step(0x07, 0, 0, 0);
            for at in 0..program.len() - 1 {
                let alone = Program::new(&[&[program[at]][..], &vec![harmless; program.len() - at - 2], &[program[program.len() - 1]]].concat());
                if alone.is_none() {
                    program[at] = harmless;
                }
            }
            let checked = Program::new(&program);
            prop_assert!(checked.is_some());
            checked.unwrap().matches(&data, 100);
        }
    }
}
