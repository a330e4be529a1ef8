use std::net::{Ipv4Addr, TcpListener};

/// A TCP port on 127.0.0.1 that nobody listened on a moment ago.
///
/// The kernel hands out ephemeral ports in turn, so that two callers do not get the same one; a stranger may
/// still take it before it is used, which shows as a clear "address in use" from whoever binds it.
///
/// # Errors
/// When the loopback interface has no free port left, or is down.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
