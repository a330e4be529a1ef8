//! The node's kernel: the table as a whole through `nft`, single elements through netlink, and always a look
//! at what is really there.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    listing::{held_elements, structure},
    netlink::{Change, Element, Netlink},
    ruleset::{Elements, Layout, SetKey, TABLE},
};

/// Most sets in the table: every prefix length and rate that is in use has its own.
const MAX_SETS: usize = 512;
/// How often an installation is tried again when somebody changes the ruleset at the same time.
const ATTEMPTS: usize = 5;
/// How far the end of an element may be off before it counts as changed: `nft` counts in seconds.
const TOLERANCE_MS: i64 = 3_000;

/// The kernel refused, or something in between did.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No right to change the ruleset.
    #[error(
        "GAR-ENF-0002: not permitted to change nftables while trying to {operation}: the enforcer needs CAP_NET_ADMIN \
         in the network namespace it works in"
    )]
    NotPermitted {
        /// What was tried.
        operation: &'static str,
    },
    /// `nft` cannot be started.
    #[error("GAR-ENF-0003: cannot start {program}: install nftables or set enforcer.nft_program")]
    NoProgram {
        /// What was tried.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// `nft` refused the ruleset.
    #[error("GAR-ENF-0003: nft could not {operation}: {said}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// What it wrote.
        said: String,
    },
    /// The kernel said no.
    #[error("GAR-ENF-0005: the kernel could not {operation}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error("GAR-ENF-0005: after trying to {operation}, the kernel holds {found}")]
    ReadBack {
        /// What was tried.
        operation: &'static str,
        /// What is there.
        found: String,
    },
    /// No room.
    #[error("GAR-ENF-0007: {0}")]
    Full(String),
}

impl KernelError {
    fn netlink(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation },
            Some(libc::ENFILE) => Self::Full("the set of this action is full".to_owned()),
            _ => Self::Netlink { operation, source },
        }
    }

    /// Whether the set or the table is gone, which is for [`Kernel::install`] to mend.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Netlink { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
    }
}

/// When the kernel did as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// It acknowledged the change.
    pub kernel: DateTime<Utc>,
    /// Reading back agreed.
    pub read_back: DateTime<Utc>,
}

/// The table `inet garrison` in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    netlink: Netlink,
    layout: Layout,
    program: String,
    installed: BTreeSet<SetKey>,
    structure: Value,
    generation: u32,
    suspect: bool,
}

impl Kernel {
    /// Opens the kernel. Nothing is changed yet.
    ///
    /// # Errors
    /// When there is no nfnetlink.
    pub fn open(layout: Layout, program: &str) -> Result<Self, KernelError> {
        Ok(Self {
            netlink: Netlink::open(TABLE).map_err(KernelError::netlink("open nfnetlink"))?,
            layout,
            program: program.to_owned(),
            installed: BTreeSet::new(),
            structure: Value::Null,
            generation: 0,
            suspect: true,
        })
    }

    /// The fixed part of the ruleset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether the set of an element is in the table.
    pub fn has_set(&self, set: &SetKey) -> bool {
        self.installed.contains(set)
    }

    /// Replaces the table by one with exactly these elements, in one transaction.
    ///
    /// # Errors
    /// [`KernelError`]; then the table is as it was.
    pub fn install(&mut self, elements: &Elements, now: DateTime<Utc>) -> Result<(), KernelError> {
        let mut sets = self.layout.standing_sets();
        sets.extend(elements.keys().map(|(set, _)| set.clone()));
        if sets.len() > MAX_SETS {
            return Err(KernelError::Full(format!(
                "{} kinds of actions are more than {MAX_SETS}; use fewer prefix lengths and rates",
                sets.len()
            )));
        }
        let script = self.layout.script(&sets, elements, now);
        for _ in 0..ATTEMPTS {
            let before = self.generation_now()?;
            self.nft(&["-f", "-"], &script, "install the ruleset")?;
            let after = self.generation_now()?;
            let listed = self.list()?;
            let Some(listed) = listed else { continue };
            // Nobody else changed anything since: what is listed is what was installed.
            if follows(before, after) && self.generation_now()? == after {
                self.installed = sets;
                self.structure = structure(&listed);
                self.generation = after;
                self.suspect = false;
                return Ok(());
            }
        }
        Err(KernelError::ReadBack {
            operation: "install the ruleset",
            found: "changes by somebody else, again and again".to_owned(),
        })
    }

