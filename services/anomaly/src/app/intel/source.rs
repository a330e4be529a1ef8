//! Where a feed comes from: a file that may have changed, or the pages of a TAXII server.

use std::{
    collections::HashSet,
    io::Read as _,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use garrison_intel::feed::taxii::{self, MEDIA_TYPE};

use super::fetch::Server;
use crate::config::{FeedConfig, FeedFormat};

/// Objects that a page is asked to have, pages of a poll, and octets of a page.
const PAGE: (u32, usize, usize) = (1_000, 10_000, 64 << 20);

/// What is known of a file when it was read: when it was written, how long it is, which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(SystemTime, u64, u64);

/// Looks whether a file is another than before.
pub(super) fn stamp(path: &Path) -> Result<Stamp, String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(Stamp(written, metadata.len(), metadata.ino()))
}

/// Reads a file that must not be longer than `most`.
pub(super) fn read_bounded(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("reading {}: {e}", path.display());
    let file = std::fs::File::open(path).map_err(|e| wrong(&e))?;
    let mut content = Vec::new();
    let read = file.take(most as u64 + 1).read_to_end(&mut content);
    read.map_err(|e| wrong(&e))?;
    if content.len() > most {
        return Err(wrong(&format!(
            "it has more than {most} bytes; raise intel.max_feed_bytes or split it"
        )));
    }
    Ok(content)
}

/// What came.
pub(super) struct Fetched {
    /// One text, or the pages of a poll.
    pub(super) pages: Vec<Vec<u8>>,
    /// Only what is new came: of what came before, that stays which these ids do not name.
    pub(super) replaces: Option<HashSet<String>>,
    /// What to remember once it is in force.
    pub(super) progress: Progress,
}

/// How far a feed was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// The file that was read.
    pub(super) stamp: Option<Stamp>,
    /// When the last object was added to the collection.
    pub(super) cursor: Option<String>,
    /// When the server was polled.
    pub(super) polled: Option<Instant>,
}

/// Fetches a feed. `None`: nothing is new or due.
pub(super) async fn fetch(feed: &FeedConfig, progress: &Progress, most: usize) -> Result<Option<Fetched>, String> {
    if feed.format == FeedFormat::Taxii {
        return poll(feed, progress, most).await;
    }
    let path = feed.path.clone().unwrap_or_default();
    let before = progress.stamp;
    let reading = tokio::task::spawn_blocking(move || {
        let stamp = stamp(&path)?;
        if Some(stamp) == before {
            return Ok::<_, String>(None);
        }
        Ok(Some((read_bounded(&path, most)?, stamp)))
    });
    let read = reading.await.map_err(|e| e.to_string())??;
    Ok(read.map(|(text, stamp)| Fetched {
        pages: vec![text],
        replaces: None,
        progress: Progress {
            stamp: Some(stamp),
            ..Progress::default()
        },
    }))
}

async fn poll(feed: &FeedConfig, progress: &Progress, most: usize) -> Result<Option<Fetched>, String> {
    let due = |polled: Instant| polled.elapsed() >= Duration::from_secs(feed.poll_seconds.into());
    if !progress.polled.is_none_or(due) {
        return Ok(None);
    }
    let (url, ca) = (feed.url.as_deref().unwrap_or_default(), feed.ca_file.as_deref());
    let server = Server::new(url, ca, authorization(feed)?)?;
    let collections = server
        .get(&taxii::collections_path(&server.root), MEDIA_TYPE, PAGE.2)
        .await?;
    let collection = taxii::find_collection(&collections.body, &feed.collection).map_err(|e| e.to_string())?;
    let mut fetched = Fetched {
        pages: Vec::new(),
        replaces: progress.cursor.is_some().then(HashSet::new),
        progress: Progress {
            cursor: progress.cursor.clone(),
            polled: Some(Instant::now()),
            ..Progress::default()
        },
    };
    let (mut next, mut after, mut octets) = (None::<String>, progress.cursor.clone(), 0);
    for _ in 0..PAGE.1 {
        let path = taxii::objects_path(&server.root, &collection.id, PAGE.0, after.as_deref(), next.as_deref());
        let answer = server.get(&path, MEDIA_TYPE, PAGE.2.min(most)).await?;
        let page = taxii::page(&answer.body).map_err(|e| e.to_string())?;
        octets += answer.body.len();
        if octets > most {
            return Err(format!(
                "the pages have more than {most} bytes together; raise intel.max_feed_bytes"
            ));
        }
        if let Some(replaces) = &mut fetched.replaces {
            replaces.extend(page.indicators);
        }
        if page.objects > 0 {
            fetched.pages.push(answer.body.to_vec());
        }
        let on = answer.added_last.or_else(|| fetched.progress.cursor.clone());
        let moved = page.next.is_some() && page.next != next || on != after;
        fetched.progress.cursor.clone_from(&on);
        if !page.more {
            return Ok(Some(fetched));
        }
        // A server that says neither what comes next nor when this was added would give the same page for ever.
        if !moved {
            return Err("the server has more and does not say how to ask for it".to_owned());
        }
        match page.next {
            Some(_) => next = page.next,
            None => (next, after) = (None, on),
        }
    }
    Err(format!("the collection has more than {} pages", PAGE.1))
}

// Credentials are read at each poll, so that they can be changed.
fn authorization(feed: &FeedConfig) -> Result<Option<String>, String> {
    let secret = |path: &Path| {
        let text = std::fs::read_to_string(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        Ok::<_, String>(text.trim().to_owned())
    };
    if let Some(path) = &feed.token_file {
        return Ok(Some(format!("Bearer {}", secret(path)?)));
    }
    match (&feed.username, &feed.password_file) {
        (Some(name), Some(path)) => {
            let both = format!("{name}:{}", secret(path)?);
            Ok(Some(format!("Basic {}", STANDARD.encode(both))))
        }
        _ => Ok(None),
    }
}
