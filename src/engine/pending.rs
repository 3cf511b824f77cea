//! Packets that wait for their tunnel: bounded in packets, bytes, tunnels and time; the oldest goes first.

use std::{
    collections::{BTreeMap, VecDeque},
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
            packets: 64,
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
    bytes: usize,
}

impl Pending {
    /// Empty queues.
    pub const fn new(limits: PendingLimits) -> Self {
        Self {
            limits,
            queues: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Adds a frame and returns how many were dropped to make room: older ones of its queue, or itself.
    pub fn push(&mut self, tunnel: TunnelId, frame: &[u8], now: Instant) -> usize {
        let Self {
            limits,
            queues,
            bytes,
        } = self;
        let too_many = queues.len() >= limits.tunnels && !queues.contains_key(&tunnel);
        if too_many || frame.len() > limits.bytes {
            return 1;
        }
        let queue = queues.entry(tunnel).or_default();
        let mut dropped = 0;
        while queue.frames.len() >= limits.packets
            || queue.bytes + frame.len() > limits.bytes
            || *bytes + frame.len() > limits.total_bytes
        {
            let Some(oldest) = queue.frames.pop_front() else {
                queues.remove(&tunnel);
                return dropped + 1;
            };
            queue.bytes -= oldest.frame.len();
            *bytes -= oldest.frame.len();
            dropped += 1;
        }
        queue.bytes += frame.len();
        *bytes += frame.len();
        queue.frames.push_back(Waiting {
            frame: frame.into(),
            since: now,
        });
        dropped
    }

    /// Takes every frame that waits for `tunnel`, oldest first.
    pub fn take(&mut self, tunnel: TunnelId) -> impl Iterator<Item = Box<[u8]>> + use<> {
        let queue = self.queues.remove(&tunnel).unwrap_or_default();
        self.bytes -= queue.bytes;
        queue.frames.into_iter().map(|waiting| waiting.frame)
    }

    /// Drops what waited too long and returns how many frames that were.
    pub fn expire(&mut self, now: Instant) -> usize {
        let Self {
            limits,
            queues,
            bytes,
        } = self;
        let mut dropped = 0;
        queues.retain(|_, queue| {
            while let Some(oldest) = queue.frames.front()
                && oldest.since + limits.wait <= now
            {
                queue.bytes -= oldest.frame.len();
                *bytes -= oldest.frame.len();
                queue.frames.pop_front();
                dropped += 1;
            }
            !queue.frames.is_empty()
        });
        dropped
    }

    /// When the oldest frame has waited too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queues
            .values()
            .filter_map(|queue| queue.frames.front())
            .map(|oldest| oldest.since + self.limits.wait)
            .min()
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
}
