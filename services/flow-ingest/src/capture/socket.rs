//! Options of packet sockets (packet(7)).

#![allow(unsafe_code)] // the kernel's interface is raw sockets

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, OwnedFd},
};

use super::{
    CaptureError,
    filter::{Instruction, choose},
};

/// Why a socket is refused to a sensor.
pub(super) fn refusal(sensor: &str, operation: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    let sensor = sensor.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CaptureError::Forbidden { sensor, source },
        _ => CaptureError::Socket {
            sensor,
            operation,
            source,
        },
    }
}

/// Sets an option of a packet socket.
pub(super) fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    set_level(socket, libc::SOL_PACKET, option, value)
}

/// Sets an option of a socket.
pub(super) fn set_level<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is as long as said and lives through the call; every caller passes the type the option takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads an option whose value is a plain number or a plain struct of numbers, which any octets are.
pub(super) fn get<T: Copy>(socket: &OwnedFd, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets into the value, which is that long; every caller passes the type the
    // option gives, of which every pattern of octets is valid.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel keep only what a program chooses. Without any instruction all is refused.
pub(super) fn accept(socket: &OwnedFd, steps: &[Instruction]) -> io::Result<()> {
    let steps = if steps.is_empty() {
        choose(&[], 0)
    } else {
        steps.to_vec()
    };
    let mut filter: Vec<_> = steps
        .iter()
        .map(|step| libc::sock_filter {
            code: step.code,
            jt: step.jt,
            jf: step.jf,
            k: step.k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
    };
    set_level(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}
