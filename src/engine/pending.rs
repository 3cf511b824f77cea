//! Packets that wait for their tunnel: bounded in packets, bytes, tunnels and time; the oldest goes first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::registry::TunnelId;

/// Bounds of the packets that wait (wire.md §4).
#[derive(Clone, Copy, Debug)]
pub struct PendingLimits {
    /// Packets of one tunnel.
    pub packets: usize,
    /// Bytes of one tunnel.
    pub bytes: usize,
    /// How long a packet waits.
    pub wait: Duration,
    /// Bytes in all.
    pub total_bytes: usize,
    /// Tunnels that packets wait for.
    pub tunnels: usize,
}

impl Default for PendingLimits {
    fn default() -> Self {
        Self {
            // as many as wait in the TUN: a successor finds them all at once, before its first tunnel is up
            packets: 4_096,
            bytes: 256 * 1024,
            wait: Duration::from_secs(1),
            total_bytes: 4 * 1024 * 1024,
            tunnels: 1_024,
        }
    }
}

#[derive(Debug)]
struct Waiting {
    frame: Box<[u8]>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Waiting>,
    bytes: usize,
}

/// The queues, one a tunnel. A frame is a packet as it came from the device, virtio-net header included.
#[derive(Debug)]
pub struct Pending {
    limits: PendingLimits,
    queues: BTreeMap<TunnelId, Queue>,
    /// Every queue by the age of its oldest frame.
    ages: BTreeSet<(Instant, TunnelId)>,
    bytes: usize,
}

impl Queue {
    fn oldest(&self) -> Option<Instant> {
        self.frames.front().map(|waiting| waiting.since)
    }

    /// Drops the oldest frame and returns its bytes.
    fn pop(&mut self) -> Option<usize> {
        let len = self.frames.pop_front()?.frame.len();
        self.bytes -= len;
        Some(len)
    }
}

