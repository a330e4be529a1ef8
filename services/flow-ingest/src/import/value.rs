//! Values of JSON logs, as lenient as their writers: numbers may be text, times may be numbers.

use std::net::IpAddr;

use chrono::DateTime;
use serde_json::{Map, Value};

use super::Result;

pub(super) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))
}

/// The text of a string.
pub(super) fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// A number, or one in a string.
pub(super) fn number(value: &Value, key: &str) -> Option<u64> {
    match value.get(key)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// An address that must be there.
pub(super) fn address(value: &Value, key: &str) -> Result<IpAddr> {
    let text = text(value, key).ok_or_else(|| format!("has no {key:?}"))?;
    parse_address(text)
}

pub(super) fn parse_address(text: &str) -> Result<IpAddr> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    Ok(address.to_canonical())
}

/// A port; 0 where there is none.
pub(super) fn port(value: &Value, key: &str) -> Result<u16> {
    match number(value, key) {
        None => Ok(0),
        Some(port) => u16::try_from(port).map_err(|_| format!("{key:?} is {port}, which is no port")),
    }
}

/// A time in seconds with a fraction, exactly, as nanoseconds since the epoch.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let nanoseconds = format!("{:0<9}", &fraction[..fraction.len().min(9)]);
    let time = whole
        .parse::<i64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(nanoseconds.parse().ok()?)?;
    Some(if negative { -time } else { time })
}

/// A time after RFC 3339, also with an offset that has no colon.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f%z"))
        .ok()?
        .timestamp_nanos_opt()
}

/// A time of either kind.
pub(super) fn moment(value: &Value, key: &str) -> Option<i64> {
    match value.get(key)? {
        Value::Number(number) => seconds(&number.to_string()),
        Value::String(text) => timestamp(text).or_else(|| seconds(text)),
        _ => None,
    }
}

/// The number of a protocol's name, or of a number in text.
pub(super) fn protocol(name: &str, six: bool) -> Option<u8> {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "icmp" if six => Some(58),
        "icmp" => Some(1),
        "igmp" => Some(2),
        "tcp" => Some(6),
        "udp" => Some(17),
        "gre" => Some(47),
        "esp" => Some(50),
        "ah" => Some(51),
        "icmp6" | "icmpv6" | "ipv6-icmp" => Some(58),
        "sctp" => Some(132),
        number => number.parse().ok(),
    }
}

/// Collects what has no column.
#[derive(Default)]
pub(super) struct Extra(Map<String, Value>);

impl Extra {
    pub(super) fn add(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        let empty = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !empty {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// Takes a value over under its own name.
    pub(super) fn copy(&mut self, from: &Value, name: &str) {
        if let Some(value) = from.get(name) {
            self.add(name, value.clone());
        }
    }

    pub(super) fn json(self) -> String {
        Value::Object(self.0).to_string()
    }
}
