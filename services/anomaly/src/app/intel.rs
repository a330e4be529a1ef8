//! Threat intelligence in force: feeds are read when they change, the index is swapped beside the stream.

mod fetch;
mod look_back;
mod source;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use garrison_intel::{
    Builder, Index, Indicator, Live, Value, Warnings,
    feed::{self, Report, stored, taxii},
};
use garrison_proto::{TenantId, alert::v1 as proto, to_timestamp};
use tokio_util::sync::CancellationToken;

use self::source::{Fetched, Progress, Stamp};
use super::Engine;
use crate::{
    config::{FeedConfig, FeedFormat, IntelConfig},
    domain::intel::View,
    metrics::IntelMetrics,
};

/// Longest warning or allow-list, octets.
const LONGEST_LIST: usize = 64 << 20;

/// Feeds, what they said, and what is not to be believed.
pub struct Intel {
    config: IntelConfig,
    live: Live,
    warnings: RwLock<Arc<Warnings>>,
    allowed: RwLock<BTreeMap<TenantId, Arc<Warnings>>>,
    nothing: Arc<Warnings>,
    feeds: Mutex<Vec<Status>>,
    lists: Mutex<BTreeMap<PathBuf, Stamp>>,
    /// What was new at the start, and is to be looked for once the tenants of before are known.
    unsought: Mutex<Option<Index>>,
    metrics: IntelMetrics,
}

/// How a feed fares.
#[derive(Clone, Default)]
struct Status {
    progress: Progress,
    /// What it said before is known, so that what is new can be told.
    known: bool,
    /// It is to be kept over a start.
    unkept: bool,
    report: Report,
    held_back: u64,
    expired: u64,
    read: Option<DateTime<Utc>>,
    tried: Option<DateTime<Utc>>,
    failure: Option<String>,
}

/// What came of a feed.
struct Built {
    index: Index,
    report: Report,
    held_back: u64,
    expired: u64,
}

impl Intel {
    /// Without anything known yet.
    pub fn new(config: &IntelConfig) -> Self {
        Self {
            feeds: Mutex::new(vec![Status::default(); config.feeds.len()]),
            config: config.clone(),
            live: Live::default(),
            warnings: RwLock::new(Arc::new(Warnings::built_in())),
            allowed: RwLock::default(),
            nothing: Arc::default(),
            lists: Mutex::default(),
            unsought: Mutex::default(),
            metrics: IntelMetrics::default(),
        }
    }

    /// What a tenant's flows are asked about as of now; `None` when nothing is known.
    pub fn view(&self, tenant: &TenantId) -> Option<View> {
        let index = self.live.load();
        (!index.is_empty()).then(|| self.view_of(tenant, index, false))
    }

    fn view_of(&self, tenant: &TenantId, index: Arc<Index>, retroactive: bool) -> View {
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
        View {
            index,
            warnings: Arc::clone(&self.warnings.read().unwrap_or_else(PoisonError::into_inner)),
            allowed: Arc::clone(allowed.get(tenant).unwrap_or(&self.nothing)),
            grades: self.config.grades(),
            retroactive,
        }
    }

