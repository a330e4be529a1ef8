//! Live capture on Linux: AF_PACKET sockets with a TPACKET_V3 ring that the kernel and this process share
//! (packet(7), Documentation/networking/packet_mmap.rst).
//!
//! A ring owns its socket and its mapping; blocks borrow the ring and are given back to the kernel when they are
//! dropped, so a packet cannot outlive the memory it lies in.

#![allow(unsafe_code)] // the kernel's interface is raw sockets and shared memory

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    CaptureError,
    filter::{MOST, Program, choose},
    interface::link_type,
    socket::{accept, get, refusal, set},
};
use crate::domain::packet::{LinkType, Packet};

pub use super::interface::{Interface, interface_index};

const MAX_INTERFACES: usize = 250;

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

/// What is set on a ring's socket, and asked of it, while a worker has the ring.
#[derive(Clone)]
pub struct Control {
    socket: Arc<OwnedFd>,
    snaplen: u32,
}

/// A capture ring. One ring serves all interfaces of a sensor, because that keeps their packets in the order in which
/// they came: with a ring for each, an answer could be read before its question.
pub struct Ring {
    socket: Arc<OwnedFd>,
    map: NonNull<u8>,
    len: usize,
    blocks: usize,
    next: usize,
    snaplen: u32,
    filter_outgoing: bool,
}

// How several sockets share the frames: by a hash that is the same for both directions, so that each flow has one ring. A
// part of a datagram has no ports to hash, so the kernel puts datagrams of IPv4 together before (Linux 3.1).
const FANOUT: libc::c_int = ((libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_DEFRAG) << 16) as libc::c_int;
// linux/if_packet.h: the kernel chooses a number that no other group of the network namespace has.
const FANOUT_UNIQUE: libc::c_int = 0x2000 << 16;
// A group leaves out what leaves by a flag of its own, whatever its sockets were told.
const FANOUT_INGRESS: libc::c_int = 0x4000 << 16;

// SAFETY: the mapping belongs to the ring alone and is reached only through `&mut self`, so it may move to another
// thread with it.
unsafe impl Send for Ring {}

/// A block of captured frames. Dropping it gives the memory back to the kernel.
pub struct Block<'a> {
    base: NonNull<u8>,
    offset: usize,
    left: u32,
    filter_outgoing: bool,
    status: &'a AtomicU32,
}

/// What the kernel counted since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    /// Frames that passed the filter, those that were dropped included.
    pub offered: u64,
    /// Frames dropped because the ring was full.
    pub dropped: u64,
}

impl Ring {
    /// Opens a ring that takes from no interface yet. `sensor` is what errors call it.
    ///
    /// # Errors
    /// [`CaptureError`] says what the kernel refused.
    pub fn open(sensor: &str, options: &RingOptions) -> Result<Self, CaptureError> {
        let fail = |operation| refusal(sensor, operation);
        // Protocol 0: nothing arrives before the ring is there and the socket is bound.
        // SAFETY: a system call without pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(fail("opening a packet socket")(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set(&socket, libc::PACKET_VERSION, &version).map_err(fail("choosing TPACKET_V3"))?;
        let mut filter_outgoing = false;
        if options.ingress_only {
            // Linux 4.20 and later; before that the frames are left out here.
            let on: libc::c_int = 1;
            filter_outgoing = set(&socket, libc::PACKET_IGNORE_OUTGOING, &on).is_err();
        }
        accept(&socket, &[]).map_err(fail("setting a filter"))?;
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
            socket: Arc::new(socket),
            map,
            len,
            blocks,
            next: 0,
            snaplen: options.snaplen,
            filter_outgoing,
        };
        ring.bind().map_err(fail("binding the packet socket"))?;
        Ok(ring)
    }

    /// Opens several rings among which the kernel shares out the frames, flow by flow. They take from no interface yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_several(sensor: &str, options: &RingOptions, count: usize) -> Result<Vec<Self>, CaptureError> {
        let mut rings: Vec<Self> = (0..count.max(1))
            .map(|_| Self::open(sensor, options))
            .collect::<Result<_, _>>()?;
        if let [first, others @ ..] = rings.as_mut_slice()
            && !others.is_empty()
        {
            let fail = |operation| refusal(sensor, operation);
            let mode = match options.ingress_only {
                true => FANOUT | FANOUT_INGRESS,
                false => FANOUT,
            };
            let group = first.found_group(mode).map_err(fail("founding a fan-out group"))?;
            for other in others {
                set(&other.socket, libc::PACKET_FANOUT, &(mode | group)).map_err(fail("joining a fan-out group"))?;
            }
            // Kernels before 5.10 do not know that flag and say nothing.
            for ring in &mut rings {
                ring.filter_outgoing |= options.ingress_only;
            }
        }
        Ok(rings)
    }

    // Makes a group of this ring's socket, and gives its number.
    fn found_group(&self, mode: libc::c_int) -> io::Result<libc::c_int> {
        set(&self.socket, libc::PACKET_FANOUT, &(mode | FANOUT_UNIQUE))?;
        let mut group: libc::c_int = 0;
        get(&self.socket, libc::PACKET_FANOUT, &mut group)?;
        Ok(group & 0xffff)
    }

    /// What is set and asked while a worker has the ring.
    pub fn control(&self) -> Control {
        Control {
            socket: Arc::clone(&self.socket),
            snaplen: self.snaplen,
        }
    }

    fn bind(&self) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            // All interfaces; the filter chooses.
            sll_ifindex: 0,
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
            filter_outgoing: self.filter_outgoing,
            status,
        })
    }
}

