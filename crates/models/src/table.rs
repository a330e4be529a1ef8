//! Rows of mixed columns, and how they become numbers: categories are spread over flags, counters that span orders of
//! magnitude are laid on a logarithmic scale, and everything is measured from its median in units of its spread. All
//! of it is learnt from the training rows alone.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Matrix, scaler::CLIP};

/// Values a category must have in the training rows to get a flag of its own; rarer ones share the flag for others.
const LEAST_SEEN: usize = 2;
/// Most flags of one column.
const MOST_FLAGS: usize = 128;
// Half the interquartile range of a normal distribution is 0.6745 standard deviations.
const QUARTILE: f32 = 1.349;
// The largest value must lie this many times beyond the upper quartile for a logarithmic scale.
const LONG_TAIL: f32 = 20.0;

/// One column of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Numbers; not a number stands for a missing one.
    Numeric(Vec<f32>),
    /// Categories: an index into the names for each row.
    Categorical {
        /// The name of each code.
        names: Vec<String>,
        /// The code of each row.
        codes: Vec<u32>,
    },
}

/// Named columns of the same length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    names: Vec<String>,
    columns: Vec<Column>,
    rows: usize,
}

impl Table {
    /// Starts with a number of rows and no column.
    pub fn new(rows: usize) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// Adds a column. False, and nothing is added, when its length is another.
    pub fn push(&mut self, name: &str, column: Column) -> bool {
        let length = match &column {
            Column::Numeric(values) => values.len(),
            Column::Categorical { codes, .. } => codes.len(),
        };
        if length == self.rows {
            self.names.push(name.to_owned());
            self.columns.push(column);
        }
        length == self.rows
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The columns with their names.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Column)> {
        self.names.iter().map(String::as_str).zip(&self.columns)
    }

    /// The column of a name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns()
            .find(|(known, _)| *known == name)
            .map(|(_, column)| column)
    }
}

/// Gathers categories.
#[derive(Clone, Debug, Default)]
pub struct Categories {
    known: HashMap<String, u32>,
    names: Vec<String>,
    codes: Vec<u32>,
}

impl Categories {
    /// Adds the category of the next row.
    pub fn push(&mut self, name: &str) {
        let code = match self.known.get(name) {
            Some(code) => *code,
            None => {
                let code = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
                self.known.insert(name.to_owned(), code);
                self.names.push(name.to_owned());
                code
            }
        };
        self.codes.push(code);
    }

    /// The column.
    pub fn finish(self) -> Column {
        Column::Categorical {
            names: self.names,
            codes: self.codes,
        }
    }
}

/// How one column becomes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Code {
    /// One number, in spreads from the median; a missing one is the median.
    Numeric {
        /// `ln(1 + x)` before scaling.
        logarithm: bool,
        /// Median of the training rows, after the logarithm.
        median: f32,
        /// Spread of the training rows, above 0.
        spread: f32,
        /// Values were missing in the training rows: a second number is 1 where one is missing.
        missing: bool,
    },
    /// A flag for each of these values, and one for all others.
    Categorical {
        /// The values with a flag of their own.
        values: Vec<String>,
    },
}

impl Code {
    /// Numbers the column becomes.
    pub fn width(&self) -> usize {
        match self {
            Self::Numeric { missing, .. } => 1 + usize::from(*missing),
            Self::Categorical { values } => values.len() + 1,
        }
    }
}

/// How the columns of a table become a [`Matrix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    columns: Vec<(String, Code)>,
}

impl Encoder {
    /// Learns the encoding from some rows of a table.
    pub fn fit(table: &Table, rows: &[usize]) -> Self {
        let code = |column: &Column| match column {
            Column::Numeric(values) => numeric(rows.iter().map(|&i| values[i])),
            Column::Categorical { names, codes } => {
                let mut seen = vec![0_usize; names.len()];
                for &i in rows {
                    seen[codes[i] as usize] += 1;
                }
                let mut frequent: Vec<usize> = (0..names.len()).filter(|c| seen[*c] >= LEAST_SEEN).collect();
                frequent.sort_by(|a, b| seen[*b].cmp(&seen[*a]).then_with(|| names[*a].cmp(&names[*b])));
                frequent.truncate(MOST_FLAGS);
                Code::Categorical {
                    values: frequent.into_iter().map(|c| names[c].clone()).collect(),
                }
            }
        };
        Self {
            columns: table
                .columns()
                .map(|(name, column)| (name.to_owned(), code(column)))
                .collect(),
        }
    }

    /// Numbers in an encoded row.
    pub fn width(&self) -> usize {
        self.columns.iter().map(|(_, code)| code.width()).sum()
    }

    /// How many numbers each column becomes.
    pub fn blocks(&self) -> Vec<usize> {
        self.columns.iter().map(|(_, code)| code.width()).collect()
    }

