//! SSH (RFC 4253): both sides' banners and HASSH, the fingerprint of what they offer in their first key exchange
//! (Salesforce, "HASSH").

use super::{stream::Step, tls::md5_hex};

/// What is told about a flow's SSH.
#[derive(Debug, Default)]
pub struct SshFacts {
    /// The client's banner and the server's, cut at 255 octets (RFC 4253 §4.2).
    pub banners: [Option<String>; 2],
    /// The client's HASSH and the server's.
    pub hassh: [Option<String>; 2],
}

const KEXINIT: u8 = 20;
// A packet is at most this long (RFC 4253 §6.1).
const LONGEST: usize = 35_000;

impl SshFacts {
    /// Looks at the octets at the front of a side's stream. `facts` is set when something became known.
    pub fn step(&mut self, side: usize, data: &[u8], facts: &mut bool) -> Step {
        if self.banners[side].is_none() {
            let Some(end) = data.iter().take(256).position(|&b| b == b'\n') else {
                return if data.len() < 256 { Step::More } else { Step::Stop };
            };
            if !data.starts_with(b"SSH-") {
                return Step::Stop;
            }
            let text = data[..end].trim_ascii_end();
            self.banners[side] = Some(
                text.iter()
                    .map(|&b| {
                        if (0x20..0x7f).contains(&b) {
                            char::from(b)
                        } else {
                            '\u{fffd}'
                        }
                    })
                    .collect(),
            );
            *facts = true;
            return Step::Take(end + 1);
        }
        let Some(&[a, b, c, d, _, kind]) = data.first_chunk::<6>() else {
            return Step::More;
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if kind != KEXINIT || !(16..=LONGEST).contains(&length) {
            return Step::Stop;
        }
        let Some(packet) = data.get(..4 + length) else {
            return Step::More;
        };
        // Behind type and cookie.
        self.hassh[side] = hassh(side, &packet[22..]);
        *facts |= self.hassh[side].is_some();
        Step::Stop
    }
}

// Key exchange, host key, then encryption, authentication and compression, each from the client and from the server.
fn hassh(side: usize, mut lists: &[u8]) -> Option<String> {
    let mut names = [""; 8];
    for place in &mut names {
        let (length, rest) = lists.split_first_chunk::<4>()?;
        let (list, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        *place = std::str::from_utf8(list).ok()?;
        lists = rest;
    }
    let [exchange, _, ..] = names;
    let [encryption, integrity, compression] = [2, 4, 6].map(|at| names[at + side]);
    Some(md5_hex(&format!("{exchange};{encryption};{integrity};{compression}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn key_exchange(lists: [&str; 10]) -> Vec<u8> {
        let mut body = vec![4, KEXINIT];
        body.extend([9; 16]);
        for list in lists {
            body.extend((list.len() as u32).to_be_bytes());
            body.extend(list.as_bytes());
        }
        body.extend([0; 9]);
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    #[test]
    fn banners_and_fingerprints_are_told_for_each_side() {
        let lists = [
            "kex-a,kex-b",
            "hostkey",
            "enc-c",
            "enc-s",
            "mac-c",
            "mac-s",
            "none",
            "zlib",
            "",
            "",
        ];
        let packet = key_exchange(lists);
        let (mut ssh, mut facts) = (SshFacts::default(), false);
        for side in 0..2 {
            let banner = b"SSH-2.0-Some_1.0 comment\r\n";
            assert_eq!(ssh.step(side, banner, &mut facts), Step::Take(banner.len()));
            assert_eq!(ssh.step(side, &packet[..40], &mut facts), Step::More);
            assert_eq!(ssh.step(side, &packet, &mut facts), Step::Stop);
        }
        assert!(facts);
        assert_eq!(ssh.banners[0].as_deref(), Some("SSH-2.0-Some_1.0 comment"));
        assert_eq!(ssh.hassh[0], Some(md5_hex("kex-a,kex-b;enc-c;mac-c;none")));
        assert_eq!(ssh.hassh[1], Some(md5_hex("kex-a,kex-b;enc-s;mac-s;zlib")));
    }

    proptest! {
        #[test]
        fn any_octets_are_taken(
            data in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), value in any::<u8>(),
        ) {
            let mut ssh = SshFacts { banners: [Some(String::new()), None], ..SshFacts::default() };
            ssh.step(0, &data, &mut false);
            ssh.step(1, &data, &mut false);
            let mut packet = key_exchange(["a", "b", "c", "d", "e", "f", "g", "h", "", ""]);
            let place = at.index(packet.len());
            packet[place] = value;
            ssh.step(0, &packet, &mut false);
        }
    }
}
