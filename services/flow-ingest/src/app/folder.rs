//! A folder that is watched for new files: each is read once, told by its content, also one that is still written.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    recorder::Recorder,
    remember::{Identity, load, save},
    sensor::Sensor,
};
use crate::{
    capture::{CaptureError, CaptureFile, Source},
    domain::{Counts, Meter, record::EndReason},
    import::{Format, LogReader},
    input::{Input, InputError, Kind, Options},
};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often the end of a growing file is looked at.
const NAP: Duration = Duration::from_millis(50);
/// Files of a folder that are looked after.
pub const MAX_FILES: usize = 65_536;
/// Octets of a log that are read at once.
const PART: usize = 64 << 10;

/// How a folder is watched.
#[derive(Clone, Debug)]
pub struct Watching {
    /// The folder.
    pub path: PathBuf,
    /// How long a file must be left unchanged to count as whole.
    pub settle: Duration,
    /// How files other than captures are read.
    pub options: Options,
    /// The file that keeps what was read across restarts.
    pub keep: Option<PathBuf>,
}

/// The folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be listed.
    #[error("GAR-FLOW-0059: the folder {} cannot be listed", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has more files than are looked after.
    #[error("GAR-FLOW-0059: the folder {} has more than {MAX_FILES} files; the others are not read", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
}

// What a file was like when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Seen {
    file: Identity,
    length: u64,
    modified_ns: u64,
}

#[derive(Default, Deserialize, Serialize)]
struct Note {
    files: BTreeMap<String, Seen>,
}

// Files, and what keeps others from being among them.
type Listed = (Vec<(Seen, String)>, Option<FolderError>);

struct Worker<'a> {
    sensor: &'a Sensor,
    watching: &'a Watching,
    meter: Meter,
    recorder: Recorder,
    stop: &'a AtomicBool,
    note: Note,
    others: Counts,
    // The latest packet's time, and when it was read.
    latest: Option<(i64, Instant)>,
    trouble: Option<String>,
}

/// Reads new files of a folder until `stop` is set.
pub fn watch_folder(sensor: &Arc<Sensor>, watching: &Watching, meter: Meter, recorder: Recorder, stop: &AtomicBool) {
    let note = watching.keep.as_ref().map(|path| load::<Note>(path));
    let note = note.transpose().unwrap_or_else(|error| {
        tracing::warn!(sensor = sensor.id, "{error}; every file is read again");
        None
    });
    let mut worker = Worker {
        sensor,
        watching,
        meter,
        recorder,
        stop,
        note: note.unwrap_or_default(),
        others: Counts::default(),
        latest: None,
        trouble: None,
    };
    while !worker.stopped() {
        worker.look();
        let looked = Instant::now();
        while looked.elapsed() < LOOK && !worker.stopped() {
            worker.pass();
            std::thread::sleep(NAP);
        }
    }
    worker.meter.finish(EndReason::Shutdown, &mut worker.recorder);
    worker.count();
    worker.recorder.flush();
}