impl Control {
    /// Takes from these interfaces, by their numbers, and from no other; of each what its program wants, or everything.
    ///
    /// # Errors
    /// When the kernel refuses the filter, beyond 250 interfaces, or where all programs together are longer than the kernel
    /// takes.
    pub fn listen_on(&self, interfaces: &[(u32, Option<&Program>)]) -> io::Result<()> {
        if interfaces.len() > MAX_INTERFACES {
            return Err(io::Error::other("a sensor takes at most 250 interfaces"));
        }
        let steps = choose(interfaces, self.snaplen);
        if steps.len() > MOST {
            return Err(io::Error::other(format!(
                "the filters of all interfaces together have {} instructions; the kernel takes {MOST}",
                steps.len()
            )));
        }
        accept(&self.socket, &steps)
    }

    /// Also takes frames that are not for this host, while the interface lasts.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn promiscuous(&self, index: u32) -> io::Result<()> {
        let membership = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(&self.socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    /// What the kernel counted since the last call.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn drops(&self) -> io::Result<Drops> {
        let mut stats = libc::tpacket_stats_v3 {
            tp_packets: 0,
            tp_drops: 0,
            tp_freeze_q_cnt: 0,
        };
        get(&self.socket, libc::PACKET_STATISTICS, &mut stats)?;
        Ok(Drops {
            offered: u64::from(stats.tp_packets),
            dropped: u64::from(stats.tp_drops),
        })
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
        let address = self.offset + size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
        if address + size_of::<libc::sockaddr_ll>() > BLOCK {
            return None;
        }
        // SAFETY: the kernel puts the sender's address behind the header; it lies within the block (checked above) and is
        // read unaligned.
        let address = unsafe { self.base.add(address).cast::<libc::sockaddr_ll>().read_unaligned() };
        let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
        let tagged = header.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
        let packet = Packet {
            time: i64::from(header.tp_sec) * 1_000_000_000 + i64::from(header.tp_nsec),
            // Interfaces of other kinds were not listened on.
            link: link_type(address.sll_hatype).unwrap_or(LinkType::Raw),
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

/// Waits until the ring has a block or `timeout` is over.
pub fn wait(ring: &Ring, timeout: Duration) {
    wait_for(ring.socket.as_fd(), timeout);
}

/// Waits until a socket has something to read or `timeout` is over.
pub fn wait_for(socket: BorrowedFd<'_>, timeout: Duration) {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN | libc::POLLERR,
        revents: 0,
    };
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: one descriptor is given and both arguments live through the call; the signal mask is left alone.
    unsafe {
        libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null());
    }
}
