//! Verdicts of the engine: each reason for a drop, flows both ways, other peers' flows, fragments, ICMP errors, limits.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

mod elsewhere;
mod live;

use super::*;
use crate::{
    policy::{HostFacts, MeshSettings, SourceFile, load::load},
    registry::TunnelKey,
    spiffe::SpiffeId,
    wire::{
        capsule::{FlowRefused, FlowRefusedCode},
        packet::{Packet, TcpFlags, put_ip_len},
        protocol,
        sample::{self, Tcp},
    },
};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";
/// A workload whose identity is not among those that may answer.
const D: &str = "10.0.0.4";
/// The address of a service that B and C answer for.
const SHARED: &str = "10.0.1.1";
const PORT: u16 = 80;
const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;

fn policy(mode: &str, client: &str, generation: u64) -> Arc<Compiled> {
    policy_with(mode, client, generation, |text| text)
}

/// The same with other words.
fn policy_with(
    mode: &str,
    client: &str,
    generation: u64,
    edit: impl FnOnce(String) -> String,
) -> Arc<Compiled> {
    let workload = |name: &str, address: &str, number: u8| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: {name}, annotations: \
             {{ identun.io/gateway: \"192.0.2.{number}\" }} }}\nspec: {{ address: {address}, serviceAccount: {name}, \
             labels: {{ app: {name}, group: g{} }} }}\n",
            number / 2
        )
    };
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {name} }}\nspec: {{ hosts: \
             [{name}.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{{ number: {PORT}, \
             name: tcp, protocol: TCP }}], {spec} }}\n"
        )
    };
    let spec = match mode {
        "DISABLE" => "{}".to_owned(),
        mode => format!("{{ peers: [{{ mtls: {{ mode: {mode} }} }}] }}"),
    };
    let text = [
        format!(
            "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: default }}\n\
             spec: {spec}\n---\n\
             apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\n\
             metadata: {{ name: default, namespace: istio-system }}\n\
             spec: {{ host: \"*.local\", trafficPolicy: {{ tls: {{ mode: {client} }} }} }}\n---\n\
             apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {{ name: d }}\nspec: {{ host: \
             d.default.svc.cluster.local, trafficPolicy: {{ tls: {{ mode: ISTIO_MUTUAL, subjectAltNames: \
             [\"spiffe://cluster.local/ns/default/sa/other\"] }} }} }}\n"
        ),
        workload("a", A, 1),
        workload("b", B, 2),
        workload("c", C, 3),
        workload("d", D, 4),
        service("a", "workloadSelector: { labels: { app: a } }"),
        service("b", "workloadSelector: { labels: { app: b } }"),
        service("c", "workloadSelector: { labels: { app: c } }"),
        service("d", "workloadSelector: { labels: { app: d } }"),
        service(
            "shared",
            &format!("addresses: [{SHARED}], workloadSelector: {{ labels: {{ group: g1 }} }}"),
        ),
    ]
    .concat();
    let mesh = MeshSettings::default();
    let file = SourceFile {
        name: "mesh.yaml".into(),
        text: edit(text),
    };
    let (resources, found) = load(&[Arc::new(file)], &mesh);
    let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
    let host = HostFacts {
        underlay: ["192.0.2.1".parse().unwrap()].into(),
        port: 15_008,
        identities: [id("a")].into(),
        exempt: [].into(),
        forwards: false,
    };
    let (compiled, found) = Compiled::new(&resources, &mesh, host, generation);
    Arc::new(compiled.unwrap_or_else(|| panic!("{found:#?}")))
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `packet` between other addresses.
fn between(mut packet: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    for (at, address) in [(12, from), (16, to)] {
        let address: std::net::Ipv4Addr = address.parse().unwrap();
        packet[at..at + 4].copy_from_slice(&address.octets());
    }
    put_ip_len(&mut packet);
    packet
}

fn tcp(from: &str, to: &str, ports: [u16; 2], flags: u8) -> Vec<u8> {
    let segment = Tcp {
        ports,
        flags,
        ..Tcp::default()
    };
    between(segment.build(), from, to)
}

fn udp(from: &str, to: &str, ports: [u16; 2]) -> Vec<u8> {
    between(sample::udp(false, ports, b"payload!"), from, to)
}

