//! `[intel]`: feeds of threat intelligence.

use std::{collections::BTreeMap, path::PathBuf};

use garrison_intel::{
    Kind,
    feed::{Column, Columns, Csv, Format, Limits, List, Misp, Stix},
};
use garrison_proto::TenantId;
use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::intel::Grades;

/// Threat intelligence: `intel.match`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IntelConfig {
    /// Whether flows are asked about.
    pub enabled: bool,
    /// Seconds between two looks at the files of feeds and lists.
    pub check_seconds: u32,
    /// When a feed brings new indicators, flows of so many hours are asked about them, as far as the stream FLOWS
    /// still has them. 0: never.
    pub lookback_hours: u32,
    /// From this confidence on an alert is of severity medium, 0 to 100.
    pub medium_confidence: u8,
    /// From this confidence on an alert is of severity high, 0 to 100.
    pub high_confidence: u8,
    /// Most indicators of all feeds together. A million take 33 to 120 MiB.
    pub max_indicators: usize,
    /// Longest feed that is read, bytes.
    pub max_feed_bytes: usize,
    /// A folder that belongs to the service, for the last good state of each feed. Without it, feeds are read anew after
    /// a start, and what they brought meanwhile is not looked for in earlier flows.
    pub state_dir: Option<PathBuf>,
    /// Files with values that are not believed to be bad, besides the built-in ones, unless a feed ignores warnings. One a
    /// line; `*.name` stands for a name and all below.
    pub warning_lists: Vec<PathBuf>,
    /// For each tenant, a file with values that raise no alert, in the form of `warning_lists`.
    pub allow_lists: BTreeMap<String, PathBuf>,
    /// The feeds.
    pub feeds: Vec<FeedConfig>,
}

/// How a feed is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FeedFormat {
    /// One value a line.
    List,
    /// Comma-separated values.
    Csv,
    /// A STIX 2.1 bundle.
    Stix,
    /// Events or attributes of MISP, JSON.
    Misp,
    /// A collection of a TAXII 2.1 server.
    Taxii,
}

impl FeedFormat {
    /// As configuration and API name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Csv => "csv",
            Self::Stix => "stix",
            Self::Misp => "misp",
            Self::Taxii => "taxii",
        }
    }
}

/// A feed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedConfig {
    /// What alerts call it: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// How it is written.
    pub format: FeedFormat,
    /// Its file, which is read again when it has changed. For every format but `taxii`.
    pub path: Option<PathBuf>,
    /// The API root of the TAXII server: `https://host/root/`.
    pub url: Option<String>,
    /// The collection: its id, alias or title.
    #[serde(default)]
    pub collection: String,
    /// User name for the TAXII server, with `password_file`.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// File with a bearer token for the TAXII server.
    pub token_file: Option<PathBuf>,
    /// File with the authorities that may have signed the server's certificate, PEM. Without it, the public ones.
    pub ca_file: Option<PathBuf>,
    /// Seconds between two polls of a TAXII server.
    #[serde(default = "hourly")]
    pub poll_seconds: u32,
    /// Confidence of indicators that have none of their own, 0 to 100.
    #[serde(default = "even")]
    pub confidence: u8,
    /// What the values of a list or CSV are, where their form does not show it: `address`, `domain`, `url`, `ja3`, `ja3s`,
    /// `ja4`, `ja4s`, `certificate` or `file`.
    pub kind: Option<String>,
    /// Whether domains stand for all names below them too. By default they do, but for STIX, which means the name alone.
    pub subdomains: Option<bool>,
    /// Believe it also where a warning list has the value.
    #[serde(default)]
    pub ignore_warnings: bool,
    /// Indicators that have a time and no end hold for so many days. 0: for ever.
    #[serde(default)]
    pub valid_days: u32,
    /// Take the attributes of a MISP event too that are not meant for detection.
    #[serde(default)]
    pub all_attributes: bool,
    /// What stands between the fields of a CSV.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// The first line of a CSV has the names of its columns.
    #[serde(default)]
    pub header: bool,
    /// The columns of a CSV, by number from 1 or by name.
    #[serde(default)]
    pub columns: ColumnsConfig,
}

