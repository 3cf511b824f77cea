//! What has really been spoken: every pair of ends with its port, in tunnels, in the clear or refused; bounded.
//!
//! Tunnels and refusals come from the shard's events, plaintext from the kernel's connection tracking ([`feed`]), as the
//! daemon never sees its packets. Traffic that stays on this host is left out.

pub mod feed;
pub mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{EngineEvent, Opener},
    host::conntrack_events::Connection,
    policy::{Compiled, Question, Why},
    shard::Event,
    tunnel::TunnelEvent,
    wire::{
        DropReason, FiveTuple,
        flow::protocol::{UDP, has_ports},
    },
};

/// How many entries are kept.
pub const CAPACITY: usize = 16_384;

/// How a flow crossed the network.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// In the clear.
    Plaintext,
    /// Not at all.
    Refused,
    /// In a tunnel.
    Tunnel,
}

/// What flows are counted together: all but the port of the client, which is another each time.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Who opened it, and to whom, and on which port.
    pub question: Question,
    /// How.
    pub way: Way,
}

/// What is known of the flows of a [`Key`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Entry {
    /// Unix milliseconds.
    pub first_seen: u64,
    /// Unix milliseconds.
    pub last_seen: u64,
    /// Flows, as far as they were told.
    pub connections: u64,
    /// Bytes from source to destination, of flows in tunnels that ended.
    pub bytes_forth: u64,
    /// Bytes back.
    pub bytes_back: u64,
    /// Why, as a code, when it was last decided.
    pub code: Option<&'static str>,
}

/// Flows of a [`Key`] that the kernel holds at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// How many.
    pub connections: u64,
    /// Not all of them are over.
    pub open: bool,
}

/// How plaintext becomes known.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Not at all: conntrack cannot be read.
    #[default]
    None,
    /// Now and then the table is read; short flows may be missed.
    Dumps,
    /// The kernel tells every beginning.
    Events,
}

/// See the module.
#[derive(Debug)]
pub struct FlowLog {
    capacity: usize,
    inner: Mutex<Inner>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The latest seen first.
    pub entries: Vec<(Key, Entry)>,
    /// Entries that made room for later ones.
    pub evicted: u64,
    /// How often the kernel had more to tell than could be heard.
    pub losses: u64,
    /// How plaintext becomes known.
    pub source: Source,
    /// Why it is not by events.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Entry>,
    by_age: BTreeSet<(u64, Key)>,
    evicted: u64,
    losses: u64,
    source: Source,
    trouble: Option<String>,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl FlowLog {
    /// An empty log with room for `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            inner: Mutex::default(),
        }
    }

    /// Takes one event of the shard, which happened under `policy` at `now` (Unix milliseconds).
    pub fn handle(&self, event: &Event, policy: &Compiled, now: u64) {
        match event {
            Event::Engine(EngineEvent::FlowOpened {
                tuple, opener, why, ..
            }) => {
                let code = why.code.map(|code| code.as_str());
                self.note(key(&outward(tuple, *opener), Way::Tunnel), code, now);
            }
            Event::Engine(EngineEvent::FlowCut {
                tuple,
                opener,
                reason,
                why,
                summary,
                ..
            }) => {
                let code = refusal_code(*reason, why.as_deref());
                self.note(key(&outward(tuple, *opener), Way::Refused), Some(code), now);
                self.close(tuple, (summary.bytes_sent, summary.bytes_received), now);
            }
            Event::Engine(EngineEvent::FlowClosed { tuple, summary }) => {
                let bytes = (summary.bytes_sent, summary.bytes_received);
                self.close(tuple, bytes, now);
            }
            Event::Engine(EngineEvent::Dropped {
                tuple, reason, why, ..
            }) if is_refusal(*reason) => {
                let code = refusal_code(*reason, why.as_deref());
                self.refuse(tuple, code, policy, now);
            }
            Event::Tunnel(TunnelEvent::FlowRefused { refused, .. }) => {
                let code = DropReason::PeerRefusedFlow.as_str();
                self.refuse(&refused.tuple, code, policy, now);
            }
            Event::Engine(EngineEvent::Dropped { .. })
            | Event::Tunnel(
                TunnelEvent::Up { .. }
                | TunnelEvent::Down { .. }
                | TunnelEvent::DialFailed { .. }
                | TunnelEvent::IncomingRefused { .. },
            ) => {}
        }
    }

    /// Takes the beginning of a flow outside tunnels.
    pub fn plaintext(&self, connection: &Connection, policy: &Compiled, now: u64) {
        if let Some(key) = plaintext_key(connection, policy) {
            let code = self.first_code(&key, policy);
            self.note(key, code, now);
        }
    }

    /// Takes what the kernel holds at one moment. Those that began unheard are made good, and what is open counts as
    /// seen.
    pub fn merge(&self, held: &BTreeMap<Key, Held>, policy: &Compiled, now: u64) {
        for (&key, held) in held {
            let code = self.first_code(&key, policy);
            let inner = &mut *self.lock();
            let known = inner.entries.get(&key);
            let seen = known.filter(|_| !held.open).map(|known| known.last_seen);
            let entry = inner.touch(self.capacity, key, seen.unwrap_or(now));
            entry.connections = entry.connections.max(held.connections);
            entry.code = code.or(entry.code);
        }
    }

    /// Notes how plaintext becomes known.
    pub fn set_source(&self, source: Source, trouble: Option<String>) {
        let inner = &mut *self.lock();
        inner.source = source;
        inner.trouble = trouble;
    }

    /// Notes that some beginnings were not heard.
    pub fn lost(&self) {
        self.lock().losses += 1;
    }

    /// Everything, the latest seen first.
    pub fn contents(&self) -> Contents {
        let inner = &*self.lock();
        let entries = inner.by_age.iter().rev();
        let entries = entries.filter_map(|(_, key)| Some((*key, inner.entries.get(key)?.clone())));
        Contents {
            entries: entries.collect(),
            evicted: inner.evicted,
            losses: inner.losses,
            source: inner.source,
            trouble: inner.trouble.clone(),
        }
    }

    /// Whoever is known is not decided again: this is as often as connections are made.
    fn first_code(&self, key: &Key, policy: &Compiled) -> Option<&'static str> {
        let known = self.lock().entries.contains_key(key);
        (!known).then(|| policy.decide(&key.question).code.as_str())
    }

    fn note(&self, key: Key, code: Option<&'static str>, now: u64) {
        let inner = &mut *self.lock();
        let entry = inner.touch(self.capacity, key, now);
        entry.connections += 1;
        entry.code = code.or(entry.code);
    }

    /// Only the ports tell which end opened the flow: that of its client is in no key.
    fn close(&self, tuple: &FiveTuple, (sent, received): (u64, u64), now: u64) {
        let inner = &mut *self.lock();
        let (outward, inward) = (key(tuple, Way::Tunnel), key(&tuple.reversed(), Way::Tunnel));
        let (key, forth, back) = if inner.entries.contains_key(&outward) {
            (outward, sent, received)
        } else if inner.entries.contains_key(&inward) {
            (inward, received, sent)
        } else {
            return;
        };
        let entry = inner.touch(self.capacity, key, now);
        entry.bytes_forth += forth;
        entry.bytes_back += back;
    }

    /// `tuple` is a packet's; where it answers a flow that is known, that flow is refused.
    fn refuse(&self, tuple: &FiveTuple, code: &'static str, policy: &Compiled, now: u64) {
        let is_local = |address| policy.is_local(address);
        if !is_local(tuple.source) && !is_local(tuple.destination) {
            return;
        }
        let answered = key(&tuple.reversed(), Way::Tunnel);
        let answers = self.lock().entries.contains_key(&answered);
        let refused = match answers {
            true => Key {
                way: Way::Refused,
                ..answered
            },
            false => key(tuple, Way::Refused),
        };
        self.note(refused, Some(code), now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The entry, seen at `now`. The one that was seen the longest ago makes room for a new one.
    fn touch(&mut self, capacity: usize, key: Key, now: u64) -> &mut Entry {
        if let Some(known) = self.entries.get(&key) {
            self.by_age.remove(&(known.last_seen, key));
        } else if self.entries.len() >= capacity
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
            self.evicted += 1;
        }
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            first_seen: now,
            ..Entry::default()
        });
        entry.last_seen = entry.last_seen.max(now);
        self.by_age.insert((entry.last_seen, key));
        entry
    }
}