/// A fragment of a UDP datagram with the ports 5 and 6; the offset in bytes.
fn fragment(from: &str, to: &str, offset: u16, more: bool) -> Vec<u8> {
    let mut packet = sample::ip(false, protocol::UDP, &[0, 5, 0, 6, 0, 100, 0, 0]);
    packet[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    between(packet, from, to)
}

/// "Port unreachable" about `quoted`.
fn icmp_error(from: &str, to: &str, quoted: &[u8]) -> Vec<u8> {
    let body = [&[3, 3, 0, 0, 0, 0, 0, 0], &quoted[..32]].concat();
    between(sample::ip(false, protocol::ICMP, &body), from, to)
}

struct Rig {
    engine: Engine,
    keys: KeyTable,
    now: Instant,
}

fn rig(mode: &str) -> Rig {
    rig_with(mode, EngineLimits::default())
}

fn rig_with(mode: &str, limits: EngineLimits) -> Rig {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    let now = Instant::now();
    Rig {
        engine: Engine::new(policy(mode, "ISTIO_MUTUAL", 1), limits),
        keys: KeyTable::default(),
        now,
    }
}

impl Rig {
    fn configure(&mut self, mode: &str, client: &str, generation: u64) {
        let policy = policy(mode, client, generation);
        self.engine.handle_policy(policy, self.now);
    }

    fn refused(&mut self, tunnel: TunnelId, refused: &FlowRefused) -> Vec<Vec<u8>> {
        self.engine
            .handle_flow_refused(tunnel, refused, self.now, &self.keys);
        self.resets()
    }

    fn resets(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.engine.poll_reset()).collect()
    }

    /// The tunnel to a peer's gateway.
    fn tunnel(&mut self, peer: &str, gateway: &str) -> TunnelId {
        self.keys.id(&TunnelKey {
            local: id("a"),
            peer: id(peer),
            gateway: (address(gateway), 15_008).into(),
            lane: 0,
        })
    }

    fn b(&mut self) -> TunnelId {
        self.tunnel("b", "192.0.2.2")
    }

    fn c(&mut self) -> TunnelId {
        self.tunnel("c", "192.0.2.3")
    }

    fn out(&mut self, packet: &[u8]) -> Egress {
        let packet = Packet::new_checked(packet).unwrap();
        self.engine.handle_egress(&packet, self.now, &mut self.keys)
    }

    fn tunnel_of(&mut self, packet: &[u8]) -> TunnelId {
        match self.out(packet) {
            Egress::Tunnel(tunnel) => tunnel,
            other @ (Egress::Drop { .. } | Egress::Elsewhere(_) | Egress::Held) => {
                panic!("{other:?}")
            }
        }
    }

    fn out_reason(&mut self, packet: &[u8]) -> Option<DropReason> {
        match self.out(packet) {
            Egress::Drop { reason, .. } => Some(reason),
            Egress::Tunnel(_) | Egress::Elsewhere(_) | Egress::Held => None,
        }
    }

    fn bring(&mut self, tunnel: TunnelId, packet: &[u8]) -> Ingress {
        let packet = Packet::new_checked(packet).unwrap();
        self.engine
            .handle_ingress(tunnel, &packet, self.now, &mut self.keys)
    }

    fn delivers(&mut self, tunnel: TunnelId, packet: &[u8]) -> bool {
        matches!(self.bring(tunnel, packet), Ingress::Deliver)
    }

    fn in_reason(&mut self, tunnel: TunnelId, packet: &[u8]) -> Option<DropReason> {
        match self.bring(tunnel, packet) {
            Ingress::Drop { reason, .. } => Some(reason),
            Ingress::Deliver | Ingress::Held => None,
        }
    }
}

