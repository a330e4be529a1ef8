//! HPACK (RFC 7541), as far as its fields are read here: of a field that nobody asks for only its size is kept.

use std::collections::VecDeque;

use super::huffman;

/// A field that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    Path,
    Authority,
    Status,
    Host,
    UserAgent,
    Referer,
    ContentType,
    GrpcStatus,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":path" => Self::Path,
            b":authority" => Self::Authority,
            b":status" => Self::Status,
            b"host" => Self::Host,
            b"user-agent" => Self::UserAgent,
            b"referer" => Self::Referer,
            b"content-type" => Self::ContentType,
            b"grpc-status" => Self::GrpcStatus,
            _ => Self::Other,
        }
    }

    // Octets of its value that are kept.
    fn limit(self) -> usize {
        match self {
            Self::Path | Self::Referer => 512,
            Self::Authority | Self::Host | Self::UserAgent | Self::ContentType => 256,
            Self::Method => 32,
            Self::Status | Self::GrpcStatus => 8,
            Self::Other => 0,
        }
    }
}

// The longest name that is read is below this.
const LONGEST_NAME: usize = 16;

// RFC 7541, appendix A. The table of the standard begins with 1.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

// A dynamic table of the default size, and the largest that is followed.
const USUAL: usize = 4096;
const LARGEST: usize = 1 << 16;
// RFC 7541 §4.1.
const OVERHEAD: usize = 32;

#[derive(Debug)]
struct Entry {
    name: Name,
    name_length: usize,
    value_length: usize,
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name_length + self.value_length + OVERHEAD
    }
}

/// The dynamic table of one direction.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            most: USUAL,
        }
    }
}

impl Table {
    /// Decodes a block of fields and gives those that are read, values cut to what is kept. `None` when it is no such
    /// block, or its table is larger than is followed; then nothing further of this direction can be read.
    pub(super) fn decode(&mut self, block: &[u8], mut field: impl FnMut(Name, &[u8])) -> Option<()> {
        let mut input = Input(block);
        let (mut begun, mut name_text, mut value) = (false, Vec::new(), Vec::new());
        while let Some(&first) = input.0.first() {
            if first & 0x80 != 0 {
                let index = input.integer(7)?;
                match self.entry(index)? {
                    Found::Static(name, value) => field(Name::of(name.as_bytes()), value.as_bytes()),
                    Found::Dynamic(entry) if entry.name != Name::Other => field(entry.name, &entry.value),
                    Found::Dynamic(_) => {}
                }
                begun = true;
                continue;
            }
            if first & 0xe0 == 0x20 {
                let most = input.integer(5)?;
                // Only before the fields of a block (RFC 7541 §4.2).
                if begun || most > LARGEST {
                    return None;
                }
                self.most = most;
                self.make_room(0);
                continue;
            }
            begun = true;
            let kept = first & 0xc0 == 0x40;
            let index = input.integer(if kept { 6 } else { 4 })?;
            let (name, name_length) = match index {
                0 => {
                    name_text.clear();
                    let length = input.string(&mut name_text, LONGEST_NAME)?;
                    let name = match length <= LONGEST_NAME {
                        true => Name::of(&name_text),
                        false => Name::Other,
                    };
                    (name, length)
                }
                _ => match self.entry(index)? {
                    Found::Static(name, _) => (Name::of(name.as_bytes()), name.len()),
                    Found::Dynamic(entry) => (entry.name, entry.name_length),
                },
            };
            value.clear();
            let value_length = input.string(&mut value, name.limit())?;
            if name != Name::Other {
                field(name, &value);
            }
            if kept {
                self.insert(Entry {
                    name,
                    name_length,
                    value_length,
                    value: value.as_slice().into(),
                });
            }
        }
        Some(())
    }

