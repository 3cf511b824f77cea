//! The congestion controllers. By default a bound on the bytes in flight, and nothing else; CUBIC where it is asked for.
//!
//! Inner TCP has a controller of its own; a second one around it costs throughput and reacts twice to the same loss
//! (performance.md §3, rule 8). The bound keeps the memory of a black-holed path finite, and it follows the path's length:
//! what a fast path holds, and a little for the peer's socket, which loses what it has no room for. RFC 9484 §10 asks senders
//! of IP packets in datagrams to bear in mind that these carry congestion-controlled traffic already, and for such a
//! sender outer packets are sent as Not-ECT (the caller clears the ECN bits).
//!
//! It also is what sees each loss and each acknowledgement, and so the first to suspect a path that swallows large
//! packets: see [`LargePackets`].

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, Cubic, CubicConfig},
};

use serde::{Deserialize, Serialize};

use crate::tunnel::config::MIN_UDP_PAYLOAD;

/// What may wait in the peer's socket, in bytes: less than its buffer holds, however the kernel counts (a small datagram
/// weighs three times its length).
const AT_THE_PEER: u64 = 2 << 20;
/// What a path holds for each microsecond of its round trip, in bytes: 10 Gbit/s.
const BYTES_PER_MICROSECOND: u64 = 1_250;

/// Losses one after the other, without an acknowledged large packet between them, that make the path suspect. quinn waits
/// for four, which a stalled TCP connection, one segment a time-out, gives it only after seconds (wire.md T9).
const SUSPICIOUS_LOSSES: u32 = 2;

/// What a controller knows of packets larger than every QUIC path carries, shared with the session.
#[derive(Clone, Debug, Default)]
pub(super) struct LargePackets(Arc<AtomicU32>);

impl LargePackets {
    /// Large packets get lost and none arrives.
    pub(super) fn are_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= SUSPICIOUS_LOSSES
    }

    /// One arrived, or the path's size is found anew.
    pub(super) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn note_ack(&self, bytes: u64) {
        if bytes > u64::from(MIN_UDP_PAYLOAD) {
            self.forget();
        }
    }

    fn note_loss(&self, bytes: u64) {
        if bytes > u64::from(MIN_UDP_PAYLOAD) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How outer packets are controlled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Congestion {
    /// A bound on the bytes in flight; the inner senders react to loss and delay. Outer packets are Not-ECT.
    #[default]
    Bounded,
    /// CUBIC (RFC 9438), for paths where others must be protected from inner senders that react to nothing. Outer packets
    /// are ECT(0).
    Cubic,
}

/// Builds the controller of one connection.
#[derive(Clone, Debug)]
pub(super) struct ControllerConfig {
    pub(super) congestion: Congestion,
    /// Bytes in flight at most.
    pub(super) bound: u64,
    /// Where the controller reports.
    pub(super) large: LargePackets,
}

impl ControllerFactory for ControllerConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let large = self.large.clone();
        match self.congestion {
            Congestion::Bounded => Box::new(InFlightBound {
                bound: self.bound,
                min_rtt: Duration::ZERO,
                in_flight: 0,
                large,
            }),
            Congestion::Cubic => Box::new(WatchedCubic {
                cubic: Cubic::new(Arc::new(CubicConfig::default()), now, current_mtu),
                large,
            }),
        }
    }
}

/// Bounds bytes in flight; reacts neither to loss nor to delay.
#[derive(Clone, Debug)]
struct InFlightBound {
    bound: u64,
    /// The shortest round trip so far; zero before the first.
    min_rtt: Duration,
    /// What the last acknowledgement left, and everything sent since: never below the truth.
    in_flight: u64,
    large: LargePackets,
}

impl InFlightBound {
    fn limit(&self) -> u64 {
        let micros = u64::try_from(self.min_rtt.as_micros()).unwrap_or(u64::MAX);
        let path = micros.saturating_mul(BYTES_PER_MICROSECOND);
        self.bound.min(AT_THE_PEER.saturating_add(path))
    }
}

impl Controller for InFlightBound {
    fn on_sent(&mut self, _now: Instant, bytes: u64, _last_packet_number: u64) {
        self.in_flight = self.in_flight.saturating_add(bytes);
    }

    fn on_ack(
        &mut self,
        _now: Instant,
        _sent: Instant,
        bytes: u64,
        _app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.min_rtt = rtt.min();
        self.large.note_ack(bytes);
    }

    fn on_end_acks(
        &mut self,
        _now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.in_flight = in_flight;
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        _is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.large.note_loss(lost_bytes);
    }

    fn on_mtu_update(&mut self, _new_mtu: u16) {
        self.large.forget();
    }

    /// quinn-proto paces every window up to `u32::MAX`, so below the bound the window has no end.
    fn window(&self) -> u64 {
        let limit = self.limit();
        if self.in_flight < limit {
            u64::MAX
        } else {
            limit
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        u64::MAX
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// CUBIC that reports to [`LargePackets`] too.
#[derive(Clone)]
struct WatchedCubic {
    cubic: Cubic,
    large: LargePackets,
}

impl Controller for WatchedCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.large.note_ack(bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        self.large.note_loss(lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
        self.large.forget();
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ends_at_the_bound_and_opens_with_acknowledgements() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let now = Instant::now();
        let mut controller = Arc::new(ControllerConfig {
            congestion: Congestion::Bounded,
            bound: 3_000,
            large: LargePackets::default(),
        })
        .build(now, 1_200);
        controller.on_sent(now, 2_999, 1);
        controller.on_congestion_event(now, now, true, 2_999);
        assert_eq!(controller.window(), u64::MAX);
        controller.on_sent(now, 1, 2);
        assert_eq!(controller.window(), 3_000);
        controller.on_end_acks(now, 10, false, Some(2));
        assert_eq!(controller.window(), u64::MAX);
    }
}
