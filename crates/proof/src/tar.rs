//! Plain `ustar` archives (POSIX.1-1988) of which every byte is determined by names, contents and one time.
//!
//! Files have mode 0444, owner 0 and the same modification time; there are no folders, links or extensions, and two
//! zero blocks end the archive exactly. The reader takes this form only, so any changed byte is found even where a
//! forgiving reader would not look, such as padding.

use std::io::{self, Read, Write};

/// Size of headers and padding.
pub const BLOCK: usize = 512;
/// The largest file that the format's 11 octal digits can name.
pub const MAX_FILE: u64 = (1 << 33) - 1;
/// The longest path.
pub const MAX_PATH: usize = 100;

/// An archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading or writing failed.
    #[error("the archive could not be read or written")]
    Io(#[from] io::Error),
    /// A path that the format cannot hold or that is unsafe to unpack.
    #[error("{0:?} is no path for an archive: use up to 100 letters, digits, dots, hyphens, underscores and slashes")]
    Path(String),
    /// A file that is too large.
    #[error("{path} has {size} bytes, more than an archive of this form can hold")]
    Size {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The header is not exactly what the writer makes.
    #[error("at byte {offset} there is no header of the expected form: {reason}")]
    Header {
        /// Where in the archive.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The archive ends inside a file or before its end mark.
    #[error("the archive is cut short at byte {offset}")]
    Truncated {
        /// Where the archive ends.
        offset: u64,
    },
    /// Padding that is not zero, or bytes after the end mark.
    #[error("there are stray bytes near byte {offset}")]
    Stray {
        /// Where in the archive.
        offset: u64,
    },
}

/// Whether a path may be in an archive: relative, without `..`, in plain ASCII.
pub fn safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/'))
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// The one header for a file.
///
/// # Errors
/// [`TarError::Path`] or [`TarError::Size`].
pub fn header(path: &str, size: u64, mtime: u64) -> Result<[u8; BLOCK], TarError> {
    if !safe_path(path) {
        return Err(TarError::Path(path.chars().take(120).collect()));
    }
    if size > MAX_FILE || mtime > MAX_FILE {
        return Err(TarError::Size {
            path: path.to_owned(),
            size,
        });
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000444\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{mtime:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    put(329, "0000000\0");
    put(337, "0000000\0");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    mtime: u64,
}

impl<W: Write> Writer<W> {
    /// Begins an archive whose files all have this time, in seconds since 1970.
    pub fn new(inner: W, mtime: u64) -> Self {
        Self { inner, mtime }
    }

    /// Adds a file of exactly `size` bytes.
    ///
    /// # Errors
    /// [`TarError`], also when the content is shorter than said.
    pub fn file(&mut self, path: &str, size: u64, content: &mut impl Read) -> Result<(), TarError> {
        self.inner.write_all(&header(path, size, self.mtime)?)?;
        let copied = io::copy(&mut content.take(size), &mut self.inner)?;
        if copied != size {
            return Err(TarError::Size {
                path: path.to_owned(),
                size: copied,
            });
        }
        self.inner.write_all(&[0; BLOCK][..padding(size)])?;
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// [`TarError::Io`].
    pub fn finish(mut self) -> Result<W, TarError> {
        self.inner.write_all(&[0; 2 * BLOCK])?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

/// A file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path in the archive.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// Reads an archive of exactly this form, front to back.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    offset: u64,
    remaining: u64,
    pad: usize,
}

impl<R: Read> Reader<R> {
    /// Begins reading.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            offset: 0,
            remaining: 0,
            pad: 0,
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        match self.inner.read_exact(buffer) {
            Ok(()) => {
                self.offset += buffer.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(TarError::Truncated { offset: self.offset }),
            Err(e) => Err(TarError::Io(e)),
        }
    }

    /// Goes to the next file; what was left unread of the one before is skipped. `None` at the end of the archive,
    /// once it is known that nothing follows.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut sink = [0; 8192];
        while self.read_body(&mut sink)? > 0 {}
        let mut block = [0; BLOCK];
        let pad = std::mem::take(&mut self.pad);
        self.fill(&mut block[..pad])?;
        if block[..pad].iter().any(|b| *b != 0) {
            return Err(TarError::Stray {
                offset: self.offset - pad as u64,
            });
        }
        let offset = self.offset;
        self.fill(&mut block)?;
        if block.iter().all(|b| *b == 0) {
            self.fill(&mut block)?;
            let mut byte = [0];
            if block.iter().any(|b| *b != 0) || self.inner.read(&mut byte)? != 0 {
                return Err(TarError::Stray { offset: self.offset });
            }
            return Ok(None);
        }
        let wrong = |reason| TarError::Header { offset, reason };
        let end = block[..MAX_PATH].iter().position(|b| *b == 0).unwrap_or(MAX_PATH);
        let path = std::str::from_utf8(&block[..end]).map_err(|_| wrong("the path is not text"))?;
        let size = octal(&block[124..135]).ok_or_else(|| wrong("the size is no number"))?;
        let mtime = octal(&block[136..147]).ok_or_else(|| wrong("the time is no number"))?;
        if header(path, size, mtime).map_err(|_| wrong("the path is not allowed"))? != block {
            return Err(wrong("a field was changed"));
        }
        self.remaining = size;
        self.pad = padding(size);
        Ok(Some(Entry {
            path: path.to_owned(),
            size,
            mtime,
        }))
    }

    /// Reads some of the current file; 0 at its end.
    ///
    /// # Errors
    /// [`TarError::Truncated`] when the archive ends first.
    pub fn read_body(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = loop {
            match self.inner.read(&mut buffer[..want]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if got == 0 {
            return Err(TarError::Truncated { offset: self.offset });
        }
        self.offset += got as u64;
        self.remaining -= got as u64;
        Ok(got)
    }
}

fn octal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => Some(value << 3 | u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), 1_700_000_000);
        for (path, content) in files {
            writer.file(path, content.len() as u64, &mut &content[..]).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, TarError> {
        let mut reader = Reader::new(bytes);
        let mut files = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            let mut buffer = [0; 100];
            loop {
                let n = reader.read_body(&mut buffer)?;
                if n == 0 {
                    break;
                }
                content.extend_from_slice(&buffer[..n]);
            }
            files.push((entry.path, content));
        }
        Ok(files)
    }

    #[test]
    fn gnu_tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(
            &path,
            archive(&[("e/a.txt", b"hello"), ("e/b", &[7; 1024]), ("e/empty", b"")]),
        )
        .unwrap();
        let out = std::process::Command::new("tar")
            .arg("-C")
            .arg(dir.path())
            .arg("-xvf")
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            out.status.success() && out.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(String::from_utf8_lossy(&out.stdout), "e/a.txt\ne/b\ne/empty\n");
        assert_eq!(std::fs::read(dir.path().join("e/b")).unwrap(), vec![7; 1024]);
    }

    #[test]
    fn unsafe_paths_are_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/./b",
            "ä",
            &"x".repeat(101),
            "a\0b",
        ] {
            assert!(header(bad, 0, 0).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn content_shorter_than_said_is_an_error() {
        let mut writer = Writer::new(Vec::new(), 0);
        assert!(writer.file("a", 10, &mut &b"short"[..]).is_err());
    }

    proptest! {
        #[test]
        fn a_flip_is_an_error_or_shows_in_a_content_or_name(at in any::<prop::sample::Index>(), mask in 1u8..=255) {
            let good = archive(&[("e/a.txt", b"hello"), ("e/b", &[7; 600])]);
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] ^= mask;
            if let Ok(files) = read_all(&bad) {
                prop_assert_ne!(files, read_all(&good).unwrap());
            }
        }

        #[test]
        fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = read_all(&bytes);
        }

        #[test]
        fn a_cut_is_found(cut in 0usize..2560) {
            let good = archive(&[("e/a.txt", b"hello"), ("e/b", &[7; 600])]);
            let cut = cut.min(good.len() - 1);
            prop_assert!(read_all(&good[..cut]).is_err());
        }
    }
}
