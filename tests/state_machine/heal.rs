//! I6: on a healthy network, and with policy that allows it, what must be in the tunnel gets through.

use std::time::Duration;

use identun::tunnel::TunnelState;

use crate::{
    model::{View, WORKLOADS},
    step::{Kind, Step},
    traffic::FlowKey,
    world::{Verdict, World},
};

/// A session is dead after 30 s of silence; the longest pause between two dials is 10 s, and 60 s where the peer said no.
const RECOVERY: Duration = Duration::from_secs(65);
/// A restart is noticed by a stateless reset: by the first packet, or by the ping after 12 s of silence.
const NOTICED: Duration = Duration::from_secs(15);
/// A packet for a tunnel that is down: a dial that needs one more, and a retransmission.
const PATIENCE: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(250);

impl World {
    /// Everything is repaired; then everybody reaches everybody, and after one more restart again.
    pub(crate) fn heal(&mut self, restarts: usize) -> Verdict {
        self.repair()?;
        self.run_for(RECOVERY)?;
        self.check()?;
        self.live_tunnels_are_up("after everything was repaired")?;
        self.everybody_reaches_everybody(1, None)?;
        self.restart(restarts, false);
        // quinn does not know a reset that comes from another address than the one where it learned of it.
        self.run_for(if self.roamed { RECOVERY } else { NOTICED })?;
        self.live_tunnels_are_up("after a peer's restart")?;
        self.everybody_reaches_everybody(2, Some(restarts))?;
        // Pings go on; between two of them everything is silent.
        for _ in 0..20 {
            self.run_for(Duration::from_millis(400))?;
            if self.account()? {
                return Ok(());
            }
        }
        Err("I6: nothing is said any more, and something still waits".into())
    }

    fn repair(&mut self) -> Verdict {
        self.take(&Step::Clean)?;
        let elapsed = self.elapsed;
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            host.set_clock(elapsed);
            host.view = View::default();
            host.trust = [true, true];
            for of in (0..WORKLOADS.len()).filter(|&of| WORKLOADS[of].host == index) {
                self.rotate(of, 86_400, 0);
            }
            self.configure(index);
            if self.hosts[index].shard.is_none() {
                self.restart(index, true);
            }
        }
        Ok(())
    }

    /// A tunnel with live flows is dialled again without a packet asking for it. An end that knows of none may close it as
    /// idle, at any moment.
    fn live_tunnels_are_up(&mut self, when: &str) -> Verdict {
        let mut verdict = self.are_up(when);
        for _ in 0..10 {
            if verdict.is_err() {
                self.run_for(Duration::from_millis(100))?;
                verdict = self.are_up(when);
            }
        }
        verdict
    }

    fn are_up(&mut self, when: &str) -> Verdict {
        for host in &mut self.hosts {
            let Some(shard) = &mut host.shard else {
                continue;
            };
            let snapshot = shard.snapshot();
            for flow in &snapshot.flows {
                let tunnel = snapshot.tunnels.iter().find(|tunnel| {
                    let key = format!("{} -> {} at {}", tunnel.local, tunnel.peer, tunnel.gateway);
                    key == flow.tunnel
                });
                if !tunnel.is_some_and(|tunnel| matches!(tunnel.state, TunnelState::Up)) {
                    return Err(format!(
                        "I6: {when}, {} lives on host {} and its tunnel is not up: {tunnel:?}",
                        flow.tuple, host.index
                    ));
                }
            }
        }
        Ok(())
    }

    /// The first workloads of each two hosts, both ways; only those of one host where that is asked.
    fn everybody_reaches_everybody(&mut self, round: u16, of: Option<usize>) -> Verdict {
        for client in 0..self.hosts.len() {
            for server in (0..self.hosts.len()).filter(|&server| server != client) {
                if of.is_none_or(|host| host == client || host == server) {
                    let key = FlowKey {
                        client,
                        server,
                        kind: Kind::Udp,
                        v6: false,
                        round,
                    };
                    self.gets_through(key, false)?;
                    self.gets_through(key, true)?;
                }
            }
        }
        Ok(())
    }

    /// An application repeats itself until it is heard.
    fn gets_through(&mut self, key: FlowKey, reply: bool) -> Verdict {
        let until = self.elapsed + PATIENCE;
        let first = self.ledger.number();
        while self.elapsed < until {
            self.say(key, reply, 300)?;
            let asked = self.elapsed + AGAIN;
            while self.elapsed < asked {
                self.run_for(Duration::from_millis(10))?;
                let sent = first..self.ledger.number();
                let mut sent = sent
                    .filter_map(|number| self.ledger.find(number).map(|record| record.delivered));
                if sent.any(|delivered| delivered > 0) {
                    return self.run_for(Duration::from_millis(200));
                }
            }
        }
        let word = if reply { "an answer" } else { "a packet" };
        Err(format!(
            "I6: the network is healthy, but {word} of {key:?} did not get through within {PATIENCE:?}"
        ))
    }
}
