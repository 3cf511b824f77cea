//! Who is who: a peer with two addresses, workloads of this host, somebody else; and packets between them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Instant,
};

use identun::{
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    registry::TunnelKey,
    spiffe::SpiffeId,
};

use super::{TCP, UDP, Whole, be16, put_len, put_right, set16, sight};
use crate::segment::{choices::Choices, read::Sight};

/// The port of the local workload that policy denies to the peer.
pub(crate) const DENIED_PORT: u16 = 81;

const PEER: [&str; 2] = ["10.0.0.1", "2001:db8::1"];
const LOCAL: [&str; 2] = ["10.0.0.2", "2001:db8::2"];
/// Of a peer of another tunnel, of another workload of this host, of nobody, of nobody ever.
const OTHERS: [[&str; 2]; 4] = [
    ["10.0.0.3", "2001:db8::3"],
    ["10.0.0.4", "2001:db8::4"],
    ["10.0.0.9", "2001:db8::9"],
    ["127.0.0.1", "::1"],
];

const POLICY: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: { name: default, namespace: istio-system }
spec: { host: "*.local", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-81, namespace: default }
spec:
  selector: { matchLabels: { app: b } }
  action: DENY
  rules: [{ to: [{ operation: { ports: ["81"] } }] }]
"#;

/// What every scene shares.
pub(crate) struct Mesh {
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) key: TunnelKey,
    pub(crate) base: Instant,
}

pub(crate) fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(Mesh::new)
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

impl Mesh {
    fn new() -> Self {
        let mut text = POLICY.to_owned();
        let workloads = [
            ("a", PEER, "192.0.2.1"),
            ("b", LOCAL, "192.0.2.2"),
            ("c", OTHERS[0], "192.0.2.3"),
            ("d", OTHERS[1], "192.0.2.2"),
        ];
        for (account, addresses, gateway) in workloads {
            for (index, address) in addresses.iter().enumerate() {
                text.push_str(&format!(
                    "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                     metadata: {{ name: {account}{index}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
                     spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n"
                ));
            }
            text.push_str(&format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
                 spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
                 ports: [{{ number: 80, name: tcp, protocol: TCP }}, {{ number: 81, name: tcp-denied, protocol: TCP }}]\n  \
                 workloadSelector: {{ labels: {{ app: {account} }} }}\n"
            ));
        }
        let files = vec![Arc::new(SourceFile {
            name: "mesh.yaml".into(),
            text,
        })];
        let settings = MeshSettings::default();
        let (resources, found) = load(&files, &settings);
        let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
        let host = HostFacts {
            underlay: [IpAddr::from([192, 0, 2, 2])].into(),
            port: 15_008,
            identities: [id("b"), id("d")].into(),
            exempt: Default::default(),
            forwards: false,
        };
        let (compiled, found) = Compiled::new(&resources, &settings, host, 1);
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to count from"
        )]
        let base = Instant::now();
        Self {
            compiled: Arc::new(compiled.unwrap_or_else(|| panic!("{found:#?}"))),
            key: TunnelKey {
                local: id("b"),
                peer: id("a"),
                gateway: SocketAddr::from(([192, 0, 2, 1], 15_008)),
                lane: 0,
            },
            base,
        }
    }

    /// A packet of a local application, most often to the peer.
    pub(crate) fn outgoing(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let v6 = choices.below(2);
        let to = *choices.pick(&[PEER, PEER, OTHERS[0], OTHERS[2]]);
        let from = *choices.pick(&[LOCAL, LOCAL, OTHERS[1], OTHERS[2]]);
        let ports = (
            *choices.pick(&[1_000, 80, DENIED_PORT]),
            *choices.pick(&[80, 1_000, 1_001]),
        );
        let protocol = *choices.pick(&[TCP, UDP]);
        let flags = *choices.pick(&[0x02, 0x12, 0x10]);
        made(from[v6], to[v6], protocol, ports, flags)
    }

    /// An ICMP error, most often about a packet that a local application may have sent.
    pub(crate) fn error(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let v6 = choices.below(2);
        let router = choices.pick(&[OTHERS[2], PEER, OTHERS[0], OTHERS[1], OTHERS[3]])[v6];
        let to = choices.pick(&[LOCAL, LOCAL, OTHERS[1], OTHERS[2]])[v6];
        let mut quoted = self.outgoing(choices);
        if (quoted[0] >> 4 == 6) != (v6 == 1) {
            quoted = made(LOCAL[v6], PEER[v6], TCP, (1_000, 80), 0x10);
        }
        quoted.truncate(quoted.len() - choices.below(16));
        let protocol = if v6 == 1 { 58 } else { 1 };
        let kinds: &[u8] = if v6 == 1 {
            &[1, 2, 3, 4, 128, 137]
        } else {
            &[3, 11, 12, 5, 8, 4]
        };
        let mut packet = header(router, to, protocol);
        packet.extend([*choices.pick(kinds), 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(quoted);
        if choices.chance(10) && v6 == 0 {
            set16(&mut packet, 6, 0x2000);
        }
        put_len(&mut packet);
        packet
    }
}

fn header(from: &str, to: &str, protocol: u8) -> Vec<u8> {
    let addresses: [IpAddr; 2] = [from.parse().unwrap(), to.parse().unwrap()];
    let mut packet = match addresses[0] {
        IpAddr::V4(_) => vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
    };
    for address in addresses {
        match address {
            IpAddr::V4(address) => packet.extend(address.octets()),
            IpAddr::V6(address) => packet.extend(address.octets()),
        }
    }
    packet
}

fn made(from: &str, to: &str, protocol: u8, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut packet = header(from, to, protocol);
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    match protocol {
        TCP => packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]),
        _ => packet.extend([0, 8, 0, 0]),
    }
    put_len(&mut packet);
    let seen = sight(&packet);
    put_right(&mut packet, &seen);
    packet
}

