//! Where the octets of a file come from: the file itself, standard input, and what gzip or zstd made of either.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Largest window of a zstd frame, as a power of two: more memory than this no frame may ask for.
const ZSTD_WINDOW: u32 = 27;

/// Octets of a file after decompression. Its first ones can be looked at before they are read.
pub struct Source {
    head: Vec<u8>,
    at: usize,
    inner: Box<dyn Read + Send>,
    taken: Arc<AtomicU64>,
    length: Option<u64>,
    compressed: bool,
}

// Counts what is taken from the file, before decompression.
struct Counted<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Source {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be opened or its beginning cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::new(io::stdin(), None);
        }
        let file = File::open(path)?;
        let found = file.metadata()?;
        if found.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
        }
        Self::new(file, found.is_file().then_some(found.len()))
    }

    /// Takes octets from anywhere; `length` is how many there are, where that is known.
    ///
    /// # Errors
    /// When the first of them cannot be read.
    pub fn new(reader: impl Read + Send + 'static, length: Option<u64>) -> io::Result<Self> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: reader,
            taken: Arc::clone(&taken),
        };
        let mut source = Self {
            head: Vec::new(),
            at: 0,
            inner: Box::new(counted),
            taken,
            length,
            compressed: false,
        };
        let plain = match source.peek(4)? {
            [0x1f, 0x8b, ..] => Kind::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Kind::Zstd,
            _ => return Ok(source),
        };
        let head = io::Cursor::new(std::mem::take(&mut source.head));
        let whole = head.chain(std::mem::replace(&mut source.inner, Box::new(io::empty())));
        source.inner = match plain {
            Kind::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
            Kind::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(whole)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
        };
        source.compressed = true;
        Ok(source)
    }

    /// The first `count` octets, or all there are when there are fewer.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        let mut have = self.head.len();
        if have < count {
            self.head.resize(count, 0);
            while have < count {
                match self.inner.read(&mut self.head[have..]) {
                    Ok(0) => break,
                    Ok(read) => have += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.head.truncate(have);
                        return Err(error);
                    }
                }
            }
            self.head.truncate(have);
        }
        Ok(&self.head[..have.min(count)])
    }

    /// It was compressed.
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Octets of the file, before decompression, where that is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Octets taken from the file so far, before decompression; goes on counting while the source is read.
    pub fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }
}

enum Kind {
    Gzip,
    Zstd,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.head.len() {
            let read = (&self.head[self.at..]).read(buffer)?;
            self.at += read;
            if self.at == self.head.len() {
                self.head = Vec::new();
                self.at = 0;
            }
            return Ok(read);
        }
        self.inner.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(data: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut source = Source::new(io::Cursor::new(data), None)?;
        let head = source.peek(3)?.to_vec();
        let mut all = Vec::new();
        source.read_to_end(&mut all)?;
        assert!(all.starts_with(&head));
        Ok(all)
    }

    #[test]
    fn compressed_or_not_it_is_the_same() {
        let data = b"some octets, repeated octets, repeated octets".repeat(100);
        assert_eq!(read(data.clone()).unwrap(), data);
        assert_eq!(read(gzip(&data)).unwrap(), data);
        // As `cat a.gz b.gz` makes it.
        assert_eq!(read([gzip(&data[..100]), gzip(&data[100..])].concat()).unwrap(), data);
        let frame = |data: &[u8]| zstd::stream::encode_all(data, 1).unwrap();
        assert_eq!(read([frame(&data[..100]), frame(&data[100..])].concat()).unwrap(), data);
        assert_eq!(read(Vec::new()).unwrap(), b"");
    }

    #[test]
    fn a_cut_or_damaged_stream_is_an_error() {
        let whole = gzip(&b"some octets".repeat(1000));
        assert!(read(whole[..whole.len() - 9].to_vec()).is_err());
        let mut frame = zstd::stream::encode_all(&b"some octets".repeat(1000)[..], 1).unwrap();
        let middle = frame.len() / 2;
        frame.truncate(middle);
        assert!(read(frame).is_err());
    }

    #[test]
    fn what_was_taken_is_counted_before_decompression() {
        let data = gzip(&[0; 100_000]);
        let length = data.len() as u64;
        let mut source = Source::new(io::Cursor::new(data), Some(length)).unwrap();
        io::copy(&mut source, &mut io::sink()).unwrap();
        assert_eq!(source.taken().load(Ordering::Relaxed), length);
        assert!(source.is_compressed());
    }
}
