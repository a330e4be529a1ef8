//! Files become tables with labels.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use garrison_models::table::{Categories, Column, Table};

use crate::{
    conn, names,
    spec::{Kind, Source, Spec, plain},
};

/// Rows with labels.
pub struct Data {
    /// The columns.
    pub table: Table,
    /// The label of each row as it is written, without case and dot.
    pub labels: Vec<String>,
    /// Which source each row is from, in the order given.
    pub source: Vec<usize>,
    /// The letters of each row, where rows are names.
    pub texts: Vec<names::Text>,
    /// The columns that mean the same in any network, where it is known which do.
    pub portable: Option<Table>,
}

impl Data {
    /// Rows of a source.
    pub fn of(&self, source: usize) -> Vec<usize> {
        (0..self.labels.len()).filter(|i| self.source[*i] == source).collect()
    }
}

/// Reads all sources into one table, so that they share columns.
pub fn load(spec: &Spec, sources: &[&Source]) -> Result<Data> {
    match spec.kind {
        Kind::Tabular => tabular(spec, sources),
        Kind::Conn => conn::load(spec, sources),
        Kind::Names => names::load(spec, sources),
    }
}

/// The lines of a file, gzip or not.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<String>>> {
    let file = File::open(path).with_context(|| format!("opening {} failed", path.display()))?;
    let zipped = path.extension().is_some_and(|e| e == "gz");
    let reader: Box<dyn Read> = if zipped {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let shown = path.display().to_string();
    let lines = BufReader::new(reader).split(b'\n');
    Ok(lines.map(move |line| {
        let line = line.with_context(|| format!("reading {shown} failed"))?;
        Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
    }))
}

/// Fields of a line; a separator within quotes separates nothing.
pub fn fields(line: &str, separator: char) -> Vec<String> {
    if !line.contains('"') {
        return line.split(separator).map(|f| f.trim().to_owned()).collect();
    }
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
        } else if c == separator && !quoted {
            fields.push(std::mem::take(&mut field).trim().to_owned());
        } else {
            field.push(c);
        }
    }
    fields.push(field.trim().to_owned());
    fields
}

// A column while it is read: numbers as long as everything is one.
enum Reading {
    Numbers(Vec<f32>),
    Categories(Categories),
}

fn tabular(spec: &Spec, sources: &[&Source]) -> Result<Data> {
    let mut columns: Vec<String> = spec.columns.clone();
    let (mut rows, mut labels, mut source) = (Vec::<Vec<String>>::new(), Vec::new(), Vec::new());
    let mut label_at = None;
    for (k, from) in sources.iter().enumerate() {
        let path = spec.folder.join(&from.file);
        let mut lines = lines(&path)?;
        if spec.header {
            let first = lines.next().with_context(|| format!("{} is empty", path.display()))??;
            let named = fields(&first, spec.separator);
            if columns.is_empty() {
                columns = named;
            } else if spec.columns.is_empty() && columns != named {
                bail!("{} has other columns than the file before it", path.display());
            }
        }
        for (number, line) in lines.enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let mut row = fields(&line, spec.separator);
            if columns.is_empty() {
                columns = (0..row.len()).map(|j| j.to_string()).collect();
            }
            ensure!(
                row.len() == columns.len(),
                "{} row {}: {} columns instead of {}",
                path.display(),
                number + 1,
                row.len(),
                columns.len()
            );
            let at = match (&from.label, label_at) {
                (Some(label), _) => {
                    labels.push(plain(label));
                    rows.push(row);
                    source.push(k);
                    continue;
                }
                (None, Some(at)) => at,
                (None, None) => match &spec.label {
                    Some(name) => columns.iter().position(|c| c == name).with_context(|| {
                        format!("there is no column {name:?}; the columns are {}", columns.join(", "))
                    })?,
                    None => columns.len() - 1,
                },
            };
            label_at = Some(at);
            labels.push(plain(&row[at]));
            row[at].clear();
            rows.push(row);
            source.push(k);
        }
    }
    ensure!(!rows.is_empty(), "{} has no rows", spec.name);
    let mut table = Table::new(rows.len());
    for (j, name) in columns.iter().enumerate() {
        if label_at == Some(j) || spec.ignore.contains(name) || spec.label.as_ref() == Some(name) {
            continue;
        }
        let column = match read_column(spec, name, rows.iter().map(|row| row[j].as_str())) {
            Reading::Numbers(values) => Column::Numeric(values),
            Reading::Categories(categories) => categories.finish(),
        };
        table.push(name, column);
    }
    Ok(Data {
        table,
        labels,
        source,
        texts: Vec::new(),
        portable: None,
    })
}

fn read_column<'a>(spec: &Spec, name: &str, values: impl Iterator<Item = &'a str> + Clone) -> Reading {
    let forced = spec.numeric.iter().any(|n| n == name);
    let mut numbers = Vec::new();
    let mut numeric = !spec.categorical.iter().any(|c| c == name);
    if numeric {
        for value in values.clone() {
            match (value.parse::<f32>(), missing(value)) {
                (Ok(v), _) => numbers.push(v),
                (Err(_), true) => numbers.push(f32::NAN),
                (Err(_), false) if forced => numbers.push(f32::NAN),
                (Err(_), false) => {
                    numeric = false;
                    break;
                }
            }
        }
    }
    if numeric {
        return Reading::Numbers(numbers);
    }
    let mut categories = Categories::default();
    values.for_each(|value| categories.push(value));
    Reading::Categories(categories)
}

fn missing(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "" | "-" | "?" | "na" | "nan" | "null" | "(empty)"
    )
}

/// How often each label occurs.
pub fn count(labels: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    labels.for_each(|label| *counts.entry(label).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}