#[test]
fn egress_drops_have_their_reasons() {
    let cases = [
        (udp(A, "224.0.0.1", [1, 2]), DropReason::Martian),
        (udp("127.0.0.1", B, [1, 2]), DropReason::Martian),
        (
            udp("192.0.2.1", "192.0.2.2", [15_008, 15_008]),
            DropReason::Loop,
        ),
        (
            tcp("10.9.9.9", B, [1, PORT], SYN),
            DropReason::UnknownSource,
        ),
        (
            tcp(A, "10.9.9.9", [1, PORT], SYN),
            DropReason::PolicyPlaintext,
        ),
        (tcp(A, D, [1, PORT], SYN), DropReason::IdentityNotAccepted),
        (udp(A, D, [1, PORT]), DropReason::IdentityNotAccepted),
    ];
    for (packet, reason) in cases {
        let mut rig = rig("STRICT");
        assert_eq!(rig.out_reason(&packet), Some(reason));
        assert_eq!(rig.engine.drops().iter().next(), Some((reason, 1)));
        assert!(rig.engine.flows().is_empty());
    }
}

#[test]
fn ingress_drops_have_their_reasons() {
    let cases = [
        (udp("127.0.0.1", A, [1, 2]), DropReason::Martian),
        (udp(B, "224.0.0.1", [1, 2]), DropReason::Martian),
        (tcp(B, C, [1, PORT], SYN), DropReason::ForeignDestination),
        (tcp(C, A, [1, PORT], SYN), DropReason::ForeignSource),
        (tcp(A, A, [1, PORT], SYN), DropReason::ForeignSource),
        (fragment(C, A, 8, true), DropReason::ForeignSource),
    ];
    for (packet, reason) in cases {
        let mut rig = rig("STRICT");
        let tunnel = rig.b();
        assert_eq!(rig.in_reason(tunnel, &packet), Some(reason));
        assert!(rig.engine.flows().is_empty());
    }
    let mut rig = rig("DISABLE");
    let tunnel = rig.b();
    assert!(matches!(
        rig.bring(tunnel, &tcp(B, A, [1, PORT], SYN)),
        Ingress::Drop {
            reason: DropReason::ModeDisable,
            refused: Some(FlowRefused {
                code: FlowRefusedCode::ModeDisable,
                ..
            }),
        }
    ));
}

#[test]
fn replies_return_through_their_tunnel_whoever_opened_the_flow() {
    let mut rig = rig("STRICT");
    let tunnel = rig.tunnel_of(&tcp(A, B, [1000, PORT], SYN));
    assert_eq!(tunnel, rig.b());
    assert!(rig.delivers(tunnel, &tcp(B, A, [PORT, 1000], SYN | ACK)));
    // A peer with another gateway: its flows stay on the tunnel they came by.
    let elsewhere = rig.tunnel("b", "192.0.2.22");
    assert!(rig.delivers(elsewhere, &tcp(B, A, [2000, PORT], SYN)));
    assert_eq!(
        rig.tunnel_of(&tcp(A, B, [PORT, 2000], SYN | ACK)),
        elsewhere
    );
    assert_eq!(rig.engine.flows().len(), 2);
}

#[test]
fn a_connection_of_a_peer_is_decided_whatever_came_before_it() {
    // nobody may call A, which may call B
    let closed = policy_with("STRICT", "ISTIO_MUTUAL", 1, |text| {
        text + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: nobody }\n\
                spec: { selector: { matchLabels: { app: a } } }\n"
    });
    let mut rig = rig("STRICT");
    rig.engine = Engine::new(closed, EngineLimits::default());
    let b = rig.b();
    let opening = tcp(B, A, [PORT, 1000], SYN);
    let refused = rig.in_reason(b, &opening);
    assert!(refused.is_some());
    // What cannot open a connection may be of one that this host opened and forgot...
    assert!(rig.delivers(b, &tcp(B, A, [PORT, 1000], ACK)));
    assert_eq!(rig.engine.flows().len(), 1);
    // ...and lets nothing through that can.
    assert_eq!(rig.in_reason(b, &opening), refused);
    // Nor does the refusal end a connection that this host opened.
    assert_eq!(rig.engine.flows().len(), 1);
    assert!(rig.delivers(b, &tcp(B, A, [PORT, 1000], ACK)));
}