impl Worker<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn look(&mut self) {
        let (files, problem) = match self.list() {
            Ok(listed) => listed,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                self.tell(Some(format!("{error}{}", cause.unwrap_or_default())));
                return;
            }
        };
        let gone: Vec<String> = self
            .note
            .files
            .keys()
            .filter(|name| !files.iter().any(|(_, other)| other == *name))
            .cloned()
            .collect();
        let mut changed = !gone.is_empty() && problem.is_none();
        if problem.is_none() {
            for name in &gone {
                self.note.files.remove(name);
            }
        }
        let mut trouble = problem.map(|error| error.to_string());
        for (seen, name) in files {
            if self.note.files.get(&name) == Some(&seen) || self.stopped() {
                continue;
            }
            if self
                .note
                .files
                .get(&name)
                .is_some_and(|before| before.file == seen.file)
            {
                tracing::warn!(
                    sensor = self.sensor.id,
                    file = name,
                    "GAR-FLOW-0061: a file was changed after it was read; it is not read again"
                );
                self.note.files.insert(name, seen);
                changed = true;
                continue;
            }
            let path = self.watching.path.join(&name);
            if let Err(error) = self.read(&path) {
                trouble = Some(error.text());
                tracing::warn!(
                    sensor = self.sensor.id,
                    problem = trouble,
                    "a file was not read to its end"
                );
            }
            // Read to its end or not, it is not read again as it is.
            if !self.stopped() {
                self.note.files.insert(name, look_at(&path).unwrap_or(seen));
                changed = true;
                self.save();
            }
        }
        if changed {
            self.save();
        }
        if trouble.is_some() || self.trouble.is_none() {
            self.tell(trouble);
        }
    }

    // Files in the order they were written in, without those that are hidden or still uploaded under another name.
    fn list(&self) -> Result<Listed, FolderError> {
        let failed = |source| FolderError::List {
            path: self.watching.path.clone(),
            source,
        };
        let mut files = Vec::new();
        let mut problem = None;
        for entry in fs::read_dir(&self.watching.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let aside = [".tmp", ".part", ".partial", ".filepart", ".crdownload"];
            if name.starts_with('.') || aside.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            // A file that went away meanwhile is none.
            let Some(seen) = look_at(&entry.path()) else { continue };
            if files.len() >= MAX_FILES {
                problem = Some(FolderError::TooMany {
                    path: self.watching.path.clone(),
                });
                break;
            }
            files.push((seen, name));
        }
        files.sort_by(|(a, name_a), (b, name_b)| (a.modified_ns, name_a).cmp(&(b.modified_ns, name_b)));
        Ok((files, problem))
    }

    // Whether nothing was written to a file for a while.
    fn is_settled(&self, path: &Path) -> bool {
        let modified = fs::metadata(path).and_then(|found| found.modified());
        modified.map_or(true, |modified| {
            modified.elapsed().unwrap_or_default() >= self.watching.settle
        })
    }

    fn settle(&mut self, path: &Path) {
        while !self.is_settled(path) && !self.stopped() {
            self.pass();
            std::thread::sleep(NAP);
        }
    }

    fn read(&mut self, path: &Path) -> Result<(), InputError> {
        // What is empty yet has no kind yet.
        if fs::metadata(path).is_ok_and(|found| found.len() < 64 << 10) {
            self.settle(path);
        }
        let input = Input::open(path, self.watching.options.format)?;
        tracing::info!(sensor = self.sensor.id, file = %path.display(), kind = input.kind().name(), "reading a file");
        match (input.kind(), input.is_compressed()) {
            (Kind::Capture, false) => self.packets(input.into_source(), path, true),
            (Kind::Log(format), false) => self.log(input.into_source(), path, format),
            // The end of these cannot be told before they are whole.
            (Kind::Capture, true) => {
                self.settle(path);
                let input = Input::open(path, None)?;
                self.packets(input.into_source(), path, false)
            }
            _ => {
                self.settle(path);
                let input = Input::open(path, self.watching.options.format)?;
                self.whole(input, path)
            }
        }
    }

    fn packets(&mut self, source: Source, path: &Path, grows: bool) -> Result<(), InputError> {
        let mut file = CaptureFile::new(source, path)?;
        let mut looked = Instant::now();
        loop {
            if self.stopped() {
                return Ok(());
            }
            match file.burst() {
                Ok(Some(burst)) => {
                    let packets = burst.packets();
                    self.meter.process(packets, &mut self.recorder);
                    if let Some(last) = packets.last() {
                        self.latest = Some((last.time, looked));
                    }
                }
                ended @ (Ok(None) | Err(CaptureError::Truncated { .. })) => {
                    if !grows || self.is_settled(path) {
                        return ended.map(drop).map_err(Into::into);
                    }
                    file.resume();
                    self.pass();
                    std::thread::sleep(NAP);
                }
                Err(error) => return Err(error.into()),
            }
            if looked.elapsed() >= NAP {
                looked = Instant::now();
                self.count();
                self.recorder.flush_due(looked);
            }
        }
    }

    fn log(&mut self, mut source: Source, path: &Path, format: Format) -> Result<(), InputError> {
        let options = &self.watching.options;
        let mut reader = LogReader::new(format, &options.sensor, uuid::Uuid::new_v4().as_u128());
        reader.keep_extra(options.extra);
        let before = self.others;
        let mut part = vec![0; PART];
        let mut offset = 0;
        while !self.stopped() {
            let read = source.read(&mut part).map_err(|source| InputError::Read {
                path: path.to_owned(),
                offset,
                source,
            })?;
            if read == 0 {
                if self.is_settled(path) {
                    break;
                }
                self.pass();
                std::thread::sleep(NAP);
            }
            offset += read as u64;
            reader.push(&part[..read], &mut self.recorder);
            self.others = before + reader.counts();
            self.faults(&mut reader, path);
            self.count();
            self.recorder.flush_due(Instant::now());
        }
        reader.finish(&mut self.recorder);
        self.faults(&mut reader, path);
        self.others = before + reader.counts();
        self.count();
        Ok(())
    }

    fn whole(&mut self, input: Input, path: &Path) -> Result<(), InputError> {
        let stop = self.stop;
        let options = Options {
            random: uuid::Uuid::new_v4().as_u128(),
            ..self.watching.options.clone()
        };
        let summary = input.read(&options, &mut self.recorder, &mut |_| !stop.load(Ordering::Relaxed))?;
        for fault in &summary.faults {
            self.fault(path, fault.line, &fault.problem);
        }
        self.others += summary.counts;
        self.count();
        self.recorder.flush_due(Instant::now());
        summary.problem.map_or(Ok(()), Err)
    }

    fn faults(&self, reader: &mut LogReader, path: &Path) {
        for fault in reader.take_faults() {
            self.fault(path, fault.line, &fault.problem);
        }
    }

    fn fault(&self, path: &Path, line: u64, problem: &str) {
        tracing::warn!(
            sensor = self.sensor.id,
            file = %path.display(),
            line,
            "GAR-FLOW-0057: a line was passed over: {problem}"
        );
    }

    // Time goes on for the flows of captures while no packet comes.
    fn pass(&mut self) {
        if let Some((time, read)) = self.latest {
            self.meter.tick(
                time.saturating_add(read.elapsed().as_nanos() as i64),
                &mut self.recorder,
            );
        }
        self.count();
        self.recorder.flush_due(Instant::now());
    }

    fn count(&mut self) {
        let active = self.meter.active_flows() as u64;
        self.recorder.note_counts(self.meter.counts() + self.others, active, 0);
    }

    fn tell(&mut self, problem: Option<String>) {
        if problem != self.trouble {
            self.trouble.clone_from(&problem);
            self.sensor.update(|status| status.problem = problem);
        }
    }

    fn save(&self) {
        let Some(path) = &self.watching.keep else { return };
        if let Err(error) = save(path, &self.note) {
            tracing::warn!(sensor = self.sensor.id, "{error}");
        }
    }
}

fn look_at(path: &Path) -> Option<Seen> {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let modified = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Some(Seen {
        file: Identity::of(&found),
        length: found.len(),
        modified_ns: modified
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64),
    })
}