/// Gives a packet other addresses and ports, now and then.
pub(crate) fn readdress(choices: &mut Choices<'_>, packet: &mut [u8]) {
    let seen = sight(packet);
    let whose = choices.below(16);
    let others: Vec<_> = OTHERS.iter().chain([&PEER, &LOCAL]).collect();
    if whose < 2 {
        let text = choices.pick(&others)[usize::from(seen.v6)];
        let octets = match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let at = if seen.v6 { 8 } else { 12 } + whose * octets.len();
        packet[at..at + octets.len()].copy_from_slice(&octets);
    }
    if whose == 2 && matches!(seen.protocol, TCP | UDP) {
        set16(packet, seen.transport + 2, usize::from(DENIED_PORT));
    }
    put_len(packet);
    if seen.has_checksum() {
        put_right(packet, &seen);
    }
}

/// A packet as IP fragments, which may overlap or lack one.
pub(crate) fn ip_fragments(choices: &mut Choices<'_>, packet: &[u8]) -> Vec<Vec<u8>> {
    let seen = sight(packet);
    let (headers, payload) = packet.split_at(seen.transport);
    let size = 8 * (1 + choices.below(80));
    let id = choices.below(3) as u8;
    let extensions = seen.v6 && seen.transport > 40;
    if seen.fragment || extensions || payload.len() / size > 200 {
        return vec![packet.to_vec()];
    }
    let mut all = Vec::new();
    let mut offset = 0;
    while offset < payload.len() {
        let end = payload.len().min(offset + size);
        let more = end < payload.len();
        let mut piece = headers.to_vec();
        if seen.v6 {
            piece[6] = 44;
            piece.extend([seen.protocol, 0, 0, 0, 0, 0, 0, id]);
            set16(&mut piece, 42, offset | usize::from(more));
        } else {
            set16(&mut piece, 4, usize::from(id));
            set16(&mut piece, 6, (offset / 8) | (usize::from(more) << 13));
        }
        piece.extend(&payload[offset..end]);
        put_len(&mut piece);
        all.push(piece);
        offset = end;
        if more && choices.below(16) == 1 {
            offset -= 8.min(offset);
        }
        if all.len() > 300 {
            break;
        }
    }
    if choices.below(8) == 1 && !all.is_empty() {
        all.swap_remove(choices.below(all.len()));
    }
    all
}

pub(crate) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 6 {
        let at = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        return (at(8), at(24));
    }
    let at = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    (at(12), at(16))
}

/// Source and destination port where there are some.
pub(crate) fn ports(packet: &[u8], seen: &Sight) -> (u16, u16) {
    match seen.protocol {
        TCP | UDP | 132 => (
            be16(packet, seen.transport),
            be16(packet, seen.transport + 2),
        ),
        _ => (0, 0),
    }
}

/// Which packet a fragment is of, where it stands in it, and whether more follow.
pub(crate) fn piece(packet: &[u8]) -> (Whole, usize, bool) {
    let (source, destination) = addresses(packet);
    if packet[0] >> 4 == 4 {
        let field = usize::from(be16(packet, 6));
        let whole = (source, destination, packet[9], u32::from(be16(packet, 4)));
        return (whole, (field & 0x1fff) * 8, field & 0x2000 != 0);
    }
    let (mut at, mut next) = (40, packet[6]);
    while next != 44 {
        next = packet[at];
        at += 8 * (usize::from(packet[at + 1]) + 1);
    }
    let field = usize::from(be16(packet, at + 2));
    let id = u32::from_be_bytes(packet[at + 4..at + 8].try_into().unwrap());
    ((source, destination, 0, id), field & 0xfff8, field & 1 != 0)
}

/// The flow, seen from here, that an ICMP error is about.
pub(crate) fn quoted(packet: &[u8]) -> Option<super::Local> {
    let seen = sight(packet);
    let kind = *packet.get(seen.transport)?;
    let is_error = match (seen.protocol, seen.v6) {
        (1, false) => matches!(kind, 3 | 11 | 12),
        (58, true) => (1..=4).contains(&kind),
        _ => false,
    };
    let quote = packet.get(seen.transport + 8..).filter(|_| is_error)?;
    let version = if seen.v6 { 6 } else { 4 };
    if quote.len() < if seen.v6 { 44 } else { 24 } || quote[0] >> 4 != version {
        return None;
    }
    // The quote may end anywhere.
    let mut padded = quote.to_vec();
    padded.resize((quote.len() + 64).next_multiple_of(8), 0);
    let inner = sight(&padded);
    if quote.len() < inner.transport + 4 {
        return None;
    }
    let (source, destination) = addresses(quote);
    let (from, to) = ports(quote, &inner);
    Some((inner.protocol, source, from, destination, to))
}

fn is_one_of(address: IpAddr, texts: &[&str]) -> bool {
    texts.iter().any(|text| text.parse() == Ok(address))
}

pub(crate) fn is_local(address: IpAddr) -> bool {
    is_one_of(address, &LOCAL)
}

pub(crate) fn is_of_peer(address: IpAddr) -> bool {
    is_one_of(address, &PEER)
}

/// Of those in use here.
pub(crate) fn is_unroutable(address: IpAddr) -> bool {
    is_one_of(address, &OTHERS[3]) || is_one_of(address, &OTHERS[1])
}
