//! What may happen: the steps of a story, how one is made from a seed, and the line of text that it is kept as.

use serde::{Deserialize, Serialize};

use crate::{
    choices::Choices,
    model::{HOSTS, WORKLOADS},
};

/// What an application speaks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Kind {
    /// TCP in super-packets.
    Bulk,
    /// ICMP echo.
    Echo,
    /// UDP to the port that policy leaves in plaintext.
    Plain,
    /// TCP segments one by one.
    Tcp,
    /// UDP.
    Udp,
}

const KINDS: [Kind; 8] = [
    Kind::Udp,
    Kind::Udp,
    Kind::Udp,
    Kind::Tcp,
    Kind::Tcp,
    Kind::Echo,
    Kind::Plain,
    Kind::Bulk,
];

/// A change of what a host believes of the mesh.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Change {
    /// Whether the client may not speak to the server.
    Deny {
        client: usize,
        server: usize,
        on: bool,
    },
    /// The registry has the workload.
    Known { of: usize, on: bool },
    /// What the workload accepts: 0 DISABLE, 1 PERMISSIVE, 2 STRICT.
    Mode { of: usize, mode: u8 },
    /// Clients use mutual TLS toward the workload.
    Mutual { of: usize, on: bool },
    /// The registry gives the workload's addresses to the account of `by`.
    Owner { of: usize, by: usize },
}

/// The application of `from` speaks to that of `to`, or is answered: so many packets of so many bytes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Talk {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) kind: Kind,
    pub(crate) v6: bool,
    pub(crate) reply: bool,
    pub(crate) count: u16,
    pub(crate) size: u16,
}

/// Lost and doubled datagrams of a thousand, delay that varies, and the largest payload.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Faults {
    pub(crate) loss: u32,
    pub(crate) twice: u32,
    pub(crate) jitter_ms: u64,
    pub(crate) payload: usize,
}

/// One thing that happens.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Step {
    /// Everything the network does wrong ends.
    Clean,
    /// A host's wall clock jumps by so many seconds.
    Clock { host: usize, by: i64 },
    /// Nothing passes between two hosts.
    Cut { a: usize, b: usize },
    /// What the network does to every datagram.
    Link(Faults),
    /// The host's TUN is lost, and with it the daemon, until it is restarted.
    Lose { host: usize },
    /// Hosts (bits) get another policy.
    Policy { hosts: u8, change: Change },
    /// The daemon dies and another takes its place, with what conntrack knows or without.
    Restart { host: usize, seeded: bool },
    /// The host's outer address changes; the old one still leads to it, or not.
    Roam { host: usize, to: u8, stays: bool },
    /// The workload gets another certificate, by the old CA (0) or the new one.
    Rotate { of: usize, life: u64, ca: usize },
    /// An application speaks.
    Send(Talk),
    /// A packet with the address of `victim` comes out of a host's TUN, whoever's it is.
    Spoof {
        host: usize,
        victim: usize,
        to: usize,
        kind: Kind,
        v6: bool,
    },
    /// Which CAs a host trusts.
    Trust { host: usize, old: bool, new: bool },
    /// Time goes on.
    Wait { ms: u64 },
    /// The host gives a workload's certificate away.
    Withdraw { of: usize },
}

/// A case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Story {
    /// For the network's choices and the daemons'.
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) steps: Vec<Step>,
}

impl Story {
    /// The story of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut choices = Choices::Seed(seed);
        let hosts = 2 + choices.below(HOSTS - 1);
        // Stories in which little goes wrong tell more of what remains.
        let moods: Vec<usize> = (0..MOODS.len()).filter(|_| choices.chance(45)).collect();
        let length = 8 + choices.below(28);
        let mut teller = Teller { choices, hosts };
        let steps = (0..length).map(|_| teller.step(&moods)).collect();
        Self { seed, hosts, steps }
    }

    /// One line of JSON.
    pub(crate) fn line(&self) -> String {
        serde_json::to_string(self).unwrap()
    }
}

struct Teller {
    choices: Choices<'static>,
    hosts: usize,
}

/// What may go wrong in a story.
const MOODS: [fn(&mut Teller) -> Step; 8] = [
    Teller::policy,
    Teller::certificate,
    Teller::restart,
    Teller::roam,
    Teller::network,
    Teller::clock,
    Teller::lie,
    Teller::long_wait,
];

impl Teller {
    fn step(&mut self, moods: &[usize]) -> Step {
        match self.choices.below(10) {
            0..5 => self.send(),
            5..7 => self.short_wait(),
            _ if moods.is_empty() => self.send(),
            _ => MOODS[*self.choices.pick(moods)](self),
        }
    }

    fn host(&mut self) -> usize {
        self.choices.below(self.hosts)
    }