#[test]
fn a_closed_connection_is_forgotten_soon() {
    let mut rig = rig("STRICT");
    let tunnel = rig.tunnel_of(&tcp(A, B, [1000, PORT], SYN));
    assert!(rig.delivers(tunnel, &tcp(B, A, [PORT, 1000], SYN | ACK)));
    rig.now += Duration::from_secs(300);
    rig.engine.handle_timeout(rig.now, &mut rig.keys);
    assert_eq!(rig.engine.flows().len(), 1, "an idle connection stays");
    assert!(rig.delivers(tunnel, &tcp(B, A, [PORT, 1000], TcpFlags::ACK | FIN)));
    rig.now += Duration::from_secs(60);
    assert!(rig.engine.poll_timeout().is_some_and(|due| due <= rig.now));
    rig.engine.handle_timeout(rig.now, &mut rig.keys);
    assert!(rig.engine.flows().is_empty());
    let live: Vec<_> = std::iter::from_fn(|| rig.engine.poll_live()).collect();
    assert_eq!(live, [(tunnel, true), (tunnel, false)]);
}

#[test]
fn a_connection_that_nobody_answers_is_forgotten_soon() {
    let mut rig = rig("STRICT");
    let tunnel = rig.b();
    assert!(rig.delivers(tunnel, &tcp(B, A, [1000, PORT], SYN)));
    rig.now += FlowLimits::default().other_idle;
    rig.engine.handle_timeout(rig.now, &mut rig.keys);
    assert!(rig.engine.flows().is_empty());
}

#[test]
fn a_flow_that_changes_its_tunnel_at_every_packet_costs_no_memory() {
    let mut rig = rig("STRICT");
    let tunnels = [rig.b(), rig.tunnel("b", "192.0.2.22")];
    for turn in 0..100 {
        rig.now += Duration::from_millis(1);
        assert!(rig.delivers(tunnels[turn % 2], &tcp(B, A, [1000, PORT], ACK)));
        assert_eq!(rig.engine.flows().iter().count(), 1);
        assert_eq!(rig.engine.flows().looks(), 1);
    }
}

/// Room for four flows, three of a tunnel, two of them opened by its peer.
fn few_flows() -> EngineLimits {
    EngineLimits {
        flows: FlowLimits {
            total: 4,
            per_tunnel: 3,
            by_peer: 2,
            ..FlowLimits::default()
        },
        ..EngineLimits::default()
    }
}

/// The peer's ports of all flows, in order.
fn ports(rig: &Rig) -> Vec<u16> {
    let tuples = rig.engine.flows().iter();
    let mut ports: Vec<_> = tuples.map(|(tuple, _)| tuple.destination_port).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn connections_that_ended_make_room_for_new_ones() {
    let mut rig = rig_with("STRICT", few_flows());
    let b = rig.b();
    for port in 1..=50 {
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], SYN)), "{port}");
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], ACK | FIN)));
        rig.now += Duration::from_millis(1);
    }
    assert_eq!(rig.engine.flows().len(), 2);
    assert_eq!(rig.engine.flows().looks(), 2);
    let closed = std::iter::from_fn(|| rig.engine.poll_event())
        .filter(|event| matches!(event, EngineEvent::FlowClosed { .. }));
    assert_eq!(closed.count(), 48);
}

#[test]
fn of_a_peers_flows_the_one_that_was_silent_for_longest_gives_way() {
    let mut rig = rig_with("STRICT", few_flows());
    let b = rig.b();
    for port in [1, 2] {
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], SYN)));
        rig.now += Duration::from_millis(1);
    }
    assert!(rig.delivers(b, &tcp(B, A, [1, PORT], ACK)));
    assert!(rig.delivers(b, &tcp(B, A, [3, PORT], SYN)));
    assert_eq!(ports(&rig), [1, 3]);
    let closed = std::iter::from_fn(|| rig.engine.poll_event())
        .filter(|event| matches!(event, EngineEvent::FlowClosed { .. }));
    assert_eq!(closed.count(), 1);
    // It is decided again, whichever end goes on with it.
    for packet in [tcp(B, A, [2, PORT], ACK), tcp(B, A, [1, PORT], ACK)] {
        assert!(rig.delivers(b, &packet));
    }
    assert!(matches!(rig.out(&tcp(A, B, [PORT, 3], ACK)), Egress::Tunnel(id) if id == b));
}

