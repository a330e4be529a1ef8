//! Templates across restarts: one bounded file, replaced as a whole.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Collector, TEMPLATES_EACH,
    plan::{FieldSpec, Plan},
    stream::{Stream, StreamKey},
};

/// Largest file that is read or written, octets.
pub const MAX_BYTES: u64 = 32 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    streams: Vec<KeptStream>,
}

#[derive(Serialize, Deserialize)]
struct KeptStream {
    exporter: IpAddr,
    protocol: u16,
    domain: u32,
    heard: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampling: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    samplers: Vec<(u64, u32)>,
    templates: Vec<KeptTemplate>,
}

#[derive(Serialize, Deserialize)]
struct KeptTemplate {
    id: u16,
    scopes: u16,
    fields: Vec<FieldSpec>,
}

/// Templates could not be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file could not be read.
    #[error("GAR-FLOW-0050: the templates of flow exporters cannot be read from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("GAR-FLOW-0050: the templates of flow exporters cannot be written to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("GAR-FLOW-0050: {} holds no templates of flow exporters: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Collector {
    /// Templates changed since they were last written with [`save`](Self::save).
    pub fn has_news(&self) -> bool {
        self.changed
    }

    /// Writes templates and sampling rates, replacing the file in one step. Those of the exporters that were heard last
    /// come first, and what has no room is left out.
    ///
    /// # Errors
    /// [`KeepError::Write`].
    pub fn save(&mut self, path: &Path) -> Result<(), KeepError> {
        let mut streams: Vec<KeptStream> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.templates.is_empty())
            .map(|(key, stream)| kept(key, stream))
            .collect();
        streams.sort_by_key(|stream| (std::cmp::Reverse(stream.heard), stream.exporter, stream.domain));
        let mut room = MAX_BYTES - 64;
        let mut text = String::from("{\"version\":1,\"streams\":[");
        for (i, stream) in streams.iter().enumerate() {
            let line = serde_json::to_string(stream).unwrap_or_default();
            if line.len() as u64 + 2 > room || line.is_empty() {
                break;
            }
            room -= line.len() as u64 + 2;
            text.push_str(if i == 0 { "\n" } else { ",\n" });
            text.push_str(&line);
        }
        text.push_str("\n]}\n");
        replace(path, text.as_bytes()).map_err(|source| KeepError::Write {
            path: path.to_owned(),
            source,
        })?;
        self.changed = false;
        Ok(())
    }

    /// Takes back what [`save`](Self::save) wrote. A file that is not there is as good as an empty one.
    ///
    /// # Errors
    /// [`KeepError`] says what is wrong with the file; nothing was taken from it.
    pub fn load(&mut self, path: &Path) -> Result<usize, KeepError> {
        let read = |source| KeepError::Read {
            path: path.to_owned(),
            source,
        };
        let damaged = |problem: String| KeepError::Damaged {
            path: path.to_owned(),
            problem,
        };
        let length = match fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(read(error)),
        };
        if length > MAX_BYTES {
            return Err(damaged(format!("it is longer than {MAX_BYTES} octets")));
        }
        let bytes = fs::read(path).map_err(read)?;
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if kept.version != 1 {
            return Err(damaged(format!("its version is {} instead of 1", kept.version)));
        }
        let mut taken = 0;
        for stream in kept.streams {
            if self.streams.len() >= self.limits.streams {
                break;
            }
            let key = StreamKey {
                exporter: stream.exporter,
                version: stream.protocol,
                domain: stream.domain,
            };
            let mut made = Stream::new(stream.heard);
            made.sampling = stream.sampling;
            for (sampler, rate) in stream.samplers {
                made.note_sampling(Some(sampler), rate);
            }
            for template in stream.templates.into_iter().take(TEMPLATES_EACH) {
                if self.templates >= self.limits.templates {
                    break;
                }
                // What no longer compiles is as if it had not come yet.
                if let Ok(plan) = Plan::compile(template.fields, template.scopes)
                    && made.templates.insert(template.id, plan).is_none()
                {
                    self.templates += 1;
                    taken += 1;
                }
            }
            if let Some(before) = self.streams.insert(key, made) {
                self.templates -= before.templates.len();
            }
        }
        Ok(taken)
    }
}

fn kept(key: &StreamKey, stream: &Stream) -> KeptStream {
    let mut templates: Vec<KeptTemplate> = stream
        .templates
        .iter()
        .map(|(&id, plan)| KeptTemplate {
            id,
            scopes: plan.scopes(),
            fields: plan.fields().to_vec(),
        })
        .collect();
    templates.sort_by_key(|template| template.id);
    KeptStream {
        exporter: key.exporter,
        protocol: key.version,
        domain: key.domain,
        heard: stream.heard,
        sampling: stream.sampling,
        samplers: stream.samplers.clone(),
        templates,
    }
}

/// Writes a file beside the one that is there, and puts it in its place.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
