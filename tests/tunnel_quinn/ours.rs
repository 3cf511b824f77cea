//! Our tunnels on a real UDP socket, in a thread of their own.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use identun::{
    identity::{Ca, Identities, Identity, TrustBundles, WallClock},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    registry::{KeyTable, TunnelKey},
    spiffe::SpiffeId,
    tunnel::{Congestion, TunnelEvent, TunnelSettings, Tunnels, UnderlayDatagram},
};

/// Unix seconds of every certificate.
const EPOCH: u64 = 1_800_000_000;
/// Longer than any of our time-outs.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}")
        .parse()
        .unwrap()
}

pub(crate) fn clock() -> WallClock {
    let clock = WallClock::default();
    clock.set(EPOCH + 1);
    clock
}

/// A CA and identities of it.
pub(crate) struct Mesh(Ca);

impl Mesh {
    pub(crate) fn new() -> Self {
        Self(Ca::new(&"cluster.local".parse().unwrap(), EPOCH, PATIENCE * 1_000).unwrap())
    }

    /// A host with one identity that trusts `trusted`.
    pub(crate) fn identities(&self, name: &str, trusted: &Self) -> Identities {
        let domain = "cluster.local".parse().unwrap();
        let mut identities = Identities {
            bundles: TrustBundles::from_pem(domain, &trusted.0.to_pem().certificate).unwrap(),
            ..Identities::default()
        };
        let pem = self.0.issue(&id(name), EPOCH, PATIENCE * 100).unwrap();
        identities.insert(Identity::from_pem(&pem.certificate, &pem.key).unwrap());
        identities
    }
}

/// What our tunnels tell.
#[derive(Debug)]
pub(crate) enum Out {
    Event(TunnelEvent),
    Datagram(Bytes),
}

enum Command {
    Open(TunnelKey),
    Send(Bytes),
    Stop,
}

/// A running host of the identity `alice`, in a mesh with `bob`.
pub(crate) struct Ours {
    pub(crate) address: SocketAddr,
    commands: SyncSender<Command>,
    out: Receiver<Out>,
    thread: Option<JoinHandle<()>>,
}

impl Ours {
    pub(crate) fn start(identities: Identities) -> Self {
        let settings = TunnelSettings {
            rng_seed: [1; 32],
            connection_id_key: [2; 32],
            reset_key: [3; 64],
            token_key: [4; 32],
            clock: clock(),
            max_udp_payload: 1_472,
            lane: 0,
            max_incoming: 64,
            retry_above: 32,
            congestion: Congestion::default(),
            max_in_flight: 16 << 20,
            idle_close: Duration::from_secs(300),
        };
        let tunnels = Tunnels::new(settings, Arc::new(identities), policy()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (commands, command_receiver) = sync_channel(64);
        let (out_sender, out) = sync_channel(4096);
        let thread = std::thread::spawn(move || {
            Loop {
                tunnels,
                socket,
                keys: KeyTable::default(),
                commands: command_receiver,
                out: out_sender,
            }
            .run();
        });
        Self {
            address,
            commands,
            out,
            thread: Some(thread),
        }
    }

    /// Dials `peer` at `gateway`.
    pub(crate) fn open(&self, peer: &str, gateway: SocketAddr) {
        let key = TunnelKey {
            local: id("alice"),
            peer: id(peer),
            gateway,
            lane: 0,
        };
        self.commands.send(Command::Open(key)).unwrap();
    }

    /// Sends a datagram on the first tunnel.
    pub(crate) fn send(&self, datagram: &'static [u8]) {
        self.commands
            .send(Command::Send(Bytes::from_static(datagram)))
            .unwrap();
    }

    pub(crate) fn next(&self) -> Out {
        tokio::task::block_in_place(|| self.out.recv_timeout(PATIENCE)).unwrap()
    }

    pub(crate) fn next_event(&self) -> TunnelEvent {
        match self.next() {
            Out::Event(event) => event,
            Out::Datagram(bytes) => panic!("a datagram: {bytes:?}"),
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop {
    tunnels: Tunnels,
    socket: UdpSocket,
    keys: KeyTable,
    commands: Receiver<Command>,
    out: SyncSender<Out>,
}

impl Loop {
    fn run(mut self) {
        let (mut buf, mut incoming) = (Vec::new(), vec![0; 65_536]);
        loop {
            let now = now();
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Open(key) => {
                        let id = self.keys.id(&key);
                        self.tunnels.open(id, &key, now);
                    }
                    Command::Send(datagram) => {
                        let (id, _) = self.keys.iter().next().unwrap();
                        let one = std::iter::once(datagram);
                        self.tunnels.send(id, 1, one, now);
                    }
                    Command::Stop => return,
                }
            }
            self.tunnels.handle_timeout(now);
            while let Some(transmit) = self.tunnels.poll_transmit(now, 1, &mut buf) {
                self.socket.send_to(&buf, transmit.remote).unwrap();
            }
            while let Some(event) = self.tunnels.poll_event() {
                self.out.send(Out::Event(event)).unwrap();
            }
            while let Some((_, _, bytes)) = self.tunnels.poll_received() {
                self.out.send(Out::Datagram(bytes)).unwrap();
            }
            // Short, so that commands are seen.
            let wait = Duration::from_millis(2);
            self.socket.set_read_timeout(Some(wait)).unwrap();
            if let Ok((len, remote)) = self.socket.recv_from(&mut incoming) {
                let datagram = UnderlayDatagram {
                    remote,
                    local: None,
                    ecn: 0,
                    data: BytesMut::from(&incoming[..len]),
                };
                let (now, keys) = (self::now(), &mut self.keys);
                self.tunnels.handle_underlay(now, datagram, keys);
                self.tunnels.settle_input(now, keys);
            }
        }
    }
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this loop has a real socket")]
    Instant::now()
}

fn policy() -> Arc<Compiled> {
    let mut text = String::new();
    for (name, address) in [("alice", "10.0.0.1"), ("bob", "10.0.0.2")] {
        text += &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: default\n\
             spec:\n  address: {address}\n  serviceAccount: {name}\n---\n"
        );
    }
    let file = Arc::new(SourceFile {
        name: "mesh.yaml".into(),
        text,
    });
    let mesh = MeshSettings::default();
    let (resources, _) = load(&[file], &mesh);
    let facts = HostFacts {
        underlay: [[10, 0, 0, 1].into()].into(),
        port: 15008,
        identities: [id("alice")].into(),
        ..HostFacts::default()
    };
    let (compiled, diagnostics) = Compiled::new(&resources.unwrap(), &mesh, facts, 1);
    Arc::new(compiled.unwrap_or_else(|| panic!("{diagnostics:?}")))
}
