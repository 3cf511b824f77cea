//! A client of the tunnels' protocol that decides over each of its packets: quinn's core without its caution.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use identun::{
    spiffe::SpiffeId,
    wire::capsule::{Capsule, CapsuleReader, Hello, PeerFlags},
};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    StreamId, TransportConfig, VarInt, congestion::CubicConfig, crypto::rustls::QuicClientConfig,
};
use rustls::crypto::aws_lc_rs;

use crate::{
    peer::{Credentials, client_tls},
    rig::{PATIENCE, in_namespace},
};

/// One connection.
pub(super) struct Raw {
    socket: UdpSocket,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    control: Option<StreamId>,
    reader: CapsuleReader,
}

impl Raw {
    /// Dials from the host `from` and returns when TLS is done.
    pub(super) fn dial(from: &str, to: SocketAddr, name: &str, own: &Credentials) -> Self {
        let mut raw = Self::new(from, to, name, own);
        raw.until("the handshake", |raw| !raw.connection.is_handshaking());
        raw
    }

    /// The same; `None` when the peer does not want it.
    pub(super) fn try_dial(
        from: &str,
        to: SocketAddr,
        name: &str,
        own: &Credentials,
    ) -> Option<Self> {
        let mut raw = Self::new(from, to, name, own);
        raw.until("an answer", |raw| {
            !raw.connection.is_handshaking() || raw.connection.is_closed()
        });
        (!raw.connection.is_closed()).then_some(raw)
    }

    /// Begins a handshake, proves its address where that is asked for, and says nothing more.
    pub(super) fn knock(from: &str, to: SocketAddr, name: &str, own: &Credentials) {
        let mut raw = Self::new(from, to, name, own);
        raw.flush(false);
        raw.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let (len, from) = raw.socket.recv_from(&mut buffer).unwrap();
        // A long header of type Retry (RFC 9000 §17.2.5).
        if buffer[0] & 0xb0 == 0xb0 {
            raw.take(&buffer[..len], from);
            raw.flush(false);
        }
    }

    fn new(from: &str, to: SocketAddr, name: &str, own: &Credentials) -> Self {
        let socket = in_namespace(from, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let tls = client_tls(Arc::new(aws_lc_rs::default_provider()), Some(own));
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut controller = CubicConfig::default();
        controller.initial_window(1 << 40);
        let mut transport = TransportConfig::default();
        // Who takes no notice of the other end need not be told of it either.
        transport
            .congestion_controller_factory(Arc::new(controller))
            .mtu_discovery_config(None)
            .max_idle_timeout(Some(VarInt::from_u32(600_000).into()));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let (handle, connection) = endpoint.connect(Instant::now(), config, to, name).unwrap();
        Self {
            socket,
            endpoint,
            handle,
            connection,
            control: None,
            reader: CapsuleReader::default(),
        }
    }

    /// Opens the control stream, says HELLO and waits for READY.
    pub(super) fn greet(&mut self, source: &SpiffeId, destination: &SpiffeId) {
        let hello = Capsule::Hello(Hello {
            version: 1,
            flags: PeerFlags::ALL,
            source: source.clone(),
            destination: destination.clone(),
        });
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        self.control = self.connection.streams().open(Dir::Bi);
        self.write(&bytes);
        self.until("READY", |raw| {
            matches!(raw.hear(), Some(Capsule::Ready { .. }))
        });
    }

    /// Streams beyond the first that the peer lets us open.
    pub(super) fn open_more(&mut self) -> usize {
        let dirs = [Dir::Bi, Dir::Uni];
        let opened =
            dirs.map(|dir| std::iter::from_fn(|| self.connection.streams().open(dir)).count());
        opened.iter().sum()
    }

    /// Writes to the control stream as much as its window takes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let stream = self.control.unwrap();
        self.connection
            .send_stream(stream)
            .write(bytes)
            .unwrap_or(0)
    }

    /// Queues one datagram.
    pub(super) fn datagram(&mut self, bytes: &[u8]) {
        let bytes = bytes.to_vec().into();
        self.connection.datagrams().send(bytes, true).unwrap();
    }

    /// Makes packets of what is queued, and sends or loses them. Nothing is heard.
    pub(super) fn flush(&mut self, lose: bool) {
        let mut packet = Vec::new();
        while let Some(transmit) = self
            .connection
            .poll_transmit(Instant::now(), 1, &mut packet)
        {
            if !lose {
                let sent = self
                    .socket
                    .send_to(&packet[..transmit.size], transmit.destination);
                sent.unwrap();
            }
            packet.clear();
        }
    }

    /// Lets both ends talk until something happened.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut happened: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !happened(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain for: {what}");
            self.talk();
        }
    }

    /// The peer has closed, or we took it for dead.
    pub(super) fn is_closed(&mut self) -> bool {
        self.talk();
        self.connection.is_closed()
    }

    fn talk(&mut self) {
        let now = Instant::now();
        if self.connection.poll_timeout().is_some_and(|due| due <= now) {
            self.connection.handle_timeout(now);
        }
        self.flush(false);
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            self.take(&buffer[..len], from);
            self.flush(false);
        }
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while self.connection.poll().is_some() {}
    }

    fn take(&mut self, datagram: &[u8], from: SocketAddr) {
        let (data, mut answer) = (BytesMut::from(datagram), Vec::new());
        let event = self
            .endpoint
            .handle(Instant::now(), from, None, None, data, &mut answer);
        if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
            self.connection.handle_event(event);
        }
    }

    fn hear(&mut self) -> Option<Capsule> {
        let stream = self.control?;
        let mut receive = self.connection.recv_stream(stream);
        if let Ok(mut chunks) = receive.read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.reader.push(&chunk.bytes);
            }
            let _ = chunks.finalize();
        }
        self.reader.poll().unwrap()
    }
}
