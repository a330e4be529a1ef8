//! The Huffman code of HPACK (RFC 7541 §5.2, appendix B). It is canonical: the lengths of its codes are all of it.

// Bits of each octet's code.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

// The longest code is the end of a string, which must not occur in one.
const LONGEST: usize = 30;

struct Code {
    // Octets by the length of their codes, and by value among those of one length.
    octets: [u8; 256],
    // For each length: the first code, how many there are, and where their octets begin.
    rows: [(u32, u32, u32); LONGEST + 1],
}

const CODE: Code = code();

const fn code() -> Code {
    let mut octets = [0; 256];
    let mut rows = [(0, 0, 0); LONGEST + 1];
    let (mut next, mut place, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        let (first, begins) = (next, place);
        let mut octet = 0;
        while octet < 256 {
            if LENGTHS[octet] as usize == length {
                octets[place] = octet as u8;
                place += 1;
                next += 1;
            }
            octet += 1;
        }
        rows[length] = (first, next - first, begins as u32);
        length += 1;
    }
    Code { octets, rows }
}

/// Decodes a string into `text`, of which at most `limit` octets are kept. Gives its whole length, or `None` where it is
/// no such string: it holds the code of its end, or its padding is not of ones and below eight bits.
pub(super) fn decode(data: &[u8], text: &mut Vec<u8>, limit: usize) -> Option<usize> {
    let (mut code, mut bits, mut length) = (0_u32, 0, 0);
    for octet in data {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(octet >> shift & 1);
            bits += 1;
            let (first, count, begins) = *CODE.rows.get(bits)?;
            if code >= first && code - first < count {
                if length < limit {
                    text.push(CODE.octets[(begins + code - first) as usize]);
                }
                length += 1;
                (code, bits) = (0, 0);
            }
        }
    }
    (bits < 8 && code == (1 << bits) - 1).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(data: &[u8]) -> Option<String> {
        let mut text = Vec::new();
        decode(data, &mut text, 1000).map(|_| String::from_utf8(text).unwrap())
    }

    #[test]
    fn strings_of_the_standard() {
        // RFC 7541, appendices C.4.1, C.4.3 and C.6.1.
        let known: [(&str, &str); 4] = [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ];
        for (code, text) in known {
            assert_eq!(decoded(&hex::decode(code).unwrap()).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_string_is_refused() {
        assert_eq!(decoded(b"").as_deref(), Some(""));
        // Padding of eight bits, padding of zeros, and the code of the end.
        assert_eq!(decoded(&[0xff]), None);
        assert_eq!(decoded(&[0x00]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let mut text = Vec::new();
        let code = hex::decode("f1e3c2e5f23a6ba0ab90f4ff").unwrap();
        assert_eq!(decode(&code, &mut text, 3), Some(15));
        assert_eq!(text, b"www");
    }
}