    /// Makes sure that an element is there until its end, and reads it back.
    ///
    /// # Errors
    /// [`KernelError`]; [`KernelError::is_missing`] when the set is not there.
    pub fn ensure(
        &mut self,
        set: &SetKey,
        address: IpAddr,
        ends: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Confirmed, KernelError> {
        const OPERATION: &str = "add an element";
        let name = set.name();
        let found = self.read(&name, address)?;
        if !found.as_ref().is_some_and(|f| agrees(f, ends, now)) {
            let timeout = ends.map(|ends| (ends - now).to_std().unwrap_or_default().max(Duration::from_millis(1)));
            let mut changes = Vec::with_capacity(2);
            if found.is_some() {
                changes.push(Change::Delete {
                    set: name.clone(),
                    key: address,
                });
            }
            changes.push(Change::Add {
                set: name.clone(),
                key: address,
                timeout,
            });
            self.change(&changes, OPERATION)?;
        }
        let kernel = Utc::now();
        let found = tracing::info_span!("kernel read back").in_scope(|| self.read(&name, address))?;
        let read_back = Utc::now();
        match found {
            Some(found) if found.key == address && agrees(&found, ends, read_back) => {
                Ok(Confirmed { kernel, read_back })
            }
            // A short time may run out between the two looks; then it was there.
            None if ends.is_some_and(|ends| ends <= read_back) => Ok(Confirmed { kernel, read_back }),
            other => Err(KernelError::ReadBack {
                operation: OPERATION,
                found: match other {
                    Some(element) => format!("{} for {:?}", element.key, element.left),
                    None => "nothing".to_owned(),
                },
            }),
        }
    }

    /// Makes sure that an element is not there, and looks.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn clear(&mut self, set: &SetKey, address: IpAddr) -> Result<Confirmed, KernelError> {
        const OPERATION: &str = "delete an element";
        let name = set.name();
        if self.read(&name, address)?.is_some() {
            let delete = Change::Delete {
                set: name.clone(),
                key: address,
            };
            match self.change(&[delete], OPERATION) {
                Ok(()) => {}
                // It ran out in the meantime.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        let kernel = Utc::now();
        match self.read(&name, address)? {
            None => Ok(Confirmed {
                kernel,
                read_back: Utc::now(),
            }),
            Some(element) => Err(KernelError::ReadBack {
                operation: OPERATION,
                found: element.key.to_string(),
            }),
        }
    }

    /// Whether anybody but this process has changed any table since it last looked.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn was_touched(&mut self) -> Result<bool, KernelError> {
        Ok(self.suspect || self.generation_now()? != self.generation)
    }

    /// Compares the whole table with what should be there. Answers with what is different, in words; when
    /// nothing is, the present generation counts as seen.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn differences(&mut self, elements: &Elements, now: DateTime<Utc>) -> Result<Vec<String>, KernelError> {
        let generation = self.generation_now()?;
        let Some(listed) = self.list()? else {
            return Ok(vec!["the table is gone".to_owned()]);
        };
        let mut different = Vec::new();
        if structure(&listed) != self.structure {
            different.push("chains, rules or sets were changed".to_owned());
        }
        let held = held_elements(&listed);
        for ((set, address), ends) in elements {
            if ends.is_some_and(|ends| (ends - now).num_milliseconds() < TOLERANCE_MS) {
                continue;
            }
            match held.get(&(set.name(), *address)) {
                None => different.push(format!("{address} is missing in {}", set.name())),
                Some(left) => {
                    let element = Element {
                        key: *address,
                        left: *left,
                    };
                    if !agrees(&element, *ends, now) {
                        different.push(format!("{address} in {} ends at another time", set.name()));
                    }
                }
            }
        }
        let wanted: BTreeSet<(String, IpAddr)> = elements.keys().map(|(set, address)| (set.name(), *address)).collect();
        for (set, address) in held.keys() {
            let meter = set.starts_with("meter_") || set.starts_with("management");
            if !meter && !wanted.contains(&(set.clone(), *address)) {
                different.push(format!("{address} in {set} is nobody's"));
            }
        }
        if different.is_empty() {
            self.generation = generation;
            self.suspect = false;
        }
        Ok(different)
    }

