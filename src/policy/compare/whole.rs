//! Two policies over everything that they name: each class of clients to each port of each class of destinations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::{
    policy::{
        Compiled, Mode, Question, Resources, RuleRef,
        compare::{
            Change, Effect, Side,
            classes::{Classes, ClientClass, ServerClass},
        },
        document::{Clause, Test},
    },
    wire::flow::protocol::{ICMP, ICMPV6, TCP, UDP},
};

/// What rules say of addresses and ports, beside what the registry names: they tell flows apart, too.
#[derive(Clone, Debug, Default)]
pub struct Mentioned {
    /// Networks of clients and destinations.
    pub blocks: BTreeSet<IpNetwork>,
    /// Ports.
    pub ports: BTreeSet<u16>,
}

impl Mentioned {
    /// Adds what `resources` mention.
    pub fn add(&mut self, resources: &Resources) {
        for policy in &resources.peer_authentications {
            self.ports.extend(policy.ports.keys());
        }
        let policies = resources.authorization_policies.iter();
        for rule in policies.flat_map(|policy| &policy.rules) {
            let clauses = rule.from.iter().chain(&rule.to).flatten();
            for clause in clauses.chain(&rule.when) {
                self.add_clause(clause);
            }
        }
    }

    fn add_clause(&mut self, clause: &Clause) {
        match &clause.test {
            Test::DestinationIp(blocks) | Test::SourceIp(blocks) => self.blocks.extend(blocks),
            Test::DestinationPort(ports) => self.ports.extend(ports),
            Test::SourceNamespace(_)
            | Test::SourcePrincipal(_)
            | Test::SourceServiceAccount(_)
            | Test::SourceTrustDomain(_) => {}
        }
    }
}

/// Flows that change alike.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Row {
    /// The clients: `namespace/account`, or `outside the mesh`.
    pub client: String,
    /// The destinations: `namespace/account`, or a service's host.
    pub server: String,
    /// `tcp/80`, `icmp`, `other ports`; `every port` where all of them change alike.
    pub ports: Vec<String>,
    /// Before.
    pub old: Side,
    /// After.
    pub new: Side,
    /// What that means.
    pub effect: Effect,
    /// One of the flows: the client's address.
    pub source: IpAddr,
    /// One of the flows: the destination's address.
    pub destination: IpAddr,
}

/// A workload whose mode is another.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ModeChange {
    /// `namespace/account`.
    pub workload: String,
    /// Before; `None`: not in the mesh.
    pub old: Option<Mode>,
    /// After; `None`: not in the mesh.
    pub new: Option<Mode>,
    /// The rule behind the old mode; `None`: the default.
    pub old_rule: Option<RuleRef>,
    /// The rule behind the new mode; `None`: the default.
    pub new_rule: Option<RuleRef>,
}

/// Everything that differs.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Comparison {
    /// By client, server and effect.
    pub changes: Vec<Row>,
    /// By workload.
    pub modes: Vec<ModeChange>,
    /// Flows that were asked about.
    pub asked: usize,
    /// Flows that there are to ask about; more than `asked` when the limit was met.
    pub questions: usize,
}

impl Comparison {
    /// Nothing differs.
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.modes.is_empty()
    }
}

/// Compares two policies over at most `limit` flows, as a host sees them that is neither end.
pub fn compare(old: &Compiled, new: &Compiled, mentioned: &Mentioned, limit: usize) -> Comparison {
    let classes = Classes::new(old, new, mentioned);
    let (clients, servers) = (classes.clients(), classes.servers());
    let whole = Whole {
        old,
        new,
        mentioned,
        unnamed: unnamed(mentioned, &servers),
    };
    let mut comparison = Comparison {
        modes: whole.modes(&clients, &servers),
        ..Comparison::default()
    };
    let mut rows = BTreeMap::new();
    for client in &clients {
        for server in &servers {
            let Some(pair) = pair(client, server) else {
                continue;
            };
            let count = server.ports.len() + mentioned.ports.len() + 2;
            comparison.questions += count;
            if comparison.asked + count <= limit {
                comparison.asked += count;
                whole.ask(client, server, pair, &mut rows);
            }
        }
    }
    comparison.changes = rows.into_values().flatten().collect();
    comparison
        .changes
        .sort_by(|a, b| (&a.client, &a.server, a.effect).cmp(&(&b.client, &b.server, b.effect)));
    comparison
}

struct Whole<'a> {
    old: &'a Compiled,
    new: &'a Compiled,
    mentioned: &'a Mentioned,
    /// A port that nothing names.
    unnamed: u16,
}

/// By client and server.
type Rows = BTreeMap<(String, String), Vec<Row>>;