/// Which column of a CSV says what.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnsConfig {
    /// The value. The first one by default.
    pub value: Option<ColumnConfig>,
    /// Its type, in words such as `ip`, `domain`, `url`, `md5_hash`.
    pub kind: Option<ColumnConfig>,
    /// 0 to 100, or low, medium, high.
    pub confidence: Option<ColumnConfig>,
    /// From when on it holds.
    pub from: Option<ColumnConfig>,
    /// Until when it holds.
    pub until: Option<ColumnConfig>,
    /// Labels.
    pub labels: Option<ColumnConfig>,
    /// ATT&CK techniques.
    pub techniques: Option<ColumnConfig>,
    /// The source's id of it.
    pub reference: Option<ColumnConfig>,
    /// Where it comes from.
    pub context: Option<ColumnConfig>,
}

/// A column.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ColumnConfig {
    /// By number from 1.
    Number(usize),
    /// By its name in the first line.
    Name(String),
}

impl From<&ColumnConfig> for Column {
    fn from(column: &ColumnConfig) -> Self {
        match column {
            ColumnConfig::Number(number) => Self::Numbered(*number),
            ColumnConfig::Name(name) => Self::Named(name.clone()),
        }
    }
}

fn hourly() -> u32 {
    3_600
}

fn even() -> u8 {
    50
}

fn comma() -> char {
    ','
}

impl Default for IntelConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            check_seconds: 10,
            lookback_hours: 24,
            medium_confidence: 50,
            high_confidence: 80,
            max_indicators: 2_000_000,
            max_feed_bytes: 256 << 20,
            state_dir: None,
            warning_lists: Vec::new(),
            allow_lists: BTreeMap::new(),
            feeds: Vec::new(),
        }
    }
}

impl IntelConfig {
    /// What a confidence is worth.
    pub fn grades(&self) -> Grades {
        Grades {
            medium: self.medium_confidence,
            high: self.high_confidence,
        }
    }

    /// What reading a feed is bounded by.
    pub fn limits(&self) -> Limits {
        Limits {
            octets: self.max_feed_bytes,
            indicators: self.max_indicators as u64,
            ..Limits::default()
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, reason: String| Err(ConfigError::invalid(format!("intel.{key}"), reason));
        for (key, value, least, most) in [
            ("check_seconds", u64::from(self.check_seconds), 1, 86_400),
            ("lookback_hours", self.lookback_hours.into(), 0, 8_760),
            ("medium_confidence", self.medium_confidence.into(), 0, 100),
            ("high_confidence", self.high_confidence.into(), 0, 100),
            ("max_indicators", self.max_indicators as u64, 1, 50_000_000),
            ("max_feed_bytes", self.max_feed_bytes as u64, 1, 4 << 30),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(key, format!("{value} is not {least} to {most}"));
            }
        }
        if let Some(tenant) = self.allow_lists.keys().find(|t| t.parse::<TenantId>().is_err()) {
            return wrong("allow_lists", format!("{tenant:?} is no tenant's name"));
        }
        for (number, feed) in self.feeds.iter().enumerate() {
            let key = |key: &str| format!("feeds[{number}].{key}");
            let named = !feed.name.is_empty()
                && feed.name.len() <= 64
                && !feed.name.starts_with('.')
                && feed
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !named {
                return wrong(
                    &key("name"),
                    format!("{:?} is not 1 to 64 of a-z, 0-9, -, _ and .", feed.name),
                );
            }
            if self.feeds[..number].iter().any(|f| f.name == feed.name) {
                return wrong(&key("name"), format!("{} is there twice", feed.name));
            }
            if let Err((field, reason)) = feed.check() {
                return wrong(&key(field), reason);
            }
        }
        Ok(())
    }
}

