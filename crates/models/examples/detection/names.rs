//! Lists of domain names: letters, lengths and groups of neighbouring letters.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use garrison_models::{
    rng::mix,
    table::{Column, Table},
};

use crate::{
    data::{Data, fields, lines},
    spec::{Source, Spec, plain},
};

const BUCKETS: usize = 192;
const MEASURES: [&str; 9] = [
    "length",
    "labels",
    "longest",
    "letters_used",
    "entropy",
    "digits",
    "vowels",
    "upper",
    "other",
];

/// A name as the letters of it are judged: what a tunnel carries or a generator made, and the suffix.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// What stands before the parent, or the registered label where nothing does.
    pub label: String,
    /// What registries give names below.
    pub suffix: String,
    /// The registered name.
    pub parent: String,
    /// Something stands before the parent.
    pub below: bool,
}

impl Text {
    fn of(name: &str) -> Self {
        let name = name.trim_end_matches('.');
        let parent = parent(name);
        let (registered, suffix) = parent.split_once('.').unwrap_or((&parent, ""));
        let below = name.len() > parent.len() + 1;
        Self {
            label: if below {
                &name[..name.len() - parent.len() - 1]
            } else {
                registered
            }
            .to_owned(),
            suffix: suffix.to_owned(),
            below,
            parent,
        }
    }
}

/// Reads the lists. In a line of several columns the label stands in `label`, a number from 0.
pub fn load(spec: &Spec, sources: &[&Source]) -> Result<Data> {
    let (mut values, mut labels, mut source) = (Vec::new(), Vec::new(), Vec::new());
    let mut texts = Vec::new();
    for (k, from) in sources.iter().enumerate() {
        let path = spec.folder.join(&from.file);
        for (number, line) in lines(&path)?.enumerate() {
            let line = line?;
            if line.trim().is_empty() || (spec.header && number == 0) {
                continue;
            }
            let fields = fields(&line, spec.separator);
            ensure!(
                fields.len() > from.column,
                "{} line {} has no column {}",
                path.display(),
                number + 1,
                from.column
            );
            let label = match (&from.label, &spec.label) {
                (Some(label), _) => plain(label),
                (None, at) => {
                    let at: usize = at.as_deref().unwrap_or("0").parse()?;
                    plain(fields.get(at).map_or("", String::as_str))
                }
            };
            let name = &fields[from.column];
            let text = Text::of(name);
            values.push(measure(&text, name));
            texts.push(text);
            labels.push(label);
            source.push(k);
        }
    }
    ensure!(!values.is_empty(), "{} has no names", spec.name);
    let mut table = Table::new(values.len());
    for j in 0..MEASURES.len() + BUCKETS {
        let name = MEASURES
            .get(j)
            .map_or_else(|| format!("letters_{}", j - MEASURES.len()), |n| (*n).to_owned());
        table.push(&name, Column::Numeric(values.iter().map(|v| v[j]).collect()));
    }
    Ok(Data {
        table,
        labels,
        source,
        texts,
        portable: None,
    })
}

/// The registered part and what stands before it: the last two labels, or three when the last ones are short.
pub fn parent(name: &str) -> String {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = name.split('.').collect();
    let n = labels.len();
    let short = n > 2 && labels[n - 1].len() == 2 && labels[n - 2].len() <= 3;
    let keep = if short { 3 } else { 2 };
    labels[n.saturating_sub(keep)..].join(".")
}

fn measure(text: &Text, name: &str) -> Vec<f32> {
    let name = name.trim_end_matches('.');
    let whole = text.label.as_str();
    let mut counts: HashMap<char, f32> = HashMap::new();
    whole
        .chars()
        .filter(|c| *c != '.')
        .for_each(|c| *counts.entry(c).or_default() += 1.0);
    let n = counts.values().sum::<f32>().max(1.0);
    let share = |is: &dyn Fn(char) -> bool| whole.chars().filter(|c| is(*c)).count() as f32 / n;
    let mut values = vec![
        whole.len() as f32,
        name.split('.').count() as f32,
        name.split('.').map(str::len).max().unwrap_or(0) as f32,
        counts.len() as f32,
        counts.values().map(|c| -(c / n) * (c / n).log2()).sum(),
        share(&|c| c.is_ascii_digit()),
        share(&|c| "aeiouAEIOU".contains(c)),
        share(&|c| c.is_ascii_uppercase()),
        share(&|c| !c.is_ascii_alphanumeric() && c != '.'),
    ];
    let mut groups = vec![0.0_f32; BUCKETS];
    let framed: Vec<u8> = format!("^{}$", whole.to_ascii_lowercase()).into_bytes();
    for size in [2, 3] {
        for group in framed.windows(size) {
            let key = group.iter().fold(size as u64, |key, b| (key << 8) | u64::from(*b));
            groups[(mix(key) % BUCKETS as u64) as usize] += 1.0;
        }
    }
    let scale = 10.0 / framed.len() as f32;
    values.extend(groups.into_iter().map(|g| g * scale));
    values
}
