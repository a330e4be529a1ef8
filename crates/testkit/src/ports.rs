use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Below the ports that kernels lend to outgoing connections (`net.ipv4.ip_local_port_range` begins at 32768), or a
/// connection that somebody makes meanwhile could take the port before its server does.
const RANGE: std::ops::Range<u32> = 12_000..32_000;

/// A TCP port on 127.0.0.1 that nobody listened on a moment ago. No two calls of one process give the same one until
/// all have been given; processes begin at different places.
///
/// # Errors
/// When no port of the range is free, or the loopback interface is down.
pub fn free_port() -> std::io::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(u32::MAX);
    let size = RANGE.end - RANGE.start;
    // Whoever loses this race uses the winner's beginning.
    let _ = NEXT.compare_exchange(u32::MAX, beginning() % size, Ordering::Relaxed, Ordering::Relaxed);
    let mut refused = std::io::Error::other("no port was tried");
    for _ in 0..size {
        let next = NEXT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some((next + 1) % size))
            .unwrap_or_default();
        let port = (RANGE.start + next) as u16;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn beginning() -> u32 {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    nanos ^ std::process::id().wrapping_mul(2_654_435_761)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_can_be_listened_on() {
        let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        for port in ports {
            assert!(RANGE.contains(&u32::from(port)));
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}
