//! Network interfaces that can be captured on (netdevice(7)).

#![allow(unsafe_code)] // the kernel's interface is raw sockets

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::{CaptureError, socket::refusal};
use crate::domain::packet::LinkType;

/// The number of an interface. `None` when there is none with this name.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the argument is a string that ends with NUL and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

// linux/if_arp.h.
const ARPHRD_RAWIP: u16 = 519;

/// How the frames of a kind of hardware begin; `None` for one that this meter does not read.
pub(super) fn link_type(hardware: u16) -> Option<LinkType> {
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(LinkType::Ethernet),
        // Tunnels whose frames begin with IP.
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_PPP
        | ARPHRD_RAWIP => Some(LinkType::Raw),
        _ => None,
    }
}

/// An interface that can be captured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// How its frames begin.
    pub link: LinkType,
}

impl Interface {
    /// Looks an interface up.
    ///
    /// # Errors
    /// [`CaptureError`] when there is none with this name, or its frames cannot be read.
    pub fn find(name: &str) -> Result<Self, CaptureError> {
        let missing = || CaptureError::NoInterface {
            interface: name.to_owned(),
        };
        let index = interface_index(name).ok_or_else(missing)?;
        // SAFETY: a system call without pointers.
        let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(refusal(name, "opening a socket")(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeros is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, octet) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *place = octet as libc::c_char;
        }
        // SAFETY: the request is a whole `ifreq` with a name that ends with NUL; the kernel fills in the address.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) };
        if result != 0 {
            return Err(missing());
        }
        // SAFETY: SIOCGIFHWADDR fills in this member of the union.
        let hardware = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
        match link_type(hardware) {
            Some(link) => Ok(Self { index, link }),
            None => Err(CaptureError::Hardware {
                interface: name.to_owned(),
                hardware,
            }),
        }
    }
}