/// A port of a destination, or what stands for several.
#[derive(Clone, Copy)]
enum Port {
    Every,
    Icmp,
    Named(u8, u16),
    Others,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("every port"),
            Self::Icmp => f.write_str("icmp"),
            Self::Named(UDP, port) => write!(f, "udp/{port}"),
            Self::Named(_, port) => write!(f, "tcp/{port}"),
            Self::Others => f.write_str("other ports"),
        }
    }
}

impl Whole<'_> {
    /// Every port from one client to one destination.
    fn ask(
        &self,
        client: &ClientClass,
        server: &ServerClass,
        pair: (IpAddr, IpAddr),
        rows: &mut Rows,
    ) {
        let asked = self.changes(server, pair);
        let first = asked.first().map(|(_, change)| change);
        let all_alike = asked.iter().all(|(_, change)| Some(change) == first);
        let kept = if all_alike { 1 } else { asked.len() };
        for (port, change) in asked.into_iter().take(kept) {
            let Some(change) = change else { continue };
            let port = if all_alike { Port::Every } else { port };
            note(client, server, pair, port, change, rows);
        }
    }

    fn changes(
        &self,
        server: &ServerClass,
        (source, destination): (IpAddr, IpAddr),
    ) -> Vec<(Port, Option<Change>)> {
        let change = |protocol, port| {
            let question = Question {
                source,
                destination,
                protocol,
                port,
            };
            Change::of(self.old, self.new, &question)
        };
        let icmp = if destination.is_ipv4() { ICMP } else { ICMPV6 };
        let others = change(TCP, Some(self.unnamed));
        let ask = |(protocol, port)| (Port::Named(protocol, port), change(protocol, Some(port)));
        let mut asked: Vec<_> = server.ports.iter().copied().map(ask).collect();
        // A port that only a rule names is worth a word where it is not like all others.
        let unserved = self.mentioned.ports.iter().map(|port| (TCP, *port));
        let unserved = unserved.filter(|port| !server.ports.contains(port));
        asked.extend(unserved.map(ask).filter(|(_, change)| *change != others));
        asked.push((Port::Others, others));
        asked.push((Port::Icmp, change(icmp, None)));
        asked
    }

    fn modes(&self, clients: &[ClientClass], servers: &[ServerClass]) -> Vec<ModeChange> {
        let mut modes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for server in servers {
            let Some((source, destination)) =
                clients.iter().find_map(|client| pair(client, server))
            else {
                continue;
            };
            let mode = |policy: &Compiled| {
                policy
                    .registry()
                    .workload(destination)
                    .map(|_| policy.explain(source, destination, TCP, Some(self.unnamed)))
                    .map_or((None, None), |explanation| {
                        (explanation.server_mode, explanation.server_rule)
                    })
            };
            let ((old, old_rule), (new, new_rule)) = (mode(self.old), mode(self.new));
            let change = ModeChange {
                workload: server.name.clone(),
                old,
                new,
                old_rule,
                new_rule,
            };
            let known: &mut Vec<_> = modes.entry(server.name.clone()).or_default();
            if old != new && !known.contains(&change) {
                known.push(change);
            }
        }
        modes.into_values().flatten().collect()
    }
}

fn note(
    client: &ClientClass,
    server: &ServerClass,
    (source, destination): (IpAddr, IpAddr),
    port: Port,
    Change { old, new }: Change,
    rows: &mut Rows,
) {
    let rows = rows
        .entry((client.name.clone(), server.name.clone()))
        .or_default();
    let port = port.to_string();
    if let Some(row) = rows.iter_mut().find(|row| row.old == old && row.new == new) {
        if !row.ports.contains(&port) {
            row.ports.push(port);
        }
        return;
    }
    rows.push(Row {
        client: client.name.clone(),
        server: server.name.clone(),
        ports: vec![port],
        effect: Effect::of(old.outcome, new.outcome),
        old,
        new,
        source,
        destination,
    });
}

/// One address of each, of one family, and not the same.
fn pair(client: &ClientClass, server: &ServerClass) -> Option<(IpAddr, IpAddr)> {
    let destinations = &server.addresses;
    let source = *client.addresses.first()?;
    let other = |address: &&IpAddr| **address != source && address.is_ipv4() == source.is_ipv4();
    let destination = *destinations.iter().find(other)?;
    Some((source, destination))
}

/// The highest port that nothing names.
fn unnamed(mentioned: &Mentioned, servers: &[ServerClass]) -> u16 {
    let named: BTreeSet<u16> = servers
        .iter()
        .flat_map(|server| server.ports.iter().map(|(_, port)| *port))
        .chain(mentioned.ports.iter().copied())
        .collect();
    let free = (1..=u16::MAX).rev().find(|port| !named.contains(port));
    free.unwrap_or(u16::MAX)
}
