//! The QUIC endpoint and its connections: demultiplexing, the queue of those with something to send, their timers.
//!
//! Knows nothing of keys and policy. After any input to a connection: `poll` until `None`, then `refresh`, and the
//! connection stands in the dirty queue until it has nothing left to transmit (dependencies.md §5.1).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use quinn_proto::{
    ClientConfig, ConnectError, Connection, ConnectionError, ConnectionHandle, DatagramEvent,
    EcnCodepoint, Endpoint, EndpointConfig, Event, Incoming, ServerConfig,
};

use bytes::Bytes;

use crate::tunnel::{
    Congestion, DatagramBook, Transmit, UnderlayDatagram, queue::Losses, session::Session,
};

/// Answers of the endpoint itself (Retry, resets, refusals) that wait to be sent, in bytes.
const MAX_RESPONSES: usize = 256 * 1024;

/// Bytes that may wait in the queues of all sessions, until one with more than the minimum takes no more.
const QUEUED_BOUND: usize = 16 << 20;
const QUEUED_MINIMUM: usize = 64 * 1024;

/// What became of a datagram.
pub(super) enum Routed {
    /// A connection took it, and is among those to be settled.
    Connection,
    /// Somebody dials. INVARIANT: must be accepted, refused, retried or ignored, or its slot leaks.
    Incoming(Box<Incoming>),
}

/// The endpoint and its connections.
pub(super) struct Links {
    congestion: Congestion,
    endpoint: Endpoint,
    /// Boxed: a node of the map has room for eleven, and would leave most of it unused.
    sessions: BTreeMap<ConnectionHandle, Box<Session>>,
    dirty: VecDeque<ConnectionHandle>,
    /// Connections that datagrams came for since they were settled.
    touched: Vec<ConnectionHandle>,
    timers: BTreeSet<(Instant, ConnectionHandle)>,
    responses: VecDeque<(quinn_proto::Transmit, Vec<u8>)>,
    response_bytes: usize,
    scratch: Vec<u8>,
    /// Bytes that wait in the sessions' queues.
    pub(super) queued: usize,
    /// What those queues lost.
    pub(super) losses: Losses,
    /// What became of all datagrams; what waits is counted when somebody asks.
    pub(super) book: DatagramBook,
}

