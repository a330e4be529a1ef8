//! Reads Zeek's tab-separated logs, compressed or not, column by name.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::Path,
};

use super::EvaluationError;

/// The rows of one log.
#[derive(Debug, Default)]
pub struct Log {
    columns: HashMap<String, usize>,
    rows: Vec<Vec<String>>,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct LogRow<'a> {
    log: &'a Log,
    cells: &'a [String],
}

impl Log {
    /// Reads a log.
    ///
    /// # Errors
    /// When the file cannot be read, or has rows before its `#fields`.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let mut log = Self::default();
        for line in lines(path)? {
            if let Some(fields) = line.strip_prefix("#fields\t") {
                let names = fields.split('\t').enumerate();
                log.columns = names.map(|(at, name)| (name.to_owned(), at)).collect();
            } else if !line.starts_with('#') && !line.is_empty() {
                if log.columns.is_empty() {
                    return Err(EvaluationError::Format {
                        path: path.to_owned(),
                        problem: "rows come before #fields".to_owned(),
                    });
                }
                log.rows.push(line.split('\t').map(str::to_owned).collect());
            }
        }
        Ok(log)
    }

    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = LogRow<'_>> {
        self.rows.iter().map(|cells| LogRow { log: self, cells })
    }
}

impl<'a> LogRow<'a> {
    /// A cell; `None` when the column is not there, unset or empty.
    pub fn get(&self, column: &str) -> Option<&'a str> {
        let cell = self.cells.get(*self.log.columns.get(column)?)?.as_str();
        (!matches!(cell, "-" | "(empty)" | "")).then_some(cell)
    }

    /// A number.
    pub fn number(&self, column: &str) -> Option<u64> {
        self.get(column)?.parse().ok()
    }

    /// A time or interval in nanoseconds.
    pub fn nanos(&self, column: &str) -> Option<i64> {
        let (whole, part) = match self.get(column)?.split_once('.') {
            Some(parts) => parts,
            None => (self.get(column)?, "0"),
        };
        let part: String = part.chars().chain("000000000".chars()).take(9).collect();
        Some(whole.parse::<i64>().ok()? * 1_000_000_000 + part.parse::<i64>().ok()?)
    }
}

/// The lines of a text file, decompressed when its name ends in `.gz`. Octets that are no UTF-8 are replaced.
///
/// # Errors
/// When the file cannot be read.
pub fn lines(path: &Path) -> Result<Vec<String>, EvaluationError> {
    let failed = |source| EvaluationError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut reader: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut lines = Vec::new();
    let mut buffered = BufReader::new(&mut reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        if buffered.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(lines);
        }
        let text = String::from_utf8_lossy(&line);
        lines.push(text.trim_end_matches(['\n', '\r']).to_owned());
    }
}
