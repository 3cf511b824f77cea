//! Hosts, the network between them, and virtual time; nothing stands still but between calls.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use identun::{
    shard::Event,
    tunnel::{TunnelEvent, UnderlayDatagram},
    wire::packet::Packet,
};

use crate::{
    authority::Authority,
    host::{Certificate, Host, Issued, START, Session},
    ledger::Ledger,
    model::{TUNNEL_PORT, WORKLOADS, account, elsewhere, id, owner, underlay},
    network::{Flying, Network},
    packets::MAGIC,
    step::{Step, Story},
    traffic::Flows,
};

/// Turns of a host at one instant; more is a loop.
const TURNS: usize = 1_000;
/// How long a peer may send to a daemon that is no more, and to a session that was revoked.
const UNHEARD: Duration = Duration::from_secs(35);
const REVOKED: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct World {
    base: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) flows: Flows,
    pub(crate) ledger: Ledger,
    cas: [Authority; 2],
    /// Certificates so far: none ends when another one does.
    certificates: u64,
    /// When something arrived last.
    pub(crate) heard: Duration,
    /// Some host had another address.
    pub(crate) roamed: bool,
    /// Sessions that came up.
    pub(crate) sessions: u64,
    buffer: Vec<u8>,
}

/// What is wrong, in words; it begins with the invariant's name.
pub(crate) type Verdict = Result<(), String>;

