//! Counts what crosses the wire: a packet socket in the `wire` namespace sees every frame on every link.

use std::{
    io::Read,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::rig::in_namespace;

/// What every generator sends, so that cleartext is recognised wherever it hides.
pub(crate) const MARKER: &[u8] = b"PLAINTEXT-MARKER";
/// The port of the positive control: plaintext by policy, and so seen by every capture that works.
pub(crate) const CONTROL_PORT: u16 = 9_999;
const TUNNEL_PORT: u16 = 15_008;
const ETH_P_ALL: u16 = 3;
const KEPT: usize = 64;

/// What one capture saw. Each packet is seen twice or more, on the link it comes by and on the one it leaves by.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Tunnel packets: UDP port 15008.
    pub(crate) tunnel: u64,
    /// Packets of the positive control.
    pub(crate) control: u64,
    /// TCP resets that carry nothing, outside the tunnel and the control.
    pub(crate) resets: u64,
    /// Every other packet that is not of neighbour discovery.
    pub(crate) plaintext: u64,
    /// The first of them.
    pub(crate) examples: Vec<String>,
    /// A tunnel packet held the marker.
    pub(crate) marker_in_tunnel: bool,
    /// Frames that the socket lost: the capture is worth nothing when there are any.
    pub(crate) lost: u32,
}

impl Seen {
    /// The one claim of a leak test: the capture worked, saw the control and the tunnel, and nothing else.
    #[track_caller]
    pub(crate) fn assert_no_plaintext(&self) {
        self.assert_no_plaintext_but_resets();
        assert_eq!(self.resets, 0, "resets outside the tunnel");
    }

    /// The same where plaintext connections end: their resets may be seen.
    #[track_caller]
    pub(crate) fn assert_no_plaintext_but_resets(&self) {
        assert_eq!(self.lost, 0, "the capture lost frames");
        assert!(
            self.control > 0,
            "the positive control was not seen: {self:?}"
        );
        assert!(self.tunnel > 0, "no tunnel packet was seen: {self:?}");
        assert!(!self.marker_in_tunnel, "a tunnel packet shows the marker");
        assert_eq!(self.plaintext, 0, "{:#?}", self.examples);
    }
}

/// A running capture.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Capture {
    /// Starts; frames from here on are counted.
    pub(crate) fn start() -> Self {
        let socket = in_namespace("wire", || {
            let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
            socket.set_recv_buffer_size(64 << 20).unwrap();
            force_buffer(&socket, 256 << 20);
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            socket
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || count(socket, &stopped));
        Self { stop, thread }
    }

    /// Ends once what is queued was counted.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn count(mut socket: Socket, stopped: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut frame = vec![0; 1 << 17];
    let mut last = false;
    loop {
        match socket.read(&mut frame) {
            Ok(len) => seen.take(&frame[..len]),
            Err(_) if last => break,
            Err(_) => {}
        }
        // there may never be a pause in what comes: no more is taken in, and what was is counted
        if !last && stopped.load(Ordering::Relaxed) {
            take_in_nothing(&socket);
            last = true;
        }
    }
    seen.lost = lost(&socket);
    seen
}

/// What a frame is for the count.
enum Kind {
    Neighbour,
    Tunnel,
    Control,
    Reset,
    Plaintext(String),
}

impl Seen {
    fn take(&mut self, frame: &[u8]) {
        // Packets of a TUN have no Ethernet header, and what begins like an IP packet is no address that the kernel gives
        // to a link. They pass by the links as well, and are counted there.
        if matches!(frame[0], 0x45 | 0x60) {
            return;
        }
        match classify(frame) {
            Kind::Neighbour => {}
            Kind::Tunnel => {
                self.tunnel += 1;
                self.marker_in_tunnel |= frame.windows(MARKER.len()).any(|window| window == MARKER);
            }
            Kind::Control => self.control += 1,
            Kind::Reset => self.resets += 1,
            Kind::Plaintext(text) => {
                self.plaintext += 1;
                if self.examples.len() < KEPT {
                    self.examples.push(text);
                }
            }
        }
    }
}

fn classify(frame: &[u8]) -> Kind {
    let (ethertype, packet) = (u16::from_be_bytes([frame[12], frame[13]]), &frame[14..]);
    match ethertype {
        0x0806 => Kind::Neighbour,
        0x0800 => {
            let len = usize::from(packet[0] & 15) * 4;
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            transport(packet[9], &packet[len..total], fragment, packet)
        }
        0x86dd => {
            let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            transport(packet[6], &packet[40..total], false, packet)
        }
        other => Kind::Plaintext(format!("ethertype {other:#x}")),
    }
}

fn transport(protocol: u8, bytes: &[u8], fragment: bool, packet: &[u8]) -> Kind {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let text = || {
        Kind::Plaintext(format!(
            "protocol {protocol}, fragment {fragment}: {:02x?}",
            &packet[..packet.len().min(64)]
        ))
    };
    match protocol {
        // Echo and errors are counted; router and neighbour discovery and MLD are not anybody's data.
        58 if matches!(bytes[0], 130..=137 | 143) => Kind::Neighbour,
        0 if bytes[0] == 58 => Kind::Neighbour, // MLD comes with a hop-by-hop header
        // An error of the wire about a tunnel packet quotes ciphertext.
        1 if matches!(bytes[0], 3 | 11) && quotes_tunnel(&bytes[8..], 9, 20) => Kind::Tunnel,
        58 if matches!(bytes[0], 1..=4) && quotes_tunnel(&bytes[8..], 6, 40) => Kind::Tunnel,
        17 if fragment => text(),
        17 if port(0) == TUNNEL_PORT || port(2) == TUNNEL_PORT => Kind::Tunnel,
        6 | 17 if port(0) == CONTROL_PORT || port(2) == CONTROL_PORT => Kind::Control,
        6 if !fragment && is_bare_reset(bytes) => Kind::Reset,
        _ => text(),
    }
}

fn is_bare_reset(segment: &[u8]) -> bool {
    segment[13] & 4 != 0 && usize::from(segment[12] >> 4) * 4 == segment.len()
}

fn quotes_tunnel(quoted: &[u8], protocol_at: usize, header: usize) -> bool {
    let port = |at: usize| u16::from_be_bytes([quoted[header + at], quoted[header + at + 1]]);
    quoted.len() >= header + 4
        && quoted[protocol_at] == 17
        && (port(0) == TUNNEL_PORT || port(2) == TUNNEL_PORT)
}

/// Gives a socket a receive buffer beyond the host's limit.
#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
pub(crate) fn force_buffer(socket: &impl AsRawFd, bytes: i32) {
    let (value, len) = (
        std::ptr::from_ref(&bytes).cast(),
        size_of::<i32>() as libc::socklen_t,
    );
    // SAFETY: the pointer and length are those of a live i32; failure (no right) leaves the smaller buffer.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            value,
            len,
        )
    };
}

/// Binds the socket to a protocol that nobody speaks.
#[expect(
    unsafe_code,
    reason = "addresses of packet sockets have no safe wrapper"
)]
fn take_in_nothing(socket: &Socket) {
    const EXPERIMENTAL: u16 = 0x88b5;
    let nobody = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: EXPERIMENTAL.to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the pointer and length are those of a live sockaddr_ll.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const nobody).cast(), len) };
    assert_eq!(result, 0, "the capture's socket can be bound");
}

#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
fn lost(socket: &Socket) -> u32 {
    let mut statistics = [0u32; 2]; // struct tpacket_stats: packets, drops
    let mut len = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the pointer and length are those of a live array, as PACKET_STATISTICS wants it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "the capture's statistics can be read");
    statistics[1]
}