#[test]
fn what_a_peer_opens_takes_no_room_from_others() {
    let mut rig = rig_with("STRICT", few_flows());
    let (b, c) = (rig.b(), rig.c());
    assert!(matches!(
        rig.out(&tcp(A, B, [9, PORT], SYN)),
        Egress::Tunnel(_)
    ));
    assert!(rig.delivers(c, &tcp(C, A, [1, PORT], SYN)));
    for port in 1..=50 {
        rig.now += Duration::from_millis(1);
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], SYN)), "{port}");
    }
    assert_eq!(rig.engine.flows().len(), 4);
    assert!(rig.delivers(c, &tcp(C, A, [1, PORT], ACK)));
    assert!(rig.delivers(b, &tcp(B, A, [PORT, 9], ACK)), "a reply");
    // What local workloads open goes before it, until they fill the tunnel themselves.
    for port in [10, 11] {
        assert!(matches!(
            rig.out(&tcp(A, B, [port, PORT], SYN)),
            Egress::Tunnel(_)
        ));
    }
    let full = Some(DropReason::FlowTableFull);
    assert_eq!(rig.out_reason(&tcp(A, B, [12, PORT], SYN)), full);
    assert_eq!(rig.in_reason(b, &tcp(B, A, [51, PORT], SYN)), full);
}

#[test]
fn opening_and_ending_flows_for_long_costs_no_memory() {
    let mut rig = rig_with("STRICT", few_flows());
    let b = rig.b();
    for turn in 0..10_000 {
        rig.now += FlowLimits::default().other_idle;
        let keys = &mut rig.keys;
        rig.engine.handle_timeout(rig.now, keys);
        assert!(rig.delivers(b, &tcp(B, A, [turn, PORT], SYN)));
        while rig.engine.poll_event().is_some() {}
        assert!(rig.engine.flows().entries() <= 2 * 2 + 64);
    }
}

#[test]
fn a_refusal_holds_for_its_own_tunnel_and_for_a_while() {
    let mut rig = rig("STRICT");
    let (opening, c) = (tcp(A, B, [1000, PORT], SYN), rig.c());
    let tunnel = rig.tunnel_of(&opening);
    let refused = FlowRefused {
        code: FlowRefusedCode::ModeDisable,
        tuple: Packet::new_checked(&opening).unwrap().five_tuple(),
        reason: "no".into(),
    };
    assert!(rig.refused(c, &refused).is_empty());
    assert_eq!(rig.tunnel_of(&opening), tunnel);
    let resets = rig.refused(tunnel, &refused);
    let reset = Packet::new_checked(&resets[0]).unwrap();
    assert!(reset.tcp_flags().is_some_and(TcpFlags::is_rst));
    let counted = |rig: &Rig| rig.engine.drops().of(DropReason::PeerRefusedFlow);
    assert_eq!(counted(&rig), 0, "the peer dropped it, and counts it");
    assert_eq!(rig.out_reason(&opening), Some(DropReason::PeerRefusedFlow));
    assert_eq!(counted(&rig), 1);
    rig.now += Duration::from_secs(5);
    assert_eq!(rig.tunnel_of(&opening), tunnel);
}

#[test]
fn a_peer_that_is_refused_too_often_silences_itself_alone() {
    let mut rig = rig("STRICT");
    let (b, c) = (rig.b(), rig.c());
    let told = |rig: &mut Rig, tunnel| {
        let packet = tcp("10.9.9.9", A, [1, PORT], SYN);
        let told = matches!(
            rig.bring(tunnel, &packet),
            Ingress::Drop {
                reason: DropReason::ForeignSource,
                refused: Some(_),
            }
        );
        assert_eq!(
            rig.engine.poll_event().is_some(),
            told,
            "the log says what the peer is told"
        );
        told
    };
    assert_eq!((0..200).filter(|_| told(&mut rig, b)).count(), 50);
    assert_eq!((0..200).filter(|_| told(&mut rig, c)).count(), 50);
    rig.now += Duration::from_millis(10);
    assert!(told(&mut rig, b));
    assert!(!told(&mut rig, b));
    assert_eq!(rig.engine.refusals.len(), 2);
    rig.now += Duration::from_millis(500);
    rig.engine.handle_timeout(rig.now, &mut rig.keys);
    assert!(rig.engine.refusals.is_empty(), "full buckets are not kept");
}