impl World {
    pub(crate) fn new(story: &Story) -> Result<Self, String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to count from"
        )]
        let base = Instant::now();
        let life = START - 1_000_000..START + 10_000_000;
        let mut world = Self {
            base,
            elapsed: Duration::ZERO,
            hosts: Vec::new(),
            network: Network::new(story.seed),
            flows: Flows::default(),
            ledger: Ledger::default(),
            cas: [Authority::new(life.clone()), Authority::new(life)],
            certificates: 0,
            heard: Duration::ZERO,
            roamed: false,
            sessions: 0,
            buffer: Vec::new(),
        };
        for index in 0..story.hosts {
            let here = (0..WORKLOADS.len()).filter(|&who| WORKLOADS[who].host == index);
            let own = here.map(|who| (who, world.certificate(who, 86_400, 0)));
            let own = own.collect();
            let mut host = Host::new(index, own);
            host.tick(Duration::ZERO);
            host.start(&world.cas, false, base, Duration::ZERO);
            world.hosts.push(host);
        }
        Ok(world)
    }

    pub(crate) fn now(&self) -> Instant {
        self.base + self.elapsed
    }

    fn certificate(&mut self, who: usize, life: u64, ca: usize) -> Certificate {
        self.certificates += 1;
        let now = START + self.elapsed.as_secs();
        let not_after = now + life + self.certificates % 7;
        let identity = self.cas[ca].issue(&id(who), now - 500_000..not_after);
        Certificate {
            identity: Arc::new(identity),
            not_after,
            ca,
        }
    }

    /// Does what a step says.
    pub(crate) fn take(&mut self, step: &Step) -> Verdict {
        let elapsed = self.elapsed;
        match *step {
            Step::Clean => {
                self.network.clean();
                self.hosts.iter_mut().for_each(|host| host.alias = None);
            }
            Step::Clock { host, by } => self.hosts[host].jump(by, elapsed),
            Step::Cut { a, b } => self.network.cut(a, b),
            Step::Link(faults) => self.network.faults = faults,
            Step::Lose { host } => self.lose(host),
            Step::Policy { hosts, change } => {
                for index in (0..self.hosts.len()).filter(|index| hosts & (1 << index) != 0) {
                    self.change(index, |host| host.view.apply(change));
                }
            }
            Step::Restart { host, seeded } => self.restart(host, seeded),
            Step::Roam { host, to, stays } => {
                self.roamed = true;
                self.hosts[host].alias = (to > 0).then(|| (elsewhere(host, to), stays));
            }
            Step::Rotate { of, life, ca } => self.rotate(of, life, ca),
            Step::Send(talk) => return self.talk(talk),
            Step::Spoof {
                host,
                victim,
                to,
                kind,
                v6,
            } => {
                return self.spoof(host, (victim, to), kind, v6);
            }
            Step::Trust { host, old, new } => self.change(host, |host| host.trust = [old, new]),
            Step::Wait { ms } => return self.run_for(Duration::from_millis(ms)),
            Step::Withdraw { of } => {
                self.change(WORKLOADS[of].host, |host| drop(host.own.remove(&of)))
            }
        }
        self.settle()
    }

    /// The TUN goes, and with it the daemon and all that was in it.
    fn lose(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.shake(self.elapsed + UNHEARD);
        host.kill();
        host.tun.clear();
    }

    /// A host believes, trusts or holds something else, which may end sessions.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Host)) {
        let host = &mut self.hosts[index];
        change(host);
        if host.has_sessions() {
            host.shake(self.elapsed + REVOKED);
        }
        self.configure(index);
    }

    /// A workload's host gets another certificate for it.
    pub(crate) fn rotate(&mut self, of: usize, life: u64, ca: usize) {
        let certificate = self.certificate(of, life, ca);
        let (now, elapsed) = (self.now(), self.elapsed);
        let host = &mut self.hosts[WORKLOADS[of].host];
        host.issued.push(Issued {
            since: elapsed,
            account: of,
            not_after: certificate.not_after,
            ca,
        });
        host.own.insert(of, certificate);
        host.configure(&self.cas, now, elapsed);
    }

    /// A daemon begins anew, or in place of one that runs.
    pub(crate) fn restart(&mut self, host: usize, seeded: bool) {
        let (now, elapsed) = (self.now(), self.elapsed);
        self.hosts[host].shake(elapsed + UNHEARD);
        self.hosts[host].start(&self.cas, seeded, now, elapsed);
    }

    /// A host's configuration is read again.
    pub(crate) fn configure(&mut self, host: usize) {
        let (now, elapsed) = (self.now(), self.elapsed);
        self.hosts[host].configure(&self.cas, now, elapsed);
    }

    /// Runs for so much virtual time.
    pub(crate) fn run_for(&mut self, time: Duration) -> Verdict {
        let end = self.elapsed + time;
        self.settle()?;
        while let Some(next) = self.next_event().filter(|next| *next <= end) {
            self.go_to(next.max(self.elapsed + Duration::from_micros(1)));
            self.arrive();
            self.settle()?;
        }
        self.go_to(end);
        self.settle()
    }

    fn go_to(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        self.hosts.iter_mut().for_each(|host| host.tick(elapsed));
    }

    fn next_event(&mut self) -> Option<Duration> {
        let base = self.base;
        let shards = self.hosts.iter_mut().filter_map(|host| {
            let due = host.shard.as_mut()?.poll_timeout()?;
            Some(due.saturating_duration_since(base))
        });
        shards.chain(self.network.next()).min()
    }

    /// Lets everybody work until nobody has anything left to do at this instant.
    fn settle(&mut self) -> Verdict {
        for index in 0..self.hosts.len() {
            let mut turns = 0;
            while self.turn(index)? {
                turns += 1;
                if turns > TURNS {
                    return Err(format!("I6: host {index} is never done"));
                }
            }
        }
        Ok(())
    }

    /// One turn of a host's loop; `true` when there may be more.
    fn turn(&mut self, index: usize) -> Result<bool, String> {
        let now = self.now();
        let host = &mut self.hosts[index];
        let Some(shard) = &mut host.shard else {
            return Ok(false);
        };
        let mut moved = false;
        while shard.wants_device()
            && let Some(frame) = host.tun.pop_front()
        {
            shard.handle_device(&frame, now);
            moved = true;
        }
        if shard.poll_timeout().is_some_and(|due| due <= now) {
            shard.handle_timeout(now);
            moved = true;
        }
        if moved {
            self.check_queues(index)?;
        }
        moved |= self.transmit(index)?;
        self.hear(index);
        moved |= self.deliver(index)?;
        Ok(moved)
    }

    /// What the daemon sends. I1: it is QUIC, between daemons, and shows nothing of what is in it.
    fn transmit(&mut self, index: usize) -> Result<bool, String> {
        let (now, elapsed) = (self.now(), self.elapsed);
        let mut buffer = std::mem::take(&mut self.buffer);
        let host = &mut self.hosts[index];
        let mut moved = false;
        while let Some(sent) = host
            .shard
            .as_mut()
            .and_then(|shard| shard.poll_transmit(now, 10, &mut buffer))
        {
            moved = true;
            let own = sent.local.unwrap_or_else(|| underlay(index));
            let from = host.alias.map_or(own, |(alias, _)| alias);
            let size = sent.segment_size.unwrap_or(sent.size).max(1);
            for datagram in buffer[..sent.size].chunks(size) {
                is_sealed(datagram, sent.remote)?;
                let ends = (SocketAddr::new(from, TUNNEL_PORT), sent.remote);
                self.network.send(index, ends, datagram, elapsed);
            }
        }
        self.buffer = buffer;
        Ok(moved)
    }

    /// What the daemon tells.
    fn hear(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(shard) = &mut host.shard else { return };
        while let Some(event) = shard.poll_event() {
            let Event::Tunnel(event) = event else {
                continue;
            };
            if let TunnelEvent::Up {
                key,
                dialled,
                peer_not_after,
                ..
            } = event
            {
                self.sessions += 1;
                host.sessions.push(Session {
                    local: account(&key.local),
                    peer: account(&key.peer),
                    dialled,
                    up: self.elapsed,
                    peer_not_after,
                });
            } else if let TunnelEvent::Down { .. } = event {
                self.ledger.broke();
            }
        }
    }

    fn arrive(&mut self) {
        while let Some(flying) = self.network.arrival(self.elapsed) {
            self.heard = self.elapsed;
            let to = flying.to.ip();
            let found = self.hosts.iter().position(|host| match host.alias {
                Some((alias, stays)) => to == alias || (stays && to == underlay(host.index)),
                None => to == underlay(host.index),
            });
            let found = found.filter(|&index| !self.network.is_cut(flying.sender, index));
            let is_heard = found.is_some_and(|index| self.hand_to(index, &flying));
            // An end that did not dial is not heard from another address (RFC 9000 §9).
            if !is_heard || flying.from.ip() != underlay(flying.sender) {
                self.network.lost += 1;
            }
        }
    }

    fn hand_to(&mut self, index: usize, flying: &Flying) -> bool {
        let now = self.now();
        let Some(shard) = &mut self.hosts[index].shard else {
            return false;
        };
        let datagram = UnderlayDatagram {
            remote: flying.from,
            local: Some(underlay(index)),
            ecn: 0,
            data: BytesMut::from(flying.data.as_slice()),
        };
        shard.handle_underlay(datagram, now);
        true
    }
}

/// I1: a QUIC packet of version 1, to a daemon, in which no application's byte can be read. The bit that is fixed in
/// QUIC's first octet is not fixed among those who agreed so (RFC 9287).
fn is_sealed(datagram: &[u8], to: SocketAddr) -> Verdict {
    let is_quic = match datagram {
        [first, 0, 0, 0, 1, 0..=20, ..] if first & 0x80 != 0 => true,
        [first, ..] => first & 0x80 == 0 && datagram.len() > 20,
        [] => false,
    };
    let is_inner =
        Packet::new_checked(datagram).is_ok_and(|packet| owner(packet.source()).is_some());
    if !is_quic || is_inner || to.port() != TUNNEL_PORT {
        let first = &datagram[..datagram.len().min(16)];
        return Err(format!("I1: no QUIC packet left for {to}: {first:02x?}"));
    }
    match datagram.windows(MAGIC.len()).any(|bytes| bytes == MAGIC) {
        true => Err(format!(
            "I1: an application's bytes can be read on the way to {to}"
        )),
        false => Ok(()),
    }
}
