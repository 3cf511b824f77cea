//! The UDP socket that carries the tunnels: one for IPv4 and IPv6, with GSO, GRO, ECN, packet info and the bypass mark.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use quinn_udp::{EcnCodepoint, UdpSockRef, UdpSocketState};
use rustix::{io::Errno, net::sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    io::{
        counts::{Counters, count},
        receive::ReceivePool,
        reuseport,
    },
    tunnel::{Transmit, UnderlayDatagram},
};

/// The largest UDP payload over IPv4, and so of one GSO batch (RFC 768, RFC 791).
const MAX_PAYLOAD: usize = 65_507;
/// How many segments the kernel takes in one batch (`UDP_MAX_SEGMENTS` of older kernels).
const MAX_SEGMENTS: usize = 64;
/// How long batches are not tried after the kernel refused one.
const GSO_PAUSE: Duration = Duration::from_secs(1);

/// How to open an [`Underlay`].
#[derive(Clone, Debug)]
pub struct UnderlaySettings {
    /// Where to listen. `[::]:15008` takes IPv4 too, and falls back to `0.0.0.0` on a host without IPv6.
    pub listen: SocketAddr,
    /// `SO_MARK` of every packet sent, by which the steering rules let it pass; 0 for none.
    pub mark: u32,
    /// Bytes of the kernel's send buffer.
    pub send_buffer: usize,
    /// Bytes of the kernel's receive buffer.
    pub receive_buffer: usize,
}

/// The UDP socket with GSO, GRO, ECN and the bypass mark; non-blocking.
#[derive(Debug)]
pub struct Underlay {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The socket's family is IPv6, and IPv4 addresses are written as `::ffff:a.b.c.d`.
    ipv6: bool,
    gso_paused_until: Option<Instant>,
    /// That the kernel refused a batch was logged.
    told_refusal: bool,
}

/// Why an [`Underlay`] could not be opened.
#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error("udp address {0} is already in use by another program")]
    InUse(SocketAddr),
    #[error("cannot listen on udp address {0}")]
    Bind(SocketAddr, #[source] io::Error),
    #[error("cannot set mark {0:#x} on the udp socket (needs CAP_NET_ADMIN)")]
    Mark(u32, #[source] io::Error),
    #[error("cannot configure the udp socket on {0}")]
    Configure(SocketAddr, #[source] io::Error),
}

impl BindError {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::InUse(_) => io::ErrorKind::AddrInUse,
            Self::Bind(_, error) | Self::Mark(_, error) | Self::Configure(_, error) => error.kind(),
        }
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::new(error.kind(), error)
    }
}