#[test]
fn another_policy_decides_live_flows_again() {
    let mut rig = rig("PERMISSIVE");
    let tunnel = rig.tunnel_of(&tcp(A, B, [1000, PORT], SYN));
    assert!(rig.delivers(tunnel, &tcp(B, A, [2000, PORT], SYN)));
    rig.configure("DISABLE", "DISABLE", 2);
    assert_eq!(
        rig.in_reason(tunnel, &tcp(B, A, [PORT, 1000], ACK)),
        Some(DropReason::PolicyPlaintext)
    );
    assert_eq!(
        rig.in_reason(tunnel, &tcp(B, A, [2000, PORT], ACK)),
        Some(DropReason::ModeDisable)
    );
    assert_eq!(
        rig.out_reason(&tcp(A, B, [1000, PORT], ACK)),
        Some(DropReason::PolicyPlaintext)
    );
    assert!(rig.engine.flows().is_empty());
}

#[test]
fn a_peer_cannot_take_over_the_flow_of_another_at_the_same_address() {
    let mut rig = rig("STRICT");
    let (b, c) = (rig.b(), rig.c());
    let opening = tcp(A, SHARED, [1000, PORT], SYN);
    let owner = rig.tunnel_of(&opening);
    let other = if owner == b { c } else { b };
    for generation in 1..3 {
        let reply = tcp(SHARED, A, [PORT, 1000], SYN | ACK);
        assert_eq!(
            rig.in_reason(other, &reply),
            Some(DropReason::ForeignSource)
        );
        assert!(rig.delivers(owner, &reply));
        assert_eq!(rig.tunnel_of(&opening), owner);
        rig.configure("STRICT", "ISTIO_MUTUAL", generation + 1);
    }
    let theirs = tcp(SHARED, A, [2000, PORT], SYN);
    assert!(rig.delivers(b, &theirs));
    assert_eq!(rig.in_reason(c, &theirs), Some(DropReason::ForeignSource));
    assert!(rig.delivers(b, &tcp(SHARED, A, [2000, PORT], TcpFlags::ACK | FIN)));
    assert!(rig.delivers(c, &theirs), "the ports are free again");
}

#[test]
fn fragments_of_one_peer_do_not_meet_those_of_another() {
    let mut rig = rig("STRICT");
    let (b, c) = (rig.b(), rig.c());
    let (first, last) = (fragment(SHARED, A, 0, true), fragment(SHARED, A, 8, false));
    assert!(matches!(rig.bring(c, &last), Ingress::Held));
    assert!(rig.delivers(b, &first));
    assert_eq!(rig.engine.poll_released_ingress(b), None);
    assert!(rig.delivers(b, &last));
    rig.now += Duration::from_secs(1);
    rig.engine.handle_timeout(rig.now, &mut rig.keys);
    assert!(rig.engine.ingress_fragments.is_empty());
    assert_eq!(
        rig.engine.drops().iter().last(),
        Some((DropReason::FragmentTimeout, 1))
    );
}

#[test]
fn an_icmp_error_passes_for_a_flow_of_its_tunnel_alone() {
    let mut rig = rig("STRICT");
    let opening = tcp(A, B, [1000, PORT], SYN);
    let (b, c) = (rig.tunnel_of(&opening), rig.c());
    let error = icmp_error("198.51.100.1", A, &opening);
    assert!(rig.delivers(b, &error), "a router on the way");
    assert_eq!(rig.in_reason(c, &error), Some(DropReason::ForeignSource));
    let unknown = icmp_error("198.51.100.1", A, &tcp(A, B, [1001, PORT], SYN));
    assert_eq!(rig.in_reason(b, &unknown), Some(DropReason::ForeignSource));
    let mut first = icmp_error(C, A, &opening);
    first[6] = 0x20;
    put_ip_len(&mut first);
    assert_eq!(rig.in_reason(b, &first), Some(DropReason::ForeignSource));
    rig.configure("STRICT", "ISTIO_MUTUAL", 2);
    assert!(rig.delivers(b, &error), "another policy, the same flow");
    rig.configure("STRICT", "DISABLE", 3);
    assert_eq!(rig.in_reason(b, &error), Some(DropReason::ForeignSource));
}
