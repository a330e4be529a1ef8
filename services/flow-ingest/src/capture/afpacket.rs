//! Live capture on Linux: AF_PACKET sockets with a TPACKET_V3 ring that the kernel and this process share
//! (packet(7), Documentation/networking/packet_mmap.rst).
//!
//! All `unsafe` code of this crate is here. A ring owns its socket and its mapping; blocks borrow the ring and are
//! given back to the kernel when they are dropped, so a packet cannot outlive the memory it lies in.

#![allow(unsafe_code)] // the kernel's interface is raw sockets and shared memory

use std::{
    ffi::CString,
    io,
    mem::{offset_of, size_of},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::CaptureError;
use crate::domain::packet::{LinkType, Packet};

/// How a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Also take frames that are not for this host.
    pub promiscuous: bool,
    /// Leave out frames that leave through the interface.
    pub ingress_only: bool,
    /// Octets of each frame that are kept.
    pub snaplen: u32,
    /// Memory of the ring, octets; rounded to whole blocks.
    pub bytes: usize,
    /// How long the kernel keeps a block that is not full, milliseconds.
    pub retire_ms: u32,
}

const BLOCK: usize = 1 << 17;
const FRAME: usize = 1 << 11;

/// A capture ring on one interface.
pub struct Ring {
    socket: OwnedFd,
    map: NonNull<u8>,
    len: usize,
    blocks: usize,
    next: usize,
    link: LinkType,
    index: u32,
    interface: String,
    filter_outgoing: bool,
}

// SAFETY: the mapping belongs to the ring alone and is reached only through `&mut self`, so it may move to another
// thread with it.
unsafe impl Send for Ring {}

/// A block of captured frames. Dropping it gives the memory back to the kernel.
pub struct Block<'a> {
    base: NonNull<u8>,
    offset: usize,
    left: u32,
    link: LinkType,
    filter_outgoing: bool,
    status: &'a AtomicU32,
}

/// What the kernel counted since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    /// Frames dropped because the ring was full.
    pub dropped: u64,
}

/// The number of an interface. `None` when there is none with this name.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the argument is a string that ends with NUL and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

impl Ring {
    /// Opens a ring on an interface.
    ///
    /// # Errors
    /// [`CaptureError`] names the interface and what the kernel refused.
    pub fn open(interface: &str, options: &RingOptions) -> Result<Self, CaptureError> {
        let fail = |operation| {
            let interface = interface.to_owned();
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => CaptureError::Forbidden { interface, source },
                Some(libc::ENODEV | libc::ENXIO) => CaptureError::NoInterface { interface },
                _ => CaptureError::Socket {
                    interface,
                    operation,
                    source,
                },
            }
        };
        let index = interface_index(interface).ok_or_else(|| CaptureError::NoInterface {
            interface: interface.to_owned(),
        })?;
        // Protocol 0: nothing arrives before the ring is there and the socket is bound.
        // SAFETY: a system call without pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(fail("opening a packet socket")(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let link = link_type(&socket, interface)?;
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set(&socket, libc::PACKET_VERSION, &version).map_err(fail("choosing TPACKET_V3"))?;
        let mut filter_outgoing = false;
        if options.ingress_only {
            // Linux 4.20 and later; before that the frames are left out here.
            let on: libc::c_int = 1;
            filter_outgoing = set(&socket, libc::PACKET_IGNORE_OUTGOING, &on).is_err();
        }
        cut_to(&socket, options.snaplen).map_err(fail("setting the snap length"))?;
        let blocks = options.bytes.div_ceil(BLOCK).clamp(2, 8192);
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (blocks * (BLOCK / FRAME)) as u32,
            tp_retire_blk_tov: options.retire_ms.max(1),
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&socket, libc::PACKET_RX_RING, &request).map_err(fail("making the capture ring"))?;
        let len = blocks * BLOCK;
        // SAFETY: a new shared mapping of the socket's ring, whose size the kernel just accepted, at an address of the
        // kernel's choice; no existing memory is touched.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(fail("mapping the capture ring")(io::Error::last_os_error()));
        }
        let Some(map) = NonNull::new(map.cast()) else {
            return Err(fail("mapping the capture ring")(io::Error::other("address 0")));
        };
        let ring = Self {
            socket,
            map,
            len,
            blocks,
            next: 0,
            link,
            index,
            interface: interface.to_owned(),
            filter_outgoing,
        };
        if options.promiscuous {
            let membership = libc::packet_mreq {
                mr_ifindex: index as libc::c_int,
                mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            set(&ring.socket, libc::PACKET_ADD_MEMBERSHIP, &membership).map_err(fail("promiscuous mode"))?;
        }
        ring.bind().map_err(fail("binding the packet socket"))?;
        Ok(ring)
    }

    fn bind(&self) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: self.index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a whole `sockaddr_ll`, its length is given, and it lives through the call.
        let result = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// How its frames begin.
    pub fn link(&self) -> LinkType {
        self.link
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The interface it was opened on is gone, or another one has its name now.
    pub fn is_orphaned(&self) -> bool {
        interface_index(&self.interface) != Some(self.index)
    }

    /// The next block the kernel has filled, if any.
    pub fn block(&mut self) -> Option<Block<'_>> {
        // SAFETY: `next` is below `blocks`, so the block lies within the mapping.
        let base = unsafe { self.map.add(self.next * BLOCK) };
        let at = offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, block_status);
        // SAFETY: the status is an aligned u32 inside the mapping that lives as long as `self`; both the kernel and this
        // process only ever access it as a whole.
        let status = unsafe { base.add(at).cast::<AtomicU32>().as_ref() };
        // Acquire: what the kernel wrote before it set the status is visible from here on.
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next = (self.next + 1) % self.blocks;
        // SAFETY: the kernel handed the block over and does not write to it until the status is reset; the descriptor is
        // at its beginning, which is page-aligned.
        let header = unsafe {
            let at = offset_of!(libc::tpacket_block_desc, hdr);
            base.add(at).cast::<libc::tpacket_hdr_v1>().read()
        };
        Some(Block {
            base,
            offset: header.offset_to_first_pkt as usize,
            left: header.num_pkts,
            link: self.link,
            filter_outgoing: self.filter_outgoing,
            status,
        })
    }

    /// What the kernel dropped since the last call.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn drops(&self) -> io::Result<Drops> {
        let mut stats = libc::tpacket_stats_v3 {
            tp_packets: 0,
            tp_drops: 0,
            tp_freeze_q_cnt: 0,
        };
        let mut len = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` octets into `stats`, which is that long.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        match result {
            0 => Ok(Drops {
                dropped: u64::from(stats.tp_drops),
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the error the kernel noted on the socket, such as that the interface went down.
    pub fn take_error(&self) -> Option<io::Error> {
        let mut error: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` octets into `error`, which is that long.
        unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut error).cast(),
                &raw mut len,
            );
        }
        (error != 0).then(|| io::Error::from_raw_os_error(error))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and no block borrows it any more.
        unsafe {
            libc::munmap(self.map.as_ptr().cast(), self.len);
        }
    }
}

