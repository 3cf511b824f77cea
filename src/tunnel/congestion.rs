//! The default congestion controller: a bound on the bytes in flight, and nothing else.
//!
//! Inner TCP has a controller of its own; a second one around it costs throughput and reacts twice to the same loss
//! (performance.md §3, rule 8). The bound keeps the memory of a black-holed path finite. RFC 9484 §8 asks senders
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
    time::Instant,
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory},
};

use crate::tunnel::config::MIN_UDP_PAYLOAD;

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

    fn note_loss(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Builds the controller of one connection.
#[derive(Clone, Debug)]
pub(super) struct InFlightBoundConfig {
    /// Bytes in flight.
    pub(super) bound: u64,
    /// Where the controller reports.
    pub(super) large: LargePackets,
}

impl ControllerFactory for InFlightBoundConfig {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(InFlightBound {
            bound: self.bound,
            in_flight: 0,
            large: self.large.clone(),
        })
    }
}

/// Bounds bytes in flight; reacts neither to loss nor to delay.
#[derive(Clone, Debug)]
struct InFlightBound {
    bound: u64,
    /// What the last acknowledgement left, and everything sent since: never below the truth.
    in_flight: u64,
    large: LargePackets,
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
        _rtt: &RttEstimator,
    ) {
        if bytes > u64::from(MIN_UDP_PAYLOAD) {
            self.large.forget();
        }
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
        if lost_bytes > u64::from(MIN_UDP_PAYLOAD) {
            self.large.note_loss();
        }
    }

    fn on_mtu_update(&mut self, _new_mtu: u16) {
        self.large.forget();
    }

    /// quinn-proto paces every window up to `u32::MAX`, so below the bound the window has no end.
    fn window(&self) -> u64 {
        if self.in_flight < self.bound {
            u64::MAX
        } else {
            self.bound
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
        let mut controller = Arc::new(InFlightBoundConfig {
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