impl FeedConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let taxii = self.format == FeedFormat::Taxii;
        match (taxii, &self.path, &self.url) {
            (false, Some(_), None) => {}
            (false, None, _) => return Err(("path", "a file is needed".to_owned())),
            (false, _, Some(_)) => return Err(("url", "only feeds of format taxii are fetched".to_owned())),
            (true, Some(_), _) => return Err(("path", "a TAXII server has a url instead".to_owned())),
            (true, None, Some(url)) if url.starts_with("https://") => {}
            (true, None, _) => return Err(("url", "the API root is needed: https://host/root/".to_owned())),
        }
        if taxii && self.collection.is_empty() {
            return Err(("collection", "the collection's id, alias or title is needed".to_owned()));
        }
        if self.username.is_some() != self.password_file.is_some() {
            return Err(("username", "username and password_file belong together".to_owned()));
        }
        if self.username.is_some() && self.token_file.is_some() {
            return Err((
                "token_file",
                "there is a username already; one of them is enough".to_owned(),
            ));
        }
        if self.confidence > 100 {
            return Err(("confidence", format!("{} is not 0 to 100", self.confidence)));
        }
        if !(1..=604_800).contains(&self.poll_seconds) {
            return Err(("poll_seconds", format!("{} is not 1 to 604800", self.poll_seconds)));
        }
        if !self.delimiter.is_ascii() {
            return Err(("delimiter", format!("{:?} is no ASCII character", self.delimiter)));
        }
        if let Some(kind) = &self.kind
            && Kind::of_name(kind).is_none()
        {
            return Err(("kind", format!("{kind:?} is none of the kinds of values")));
        }
        Ok(())
    }

    /// Domains stand for all names below.
    pub fn subdomains(&self) -> bool {
        let stix = matches!(self.format, FeedFormat::Stix | FeedFormat::Taxii);
        self.subdomains.unwrap_or(!stix)
    }

    /// How to read it.
    pub fn reader(&self) -> Format {
        let subdomains = self.subdomains();
        match self.format {
            FeedFormat::List => Format::List(List {
                kind: self.kind.as_deref().and_then(Kind::of_name),
                subdomains,
            }),
            FeedFormat::Csv => {
                let c = &self.columns;
                let column = |column: &Option<ColumnConfig>| column.as_ref().map(Column::from);
                Format::Csv(Box::new(Csv {
                    delimiter: u8::try_from(self.delimiter).unwrap_or(b','),
                    header: self.header,
                    columns: Columns {
                        value: column(&c.value).unwrap_or(Column::Numbered(1)),
                        kind: column(&c.kind),
                        confidence: column(&c.confidence),
                        from: column(&c.from),
                        until: column(&c.until),
                        labels: column(&c.labels),
                        techniques: column(&c.techniques),
                        reference: column(&c.reference),
                        context: column(&c.context),
                    },
                    kind: self.kind.clone().unwrap_or_default(),
                    subdomains,
                }))
            }
            FeedFormat::Stix | FeedFormat::Taxii => Format::Stix(Stix { subdomains }),
            FeedFormat::Misp => Format::Misp(Misp {
                all_attributes: self.all_attributes,
                subdomains,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn feeds_that_cannot_be_used_are_named() {
        let feed = |text: &str| config(&format!("[[intel.feeds]]\n{text}"));
        assert!(feed("name = \"a\"\nformat = \"list\"\npath = \"/x\"").is_ok());
        assert!(feed("name = \"a\"\nformat = \"csv\"\npath = \"/x\"\nheader = true\ncolumns = {value = \"ioc\", confidence = 3}").is_ok());
        assert!(feed("name = \"a\"\nformat = \"taxii\"\nurl = \"https://h/api/\"\ncollection = \"c\"").is_ok());
        for (text, key) in [
            (
                "name = \"a/b\"\nformat = \"list\"\npath = \"/x\"",
                "intel.feeds[0].name",
            ),
            ("name = \"a\"\nformat = \"list\"", "intel.feeds[0].path"),
            (
                "name = \"a\"\nformat = \"taxii\"\nurl = \"http://h/\"\ncollection = \"c\"",
                "intel.feeds[0].url",
            ),
            (
                "name = \"a\"\nformat = \"taxii\"\nurl = \"https://h/\"",
                "intel.feeds[0].collection",
            ),
            (
                "name = \"a\"\nformat = \"list\"\npath = \"/x\"\nkind = \"odd\"",
                "intel.feeds[0].kind",
            ),
            (
                "name = \"a\"\nformat = \"list\"\npath = \"/x\"\nconfidence = 101",
                "intel.feeds[0].confidence",
            ),
            ("name = \"a\"\nformat = \"odd\"\npath = \"/x\"", "format"),
        ] {
            let error = feed(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
        let error = config("[intel]\ncheck_seconds = 0").unwrap_err();
        assert!(error.contains("intel.check_seconds"), "{error}");
    }
}