    fn workload(&mut self) -> usize {
        let hosts = self.hosts;
        let there: Vec<_> = (0..WORKLOADS.len())
            .filter(|&who| WORKLOADS[who].host < hosts)
            .collect();
        *self.choices.pick(&there)
    }

    /// Two workloads of two hosts.
    fn two(&mut self) -> (usize, usize) {
        loop {
            let (one, other) = (self.workload(), self.workload());
            if WORKLOADS[one].host != WORKLOADS[other].host {
                return (one, other);
            }
        }
    }

    fn send(&mut self) -> Step {
        let (from, to) = self.two();
        let kind = *self.choices.pick(&KINDS);
        let count = if kind == Kind::Bulk {
            1 + self.choices.below(4)
        } else if self.choices.chance(10) {
            20 + self.choices.below(60)
        } else {
            1 + self.choices.below(6)
        };
        let size = match (kind, self.choices.below(8)) {
            (Kind::Bulk, _) => 2_000 + self.choices.below(38_000),
            (_, 0) => 1_161 + self.choices.below(340),
            (_, 1) => 80,
            _ => 80 + self.choices.below(1_080),
        };
        Step::Send(Talk {
            from,
            to,
            kind,
            v6: self.choices.chance(25),
            reply: self.choices.chance(35),
            count: count as u16,
            size: size as u16,
        })
    }

    fn short_wait(&mut self) -> Step {
        let ms = match self.choices.below(4) {
            0 => 1 + self.choices.below(12),
            1 => 20 + self.choices.below(200),
            2 => 500,
            _ => 1_000 + self.choices.below(4_000),
        };
        Step::Wait { ms: ms as u64 }
    }

    fn long_wait(&mut self) -> Step {
        let seconds = *self.choices.pick(&[8, 16, 35, 70, 130]);
        Step::Wait {
            ms: seconds * 1_000,
        }
    }

    fn policy(&mut self) -> Step {
        let (client, server) = self.two();
        let of = self.workload();
        let on = self.choices.chance(50);
        let change = match self.choices.below(8) {
            0..4 => Change::Deny { client, server, on },
            4 => Change::Known { of, on },
            5 => Change::Mutual { of, on },
            _ => Change::Mode {
                of,
                mode: self.choices.below(3) as u8,
            },
        };
        let hosts = match self.choices.below(3) {
            0 => u8::MAX,
            1 => 1 << WORKLOADS[server].host,
            _ => 1 << self.host(),
        };
        Step::Policy { hosts, change }
    }

    fn certificate(&mut self) -> Step {
        let (of, host) = (self.workload(), self.host());
        match self.choices.below(10) {
            0..6 => Step::Rotate {
                of,
                life: *self.choices.pick(&[20, 45, 100, 200, 3_600]),
                ca: self.choices.below(2),
            },
            6 => Step::Withdraw { of },
            _ => Step::Trust {
                host,
                old: self.choices.chance(70),
                new: self.choices.chance(70),
            },
        }
    }

    fn restart(&mut self) -> Step {
        let host = self.host();
        match self.choices.below(4) {
            0 => Step::Lose { host },
            _ => Step::Restart {
                host,
                seeded: self.choices.chance(60),
            },
        }
    }

    fn roam(&mut self) -> Step {
        Step::Roam {
            host: self.host(),
            to: self.choices.below(3) as u8,
            stays: self.choices.chance(70),
        }
    }

    fn network(&mut self) -> Step {
        let (a, b) = self.two();
        match self.choices.below(6) {
            0 | 1 => Step::Clean,
            2 => Step::Cut {
                a: WORKLOADS[a].host,
                b: WORKLOADS[b].host,
            },
            _ => Step::Link(Faults {
                loss: *self.choices.pick(&[0, 0, 20, 100, 400]),
                twice: *self.choices.pick(&[0, 0, 50, 300]),
                jitter_ms: *self.choices.pick(&[0, 3, 30]),
                payload: *self.choices.pick(&[1_472, 1_472, 1_300, 1_200]),
            }),
        }
    }

    fn clock(&mut self) -> Step {
        let by = *self.choices.pick(&[-3_600, -90, -10, 10, 45, 90, 3_600]);
        Step::Clock {
            host: self.host(),
            by,
        }
    }

    /// A host that believes or pretends something else of who owns what, and uses it.
    fn lie(&mut self) -> Step {
        let (host, of) = (self.host(), self.workload());
        let (by, to) = (self.workload(), self.workload());
        if self.choices.chance(40) {
            let change = Change::Owner { of, by };
            let hosts = 1 << host;
            return Step::Policy { hosts, change };
        }
        Step::Spoof {
            host,
            victim: of,
            to,
            kind: *self.choices.pick(&[Kind::Udp, Kind::Tcp, Kind::Echo]),
            v6: self.choices.chance(25),
        }
    }
}
