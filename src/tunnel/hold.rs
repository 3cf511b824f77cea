//! Before a successor takes over: peers keep back what they would send, so that nothing is on its way when the sessions
//! close (HOLD and HELD, wire.md §3.2).
//!
//! ```text
//! predecessor ── HOLD ──────────────────────► peer        packets for the tunnel wait, as they do for a dial
//!             ◄────── what was queued, HELD ──
//!             ── CONNECTION_CLOSE ──────────►             dials; the successor answers, and what waited is sent
//! ```

use std::time::{Duration, Instant};

use quinn_proto::ConnectionHandle;

use crate::{
    registry::TunnelId,
    tunnel::{Tunnels, close_code, session::Hold},
    wire::capsule::Capsule,
};

/// Whoever asked closes within a fraction of this. If its close was lost, packets must not wait for it any longer.
const HELD_AT_MOST: Duration = Duration::from_millis(200);
const OVERDUE: &str = "told to keep packets back, and then not closed";

impl Tunnels {
    /// Asks every peer to keep inner packets back. [`Self::close`] follows, at the latest when [`Self::is_held`].
    pub fn hold(&mut self, now: Instant) {
        self.now = Some(now);
        self.holding = true;
        for handle in self.links.handles() {
            self.send_hold(handle, now);
        }
    }

    /// Nothing is on its way any more: every peer has answered, and what waited here has left.
    pub fn is_held(&mut self) -> bool {
        self.links.handles().into_iter().all(|handle| {
            let session = self.links.session_mut(handle);
            session.is_none_or(|session| {
                !session.carries() || (session.peer_holds && session.is_empty())
            })
        })
    }

    /// Asks the peer of a session that carries packets.
    pub(super) fn send_hold(&mut self, handle: ConnectionHandle, now: Instant) {
        let session = self.links.session_mut(handle);
        if let Some(session) = session.filter(|session| session.carries()) {
            session.control.send(&Capsule::Hold);
            self.links.refresh(handle, now);
        }
    }

    /// The peer asks us.
    pub(super) fn handle_hold(&mut self, handle: ConnectionHandle, id: TunnelId, now: Instant) {
        let session = self.links.session_mut(handle);
        let Some(session) = session.filter(|session| session.hold == Hold::No) else {
            return;
        };
        session.hold = Hold::Asked;
        session.plan_close(HELD_AT_MOST, close_code::PROTOCOL, OVERDUE, now);
        self.choose(id);
    }
}
