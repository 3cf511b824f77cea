//! I2, who may speak to whom; I4, what may wait; I5, which sessions may be.

use std::time::Duration;

use identun::tunnel::{TunnelSnapshot, TunnelState};

use crate::{
    host::{Host, PENDING},
    ledger::Record,
    model::{WORKLOADS, account, address},
    step::Kind,
    world::{Verdict, World},
};

/// How long a handshake and its greeting may take: a session has the certificates of its beginning.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// How long after a jump of the wall clock a session may not know of it (`CLOCK_CHECK` of the tunnels, and a second).
const CLOCK_CHECK: Duration = Duration::from_secs(62);
/// A certificate is good until the end of its last second, and clocks are read in whole seconds.
const SECONDS: u64 = 2;

/// The code's own bounds in bytes, as its documents have them.
const ANSWERS: usize = 256 * 1_500;
const HELD_FRAGMENTS: usize = 64 * 1024;
const PIECES: usize = 256 * 1024;
const SESSION_QUEUE: usize = 4 << 20;

impl World {
    /// I2: a delivered packet comes from whom it says, to whom it says, and policy here lets it.
    pub(crate) fn judge(&self, index: usize, record: &Record) -> Verdict {
        let Some(what) = self.wrong(&self.hosts[index], record) else {
            return Ok(());
        };
        let Record {
            from,
            to,
            key,
            host,
            ..
        } = record;
        let word = if record.reply { "a reply" } else { "a packet" };
        Err(format!(
            "I2: {word} of {:?} from {from} to {to}, sent on host {host}, came out on host {index}: {what}",
            key.kind
        ))
    }

