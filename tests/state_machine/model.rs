//! The reference: who is who, what each host believes of the mesh, and what follows from it. Knows nothing of the code
//! under test but the files that it writes for it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use identun::spiffe::SpiffeId;

use crate::step::{Change, Kind};

pub(crate) const HOSTS: usize = 3;
/// The port whose flows belong into the tunnel, and the one whose flows do not.
pub(crate) const MUST_PORT: u16 = 8_080;
pub(crate) const PLAIN_PORT: u16 = 9_090;
/// Where daemons listen.
pub(crate) const TUNNEL_PORT: u16 = 15_008;

/// A workload: its account, and the host that it lives on in truth.
pub(crate) struct Workload {
    pub(crate) account: &'static str,
    pub(crate) host: usize,
}

const fn workload(account: &'static str, host: usize) -> Workload {
    Workload { account, host }
}

/// Everybody. The first two hosts have two workloads each, so that identities can be mistaken within a host.
pub(crate) const WORKLOADS: [Workload; 5] = [
    workload("a", 0),
    workload("b", 1),
    workload("c", 2),
    workload("d", 0),
    workload("e", 1),
];

/// An address of a workload's application.
pub(crate) fn address(who: usize, v6: bool) -> IpAddr {
    let last = u8::try_from(who + 1).unwrap();
    match v6 {
        false => Ipv4Addr::new(10, 0, 0, last).into(),
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// Whose address it is.
pub(crate) fn owner(of: IpAddr) -> Option<usize> {
    (0..WORKLOADS.len()).find(|&who| [false, true].map(|v6| address(who, v6)).contains(&of))
}

/// Where a host's daemon is reached.
pub(crate) fn underlay(host: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(host + 1).unwrap()).into()
}

/// Another address that a host may have for a while.
pub(crate) fn elsewhere(host: usize, number: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(host + 1).unwrap() * 16 + number).into()
}

/// The SPIFFE ID of a workload's account.
pub(crate) fn id(who: usize) -> SpiffeId {
    let account = WORKLOADS[who].account;
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

/// Whose SPIFFE ID it is.
pub(crate) fn account(of: &SpiffeId) -> usize {
    (0..WORKLOADS.len()).find(|&who| id(who) == *of).unwrap()
}

/// What a workload accepts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    Disable,
    Permissive,
    Strict,
}

/// What one host believes of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    modes: [Mode; 5],
    mutual: [bool; 5],
    known: [bool; 5],
    /// The account that has a workload's addresses; in truth the workload's own.
    owners: [usize; 5],
    denied: BTreeSet<(usize, usize)>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            modes: [Mode::Strict; 5],
            mutual: [true; 5],
            known: [true; 5],
            owners: [0, 1, 2, 3, 4],
            denied: BTreeSet::new(),
        }
    }
}

impl View {
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Deny { client, server, on } => {
                self.denied.remove(&(client, server));
                self.denied.extend(on.then_some((client, server)));
            }
            Change::Known { of, on } => self.known[of] = on,
            Change::Mode { of, mode } => {
                self.modes[of] = [Mode::Disable, Mode::Permissive, Mode::Strict][usize::from(mode)];
            }
            Change::Mutual { of, on } => self.mutual[of] = on,
            Change::Owner { of, by } => self.owners[of] = by,
        }
    }

    /// The account that speaks from a workload's addresses, and the only one that may.
    pub(crate) fn speaks_for(&self, who: usize) -> Option<usize> {
        self.known[who].then_some(self.owners[who])
    }

    /// Some workload is given to this account.
    pub(crate) fn has_place(&self, account: usize) -> bool {
        (0..WORKLOADS.len()).any(|who| self.speaks_for(who) == Some(account))
    }

    /// A workload of `host`, which holds the identities of `held`.
    pub(crate) fn is_local(&self, who: usize, host: usize, held: &BTreeSet<usize>) -> bool {
        self.speaks_for(who)
            .is_some_and(|account| WORKLOADS[account].host == host && held.contains(&account))
    }

    /// What `from` sends to `to` must not leave in plaintext.
    pub(crate) fn must(
        &self,
        host: usize,
        held: &BTreeSet<usize>,
        (from, to): (usize, usize),
        kind: Kind,
    ) -> bool {
        kind != Kind::Plain
            && self.known[to]
            && self.mutual[to]
            && self.is_local(from, host, held)
            && !self.is_local(to, host, held)
    }

    /// The peer's account may open a flow to a workload of this host.
    pub(crate) fn accepts(&self, peer: usize, server: usize) -> bool {
        self.known[server]
            && self.modes[server] != Mode::Disable
            && !self.denied.contains(&(peer, server))
    }

    /// Plaintext to the workload is taken.
    pub(crate) fn accepts_plaintext(&self, server: usize, kind: Kind) -> bool {
        !self.known[server] || self.modes[server] != Mode::Strict || kind == Kind::Plain
    }

    /// The files of a host that believes this.
    pub(crate) fn yaml(&self) -> String {
        let mut text = String::new();
        for who in (0..WORKLOADS.len()).filter(|&who| self.known[who]) {
            text.push_str(&self.registry(who));
            text.push_str(&self.rules(who));
        }
        text
    }

    fn registry(&self, who: usize) -> String {
        let app = WORKLOADS[who].account;
        let account = &WORKLOADS[self.owners[who]];
        let gateway = underlay(account.host);
        let mut text = String::new();
        for v6 in [false, true] {
            let address = address(who, v6);
            text.push_str(&format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{ name: {app}{}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
                 spec: {{ address: \"{address}\", serviceAccount: {}, labels: {{ app: {app} }} }}\n",
                u8::from(v6),
                account.account
            ));
        }
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {app} }}\n\
             spec:\n  hosts: [{app}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {MUST_PORT}, name: tcp, protocol: TCP }}, {{ number: {PLAIN_PORT}, name: tcp-2, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {app} }} }}\n"
        ));
        text
    }

    fn rules(&self, who: usize) -> String {
        let app = WORKLOADS[who].account;
        let client = if self.mutual[who] {
            "ISTIO_MUTUAL"
        } else {
            "DISABLE"
        };
        let (mode, plain) = match self.modes[who] {
            Mode::Disable => ("DISABLE", "DISABLE"),
            Mode::Permissive => ("PERMISSIVE", "PERMISSIVE"),
            Mode::Strict => ("STRICT", "PERMISSIVE"),
        };
        let mut text = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: {app} }}\n\
             spec:\n  host: {app}.default.svc.cluster.local\n  trafficPolicy:\n    tls: {{ mode: {client} }}\n    \
             portLevelSettings: [{{ port: {{ number: {PLAIN_PORT} }}, tls: {{ mode: DISABLE }} }}]\n\
             ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: {app} }}\n\
             spec:\n  selector: {{ matchLabels: {{ app: {app} }} }}\n  mtls: {{ mode: {mode} }}\n  \
             portLevelMtls: {{ {PLAIN_PORT}: {{ mode: {plain} }} }}\n"
        );
        for (client, _) in self.denied.iter().filter(|(_, server)| *server == who) {
            let client = WORKLOADS[*client].account;
            text.push_str(&format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: not-{client}-{app} }}\n\
                 spec:\n  selector: {{ matchLabels: {{ app: {app} }} }}\n  action: DENY\n  \
                 rules: [{{ from: [{{ source: {{ principals: [\"cluster.local/ns/default/sa/{client}\"] }} }}] }}]\n"
            ));
        }
        text
    }
}
