//! Two quinn-proto endpoints joined in memory: a perfect wire, no sockets, no clock.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Endpoint,
    EndpointConfig, Event, ServerConfig, crypto,
};

/// How a handshake ended, seen from one end.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// TLS called the handshake complete on this end.
    pub(crate) connected: bool,
    /// Why the connection ended, if it did.
    pub(crate) lost: Option<ConnectionError>,
    /// 0-RTT keys existed on this end.
    pub(crate) early: bool,
}

impl End {
    /// The TLS alert that the peer closed with.
    pub(crate) fn alert_from_peer(&self) -> Option<u64> {
        match &self.lost {
            Some(ConnectionError::ConnectionClosed(close)) => {
                u64::from(close.error_code).checked_sub(0x100)
            }
            _ => None,
        }
    }

    /// What the peer wrote beside its alert.
    pub(crate) fn words_from_peer(&self) -> String {
        match &self.lost {
            Some(ConnectionError::ConnectionClosed(close)) => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            _ => String::new(),
        }
    }
}

/// Lets `client` dial `server_name` at `server` until nothing moves, and tells how both ends see it.
pub(crate) fn handshake(
    client: Arc<dyn crypto::ClientConfig>,
    server: Arc<dyn crypto::ServerConfig>,
    server_name: &str,
) -> (End, End) {
    let now = base();
    let mut client_side = Side::new("127.0.0.1:1".parse().unwrap(), None);
    let mut server_side = Side::new(
        "127.0.0.1:2".parse().unwrap(),
        Some(ServerConfig::with_crypto(server)),
    );
    let dialled = client_side.endpoint.connect(
        now,
        ClientConfig::new(client),
        server_side.address,
        server_name,
    );
    let (handle, connection) = dialled.unwrap();
    client_side.end.early = connection.has_0rtt();
    client_side.connection = Some((handle, connection));
    while client_side.flush(now, &mut server_side) | server_side.flush(now, &mut client_side) {}
    (client_side.end, server_side.end)
}

struct Side {
    address: SocketAddr,
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    inbox: VecDeque<(SocketAddr, BytesMut)>,
    end: End,
}

impl Side {
    fn new(address: SocketAddr, server: Option<ServerConfig>) -> Self {
        let config = Arc::new(EndpointConfig::default());
        Self {
            address,
            endpoint: Endpoint::new(config, server.map(Arc::new), true, None),
            connection: None,
            inbox: VecDeque::new(),
            end: End::default(),
        }
    }

    /// Handles what came and sends what is due; whether anything moved.
    fn flush(&mut self, now: Instant, peer: &mut Self) -> bool {
        let mut moved = false;
        while let Some((from, datagram)) = self.inbox.pop_front() {
            moved = true;
            self.receive(now, from, datagram, peer);
        }
        let Some((handle, connection)) = &mut self.connection else {
            return moved;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            if matches!(event, Event::Connected) {
                self.end.connected = true;
            }
            if let Event::ConnectionLost { reason } = event {
                self.end.lost = Some(reason);
            }
        }
        let mut buf = Vec::new();
        while connection.poll_transmit(now, 1, &mut buf).is_some() {
            moved = true;
            let datagram = BytesMut::from(buf.as_slice());
            peer.inbox.push_back((self.address, datagram));
            buf.clear();
        }
        moved
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: BytesMut, peer: &mut Self) {
        let mut buf = Vec::new();
        match self
            .endpoint
            .handle(now, from, None, None, datagram, &mut buf)
        {
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.endpoint.accept(incoming, now, &mut buf, None);
                self.connection = accepted.ok();
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
                return;
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
        if !buf.is_empty() {
            let response = BytesMut::from(buf.as_slice());
            peer.inbox.push_back((self.address, response));
        }
    }
}

/// Some instant to count from; it does not pass.
fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant")]
    *BASE.get_or_init(Instant::now)
}
