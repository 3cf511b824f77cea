//! What is on its way when a daemon hands over to its successor (HOLD and HELD, wire.md §3.2).

use std::time::Duration;

use bytes::BytesMut;

use super::world::{ALICE, BOB, Host, World, address};
use crate::{
    tunnel::{TunnelEvent, TunnelState, UnderlayDatagram, close_code},
    wire::capsule::Capsule,
};

const SECOND: Duration = Duration::from_secs(1);

/// A pair with flows at both ends.
fn pair(seed: u8) -> World {
    let mut world = World::new(seed);
    world.connect();
    for host in [ALICE, BOB] {
        world.live(host, true);
    }
    world
}

fn hold(world: &mut World, host: usize) {
    let now = world.now;
    world.hosts[host].tunnels.hold(now);
}

fn is_held(world: &mut World, host: usize) -> bool {
    world.hosts[host].tunnels.is_held()
}

/// What a host would do with another packet.
fn takes(world: &mut World, host: usize) -> bool {
    let id = world.tunnel(host);
    world.hosts[host].tunnels.limits(id).is_some()
}

#[test]
fn what_was_sent_before_the_answer_arrives_and_nothing_is_sent_after_it() {
    let mut world = pair(80);
    hold(&mut world, BOB);
    assert!(!is_held(&mut world, BOB));
    // Alice has not heard of it yet.
    world.run(world.link.delay / 2);
    let sent: Vec<_> = (0..100u8)
        .map(|number| vec![0, 0, number].leak() as &_)
        .collect();
    sent.iter().for_each(|payload| world.send(ALICE, payload));
    world.run(world.link.delay * 3 / 4);
    assert!(!takes(&mut world, ALICE));
    // Her packets wait, and nobody is dialled: the predecessor would answer.
    assert_eq!(world.state(ALICE), TunnelState::Draining);
    let handshakes = world.hosts[BOB].events.len();
    world.open(ALICE);
    assert_eq!(world.state(ALICE), TunnelState::Draining);
    world.run(world.link.delay);
    assert_eq!(world.hosts[BOB].events.len(), handshakes);
    assert_eq!(world.received(BOB), sent);
    assert!(is_held(&mut world, BOB));
}

#[test]
fn the_answer_waits_for_the_queue() {
    let mut world = World::with(81, |_, settings| settings.max_in_flight = 64 * 1024);
    world.link.delay = SECOND / 200;
    world.connect();
    // More than the path takes at once.
    let many = 300;
    for _ in 0..many {
        world.send(ALICE, &[0; 1_000]);
    }
    hold(&mut world, BOB);
    world.run(3 * world.link.delay);
    let before = world.received(BOB).len();
    assert!(before < many && !is_held(&mut world, BOB), "{before}");
    world.run(SECOND / 10);
    assert_eq!(before + world.received(BOB).len(), many);
    assert!(is_held(&mut world, BOB));
}

#[test]
fn the_successor_is_dialled_when_the_predecessor_closes() {
    let mut world = pair(82);
    hold(&mut world, BOB);
    world.run(3 * world.link.delay);
    let now = world.now;
    world.hosts[BOB].tunnels.close("stopped", now);
    // The close leaves before the process ends, and the dial waits in the socket.
    world.run(world.link.delay / 2);
    world.restart(BOB);
    let closed = world.elapsed();
    let up = world.run_until_up(ALICE, SECOND);
    // The close, the handshake, the greeting.
    assert!(up - closed < 6 * world.link.delay, "{:?}", up - closed);
    world.send(ALICE, b"\0\0what waited");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0what waited"]);
}

#[test]
fn a_close_that_is_lost_keeps_packets_back_for_a_moment_only() {
    let mut world = pair(83);
    hold(&mut world, BOB);
    world.run(2 * world.link.delay);
    world.restart(BOB);
    world.run_until_up(ALICE, SECOND);
    let told = world.hosts[ALICE].events.iter().any(
        |(_, event)| matches!(event, TunnelEvent::Down { reason, .. } if reason.contains("keep packets back")),
    );
    assert!(told, "{:?}", world.hosts[ALICE].events);
}

#[test]
fn a_peer_that_does_not_know_of_it_goes_on_sending() {
    let mut world = pair(84);
    // As a capsule of unknown type is: skipped.
    world
        .session(BOB)
        .control
        .send(&Capsule::Unknown { kind: 0x1d77 });
    world.live(BOB, true);
    world.run(SECOND);
    world.send(ALICE, b"\0\0on and on");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0on and on"]);
    hold(&mut world, BOB);
    assert!(!is_held(&mut world, BOB));
}

#[test]
fn a_session_that_comes_up_too_late_is_held_too() {
    let mut world = World::new(85);
    world.open(ALICE);
    hold(&mut world, BOB);
    world.run(SECOND / 2);
    let ups = |host: usize| {
        let events = world.hosts[host].events.iter();
        events
            .filter(|(_, event)| matches!(event, TunnelEvent::Up { .. }))
            .count()
    };
    assert_eq!((ups(ALICE), ups(BOB)), (1, 1));
    assert!(!takes(&mut world, ALICE) && is_held(&mut world, BOB));
}

#[test]
fn both_ends_may_hand_over_at_once() {
    let mut world = pair(86);
    for host in [ALICE, BOB] {
        hold(&mut world, host);
    }
    world.run(3 * world.link.delay);
    for host in [ALICE, BOB] {
        assert!(is_held(&mut world, host) && !takes(&mut world, host));
    }
}

#[test]
fn an_answer_that_nobody_asked_for_closes_with_a_protocol_error() {
    let mut world = pair(87);
    world.session(ALICE).control.send(&Capsule::Held);
    world.live(ALICE, true);
    world.run(SECOND / 5);
    let (_, TunnelEvent::Down { reason, .. }) = &world.hosts[ALICE].events[1] else {
        panic!("{:?}", world.hosts[ALICE].events)
    };
    assert!(
        reason.contains(&format!("{:#x}", close_code::PROTOCOL)),
        "{reason}"
    );
}

#[test]
fn what_comes_in_one_batch_with_the_close_is_delivered() {
    let mut world = pair(88);
    world.send(BOB, b"\0\0last words");
    let mut buf = Vec::new();
    let mut datagrams = Vec::new();
    let now = world.now;
    let bob = &mut world.hosts[BOB].tunnels;
    while bob.poll_transmit(now, 1, &mut buf).is_some() {
        datagrams.push(BytesMut::from(buf.as_slice()));
    }
    bob.close("stopped", now);
    while bob.poll_transmit(now, 1, &mut buf).is_some() {
        datagrams.push(BytesMut::from(buf.as_slice()));
    }
    assert_eq!(datagrams.len(), 2);
    let Host { tunnels, keys, .. } = &mut world.hosts[ALICE];
    for datagram in datagrams {
        let datagram = UnderlayDatagram {
            remote: address(BOB),
            local: Some(address(ALICE).ip()),
            ecn: 0,
            data: datagram,
        };
        tunnels.handle_underlay(now, datagram, keys);
    }
    tunnels.settle_input(now, keys);
    world.run(Duration::ZERO);
    assert_eq!(world.received(ALICE), ["\0\0last words"]);
    assert_eq!(world.state(ALICE), TunnelState::Dialing);
}