    /// A name for each number of an encoded row.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::with_capacity(self.width());
        for (column, code) in &self.columns {
            match code {
                Code::Numeric { missing, .. } => {
                    names.push(column.clone());
                    if *missing {
                        names.push(format!("{column}=missing"));
                    }
                }
                Code::Categorical { values } => {
                    names.extend(values.iter().map(|v| format!("{column}={v}")));
                    names.push(format!("{column}=other"));
                }
            }
        }
        names
    }

    /// Encodes some rows. A column that the table lacks, or has in another kind, is as if it were missing everywhere.
    pub fn encode(&self, table: &Table, rows: &[usize]) -> Matrix {
        let mut matrix = Matrix::zeros(self.width(), rows.len());
        let mut at = 0;
        for (name, code) in &self.columns {
            match (code, table.column(name)) {
                (
                    Code::Numeric {
                        logarithm,
                        median,
                        spread,
                        missing,
                    },
                    Some(Column::Numeric(values)),
                ) => {
                    let scale = spread.recip();
                    let out = matrix.feature_mut(at);
                    for (v, &i) in out.iter_mut().zip(rows) {
                        let x = values[i];
                        if x.is_finite() {
                            let x = if *logarithm { x.max(0.0).ln_1p() } else { x };
                            *v = ((x - median) * scale).clamp(-CLIP, CLIP);
                        }
                    }
                    if *missing {
                        let out = matrix.feature_mut(at + 1);
                        for (v, &i) in out.iter_mut().zip(rows) {
                            *v = f32::from(u8::from(!values[i].is_finite()));
                        }
                    }
                }
                (Code::Categorical { values }, Some(Column::Categorical { names, codes })) => {
                    let known: HashMap<&str, usize> = values.iter().enumerate().map(|(j, v)| (v.as_str(), j)).collect();
                    let flags: Vec<usize> = names
                        .iter()
                        .map(|name| known.get(name.as_str()).copied().unwrap_or(values.len()))
                        .collect();
                    for (row, &i) in rows.iter().enumerate() {
                        let flag = flags[codes[i] as usize];
                        matrix.feature_mut(at + flag)[row] = 1.0;
                    }
                }
                (Code::Numeric { missing, .. }, _) => {
                    if *missing {
                        matrix.feature_mut(at + 1).fill(1.0);
                    }
                }
                (Code::Categorical { values }, _) => matrix.feature_mut(at + values.len()).fill(1.0),
            }
            at += code.width();
        }
        matrix
    }
}

fn numeric(values: impl Iterator<Item = f32>) -> Code {
    let mut known = Vec::new();
    let mut missing = false;
    for v in values {
        if v.is_finite() {
            known.push(v);
        } else {
            missing = true;
        }
    }
    known.sort_by(f32::total_cmp);
    let at = |values: &[f32], share: f32| {
        let last = values.len().saturating_sub(1);
        values
            .get((share * last as f32).round() as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let (least, upper, most) = (at(&known, 0.0), at(&known, 0.75), at(&known, 1.0));
    let logarithm = least >= 0.0 && most > LONG_TAIL * upper.max(1.0);
    if logarithm {
        for v in &mut known {
            *v = v.ln_1p();
        }
    }
    let mut spread = (at(&known, 0.75) - at(&known, 0.25)) / QUARTILE;
    let n = known.len().max(1) as f32;
    let mean = known.iter().sum::<f32>() / n;
    let deviation = (known.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
    // A narrow middle with wide wings: the quartiles alone would call the wings absurd.
    spread = spread.max(0.5 * deviation);
    if spread <= f32::EPSILON {
        // It never moved: its first move is seen, by its own size.
        spread = 0.1 * at(&known, 0.5).abs().max(1.0);
    }
    Code::Numeric {
        logarithm,
        median: at(&known, 0.5),
        spread,
        missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut services = Categories::default();
        for name in ["http", "dns", "http", "dns", "smtp"] {
            services.push(name);
        }
        let mut table = Table::new(5);
        assert!(table.push("octets", Column::Numeric(vec![1.0, 2.0, 3.0, f32::NAN, 1e9])));
        assert!(table.push("service", services.finish()));
        assert!(!table.push("short", Column::Numeric(vec![1.0])));
        table
    }

    #[test]
    fn columns_become_numbers_as_the_training_rows_say() {
        let table = table();
        let encoder = Encoder::fit(&table, &[0, 1, 2, 3]);
        assert_eq!(encoder.blocks(), [2, 3]);
        assert_eq!(
            encoder.names(),
            [
                "octets",
                "octets=missing",
                "service=dns",
                "service=http",
                "service=other"
            ]
        );
        let matrix = encoder.encode(&table, &[1, 3, 4]);
        let row = |i: usize| matrix.row(i).collect::<Vec<_>>();
        assert_eq!(row(0), [0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(row(1), [0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(row(2), [CLIP, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_table_of_other_columns_is_all_missing() {
        let encoder = Encoder::fit(&table(), &[0, 1, 2, 3]);
        let matrix = encoder.encode(&Table::new(1), &[0]);
        assert_eq!(matrix.row(0).collect::<Vec<_>>(), [0.0, 1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn an_encoding_survives_its_manifest() {
        let encoder = Encoder::fit(&table(), &[0, 1, 2, 3]);
        let text = serde_json::to_string(&encoder).unwrap();
        assert_eq!(serde_json::from_str::<Encoder>(&text).unwrap(), encoder);
    }
}
