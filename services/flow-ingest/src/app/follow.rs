//! Following a log that another sensor writes: what is appended becomes records, through rotation and truncation.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    recorder::Recorder,
    remember::{Identity, load, save},
    sensor::Sensor,
};
use crate::import::{Format, LogReader};

/// How often the end of the log is looked at.
const NAP: Duration = Duration::from_millis(50);
/// How often the file's name is looked at, and the place in it noted.
const LOOK: Duration = Duration::from_millis(500);
/// Octets read at once.
const PART: usize = 64 << 10;
/// Octets of header lines that are read again when reading goes on in the middle.
const HEADER: u64 = 64 << 10;

/// How a log is followed.
#[derive(Clone, Debug)]
pub struct Following {
    /// The log.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Whether what has no column is kept in the column `extra`.
    pub extra: bool,
    /// The file that keeps the place across restarts.
    pub keep: Option<PathBuf>,
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("GAR-FLOW-0058: the log {} cannot be {operation}", path.display())]
pub struct FollowError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

// Where reading goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Place {
    file: Identity,
    offset: u64,
}

struct Open {
    file: File,
    identity: Identity,
    offset: u64,
}

struct Worker<'a> {
    sensor: &'a Sensor,
    following: &'a Following,
    reader: LogReader,
    recorder: Recorder,
    open: Option<Open>,
    saved: Place,
    problem: Option<String>,
}

/// Follows a log until `stop` is set.
pub fn follow(
    sensor: &Arc<Sensor>,
    following: &Following,
    mut reader: LogReader,
    recorder: Recorder,
    stop: &AtomicBool,
) {
    reader.keep_extra(following.extra);
    let saved = following.keep.as_ref().map(|path| load::<Place>(path));
    let saved = saved.transpose().unwrap_or_else(|error| {
        tracing::warn!(sensor = sensor.id, "{error}; the log is read from its beginning");
        None
    });
    let mut worker = Worker {
        sensor,
        following,
        reader,
        recorder,
        open: None,
        saved: saved.unwrap_or_default(),
        problem: None,
    };
    let mut looked: Option<Instant> = None;
    let mut part = vec![0; PART];
    while !stop.load(Ordering::Relaxed) {
        let look = looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        let read = worker.turn(look, &mut part);
        if look {
            looked = Some(Instant::now());
            worker.save();
        }
        let busy = match read {
            Ok(octets) => {
                worker.tell(None);
                octets > 0
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                worker.tell(Some(format!("{error}{}", cause.unwrap_or_default())));
                false
            }
        };
        worker.note();
        let due = worker.recorder.flush_due(Instant::now());
        if !busy {
            let until_due = due.map_or(NAP, |due| due.saturating_duration_since(Instant::now()));
            std::thread::sleep(NAP.min(until_due).max(Duration::from_millis(1)));
        }
    }
    worker.save();
    worker.note();
    worker.recorder.flush();
}

impl Worker<'_> {
    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> FollowError {
        let path = self.following.path.clone();
        move |source| FollowError {
            operation,
            path,
            source,
        }
    }

    // Reads what there is, and looks after the file's name when it is time. Gives the octets read.
    fn turn(&mut self, look: bool, part: &mut [u8]) -> Result<usize, FollowError> {
        if self.open.is_none() {
            if !look {
                return Ok(0);
            }
            self.begin()?;
        }
        let read = self.read(part)?;
        if read == 0 && look {
            self.check()?;
        }
        Ok(read)
    }

    fn begin(&mut self) -> Result<(), FollowError> {
        let mut file = File::open(&self.following.path).map_err(self.failed("opened"))?;
        let found = file.metadata().map_err(self.failed("opened"))?;
        let identity = Identity::of(&found);
        let mut offset = 0;
        // The place of an earlier run, if this is still that file and as long.
        if self.saved.file == identity && self.saved.offset <= found.len() && self.saved.offset > 0 {
            offset = self.saved.offset;
            self.headers(&file).map_err(self.failed("read"))?;
            file.seek(SeekFrom::Start(offset)).map_err(self.failed("read"))?;
        }
        tracing::info!(sensor = self.sensor.id, log = %self.following.path.display(), offset, "following a log");
        self.open = Some(Open { file, identity, offset });
        Ok(())
    }

    // Zeek's columns are named in lines at the beginning; AWS's in the first.
    fn headers(&mut self, file: &File) -> io::Result<()> {
        if !matches!(self.following.format, Format::Zeek | Format::AwsVpc) {
            return Ok(());
        }
        let before = self.reader.counts();
        let mut lines = io::BufReader::new(file.take(HEADER));
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let header = line.starts_with(b"#") || line.windows(7).any(|word| word == b"srcaddr");
            if !header || !line.ends_with(b"\n") {
                break;
            }
            self.reader.push(&line, &mut self.recorder);
            line.clear();
        }
        // They were counted by the run that read them first.
        self.reader.set_counts(before);
        Ok(())
    }

    fn read(&mut self, part: &mut [u8]) -> Result<usize, FollowError> {
        let Some(open) = &mut self.open else { return Ok(0) };
        let read = match open.file.read(part) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                self.open = None;
                return Err(self.failed("read")(error));
            }
        };
        open.offset += read as u64;
        self.reader.push(&part[..read], &mut self.recorder);
        for fault in self.reader.take_faults() {
            tracing::warn!(
                sensor = self.sensor.id,
                log = %self.following.path.display(),
                line = fault.line,
                "GAR-FLOW-0057: a line was passed over: {}",
                fault.problem
            );
        }
        Ok(read)
    }

    // At the end: is the name another file's by now, or is the file shorter?
    fn check(&mut self) -> Result<(), FollowError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let anew = match fs::metadata(&self.following.path) {
            // Between the rotation's two steps there is no such name; what is open is read on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed("looked at")(error)),
            Ok(found) if Identity::of(&found) != open.identity => true,
            Ok(found) => found.len() < open.offset,
        };
        if anew {
            tracing::info!(sensor = self.sensor.id, log = %self.following.path.display(), "the log was begun anew");
            self.reader.restart(&mut self.recorder);
            self.open = None;
            self.saved = Place::default();
            self.begin()?;
        }
        Ok(())
    }

    fn save(&mut self) {
        let (Some(open), Some(path)) = (&self.open, &self.following.keep) else {
            return;
        };
        // A line that is not whole yet is read again. A document of objects cannot be taken up in its middle.
        let offset = match self.following.format {
            Format::Azure => 0,
            _ => open.offset.saturating_sub(self.reader.pending() as u64),
        };
        let place = Place {
            file: open.identity,
            offset,
        };
        if place == self.saved {
            return;
        }
        match save(path, &place) {
            Ok(()) => self.saved = place,
            Err(error) => tracing::warn!(sensor = self.sensor.id, "{error}"),
        }
    }

    fn tell(&mut self, problem: Option<String>) {
        if problem == self.problem {
            return;
        }
        if let Some(problem) = &problem {
            tracing::warn!(sensor = self.sensor.id, problem, "the log is not read; trying again");
        }
        self.problem.clone_from(&problem);
        self.sensor.update(|status| status.problem = problem);
    }

    fn note(&mut self) {
        self.recorder.note_counts(self.reader.counts(), 0, 0);
    }
}
