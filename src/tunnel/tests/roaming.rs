//! Peers whose underlay address changed, and then restart: QUIC binds the token of a stateless reset to an address.

use std::time::Duration;

use super::world::{ALICE, BOB, World};
use crate::tunnel::{TunnelEvent, TunnelState};

const SECOND: Duration = Duration::from_secs(1);

/// Both up with flows, and Alice's address has changed so often.
fn roamed(seed: u8, times: u16) -> World {
    let mut world = World::new(seed);
    world.connect();
    for host in [ALICE, BOB] {
        world.live(host, true);
    }
    for number in 0..times {
        world.hosts[ALICE].source.set_port(40_000 + number);
        world.send(ALICE, b"\0\0from the new port");
        world.run(SECOND);
    }
    assert_eq!(world.received(BOB).len(), usize::from(times));
    world
}

/// `host` starts again under its address, and its peer sends something: when the peer knew.
fn known_after_restart(world: &mut World, host: usize) -> Duration {
    let source = world.hosts[host].source;
    world.restart(host);
    world.hosts[host].source = source;
    let (peer, restarted) = (1 - host, world.elapsed());
    world.send(peer, b"\0\0into the void");
    world.run(SECOND / 2);
    let known = world.hosts[peer].events.iter().find_map(|(at, event)| {
        let TunnelEvent::Down { reason, .. } = event else {
            return None;
        };
        assert_eq!(reason, "the peer restarted (stateless reset)");
        Some(*at - restarted)
    });
    known.unwrap_or_else(|| panic!("{:?}", world.hosts[peer].events))
}

#[test]
fn a_dialler_that_roamed_and_restarts_resets_the_session_within_a_round_trip() {
    for times in [1, 12] {
        let mut world = roamed(90, times);
        let known = known_after_restart(&mut world, ALICE);
        assert_eq!(known, 2 * world.link.delay, "{times}");
    }
}

#[test]
fn an_acceptor_that_restarts_resets_the_session_of_a_dialler_that_roamed() {
    for times in [1, 12] {
        let mut world = roamed(91, times);
        let known = known_after_restart(&mut world, BOB);
        assert_eq!(known, 2 * world.link.delay, "{times}");
        assert_eq!(world.state(ALICE), TunnelState::Up);
    }
}