impl Pending {
    /// Empty queues.
    pub const fn new(limits: PendingLimits) -> Self {
        Self {
            limits,
            queues: BTreeMap::new(),
            ages: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Adds a frame and returns how many were dropped to make room: older ones of its queue, or itself.
    pub fn push(&mut self, tunnel: TunnelId, frame: &[u8], now: Instant) -> usize {
        let Self {
            limits,
            queues,
            ages,
            bytes,
        } = self;
        let too_many = queues.len() >= limits.tunnels && !queues.contains_key(&tunnel);
        if too_many || frame.len() > limits.bytes {
            return 1;
        }
        let queue = queues.entry(tunnel).or_default();
        if let Some(since) = queue.oldest() {
            ages.remove(&(since, tunnel));
        }
        let mut dropped = 0;
        while queue.frames.len() >= limits.packets
            || queue.bytes + frame.len() > limits.bytes
            || *bytes + frame.len() > limits.total_bytes
        {
            let Some(len) = queue.pop() else {
                queues.remove(&tunnel);
                return dropped + 1;
            };
            *bytes -= len;
            dropped += 1;
        }
        queue.bytes += frame.len();
        *bytes += frame.len();
        queue.frames.push_back(Waiting {
            frame: frame.into(),
            since: now,
        });
        ages.extend(queue.oldest().map(|since| (since, tunnel)));
        dropped
    }

    /// Takes every frame that waits for `tunnel`, oldest first.
    pub fn take(&mut self, tunnel: TunnelId) -> impl Iterator<Item = Box<[u8]>> + use<> {
        let queue = self.queues.remove(&tunnel).unwrap_or_default();
        self.bytes -= queue.bytes;
        if let Some(since) = queue.oldest() {
            self.ages.remove(&(since, tunnel));
        }
        queue.frames.into_iter().map(|waiting| waiting.frame)
    }

    /// Drops what waited too long and returns how many frames that were.
    pub fn expire(&mut self, now: Instant) -> usize {
        let wait = self.limits.wait;
        let mut dropped = 0;
        while let Some(&(since, tunnel)) = self.ages.first()
            && since + wait <= now
        {
            self.ages.pop_first();
            let Some(queue) = self.queues.get_mut(&tunnel) else {
                continue;
            };
            while queue.oldest().is_some_and(|since| since + wait <= now) {
                self.bytes -= queue.pop().unwrap_or_default();
                dropped += 1;
            }
            match queue.oldest() {
                Some(since) => _ = self.ages.insert((since, tunnel)),
                None => _ = self.queues.remove(&tunnel),
            }
        }
        dropped
    }

    /// When the oldest frame has waited too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ages
            .first()
            .map(|&(since, _)| since + self.limits.wait)
    }

    /// Frames that wait in all.
    pub fn frames(&self) -> usize {
        self.queues.values().map(|queue| queue.frames.len()).sum()
    }

    /// Bytes that wait in all.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{KeyTable, TunnelKey};

    fn tunnels(count: u16) -> Vec<TunnelId> {
        let mut table = KeyTable::default();
        let key = |port: u16| TunnelKey {
            local: "spiffe://td/a".parse().unwrap(),
            peer: "spiffe://td/b".parse().unwrap(),
            gateway: ([192, 0, 2, 1], port).into(),
            lane: 0,
        };
        (1..=count).map(|port| table.id(&key(port))).collect()
    }

    fn base() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    #[test]
    fn the_oldest_is_dropped_when_packets_or_bytes_are_too_many() {
        let (id, now) = (tunnels(1)[0], base());
        let mut pending = Pending::new(PendingLimits {
            packets: 2,
            bytes: 10,
            ..PendingLimits::default()
        });
        assert_eq!(pending.push(id, &[1; 4], now), 0);
        assert_eq!(pending.push(id, &[2; 4], now), 0);
        assert_eq!(pending.push(id, &[3; 1], now), 1);
        assert_eq!(pending.push(id, &[4; 10], now), 2);
        assert_eq!(pending.push(id, &[5; 11], now), 1);
        assert_eq!(
            pending.take(id).collect::<Vec<_>>(),
            [vec![4; 10].into_boxed_slice()]
        );
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn all_tunnels_together_are_bounded() {
        let (ids, now) = (tunnels(3), base());
        let mut pending = Pending::new(PendingLimits {
            total_bytes: 10,
            tunnels: 2,
            ..PendingLimits::default()
        });
        assert_eq!(pending.push(ids[0], &[0; 8], now), 0);
        assert_eq!(pending.push(ids[1], &[0; 8], now), 1);
        assert_eq!(pending.push(ids[1], &[0; 2], now), 0);
        assert_eq!(pending.push(ids[2], &[0; 1], now), 1);
        assert_eq!(pending.bytes(), 10);
    }

    #[test]
    fn a_packet_waits_its_time_and_no_longer() {
        let (id, now) = (tunnels(1)[0], base());
        let mut pending = Pending::new(PendingLimits::default());
        pending.push(id, &[0; 8], now);
        pending.push(id, &[0; 8], now + Duration::from_millis(10));
        assert_eq!(pending.poll_timeout(), Some(now + Duration::from_secs(1)));
        assert_eq!(pending.expire(now + Duration::from_millis(999)), 0);
        assert_eq!(pending.expire(now + Duration::from_secs(1)), 1);
        assert_eq!(pending.expire(now + Duration::from_secs(2)), 1);
        assert_eq!((pending.bytes(), pending.poll_timeout()), (0, None));
    }

    #[test]
    fn the_oldest_of_all_queues_is_due_first() {
        let (ids, now, step) = (tunnels(3), base(), Duration::from_millis(10));
        let mut pending = Pending::new(PendingLimits {
            packets: 2,
            ..PendingLimits::default()
        });
        for (turn, tunnel) in (0..).zip([2, 0, 1, 2, 2, 0]) {
            pending.push(ids[tunnel], &[0; 8], now + step * turn);
            let oldest = pending.queues.values().filter_map(Queue::oldest).min();
            assert_eq!(
                pending.poll_timeout(),
                oldest.map(|since| since + Duration::from_secs(1))
            );
        }
        let due = |turn| Some(now + Duration::from_secs(1) + step * turn);
        assert_eq!(pending.poll_timeout(), due(1));
        assert_eq!(pending.take(ids[0]).count(), 2);
        assert_eq!(pending.poll_timeout(), due(2));
        assert_eq!(pending.expire(due(3).unwrap()), 2);
        assert_eq!(pending.poll_timeout(), due(4));
        assert_eq!(pending.take(ids[2]).count(), 1);
        assert_eq!((pending.bytes(), pending.poll_timeout()), (0, None));
        assert!(pending.queues.is_empty() && pending.ages.is_empty());
    }
}