impl Links {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        server: Arc<ServerConfig>,
        congestion: Congestion,
    ) -> Self {
        Self {
            congestion,
            endpoint: Endpoint::new(config, Some(server), true, None),
            sessions: BTreeMap::new(),
            dirty: VecDeque::new(),
            touched: Vec::new(),
            timers: BTreeSet::new(),
            responses: VecDeque::new(),
            response_bytes: 0,
            scratch: Vec::new(),
            queued: 0,
            losses: Losses::NONE,
            book: DatagramBook::default(),
        }
    }

    /// For handshakes that begin from here on.
    pub(super) fn set_server_config(&mut self, server: Arc<ServerConfig>) {
        self.endpoint.set_server_config(Some(server));
    }

    pub(super) fn session(&self, handle: ConnectionHandle) -> Option<&Session> {
        self.sessions.get(&handle).map(Box::as_ref)
    }

    pub(super) fn session_mut(&mut self, handle: ConnectionHandle) -> Option<&mut Session> {
        self.sessions.get_mut(&handle).map(Box::as_mut)
    }

    /// Every connection, closed ones included.
    pub(super) fn handles(&self) -> Vec<ConnectionHandle> {
        self.sessions.keys().copied().collect()
    }

    /// Takes a session into the tables and the dirty queue.
    pub(super) fn insert(&mut self, handle: ConnectionHandle, session: Session) {
        // A drained connection's handle may be given again before its last events were read.
        if let Some(mut old) = self.sessions.insert(handle, Box::new(session)) {
            old.end();
            account(
                &mut self.queued,
                &mut self.losses,
                &mut self.book.sent,
                &mut old,
            );
            if let Some(timer) = old.timer {
                self.timers.remove(&(timer, handle));
            }
        }
        self.mark(handle);
    }

    /// Takes one datagram from the underlay.
    pub(super) fn handle(&mut self, datagram: UnderlayDatagram, now: Instant) -> Option<Routed> {
        let UnderlayDatagram {
            remote,
            local,
            ecn,
            data,
        } = datagram;
        self.scratch.clear();
        let ecn = EcnCodepoint::from_bits(ecn);
        let event = self
            .endpoint
            .handle(now, remote, local, ecn, data, &mut self.scratch)?;
        match event {
            DatagramEvent::ConnectionEvent(handle, event) => {
                let session = self.sessions.get_mut(&handle)?;
                session.connection.handle_event(event);
                session.last_heard = now;
                if !session.touched {
                    session.touched = true;
                    self.touched.push(handle);
                    self.mark(handle);
                }
                Some(Routed::Connection)
            }
            DatagramEvent::NewConnection(incoming) => Some(Routed::Incoming(Box::new(incoming))),
            DatagramEvent::Response(transmit) => {
                self.respond(transmit);
                None
            }
        }
    }

    /// Begins a connection.
    pub(super) fn connect(
        &mut self,
        config: ClientConfig,
        remote: std::net::SocketAddr,
        server_name: &str,
        now: Instant,
    ) -> Result<(ConnectionHandle, Connection), ConnectError> {
        self.endpoint.connect(now, config, remote, server_name)
    }

    /// Begins the acceptor's side of a handshake.
    pub(super) fn accept(
        &mut self,
        incoming: Incoming,
        config: Arc<ServerConfig>,
        now: Instant,
    ) -> Result<(ConnectionHandle, Connection), ConnectionError> {
        self.scratch.clear();
        self.endpoint
            .accept(incoming, now, &mut self.scratch, Some(config))
            .map_err(|error| {
                if let Some(response) = error.response {
                    self.respond(response);
                }
                error.cause
            })
    }

    /// Tells the dialler to go away.
    pub(super) fn refuse(&mut self, incoming: Incoming) {
        self.scratch.clear();
        let response = self.endpoint.refuse(incoming, &mut self.scratch);
        self.respond(response);
    }

    /// Says nothing: the dialler asks again.
    pub(super) fn ignore(&mut self, incoming: Incoming) {
        self.endpoint.ignore(incoming);
    }

    /// Makes the dialler prove its address.
    pub(super) fn retry(&mut self, incoming: Incoming) {
        self.scratch.clear();
        match self.endpoint.retry(incoming, &mut self.scratch) {
            Ok(response) => self.respond(response),
            Err(error) => self.endpoint.ignore(error.into_incoming()),
        }
    }

    /// Passes endpoint events to and fro, then gives the connection's next event.
    pub(super) fn poll(&mut self, handle: ConnectionHandle) -> Option<Event> {
        let mut answered = false;
        let session = self.sessions.get_mut(&handle)?;
        while let Some(event) = session.connection.poll_endpoint_events() {
            session.drained |= event.is_drained();
            if let Some(answer) = self.endpoint.handle_event(handle, event) {
                session.connection.handle_event(answer);
                answered = true;
            }
        }
        let event = session.connection.poll();
        if answered {
            self.mark(handle);
        }
        event
    }

    /// Brings the connection's timer, datagram size and control stream up to date; forgets a drained one.
    pub(super) fn refresh(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(session) = self.sessions.get_mut(&handle) else {
            return;
        };
        account(
            &mut self.queued,
            &mut self.losses,
            &mut self.book.sent,
            session,
        );
        if session.drained {
            if let Some(timer) = session.timer {
                self.timers.remove(&(timer, handle));
            }
            self.sessions.remove(&handle);
            return;
        }
        session.sample_max_datagram(now);
        session.answer_hold();
        if session.flush_control(now) {
            self.mark(handle);
        }
        self.refresh_timer(handle);
    }

    /// Queues datagrams of one inner flow; `false` when there is no such session, and all are lost.
    ///
    /// All sessions together are bounded, so that thousands of slow peers take no more memory than a few: beyond that bound
    /// a session holds only a little.
    pub(super) fn send(
        &mut self,
        handle: Option<ConnectionHandle>,
        flow: u32,
        datagrams: impl Iterator<Item = Bytes>,
        now: Instant,
    ) -> bool {
        let Some((handle, session)) =
            handle.and_then(|handle| Some((handle, self.sessions.get_mut(&handle)?)))
        else {
            self.losses.ended += datagrams.count() as u64;
            return false;
        };
        let others = self.queued.saturating_sub(session.accounted);
        for datagram in datagrams {
            let own = session.queue.bytes();
            if others + own >= QUEUED_BOUND && own >= QUEUED_MINIMUM
                || others + own >= 2 * QUEUED_BOUND
            {
                self.losses.full += 1;
            } else {
                session.send(flow, datagram, now);
            }
        }
        session.last_inner = now;
        account(
            &mut self.queued,
            &mut self.losses,
            &mut self.book.sent,
            session,
        );
        self.mark(handle);
        true
    }

    /// What became of all datagrams, those that wait counted.
    pub(super) fn book(&self) -> DatagramBook {
        let waiting = self.sessions.values().map(|session| session.queue.len());
        DatagramBook {
            waiting: waiting.sum::<usize>() as u64,
            ..self.book
        }
    }

    /// The connection may have something to transmit.
    pub(super) fn mark(&mut self, handle: ConnectionHandle) {
        if let Some(session) = self.sessions.get_mut(&handle)
            && !session.dirty
        {
            session.dirty = true;
            self.dirty.push_back(handle);
        }
    }

    /// One of the connections that datagrams came for.
    pub(super) fn next_touched(&mut self) -> Option<ConnectionHandle> {
        let handle = self.touched.pop()?;
        if let Some(session) = self.sessions.get_mut(&handle) {
            session.touched = false;
        }
        Some(handle)
    }

    /// The next of the connections with something to transmit, in turn.
    pub(super) fn next_dirty(&mut self) -> Option<ConnectionHandle> {
        while let Some(handle) = self.dirty.pop_front() {
            if let Some(session) = self.sessions.get_mut(&handle) {
                session.dirty = false;
                return Some(handle);
            }
        }
        None
    }

    /// The next batch of one connection, written to `buf`.
    pub(super) fn poll_connection(
        &mut self,
        handle: ConnectionHandle,
        max_datagrams: usize,
        buf: &mut Vec<u8>,
        now: Instant,
    ) -> Option<Transmit> {
        let session = self.sessions.get_mut(&handle)?;
        session.feed(now);
        account(
            &mut self.queued,
            &mut self.losses,
            &mut self.book.sent,
            session,
        );
        let transmit = session
            .connection
            .poll_transmit(now, max_datagrams.max(1), buf)?;
        self.mark(handle);
        self.refresh_timer(handle);
        Some(outgoing(&transmit, self.congestion))
    }

    /// The next answer of the endpoint itself, written to `buf`.
    pub(super) fn poll_response(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let (transmit, bytes) = self.responses.pop_front()?;
        self.response_bytes -= bytes.len();
        buf.extend_from_slice(&bytes);
        Some(outgoing(&transmit, self.congestion))
    }

    /// The first timer.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// A connection whose timer is due; quinn has been told.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<ConnectionHandle> {
        let &(at, handle) = self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(session) = self.sessions.get_mut(&handle) {
            session.timer = None;
            session.connection.handle_timeout(now);
            self.mark(handle);
        }
        Some(handle)
    }

    fn refresh_timer(&mut self, handle: ConnectionHandle) {
        let Some(session) = self.sessions.get_mut(&handle) else {
            return;
        };
        let control = session.carries().then(|| session.control.poll_timeout());
        let next = [
            session.connection.poll_timeout(),
            session.wake,
            control.flatten(),
        ]
        .into_iter()
        .flatten()
        .min();
        if next == session.timer {
            return;
        }
        if let Some(timer) = session.timer {
            self.timers.remove(&(timer, handle));
        }
        session.timer = next;
        if let Some(timer) = next {
            self.timers.insert((timer, handle));
        }
    }

    fn respond(&mut self, transmit: quinn_proto::Transmit) {
        let Some(bytes) = self.scratch.get(..transmit.size) else {
            return;
        };
        if self.response_bytes + bytes.len() <= MAX_RESPONSES {
            self.response_bytes += bytes.len();
            self.responses.push_back((transmit, bytes.to_vec()));
        }
    }
}

/// Brings the sums over all sessions up to date with one of them.
fn account(queued: &mut usize, losses: &mut Losses, sent: &mut u64, session: &mut Session) {
    let bytes = session.queue.bytes();
    *queued = (*queued + bytes).saturating_sub(session.accounted);
    session.accounted = bytes;
    losses.add(session.queue.losses_mut().take());
    *sent += std::mem::take(&mut session.fed);
}

/// Outer packets are Not-ECT while the default controller is in use, which would not react to a mark (performance.md §3,
/// rule 8).
fn outgoing(transmit: &quinn_proto::Transmit, congestion: Congestion) -> Transmit {
    let ecn = transmit
        .ecn
        .filter(|_| congestion == Congestion::Cubic)
        .map_or(0, |ecn| ecn as u8);
    Transmit {
        remote: transmit.destination,
        local: transmit.src_ip,
        ecn,
        size: transmit.size,
        segment_size: transmit.segment_size,
    }
}
