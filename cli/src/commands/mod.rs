//! One file for each thing one talks about.

pub mod account;
pub mod admin;
pub mod alerts;
pub mod audit;
pub mod budget;
pub mod bus;
pub mod dev;
pub mod evidence;
pub mod flows;
mod incident_page;
pub mod incidents;
pub mod intel;
pub mod models;
pub mod policy;
pub mod read;
pub mod responses;
pub mod risks;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use garrison_proto::{Duration, Timestamp, to_timestamp};

use crate::error::CliError;

/// Most items asked for in one page.
const PAGE: usize = 200;

/// Collects the pages of a list until there are `limit` items or no more: `$fetch` is a call that takes a page size
/// and a token and answers with the items and the next token.
macro_rules! pages {
    ($limit:expr, |$size:ident, $token:ident| $fetch:expr) => {{
        let limit: usize = $limit;
        let mut items = Vec::new();
        let mut $token = String::new();
        while items.len() < limit {
            let $size = i32::try_from((limit - items.len()).min(crate::commands::PAGE)).unwrap_or(i32::MAX);
            let (page, next) = $fetch;
            items.extend(page);
            $token = next;
            if $token.is_empty() {
                break;
            }
        }
        items.truncate(limit);
        items
    }};
}
pub(crate) use pages;

/// Reads a file, or standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|source| CliError::file("reading", path, source))?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(|source| CliError::file("reading", path, source))
}

/// A secret from a file, or asked for on the terminal.
pub fn secret(file: Option<&PathBuf>, prompt: &str) -> Result<String, CliError> {
    match file {
        Some(path) => Ok(read_text(path)?.trim_end_matches(['\r', '\n']).to_owned()),
        None => rpassword::prompt_password(prompt).map_err(|source| CliError::Io {
            what: format!("asking for {}", prompt.trim_end_matches([':', ' '])),
            source,
        }),
    }
}

/// A point in time: RFC 3339, or an age such as `15m`, `2h`, `7d`.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(to_timestamp(time.with_timezone(&Utc)));
    }
    let age = parse_duration(text)
        .map_err(|_| format!("{text:?} is neither a time (2026-01-31T12:00:00Z) nor an age (30s, 15m, 2h, 7d)"))?;
    let age = chrono::TimeDelta::new(age.seconds, 0).ok_or("the age is too large")?;
    Utc::now()
        .checked_sub_signed(age)
        .map(to_timestamp)
        .ok_or_else(|| "the age is too large".to_owned())
}

/// A length of time: `30s`, `15m`, `2h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time: write 30s, 15m, 2h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number
        .checked_mul(factor)
        .filter(|seconds| *seconds >= 0)
        .ok_or_else(wrong)?;
    Ok(Duration { seconds, nanos: 0 })
}

/// A resource name from a name or a bare id.
pub fn named(collection: &str, text: &str) -> String {
    if text.contains('/') {
        text.to_owned()
    } else {
        format!("{collection}/{text}")
    }
}

/// Writes a file that must not exist yet, or standard output for `-`.
pub fn create(path: &Path) -> Result<Box<dyn std::io::Write>, CliError> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdout().lock()));
    }
    let file = std::fs::File::create_new(path).map_err(|source| CliError::file("creating", path, source))?;
    Ok(Box::new(std::io::BufWriter::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_points_of_time_are_read() {
        assert_eq!(parse_duration("15m").unwrap().seconds, 900);
        assert_eq!(parse_duration("0s").unwrap().seconds, 0);
        for bad in ["", "m", "15", "-1s", "1w", "1.5h", "9223372036854775807d", "5µ"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_time("1970-01-01T00:01:00Z").unwrap().seconds, 60);
        let before = Utc::now().timestamp();
        let hour_ago = parse_time("1h").unwrap().seconds;
        assert!((before..=Utc::now().timestamp()).contains(&(hour_ago + 3_600)));
        assert!(parse_time("yesterday").is_err());
    }

    #[test]
    fn names_are_completed() {
        assert_eq!(named("incidents", "1"), "incidents/1");
        assert_eq!(named("incidents", "incidents/1"), "incidents/1");
    }
}