impl Block<'_> {
    /// Every frame, handed over a few at a time.
    pub fn bursts(mut self, mut take: impl FnMut(&[Packet<'_>])) {
        loop {
            let mut burst = super::Burst::default();
            while !burst.is_full() {
                match self.read() {
                    Some((packet, outgoing)) if !(outgoing && self.filter_outgoing) => {
                        burst.push(packet);
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            if burst.packets().is_empty() {
                return;
            }
            take(burst.packets());
        }
    }

    // The packet's lifetime is chosen by `bursts`, whose callers cannot keep a packet beyond their call.
    fn read<'p>(&mut self) -> Option<(Packet<'p>, bool)> {
        if self.left == 0 || self.offset + size_of::<libc::tpacket3_hdr>() > BLOCK {
            return None;
        }
        // SAFETY: the header lies within the block (checked above) that the kernel handed over; it is read unaligned
        // because nothing here depends on its alignment.
        let header = unsafe { self.base.add(self.offset).cast::<libc::tpacket3_hdr>().read_unaligned() };
        let start = self.offset + usize::from(header.tp_mac);
        let len = header.tp_snaplen as usize;
        if start + len > BLOCK {
            return None;
        }
        // SAFETY: the frame lies within the block (checked above), which the kernel does not write to until the block is
        // dropped; `bursts` lets the packet go before that.
        let data = unsafe { std::slice::from_raw_parts(self.base.add(start).as_ptr(), len) };
        let address =
            self.offset + libc::TPACKET_ALIGNMENT * size_of::<libc::tpacket3_hdr>().div_ceil(libc::TPACKET_ALIGNMENT);
        let kind = address + offset_of!(libc::sockaddr_ll, sll_pkttype);
        // SAFETY: as above; the sender's address follows the header within the block.
        let outgoing = kind < BLOCK && unsafe { self.base.add(kind).read() } == libc::PACKET_OUTGOING;
        let tagged = header.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
        let packet = Packet {
            time: i64::from(header.tp_sec) * 1_000_000_000 + i64::from(header.tp_nsec),
            link: self.link,
            data,
            wire_len: header.tp_len.max(header.tp_snaplen),
            vlan_tci: tagged.then_some(header.hv1.tp_vlan_tci as u16),
        };
        self.left -= 1;
        match header.tp_next_offset {
            0 => self.left = 0,
            step => self.offset += step as usize,
        }
        Some((packet, outgoing))
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        // Release: every read of the block happens before the kernel sees that it may write again.
        self.status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// Waits until a ring has a block or `timeout` is over.
pub fn wait(rings: &[Ring], timeout: Duration) {
    let mut polls: Vec<libc::pollfd> = rings
        .iter()
        .map(|ring| libc::pollfd {
            fd: ring.socket.as_raw_fd(),
            events: libc::POLLIN | libc::POLLERR,
            revents: 0,
        })
        .collect();
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: the array is as long as said and the timeout lives through the call; the signal mask is left alone.
    unsafe {
        libc::ppoll(
            polls.as_mut_ptr(),
            polls.len() as libc::nfds_t,
            &raw const timeout,
            std::ptr::null(),
        );
    }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    set_level(socket, libc::SOL_PACKET, option, value)
}

fn set_level<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
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

// A filter of one instruction, "return snaplen", cuts every frame in the kernel.
fn cut_to(socket: &OwnedFd, snaplen: u32) -> io::Result<()> {
    let mut filter = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: snaplen.max(64),
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut filter,
    };
    set_level(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

// linux/if_arp.h.
const ARPHRD_RAWIP: u16 = 519;

fn link_type(socket: &OwnedFd, interface: &str) -> Result<LinkType, CaptureError> {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, octet) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *place = octet as libc::c_char;
    }
    // SAFETY: the request is a whole `ifreq` with a name that ends with NUL; the kernel fills in the address.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) };
    if result != 0 {
        return Err(CaptureError::NoInterface {
            interface: interface.to_owned(),
        });
    }
    // SAFETY: SIOCGIFHWADDR fills in this member of the union.
    let hardware = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(LinkType::Ethernet),
        // Tunnels whose frames begin with IP.
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_PPP
        | ARPHRD_RAWIP => Ok(LinkType::Raw),
        _ => Err(CaptureError::Hardware {
            interface: interface.to_owned(),
            hardware,
        }),
    }
}
