//! Lab networks: hosts in network namespaces around a router, for real packets without root.
//!
//! The process that calls [`enter`] becomes root of a fresh user namespace and stands in a fresh network
//! namespace, which is the router. Every [`Node`] is a further network namespace, wired to the router by a
//! veth pair of its own segment.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A lab could not be built.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel refused a namespace.
    #[error(
        "the kernel refused a {what} namespace: allow unprivileged user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
    )]
    Namespace {
        /// Which kind.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step of the wiring failed.
    #[error("{step} failed: {detail}")]
    Wiring {
        /// The command.
        step: String,
        /// What it said.
        detail: String,
    },
}

/// Moves the calling process into a user namespace where it is root, and a network namespace of its own with
/// the loopback interface up.
///
/// # Errors
/// [`LabError::Namespace`] when the kernel forbids it. Call it before any thread is started: the kernel
/// refuses a user namespace to a process with threads.
pub fn enter() -> Result<(), LabError> {
    let uid = rustix::process::geteuid();
    let gid = rustix::process::getegid();
    match unshare(libc::CLONE_NEWUSER) {
        Ok(()) => {
            let mapped = fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())));
            mapped.map_err(|source| LabError::Namespace { what: "user", source })?;
        }
        // Root needs no user namespace to make network namespaces.
        Err(_) if uid.is_root() => {}
        Err(source) => {
            return Err(LabError::Namespace { what: "user", source });
        }
    }
    unshare(libc::CLONE_NEWNET).map_err(|source| LabError::Namespace {
        what: "network",
        source,
    })?;
    ip(&["link", "set", "lo", "up"])?;
    write_setting("/proc/sys/net/ipv4/ip_forward", "1")
}

/// A host of the lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    router_interface: String,
    namespace: OwnedFd,
}

impl Node {
    /// Makes a host in a /24 segment whose first address is the router's.
    ///
    /// # Errors
    /// When the kernel refuses the namespace or the wiring fails.
    pub fn attach(name: &str, address: Ipv4Addr) -> Result<Self, LabError> {
        let namespace = new_network_namespace()?;
        let [a, b, c, _] = address.octets();
        let node = Self {
            name: name.to_owned(),
            address,
            gateway: Ipv4Addr::new(a, b, c, 1),
            router_interface: format!("to-{name}"),
            namespace,
        };
        let path = format!("/proc/{}/fd/{}", std::process::id(), node.namespace.as_raw_fd());
        let outer = node.router_interface.as_str();
        ip(&[
            "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", &path,
        ])?;
        ip(&["address", "add", &format!("{}/24", node.gateway), "dev", outer])?;
        ip(&["link", "set", outer, "up"])?;
        node.ip(&["link", "set", "lo", "up"])?;
        node.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        node.ip(&["link", "set", "eth0", "up"])?;
        node.ip(&["route", "add", "default", "via", &node.gateway.to_string()])?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The router's address on its segment.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The router's interface towards it.
    pub fn router_interface(&self) -> &str {
        &self.router_interface
    }

    /// A command that will run inside this host.
    #[allow(unsafe_code)]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.namespace.as_raw_fd();
        // SAFETY: the closure makes one async-signal-safe system call between fork and exec; the descriptor is
        // open for as long as this node lives, and callers spawn while they hold it.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(namespace, libc::CLONE_NEWNET) == 0 {
                    Ok(())
                } else {
                    Err(io::Error::last_os_error())
                }
            });
        }
        command
    }

    /// Runs `work` on a thread that stands in this host, so that the sockets it makes are this host's.
    ///
    /// # Errors
    /// When the kernel refuses the move.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, rustix::io::Errno>(work())
            });
            match inside.join() {
                Ok(result) => result.map_err(|errno| LabError::Namespace {
                    what: "network",
                    source: errno.into(),
                }),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), LabError> {
        let mut command = self.command("ip");
        command.args(arguments);
        checked(command, || format!("ip {} in {}", arguments.join(" "), self.name))
    }
}

fn ip(arguments: &[&str]) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(arguments);
    checked(command, || format!("ip {}", arguments.join(" ")))
}

fn checked(mut command: Command, step: impl Fn() -> String) -> Result<(), LabError> {
    let output = command.output().map_err(|error| LabError::Wiring {
        step: step(),
        detail: format!("{error}: install the package iproute2"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Wiring {
        step: step(),
        detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn write_setting(path: &str, value: &str) -> Result<(), LabError> {
    fs::write(path, value).map_err(|error| LabError::Wiring {
        step: format!("writing {value} to {path}"),
        detail: error.to_string(),
    })
}

// A namespace lives as long as a descriptor of it; a thread makes it so that ours stays where it is.
fn new_network_namespace() -> Result<OwnedFd, LabError> {
    let made = thread::spawn(|| {
        unshare(libc::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    });
    let made = made
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
    made.map_err(|source| LabError::Namespace {
        what: "network",
        source,
    })
}

#[allow(unsafe_code)]
fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointer; the flags used here affect the calling thread (or process) only.
    if unsafe { libc::unshare(flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
