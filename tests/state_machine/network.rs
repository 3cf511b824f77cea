//! The underlay: datagrams on their way, and all that may happen to them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    net::SocketAddr,
    time::Duration,
};

use crate::step::Faults;

const DELAY: Duration = Duration::from_millis(5);
const NONE: Faults = Faults {
    loss: 0,
    twice: 0,
    jitter_ms: 0,
    payload: 1_472,
};

/// One datagram. The derived order is that of arrival: nothing but time and number counts, as numbers differ.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Flying {
    pub(crate) at: Duration,
    order: u64,
    /// The host that sent it.
    pub(crate) sender: usize,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) data: Vec<u8>,
}

/// See the module.
pub(crate) struct Network {
    pub(crate) faults: Faults,
    cuts: BTreeSet<(usize, usize)>,
    /// Datagrams that never arrived, in all.
    pub(crate) lost: u64,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    random: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            faults: NONE,
            cuts: BTreeSet::new(),
            lost: 0,
            flying: BinaryHeap::new(),
            order: 0,
            random: seed | 1,
        }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn clean(&mut self) {
        self.faults = NONE;
        self.cuts.clear();
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// A host sends a datagram.
    pub(crate) fn send(
        &mut self,
        sender: usize,
        (from, to): (SocketAddr, SocketAddr),
        data: &[u8],
        now: Duration,
    ) {
        if self.chance(1_000) < u64::from(self.faults.loss) || data.len() > self.faults.payload {
            self.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.chance(1_000) < u64::from(self.faults.twice));
        for _ in 0..copies {
            let jitter = self.chance(self.faults.jitter_ms * 1_000);
            self.order += 1;
            self.flying.push(Reverse(Flying {
                at: now + DELAY + Duration::from_micros(jitter),
                order: self.order,
                sender,
                from,
                to,
                data: data.to_vec(),
            }));
        }
    }

    /// The next arrival.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.flying.peek().map(|Reverse(next)| next.at)
    }

    /// What arrives now.
    pub(crate) fn arrival(&mut self, now: Duration) -> Option<Flying> {
        self.next().filter(|at| *at <= now)?;
        self.flying.pop().map(|Reverse(flying)| flying)
    }

    /// A number below `bound` (xorshift).
    fn chance(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}