    fn entry(&self, index: usize) -> Option<Found<'_>> {
        let at = index.checked_sub(1)?;
        match STATIC.get(at) {
            Some((name, value)) => Some(Found::Static(name, value)),
            None => self.entries.get(at - STATIC.len()).map(Found::Dynamic),
        }
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.make_room(size);
        // An entry larger than the table empties it (RFC 7541 §4.4).
        if size <= self.most {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.most {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }
}

enum Found<'a> {
    Static(&'static str, &'static str),
    Dynamic(&'a Entry),
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    // RFC 7541 §5.1: a prefix of so many bits, and what does not fit in groups of seven.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let (&first, mut rest) = self.0.split_first()?;
        let most = (1 << prefix) - 1;
        let mut value = usize::from(first) & most;
        if value == most {
            // More groups are needed by no length that fits into a block.
            for shift in [0, 7, 14, 21] {
                let (&octet, next) = rest.split_first()?;
                rest = next;
                value += usize::from(octet & 0x7f) << shift;
                if octet & 0x80 == 0 {
                    self.0 = rest;
                    return Some(value);
                }
            }
            return None;
        }
        self.0 = rest;
        Some(value)
    }

    // A string, of which at most `limit` octets are kept. Gives its whole length.
    fn string(&mut self, text: &mut Vec<u8>, limit: usize) -> Option<usize> {
        let coded = self.0.first()? & 0x80 != 0;
        let length = self.integer(7)?;
        let (data, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        if coded {
            return huffman::decode(data, text, limit);
        }
        text.extend_from_slice(&data[..length.min(limit)]);
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(table: &mut Table, block: &str) -> Vec<(Name, String)> {
        let mut fields = Vec::new();
        let block = hex::decode(block.replace(' ', "")).unwrap();
        let read = table.decode(&block, |name, value| {
            fields.push((name, String::from_utf8(value.to_vec()).unwrap()));
        });
        assert_eq!(read, Some(()));
        fields.retain(|(name, _)| *name != Name::Other);
        fields
    }

    fn request(table: &mut Table, block: &str, path: &str) {
        let fields = decoded(table, block);
        let want = [
            (Name::Method, "GET"),
            (Name::Path, path),
            (Name::Authority, "www.example.com"),
        ];
        assert_eq!(fields, want.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn requests_of_the_standard() {
        // RFC 7541, appendix C.3: without Huffman code.
        let mut table = Table::default();
        request(&mut table, "828684410f7777772e6578616d706c652e636f6d", "/");
        assert_eq!((table.entries.len(), table.size), (1, 57));
        request(&mut table, "828684be58086e6f2d6361636865", "/");
        assert_eq!((table.entries.len(), table.size), (2, 110));
        request(
            &mut table,
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            "/index.html",
        );
        assert_eq!((table.entries.len(), table.size), (3, 164));
        // Appendix C.4: with it.
        let mut table = Table::default();
        request(&mut table, "828684418cf1e3c2e5f23a6ba0ab90f4ff", "/");
        request(&mut table, "828684be5886a8eb10649cbf", "/");
        request(
            &mut table,
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            "/index.html",
        );
        assert_eq!((table.entries.len(), table.size), (3, 164));
    }

    #[test]
    fn responses_of_the_standard_and_evictions() {
        // RFC 7541, appendix C.5, whose table has 256 octets.
        let mut table = Table {
            most: 256,
            ..Table::default()
        };
        let first = "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768\
                     747470733a2f2f7777772e6578616d706c652e636f6d";
        let status = |table: &mut Table, block: &str| decoded(table, block)[0].1.clone();
        assert_eq!(status(&mut table, first), "302");
        assert_eq!((table.entries.len(), table.size), (4, 222));
        assert_eq!(status(&mut table, "4803333037c1c0bf"), "307");
        assert_eq!((table.entries.len(), table.size), (4, 222));
        let third = "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153\
                     444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e\
                     3d31";
        assert_eq!(status(&mut table, third), "200");
        assert_eq!((table.entries.len(), table.size), (3, 215));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let refused = |block: &[u8]| Table::default().decode(block, |_, _| {}).is_none();
        // Index 0, an index behind the table, a name that ends early, an integer without an end.
        assert!(refused(&[0x80]) && refused(&[0xbe]) && refused(&[0x40, 5, b'a']));
        assert!(refused(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]));
        // A table of 2^20 octets, and one whose size changes behind a field.
        assert!(refused(&[0x3f, 0xe1, 0xff, 0x3f]) && refused(&[0x82, 0x20]));
        // An empty table keeps nothing.
        let mut table = Table::default();
        assert!(table.decode(&[0x20, 0x40, 1, b'a', 1, b'b'], |_, _| {}).is_some());
        assert!(table.entries.is_empty());
    }
}