/// What a flow outside tunnels is counted as; `None` for one that is no workload's, or does not leave this host.
pub fn plaintext_key(connection: &Connection, policy: &Compiled) -> Option<Key> {
    let Connection {
        original, answers, ..
    } = connection;
    let mut tuple = *original;
    if policy.is_local(answers.0) {
        // translated on arrival: policy is asked with the workload's own address
        (tuple.destination, tuple.destination_port) = *answers;
    }
    let (from, to) = (tuple.source, tuple.destination);
    let host = policy.host();
    let is_workload = policy.is_local(from) || policy.is_local(to);
    let is_here = |address| policy.is_local(address) || host.underlay.contains(&address);
    let is_outer = tuple.protocol == UDP
        && (tuple.source_port == host.port || tuple.destination_port == host.port);
    let stays = is_here(from) && is_here(to) || !leaves(from) || !leaves(to);
    if !is_workload || stays || is_outer {
        return None;
    }
    Some(key(&tuple, Way::Plaintext))
}

fn key(outward: &FiveTuple, way: Way) -> Key {
    let port = has_ports(outward.protocol).then_some(outward.destination_port);
    Key {
        question: Question {
            source: outward.source,
            destination: outward.destination,
            protocol: outward.protocol,
            port,
        },
        way,
    }
}

/// The flow as its opener began it.
const fn outward(tuple: &FiveTuple, opener: Opener) -> FiveTuple {
    match opener {
        Opener::Local => *tuple,
        Opener::Peer => tuple.reversed(),
    }
}

/// Policy's own code, where it decided.
fn refusal_code(reason: DropReason, why: Option<&Why>) -> &'static str {
    let code = why.and_then(|why| why.code);
    let code = code.filter(|code| crate::policy::compare::is_refused(code.outcome()));
    code.map_or_else(|| reason.as_str(), |code| code.as_str())
}

/// An address that can be at the other end of a network.
fn leaves(address: IpAddr) -> bool {
    let is_narrow = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !is_narrow && !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
}

/// Policy or the peer said no to a flow; everything else that is dropped says nothing of who speaks to whom.
const fn is_refusal(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::DeniedByPolicy
            | DropReason::IdentityNotAccepted
            | DropReason::ModeDisable
            | DropReason::NoAuthorizedIdentity
            | DropReason::NoMatchingAllow
            | DropReason::NotInMesh
            | DropReason::PeerRefusedSession
            | DropReason::UnknownDestination
            | DropReason::WrongIdentity
    )
}

#[cfg(test)]
mod tests;