    /// Reads what was kept and the files there are, before the first flow is judged: what is read back after a crash is
    /// asked of what was known then. Servers are not asked, as a start waits for nobody.
    pub async fn prepare(&self) {
        if self.config.enabled {
            self.restore().await;
            let new = self.read_changed(false).await;
            *self.unsought.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }

    /// Follows files and servers until shutdown, and looks back for what is new. To be called once the tenants of before
    /// are known again.
    pub async fn follow(&self, engine: &Engine, shutdown: CancellationToken) {
        if !self.config.enabled {
            return;
        }
        let mut new = self.unsought.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            if let Some(new) = new.filter(|_| self.config.lookback_hours > 0) {
                let hours = chrono::Duration::hours(self.config.lookback_hours.into());
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = engine.look_back(Arc::new(new), Utc::now() - hours) => {}
                }
            }
            // Only now, so that a service that was ended meanwhile looks back again.
            self.keep().await;
            new = self.refresh().await;
            if new.is_some() {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(self.config.check_seconds.into())) => {}
            }
        }
    }

    /// Reads what has changed. Answers the values that are new, of feeds of which was known what they said before.
    pub async fn refresh(&self) -> Option<Index> {
        self.read_changed(true).await
    }

    async fn read_changed(&self, servers: bool) -> Option<Index> {
        self.refresh_lists();
        let before = self.live.load();
        // What was kept over a start is known before the feed is read; without, a first reading tells nothing new.
        let keeps = self.config.state_dir.is_some();
        let mut news = false;
        for (number, feed) in self.config.feeds.iter().enumerate() {
            if feed.format == FeedFormat::Taxii && !servers {
                continue;
            }
            let status = self.status(number);
            let outcome = match source::fetch(feed, &status.progress, self.config.max_feed_bytes).await {
                Ok(None) => continue,
                Ok(Some(fetched)) => self.take(number, fetched).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(()) => news |= status.known || keeps,
                Err(failure) => self.failed(number, failure),
            }
        }
        self.show();
        if !news {
            return None;
        }
        let new = self.live.load().since(&before);
        (!new.is_empty()).then_some(new)
    }

    // Makes an index with what came in the place of what the feed said before.
    async fn take(&self, number: usize, fetched: Fetched) -> Result<(), String> {
        let now = Utc::now();
        if fetched.pages.is_empty() && fetched.replaces.is_some() {
            // A server to which nothing was added.
            self.update(number, |status| {
                status.progress = fetched.progress;
                (status.read, status.tried, status.failure) = (Some(now), Some(now), None);
            });
            return Ok(());
        }
        let feed = self.config.feeds[number].clone();
        let (old, warnings) = (
            self.live.load(),
            Arc::clone(&self.warnings.read().unwrap_or_else(PoisonError::into_inner)),
        );
        let (limits, most) = (self.config.limits(), self.config.max_indicators);
        let progress = fetched.progress.clone();
        let building = tokio::task::spawn_blocking(move || {
            let mut builder = Builder::new(most, now.timestamp());
            let full = |e: garrison_intel::Full| e.to_string();
            let replaces = fetched.replaces.as_ref();
            let expired = builder
                .carry(&old, |claim| {
                    claim.source != feed.name || replaces.is_some_and(|ids| !ids.contains(claim.reference))
                })
                .map_err(full)?;
            let mut built = Built {
                index: Index::default(),
                report: Report::default(),
                held_back: 0,
                expired,
            };
            let (held_back, expired) = (&mut built.held_back, &mut built.expired);
            let mut overflow = None;
            let mut take = |indicator: Indicator| {
                if !feed.ignore_warnings && warnings.held(&indicator.value).is_some() {
                    *held_back += 1;
                    return;
                }
                let indicator = with_end(indicator, feed.valid_days);
                match builder.add(&feed.name, &indicator, feed.confidence, feed.ignore_warnings) {
                    Ok(true) => {}
                    Ok(false) => *expired += 1,
                    Err(error) => overflow = Some(error),
                }
            };
            let pages: Vec<&[u8]> = fetched.pages.iter().map(Vec::as_slice).collect();
            let read = match (feed.reader(), feed.format) {
                (feed::Format::Stix(stix), FeedFormat::Taxii) => taxii::read(stix, &pages, &limits, &mut take),
                (format, _) => feed::read(&format, pages.first().copied().unwrap_or_default(), &limits, &mut take),
            };
            built.report = read.map_err(|e| e.to_string())?;
            if let Some(error) = overflow {
                return Err(full(error));
            }
            built.index = builder.build();
            Ok(built)
        });
        let built: Built = building.await.map_err(|e| e.to_string())??;
        let name = &self.config.feeds[number].name;
        tracing::info!(
            feed = name,
            taken = built.report.taken,
            held_back = built.held_back,
            expired = built.expired,
            bad = built.report.bad,
            not_understood = built.report.not_understood,
            indicators = built.index.len(),
            "read a feed"
        );
        self.live.swap(Arc::new(built.index));
        self.update(number, |status| {
            *status = Status {
                progress,
                known: true,
                unkept: true,
                report: built.report,
                held_back: built.held_back,
                expired: built.expired,
                read: Some(now),
                tried: Some(now),
                failure: None,
            };
        });
        Ok(())
    }

    fn failed(&self, number: usize, failure: String) {
        let feed = &self.config.feeds[number];
        let again = self.update(number, |status| {
            let again = status.failure.as_ref() == Some(&failure);
            status.tried = Some(Utc::now());
            status.failure = Some(failure.clone());
            // A server that fails is asked again when it is due, a file when it has changed.
            if feed.format == FeedFormat::Taxii {
                status.progress.polled = Some(std::time::Instant::now());
            } else {
                status.progress.stamp = feed.path.as_deref().and_then(|p| source::stamp(p).ok());
            }
            again
        });
        self.metrics.failed(&feed.name);
        if !again {
            tracing::warn!(
                code = "GAR-ANOM-0010",
                feed = feed.name,
                failure,
                "a feed could not be read; what it said before holds"
            );
        }
    }

    fn refresh_lists(&self) {
        let warned: Vec<&Path> = self.config.warning_lists.iter().map(PathBuf::as_path).collect();
        if self.changed(&warned) {
            let texts = read_lists(&warned);
            let (warnings, wrong) = Warnings::with_built_in(texts.iter().map(String::as_str));
            report_lines("warning lists", &wrong);
            *self.warnings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(warnings);
            // What was held back, or was not, is to be weighed anew.
            for number in 0..self.config.feeds.len() {
                self.update(number, |status| status.progress = Progress::default());
            }
        }
        for (tenant, path) in &self.config.allow_lists {
            if let (true, Ok(tenant)) = (self.changed(&[path]), tenant.parse::<TenantId>()) {
                let texts = read_lists(&[path]);
                let (allowed, wrong) = Warnings::parse(texts.iter().map(String::as_str));
                report_lines("an allow-list", &wrong);
                let mut all = self.allowed.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(tenant, Arc::new(allowed));
            }
        }
    }

    // A list that is away keeps its last good state.
    fn changed(&self, paths: &[&Path]) -> bool {
        let mut known = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for path in paths {
            match source::stamp(path) {
                Ok(stamp) if known.get(*path) != Some(&stamp) => {
                    known.insert(path.to_path_buf(), stamp);
                    changed = true;
                }
                Ok(_) => {}
                Err(failure) => tracing::warn!(code = "GAR-ANOM-0010", failure, "a list could not be read"),
            }
        }
        changed
    }

    fn status(&self, number: usize) -> Status {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)[number].clone()
    }

    fn update<R>(&self, number: usize, change: impl FnOnce(&mut Status) -> R) -> R {
        change(&mut self.feeds.lock().unwrap_or_else(PoisonError::into_inner)[number])
    }

    fn state_file(&self, feed: &FeedConfig) -> Option<PathBuf> {
        Some(self.config.state_dir.as_ref()?.join(format!("{}.jsonl", feed.name)))
    }

    /// Keeps what feeds said since the last time, for a start while they are away.
    pub async fn keep(&self) {
        for (number, feed) in self.config.feeds.iter().enumerate() {
            if self.update(number, |status| std::mem::take(&mut status.unkept)) {
                self.keep_one(number, feed).await;
            }
        }
    }

    async fn keep_one(&self, number: usize, feed: &FeedConfig) {
        let Some(path) = self.state_file(feed) else { return };
        let (index, name) = (self.live.load(), feed.name.clone());
        let cursor = self.status(number).progress.cursor.unwrap_or_default();
        let writing = tokio::task::spawn_blocking(move || {
            let beside = path.with_extension("new");
            std::fs::write(&beside, stored::write(&index, &name, &cursor))?;
            std::fs::rename(&beside, &path)
        });
        if let Err(error) = writing.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            tracing::warn!(code = "GAR-ANOM-0010", %error, feed = feed.name, "a feed's state could not be kept");
        }
    }

    // Puts in force what feeds said before the start.
    async fn restore(&self) {
        for (number, feed) in self.config.feeds.iter().enumerate() {
            let Some(path) = self.state_file(feed).filter(|path| path.exists()) else {
                continue;
            };
            let (limits, most, old, name) = (
                self.config.limits(),
                self.config.max_indicators,
                self.live.load(),
                feed.name.clone(),
            );
            let octets = self.config.max_feed_bytes.saturating_mul(4);
            let reading = tokio::task::spawn_blocking(move || {
                let text = source::read_bounded(&path, octets)?;
                let text = String::from_utf8_lossy(&text);
                let mut builder = Builder::new(most, Utc::now().timestamp());
                builder.carry(&old, |_| true).map_err(|e| e.to_string())?;
                let cursor = stored::read(&text, &limits, |indicator, deliberate| {
                    // What does not fit any more is left to the feed itself.
                    let _ = builder.add(&name, &indicator, 0, deliberate);
                })
                .map_err(|e| format!("{}: {e}", path.display()))?;
                Ok::<_, String>((builder.build(), cursor))
            });
            match reading.await.unwrap_or_else(|e| Err(e.to_string())) {
                Ok((index, cursor)) => {
                    self.live.swap(Arc::new(index));
                    self.update(number, |status| {
                        status.known = true;
                        status.progress.cursor = Some(cursor).filter(|c| !c.is_empty());
                    });
                }
                Err(failure) => tracing::warn!(code = "GAR-ANOM-0010", failure, "a feed's kept state cannot be read"),
            }
        }
    }

    fn show(&self) {
        let index = self.live.load();
        let counts = counts(&index);
        for (number, feed) in self.config.feeds.iter().enumerate() {
            let status = self.status(number);
            let read = status.read.map(|at| at.timestamp());
            self.metrics
                .feed(&feed.name, counts.get(feed.name.as_str()).copied().unwrap_or(0), read);
        }
        self.metrics.index(index.len(), index.octets());
    }

    /// The feeds as the API shows them.
    pub fn feeds(&self) -> proto::ListIndicatorFeedsResponse {
        let index = self.live.load();
        let counts = counts(&index);
        let feeds = self.config.feeds.iter().enumerate().map(|(number, feed)| {
            let status = self.status(number);
            let state = match (&status.failure, status.read) {
                (Some(_), _) => proto::FeedState::Stale,
                (None, Some(_)) => proto::FeedState::Current,
                (None, None) => proto::FeedState::Pending,
            };
            proto::IndicatorFeed {
                name: feed.name.clone(),
                format: feed.format.name().to_owned(),
                state: state.into(),
                indicators: counts.get(feed.name.as_str()).copied().unwrap_or(0),
                held_back: status.held_back,
                bad: status.report.bad,
                not_understood: status.report.not_understood,
                left_out: status.report.left_out,
                expired: status.expired,
                too_many: status.report.too_many,
                read: status.read.map(to_timestamp),
                tried: status.tried.map(to_timestamp),
                failure: status.failure.unwrap_or_default(),
                problems: status.report.problems.iter().map(ToString::to_string).collect(),
            }
        });
        proto::ListIndicatorFeedsResponse {
            feeds: feeds.collect(),
            indicators: index.len() as u64,
            memory_bytes: index.octets() as u64,
        }
    }

    /// What is known of a value.
    pub fn lookup(&self, tenant: &TenantId, value: &Value) -> proto::LookupIndicatorResponse {
        let view = self.view_of(tenant, self.live.load(), false);
        let (matches, allowed) = view.lookup(value);
        proto::LookupIndicatorResponse {
            value: value.to_string(),
            kind: value.kind().name().to_owned(),
            matches,
            allowed,
            warning: view.warnings.held(value).map(|h| h.to_string()).unwrap_or_default(),
        }
    }
}

fn counts(index: &Index) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for entry in index.entries() {
        for claim in entry.claims() {
            *counts.entry(claim.source).or_default() += 1;
        }
    }
    counts
}

fn with_end(mut indicator: Indicator, days: u32) -> Indicator {
    let span = &mut indicator.span;
    if days > 0 && span.from > 0 && span.until == u32::MAX {
        span.until = span.from.saturating_add(days.saturating_mul(86_400));
    }
    indicator
}

fn read_lists(paths: &[&Path]) -> Vec<String> {
    let read = |path: &&Path| match source::read_bounded(path, LONGEST_LIST) {
        Ok(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        Err(failure) => {
            tracing::warn!(code = "GAR-ANOM-0010", failure, "a list could not be read");
            None
        }
    };
    paths.iter().filter_map(read).collect()
}

fn report_lines(what: &str, wrong: &[String]) {
    if !wrong.is_empty() {
        let first: Vec<&String> = wrong.iter().take(5).collect();
        tracing::warn!(
            code = "GAR-ANOM-0010",
            lines = wrong.len(),
            ?first,
            "{what} have lines that are no values"
        );
    }
}