    fn wrong(&self, here: &Host, record: &Record) -> Option<&'static str> {
        let there = &self.hosts[record.host];
        let (Some(speaker), Some(heard_by)) = (
            here.view.speaks_for(record.from),
            here.view.speaks_for(record.to),
        ) else {
            return Some("the registry here does not know its ends");
        };
        let was = |who: usize, account: usize| {
            believed(there, record.at).any(|view| view.speaks_for(who) == Some(account))
        };
        let mut issued = there
            .issued
            .iter()
            .filter(|issued| issued.account == speaker);
        if WORKLOADS[speaker].host != record.host {
            Some("its source address is another host's")
        } else if !here.view.is_local(record.to, here.index, &here.held()) {
            Some("its destination is no local workload's")
        } else if !was(record.from, speaker) {
            Some("its source address is not the peer's")
        } else if !was(record.to, heard_by) {
            Some("its destination is not of the identity that was dialled")
        } else if !issued.any(|issued| here.trust[issued.ca]) {
            Some("the peer has no certificate that is trusted here")
        } else if !self.policy_allows(here, record, speaker) {
            Some("policy here refuses it")
        } else {
            None
        }
    }

    /// The peer may open the flow, or a local workload did.
    fn policy_allows(&self, here: &Host, record: &Record, speaker: usize) -> bool {
        let reply_goes = || {
            here.view.must(
                here.index,
                &here.held(),
                (record.to, record.from),
                record.key.kind,
            )
        };
        if here.view.accepts(speaker, record.to) {
            return true;
        }
        // Whoever speaks first of a flow that is forgotten has opened it: here, a server that answers late.
        let server_spoke_first = self
            .flows
            .get(&record.key)
            .is_some_and(|flow| flow.reopened);
        // What cannot open a TCP connection is taken for a reply.
        let is_tcp = matches!(record.key.kind, Kind::Tcp | Kind::Bulk);
        let is_segment = is_tcp && !record.opening;
        // Without ports there is one flow between two addresses.
        let [from, to] = [record.from, record.to].map(|who| address(who, record.key.v6));
        let is_either = record.key.kind == Kind::Echo && here.spoken.contains(&(to, from));
        let may_be_reply =
            record.reply || is_segment || is_either || (server_spoke_first && !is_tcp);
        may_be_reply && reply_goes()
    }

    /// I4 and I5, after every step.
    pub(crate) fn check(&mut self) -> Verdict {
        for index in 0..self.hosts.len() {
            let Some(shard) = &mut self.hosts[index].shard else {
                continue;
            };
            let snapshot = shard.snapshot();
            if snapshot.books.missing() != (0, 0) {
                return Err(format!(
                    "I3: the books of host {index} are not even: {:?}",
                    snapshot.books
                ));
            }
            let tunnels = snapshot.tunnels;
            self.check_queues(index)?;
            for tunnel in &tunnels {
                if matches!(tunnel.state, TunnelState::Up | TunnelState::Draining) {
                    self.check_session(&self.hosts[index], tunnel)?;
                }
            }
        }
        Ok(())
    }

    /// I4: every queue is within its bound in bytes.
    pub(crate) fn check_queues(&mut self, index: usize) -> Verdict {
        let Some(shard) = &mut self.hosts[index].shard else {
            return Ok(());
        };
        let (waits, tunnels) = (shard.waiting(), WORKLOADS.len() * WORKLOADS.len());
        for (name, bytes, bound) in [
            ("answers", waits.answers, ANSWERS),
            ("fragments", waits.fragments, HELD_FRAGMENTS * (tunnels + 1)),
            ("frames for other shards", waits.handovers, 0),
            (
                "packets that wait for tunnels",
                waits.pending,
                PENDING.total_bytes,
            ),
            ("pieces", waits.pieces, PIECES * tunnels),
            (
                "queues of sessions",
                waits.sessions,
                SESSION_QUEUE * tunnels,
            ),
        ] {
            if bytes > bound {
                return Err(format!(
                    "I4: {name} on host {index}: {bytes} bytes, the bound is {bound}"
                ));
            }
        }
        Ok(())
    }

    /// I5: a session lives no longer than its certificates, and than both ends are allowed and trusted.
    fn check_session(&self, host: &Host, tunnel: &TunnelSnapshot) -> Verdict {
        let (local, peer) = (account(&tunnel.local), account(&tunnel.peer));
        let says = |what: String| {
            let (from, to) = (WORKLOADS[local].account, WORKLOADS[peer].account);
            Err(format!(
                "I5: the session {from} -> {to} on host {} is up, but {what}",
                host.index
            ))
        };
        if !host.own.contains_key(&local) {
            return says("this host no longer holds its identity".into());
        }
        if !host.view.has_place(peer) {
            return says("the registry here no longer has its peer".into());
        }
        let not_after = tunnel.peer_not_after.unwrap_or_default();
        let issued = &self.hosts[WORKLOADS[peer].host].issued;
        let mut same = issued
            .iter()
            .filter(|issued| (issued.account, issued.not_after) == (peer, not_after))
            .peekable();
        if same.peek().is_none() {
            return says(format!(
                "nobody issued its peer's certificate, which ends at {not_after}"
            ));
        }
        if !same.any(|issued| host.trust[issued.ca]) {
            return says("its peer's CA is no longer trusted here".into());
        }
        let Some(own) = own_end(host, tunnel, (local, peer)) else {
            return says("the daemon never said so".into());
        };
        let (end, wall) = (own.min(not_after), host.wall());
        let jumped = host
            .jumped
            .is_some_and(|at| at + CLOCK_CHECK > self.elapsed);
        if wall > end + SECONDS && !jumped {
            return says(format!("a certificate ended {} s ago", wall - end));
        }
        Ok(())
    }
}

/// What a host believed at some time since.
fn believed(host: &Host, since: Duration) -> impl Iterator<Item = &crate::model::View> {
    let first = host
        .views
        .iter()
        .rposition(|(from, _)| *from < since)
        .unwrap_or(0);
    host.views[first..].iter().map(|(_, view)| view)
}

/// When the host's own certificate ends that a session was made with, as far as can be told.
fn own_end(host: &Host, tunnel: &TunnelSnapshot, (local, peer): (usize, usize)) -> Option<u64> {
    let sessions = host.sessions.iter().filter(|session| {
        (session.local, session.peer) == (local, peer)
            && Some(session.peer_not_after) == tunnel.peer_not_after
            && Some(session.dialled) == tunnel.dialled
    });
    sessions
        .map(|session| end_of_own(host, local, session.up))
        .max()
}

/// When the certificate ends that a session which came up then was made with.
fn end_of_own(host: &Host, local: usize, up: Duration) -> u64 {
    let own: Vec<_> = host
        .issued
        .iter()
        .filter(|issued| issued.account == local)
        .collect();
    let in_use = own.iter().enumerate().filter(|(number, issued)| {
        let until = own
            .get(number + 1)
            .map_or(Duration::MAX, |next| next.since + HANDSHAKE);
        issued.since <= up && up <= until
    });
    in_use
        .map(|(_, issued)| issued.not_after)
        .max()
        .unwrap_or(0)
}