impl Underlay {
    /// Opens one socket for each of `shards` on one port; the kernel gives each the datagrams of its sessions.
    ///
    /// The first is bound alone, so that a port that another program has is found taken, and shared then. One shard has a
    /// socket like any other.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_group(settings: &UnderlaySettings, shards: u8) -> io::Result<Vec<Self>> {
        let first = Self::bind(settings)?;
        if shards <= 1 {
            return Ok(vec![first]);
        }
        let listen = first.socket.local_addr()?;
        let configure = |error| BindError::Configure(listen, error);
        SockRef::from(&first.socket)
            .set_reuse_port(true)
            .map_err(configure)?;
        let mut group = vec![first];
        for _ in 1..shards {
            group.push(Self::bind_to(listen, settings, true)?);
        }
        if let Some(socket) = group.first() {
            reuseport::attach(socket, shards).map_err(configure)?;
        }
        Ok(group)
    }

    /// Takes over the sockets that a predecessor held for as many shards, with the datagrams that wait in them.
    ///
    /// # Errors
    /// When they are not bound to where this is to listen, or cannot be configured.
    pub fn adopt_group(
        settings: &UnderlaySettings,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Vec<Self>> {
        let adopt = |socket: OwnedFd| {
            let socket = Socket::from(socket);
            let bound = socket.local_addr()?.as_socket();
            let wanted = settings.listen;
            let anywhere = |address: SocketAddr| address.ip().to_canonical().is_unspecified();
            let same = bound.is_some_and(|bound| {
                bound.port() == wanted.port()
                    && (bound.ip() == wanted.ip() || anywhere(bound) && anywhere(wanted))
            });
            if !same || socket.r#type()? != Type::DGRAM {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            if settings.mark != 0 {
                socket.set_mark(settings.mark)?;
            }
            set_buffers(&socket, settings)?;
            Self::of(socket, wanted).map_err(io::Error::from)
        };
        sockets.into_iter().map(adopt).collect()
    }

    /// Opens the socket. Nothing leaves it before it has its mark.
    ///
    /// # Errors
    /// Named, with address and port: taken by another program, not an address of this host, a mark that the process
    /// may not set.
    pub fn bind(settings: &UnderlaySettings) -> io::Result<Self> {
        match Self::bind_to(settings.listen, settings, false) {
            Err(BindError::Bind(listen, error))
                if listen.ip().to_canonical().is_unspecified()
                    && listen.is_ipv6()
                    && is_no_ipv6(&error) =>
            {
                Ok(Self::bind_to(
                    (Ipv4Addr::UNSPECIFIED, listen.port()).into(),
                    settings,
                    false,
                )?)
            }
            other => Ok(other?),
        }
    }

    fn bind_to(
        listen: SocketAddr,
        settings: &UnderlaySettings,
        shares: bool,
    ) -> Result<Self, BindError> {
        let bind = |error| BindError::Bind(listen, error);
        let configure = |error| BindError::Configure(listen, error);
        let ipv6 = listen.is_ipv6();
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(bind)?;
        if ipv6 {
            socket.set_only_v6(false).map_err(configure)?;
        }
        if settings.mark != 0 {
            socket
                .set_mark(settings.mark)
                .map_err(|error| BindError::Mark(settings.mark, error))?;
        }
        if shares {
            socket.set_reuse_port(true).map_err(configure)?;
        }
        set_buffers(&socket, settings).map_err(configure)?;
        socket.bind(&listen.into()).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                BindError::InUse(listen)
            } else {
                bind(error)
            }
        })?;
        Self::of(socket, listen)
    }

    fn of(socket: Socket, listen: SocketAddr) -> Result<Self, BindError> {
        let configure = |error| BindError::Configure(listen, error);
        let local = socket.local_addr().map_err(configure)?;
        let ipv6 = local.is_ipv6();
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(configure)?;
        if state.gro_segments() <= 1 {
            tracing::info!(
                "this kernel does not join received datagrams (UDP GRO); they are read one by one, which costs more CPU"
            );
        }
        Ok(Self {
            socket,
            state,
            ipv6,
            gso_paused_until: None,
            told_refusal: false,
        })
    }

    /// The address the socket is bound to; an IPv4-mapped one is given as IPv4.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr().map(canonical)
    }

    /// Receives one batch and passes each datagram on, in order of arrival. Returns how many there were; none when
    /// nothing is ready.
    ///
    /// # Errors
    /// Those of `recvmmsg`, but for `WouldBlock`.
    pub fn receive(
        &self,
        pool: &mut ReceivePool,
        mut take: impl FnMut(UnderlayDatagram),
    ) -> io::Result<usize> {
        let received = pool.fill(|slices, metas| {
            self.state
                .recv(UdpSockRef::from(&self.socket), slices, metas)
        });
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        }
        let mut datagrams = 0;
        pool.drain(|meta, data| {
            datagrams += 1;
            take(UnderlayDatagram {
                remote: canonical(meta.addr),
                local: meta.dst_ip.map(|ip| ip.to_canonical()),
                ecn: meta.ecn.map_or(0, |ecn| ecn as u8),
                data,
            });
        });
        Ok(datagrams)
    }

    /// How many segments of `segment` bytes one batch may have.
    pub(super) fn max_segments(&mut self, segment: usize, now: Instant) -> usize {
        if let Some(until) = self.gso_paused_until {
            if now < until {
                return 1;
            }
            self.gso_paused_until = None;
            // One refusal turns GSO off for the state's life, so trying again takes another state.
            if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket)) {
                self.state = state;
            }
        }
        let fitting = MAX_PAYLOAD / segment.max(1);
        self.state
            .max_gso_segments()
            .min(MAX_SEGMENTS)
            .min(fitting)
            .max(1)
    }

    /// Sends a batch: `contents` is cut into datagrams of `transmit.segment_size`.
    ///
    /// A batch that the kernel will not segment is sent datagram by datagram. What it refuses otherwise is lost, as
    /// on any network; a datagram larger than the interface's MTU is a probe of the path MTU.
    ///
    /// # Errors
    /// The offset of the first byte that waits for the socket to become writable.
    pub(super) fn send(
        &mut self,
        transmit: &Transmit,
        contents: &[u8],
        now: Instant,
        counters: &Counters,
    ) -> Result<(), usize> {
        let segment = transmit.segment_size.unwrap_or(contents.len()).max(1);
        let mut offset = 0;
        while let Some(rest) = contents.get(offset..).filter(|rest| !rest.is_empty()) {
            let length = rest.len().min(segment * self.max_segments(segment, now));
            let (batch, _) = rest.split_at(length);
            match self.send_batch(transmit, segment, batch) {
                Ok(()) => offset += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(offset),
                Err(error) if length > segment && is_gso_refusal(&error) => {
                    count(&counters.gso_refused);
                    self.pause_gso(&error, now);
                }
                Err(error) => {
                    if Errno::from_io_error(&error) != Some(Errno::MSGSIZE) {
                        count(&counters.send_failed);
                    }
                    offset += length;
                }
            }
        }
        Ok(())
    }

    fn pause_gso(&mut self, error: &io::Error, now: Instant) {
        self.gso_paused_until = Some(now + GSO_PAUSE);
        if !mem::replace(&mut self.told_refusal, true) {
            tracing::warn!(
                error = %error,
                "the kernel refused to segment a batch of tunnel datagrams (UDP GSO); while it does, they are sent one by \
                 one, which costs more CPU"
            );
        }
    }

    fn send_batch(&self, transmit: &Transmit, segment: usize, contents: &[u8]) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: if self.ipv6 {
                mapped(transmit.remote)
            } else {
                transmit.remote
            },
            ecn: EcnCodepoint::from_bits(transmit.ecn),
            contents,
            segment_size: (segment < contents.len()).then_some(segment),
            src_ip: transmit.local,
        };
        self.state
            .try_send(UdpSockRef::from(&self.socket), &transmit)
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for large buffers: beyond the system's limit where the process may, else up to it.
fn set_buffers(socket: &Socket, settings: &UnderlaySettings) -> io::Result<()> {
    if sockopt::set_socket_send_buffer_size_force(socket, settings.send_buffer).is_err() {
        socket.set_send_buffer_size(settings.send_buffer)?;
    }
    if sockopt::set_socket_recv_buffer_size_force(socket, settings.receive_buffer).is_err() {
        socket.set_recv_buffer_size(settings.receive_buffer)?;
    }
    Ok(())
}

fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

/// EINVAL and EIO are what the kernel and drivers say to a batch that they cannot segment.
fn is_gso_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::IO))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use bytes::BytesMut;
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    fn settings(listen: impl Into<SocketAddr>) -> UnderlaySettings {
        UnderlaySettings {
            listen: listen.into(),
            mark: 0,
            send_buffer: 4 << 20,
            receive_buffer: 4 << 20,
        }
    }

    fn bind(ip: impl Into<IpAddr>) -> Underlay {
        Underlay::bind(&settings(SocketAddr::new(ip.into(), 0))).unwrap()
    }

    /// Waits until `wanted` bytes have come.
    fn receive(underlay: &Underlay, wanted: usize) -> Vec<UnderlayDatagram> {
        let mut pool = ReceivePool::default();
        let mut datagrams: Vec<UnderlayDatagram> = Vec::new();
        while datagrams
            .iter()
            .map(|datagram| datagram.data.len())
            .sum::<usize>()
            < wanted
        {
            let ready = poll(&mut [PollFd::new(&underlay.socket, PollFlags::IN)], None).unwrap();
            assert_eq!(ready, 1);
            underlay
                .receive(&mut pool, |datagram| datagrams.push(datagram))
                .unwrap();
        }
        datagrams
    }

    fn batch(segment: usize, count: usize, last: usize) -> Vec<u8> {
        (0..segment * (count - 1) + last)
            .map(|at| (at / segment) as u8)
            .collect()
    }

    fn transmit(remote: SocketAddr, contents: &[u8], segment: usize) -> Transmit {
        Transmit {
            remote,
            local: None,
            ecn: 0,
            size: contents.len(),
            segment_size: Some(segment),
        }
    }

    /// Sends one batch and checks that it arrives as the datagrams it was made of, from where it was sent.
    fn exchange(
        from: &mut Underlay,
        to: &Underlay,
        remote: SocketAddr,
        contents: &[u8],
        segment: usize,
    ) {
        let counters = Counters::default();
        from.send(
            &transmit(remote, contents, segment),
            contents,
            now(),
            &counters,
        )
        .unwrap();
        let datagrams = receive(to, contents.len());
        let expected: Vec<_> = contents.chunks(segment).map(BytesMut::from).collect();
        assert_eq!(
            datagrams
                .iter()
                .map(|datagram| datagram.data.clone())
                .collect::<Vec<_>>(),
            expected
        );
        for datagram in &datagrams {
            assert_eq!(
                datagram.remote,
                SocketAddr::new(remote.ip(), from.local_addr().unwrap().port())
            );
            assert_eq!(datagram.local, Some(remote.ip()));
        }
        assert_eq!(counters.read(), crate::io::LoopCounts::default());
    }

    #[test]
    fn batches_cross_between_sockets_of_one_family() {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let (mut left, right) = (bind(ip), bind(ip));
            let remote = right.local_addr().unwrap();
            assert!(
                left.max_segments(1_200, now()) > 1,
                "this kernel has no GSO"
            );
            exchange(&mut left, &right, remote, &batch(1_200, 40, 700), 1_200);
            exchange(&mut left, &right, remote, &batch(1_200, 1, 1_200), 1_200);
        }
    }

    #[test]
    fn a_dual_stack_socket_speaks_ipv4_and_ipv6_and_names_addresses_plainly() {
        let (mut dual, mut v4, mut v6) = (
            bind(Ipv6Addr::UNSPECIFIED),
            bind(Ipv4Addr::LOCALHOST),
            bind(Ipv6Addr::LOCALHOST),
        );
        let port = dual.local_addr().unwrap().port();
        let contents = batch(1_000, 5, 300);
        exchange(
            &mut v4,
            &dual,
            (Ipv4Addr::LOCALHOST, port).into(),
            &contents,
            1_000,
        );
        exchange(
            &mut v6,
            &dual,
            (Ipv6Addr::LOCALHOST, port).into(),
            &contents,
            1_000,
        );
        for peer in [&v4, &v6] {
            let remote = peer.local_addr().unwrap();
            exchange(&mut dual, peer, remote, &contents, 1_000);
        }
    }

    #[test]
    fn a_batch_larger_than_one_send_takes_is_sent_in_several() {
        let (mut left, right) = (bind(Ipv4Addr::LOCALHOST), bind(Ipv4Addr::LOCALHOST));
        let remote = right.local_addr().unwrap();
        assert_eq!(left.max_segments(1_472, now()), 44);
        assert_eq!(left.max_segments(8_972, now()), 7);
        assert_eq!(left.max_segments(100_000, now()), 1);
        exchange(&mut left, &right, remote, &batch(1_472, 64, 1_472), 1_472);
        exchange(&mut left, &right, remote, &batch(100, 200, 1), 100);
    }

    #[test]
    fn the_ecn_bits_and_the_source_address_are_those_of_the_transmit() {
        let (mut left, right) = (bind(Ipv4Addr::UNSPECIFIED), bind(Ipv4Addr::UNSPECIFIED));
        let remote = (Ipv4Addr::LOCALHOST, right.local_addr().unwrap().port()).into();
        let local = IpAddr::from([127, 0, 0, 9]);
        for ecn in 0..4 {
            let transmit = Transmit {
                remote,
                local: Some(local),
                ecn,
                size: 4,
                segment_size: None,
            };
            left.send(&transmit, b"data", now(), &Counters::default())
                .unwrap();
            let [datagram] = receive(&right, 4).try_into().unwrap();
            assert_eq!((datagram.ecn, datagram.remote.ip()), (ecn, local));
        }
    }

    #[test]
    fn what_cannot_be_sent_is_counted_and_a_probe_that_is_too_big_is_not() {
        let mut left = bind(Ipv4Addr::LOCALHOST);
        let counters = Counters::default();
        let to = |remote: SocketAddr, size| Transmit {
            remote,
            local: None,
            ecn: 0,
            size,
            segment_size: None,
        };
        let probe = vec![0; MAX_PAYLOAD + 1];
        let remote = left.local_addr().unwrap();
        left.send(&to(remote, probe.len()), &probe, now(), &counters)
            .unwrap();
        assert_eq!(counters.read().send_failed, 0);
        let v6 = (Ipv6Addr::LOCALHOST, 9).into();
        left.send(&to(v6, 4), b"data", now(), &counters).unwrap();
        assert_eq!(counters.read().send_failed, 1);
    }

    #[test]
    fn a_batch_that_the_kernel_will_not_segment_goes_datagram_by_datagram_and_gso_comes_back() {
        let (mut left, right) = (bind(Ipv6Addr::LOCALHOST), bind(Ipv6Addr::LOCALHOST));
        let remote = right.local_addr().unwrap();
        let contents = batch(1_000, 3, 1_000);
        // EINVAL, as for a batch that cannot be segmented: the source address is not one of this host.
        let foreign = Transmit {
            local: Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
            ..transmit(remote, &contents, 1_000)
        };
        let (counters, start) = (Counters::default(), now());
        left.send(&foreign, &contents, start, &counters).unwrap();
        assert_eq!(
            (counters.read().gso_refused, counters.read().send_failed),
            (1, 3)
        );
        assert_eq!(left.max_segments(1_000, start), 1);
        exchange(&mut left, &right, remote, &contents, 1_000);
        assert_eq!(left.max_segments(1_000, start + GSO_PAUSE), 64);
        exchange(&mut left, &right, remote, &contents, 1_000);
    }

    #[test]
    fn a_taken_port_is_named_with_its_address() {
        let first = bind(Ipv4Addr::LOCALHOST);
        let taken = first.local_addr().unwrap();
        let error = Underlay::bind(&settings(taken)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(
            error.to_string(),
            format!("udp address {taken} is already in use by another program")
        );
    }

    #[test]
    fn an_address_of_another_host_is_named() {
        let error =
            Underlay::bind(&settings(SocketAddr::from(([192, 0, 2, 1], 15_008)))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(
            error.to_string(),
            "cannot listen on udp address 192.0.2.1:15008"
        );
    }

    /// A payload with `octet` where a connection ID has the shard's.
    fn payload(long: bool, id_len: u8, octet: u8) -> Vec<u8> {
        let mut payload = if long {
            vec![0xc0, 0, 0, 0, 1, id_len, octet]
        } else {
            vec![0x40, octet]
        };
        payload.resize(64, 7);
        payload
    }

    /// Which of the sockets has something to read.
    fn receivers(group: &[Underlay]) -> Vec<usize> {
        let mut polls: Vec<_> = group
            .iter()
            .map(|underlay| PollFd::new(&underlay.socket, PollFlags::IN))
            .collect();
        poll(&mut polls, None).unwrap();
        let ready = polls.iter().map(|poll| poll.revents());
        let ready: Vec<_> = ready.collect();
        (0..group.len())
            .filter(|&index| ready[index].contains(PollFlags::IN))
            .collect()
    }

    #[test]
    fn a_datagram_goes_to_the_shard_that_its_connection_id_names() {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let group = Underlay::bind_group(&settings(SocketAddr::new(ip, 0)), 3).unwrap();
            let to = group[0].local_addr().unwrap();
            for other in &group {
                assert_eq!(other.local_addr().unwrap(), to);
            }
            let sender = UdpSocket::bind((ip, 0)).unwrap();
            for (long, id_len, octet, shard) in [
                (false, 0, 0, 0),
                (false, 0, 1, 1),
                (false, 0, 2, 2),
                (true, 8, 1, 1),
                (true, 16, 2, 2),
                // of a predecessor with more shards
                (false, 0, 5, 2),
                (true, 8, 255, 0),
            ] {
                let payload = payload(long, id_len, octet);
                sender.send_to(&payload, to).unwrap();
                assert_eq!(receivers(&group), [shard], "{long} {id_len} {octet}");
                assert_eq!(receive(&group[shard], payload.len()).len(), 1);
                let octet = crate::tunnel::shard_octet(&payload).unwrap();
                assert_eq!(usize::from(octet % 3), shard);
            }
        }
    }

    #[test]
    fn a_short_foreign_id_goes_to_any_shard_and_always_to_the_same() {
        let group = Underlay::bind_group(&settings((Ipv4Addr::LOCALHOST, 0)), 3).unwrap();
        let to = group[0].local_addr().unwrap();
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut first = None;
            for octet in [0, 1, 2, 77] {
                sender.send_to(&payload(true, 7, octet), to).unwrap();
                let [shard] = receivers(&group)[..] else {
                    panic!("not one socket");
                };
                receive(&group[shard], 64);
                assert_eq!(*first.get_or_insert(shard), shard);
                chosen.insert(shard);
            }
        }
        assert!(chosen.len() > 1, "one socket got all of 64 senders");
    }

    #[test]
    fn a_port_that_is_shared_is_taken_for_everybody_else() {
        let group = Underlay::bind_group(&settings((Ipv4Addr::LOCALHOST, 0)), 2).unwrap();
        let taken = settings(group[0].local_addr().unwrap());
        for shards in [1, 2] {
            let error = Underlay::bind_group(&taken, shards).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{shards}");
        }
    }
}
