//! Which tunnels packets go to: decides between back-pressure and drops (performance.md §3, rule 5).

use std::time::{Duration, Instant};

use crate::registry::TunnelId;

/// How long a tunnel counts as busy after a packet went to it.
const RECENT: Duration = Duration::from_millis(250);

/// The tunnel that was used last, and when another one was: however many there are, more is not needed.
#[derive(Debug, Default)]
pub(super) struct Busy {
    last: Option<(TunnelId, Instant)>,
    other: Option<Instant>,
}

impl Busy {
    /// A packet goes to `tunnel`.
    pub(super) const fn note(&mut self, tunnel: TunnelId, now: Instant) {
        if let Some((last, used)) = self.last
            && last.index() != tunnel.index()
        {
            self.other = Some(used);
        }
        self.last = Some((tunnel, now));
    }

    /// The tunnel that has the device to itself, if one has.
    pub(super) fn only(&self, now: Instant) -> Option<TunnelId> {
        let is_recent = |used: Instant| used + RECENT > now;
        let (last, _) = self.last.filter(|&(_, used)| is_recent(used))?;
        (!self.other.is_some_and(is_recent)).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{KeyTable, TunnelKey};

    #[test]
    fn a_tunnel_is_alone_until_another_is_used_and_again_a_while_after() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut table = KeyTable::default();
        let [a, b] = [1, 2].map(|port| {
            table.id(&TunnelKey {
                local: "spiffe://td/a".parse().unwrap(),
                peer: "spiffe://td/b".parse().unwrap(),
                gateway: ([192, 0, 2, 1], port).into(),
                lane: 0,
            })
        });
        let mut busy = Busy::default();
        assert_eq!(busy.only(start), None);
        busy.note(a, at(0));
        assert_eq!(busy.only(at(0)), Some(a));
        busy.note(b, at(10));
        busy.note(a, at(20));
        assert_eq!(busy.only(at(20)), None);
        busy.note(a, at(260));
        assert_eq!(busy.only(at(260)), Some(a));
        assert_eq!(busy.only(at(600)), None);
    }
}
