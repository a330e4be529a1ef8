use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A child process could not be started or did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("starting {name} failed")]
    Start {
        /// What was started.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It ended, or was not ready in time.
    #[error("{name} {problem}; its last words:\n{log}")]
    NotReady {
        /// What was started.
        name: String,
        /// What it did instead.
        problem: String,
        /// The end of its log.
        log: String,
    },
    /// A program that is needed is not installed.
    #[error("{program} was not found: {remedy}")]
    Missing {
        /// The program.
        program: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// A certificate or secret could not be made.
    #[error(transparent)]
    Bootstrap(#[from] garrison_bootstrap::BootstrapError),
    /// An enforcer's node or tenant cannot be used in a subject.
    #[error(transparent)]
    Node(#[from] garrison_bus::topology::InvalidNode),
    /// A file or folder could not be prepared.
    #[error("preparing {} failed", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A child process with its log in a file. It ends when this value is dropped, or when its parent dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program with both outputs appended to `log`.
    ///
    /// # Errors
    /// [`ProcessError::Start`] when the program or the log cannot be opened.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self, ProcessError> {
        let start = |source| ProcessError::Start {
            name: name.to_owned(),
            source,
        };
        let file = File::options().create(true).append(true).open(log).map_err(start)?;
        let mut command = command;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(start)?)
            .stderr(file);
        let child = spawn_on_lasting_thread(command).map_err(start)?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What was started, as named by the caller.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// [`ProcessError::NotReady`] when the process ends or `limit` passes first.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<(), ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            if ready() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.not_ready(format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.not_ready(format!("was not ready within {limit:?}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn not_ready(&self, problem: String) -> ProcessError {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        ProcessError::NotReady {
            name: self.name.clone(),
            problem,
            log: lines.into_iter().rev().collect::<Vec<_>>().join("\n"),
        }
    }

    /// Asks the process to end with `signal` and waits; kills it when it does not within `limit`.
    /// Returns whether it ended by itself.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> bool {
        self.signal(signal);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !self.is_running() {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        false
    }

    /// Sends a signal, if the process still runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // A process that is gone already is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends the process at once with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.end(Signal::TERM, Duration::from_secs(5));
        }
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

// The kernel ties "die with the parent" to the thread that forked. An executor's thread may end while its
// process lives on, so every child is forked by one thread that stays.
fn spawn_on_lasting_thread(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    die_with_parent(&mut command);
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = mpsc::channel();
    let gone = || io::Error::other("the spawning thread has ended");
    spawner
        .lock()
        .map_err(|_| gone())?
        .send((command, answer))
        .map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}

pub(crate) fn prepare(path: &Path, source: io::Error) -> ProcessError {
    ProcessError::Prepare {
        path: path.to_owned(),
        source,
    }
}