    /// Elements that an earlier life of this enforcer left in the table, each with when it ends.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn leftovers(&mut self, now: DateTime<Utc>) -> Result<Vec<Leftover>, KernelError> {
        let Some(listed) = self.list()? else {
            return Ok(Vec::new());
        };
        Ok(held_elements(&listed)
            .into_iter()
            .map(|((set, address), left)| Leftover {
                set,
                address,
                ends: left.map(|left| now + left),
            })
            .collect())
    }

    /// Removes the table and with it everything that is in force.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn flush(program: &str) -> Result<(), KernelError> {
        let script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
        run(program, &["-f", "-"], &script, "remove the table").map(drop)
    }

    fn generation_now(&mut self) -> Result<u32, KernelError> {
        self.netlink
            .generation()
            .map_err(KernelError::netlink("read the generation"))
    }

    fn read(&mut self, set: &str, address: IpAddr) -> Result<Option<Element>, KernelError> {
        self.netlink
            .element(set, address)
            .map_err(KernelError::netlink("read an element"))
    }

    fn change(&mut self, changes: &[Change], operation: &'static str) -> Result<(), KernelError> {
        let before = self.generation_now()?;
        if before != self.generation {
            self.suspect = true;
        }
        self.netlink.change(changes).map_err(KernelError::netlink(operation))?;
        let after = self.generation_now()?;
        if !follows(before, after) {
            self.suspect = true;
        }
        self.generation = after;
        Ok(())
    }

    fn nft(&self, arguments: &[&str], input: &str, operation: &'static str) -> Result<Vec<u8>, KernelError> {
        run(&self.program, arguments, input, operation)
    }

    /// The table as `nft` shows it in JSON; `None` when it is gone.
    fn list(&self) -> Result<Option<Value>, KernelError> {
        let operation = "list the ruleset";
        match self.nft(&["-j", "list", "table", "inet", TABLE], "", operation) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| KernelError::Program {
                    operation,
                    said: e.to_string(),
                }),
            Err(KernelError::Program { said, .. }) if said.contains("No such file or directory") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An element whose owner is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The set's name.
    pub set: String,
    /// The address.
    pub address: IpAddr,
    /// When it ends.
    pub ends: Option<DateTime<Utc>>,
}

fn run(program: &str, arguments: &[&str], input: &str, operation: &'static str) -> Result<Vec<u8>, KernelError> {
    let no_program = |source| KernelError::NoProgram {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_program)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it ends before reading everything, its status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(no_program)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(600)
        .collect();
    if said.contains("Operation not permitted") {
        return Err(KernelError::NotPermitted { operation });
    }
    Err(KernelError::Program { operation, said })
}

/// Whether one transaction leads from one generation to the other. The kernel leaves out zero.
fn follows(before: u32, after: u32) -> bool {
    after == before.wrapping_add(1) || (before == u32::MAX && after == 1)
}

fn agrees(element: &Element, ends: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    match (element.left, ends) {
        (None, None) => true,
        (Some(left), Some(ends)) => {
            let expected = (ends - now).num_milliseconds();
            let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
            left.saturating_sub(expected).abs() <= TOLERANCE_MS
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_follow_each_other() {
        assert!(follows(1, 2) && follows(u32::MAX, 1));
        assert!(!follows(1, 3) && !follows(2, 2) && !follows(3, 2));
    }
}
