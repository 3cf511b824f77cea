//! Sessions that are up: restarts, simultaneous dials, drain, rebinding, expiry, revocation, queues.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::world::{ALICE, BOB, EPOCH, World, address, policy};
use crate::{
    identity::{Ca, TrustBundles},
    tunnel::{TunnelEvent, TunnelState},
    wire::{DropReason, capsule::RefusedCode},
};

const SECOND: Duration = Duration::from_secs(1);

fn downs(world: &World, host: usize) -> Vec<&str> {
    let events = world.hosts[host].events.iter();
    events
        .filter_map(|(_, event)| {
            if let TunnelEvent::Down { reason, .. } = event {
                Some(reason.as_str())
            } else {
                None
            }
        })
        .collect()
}

fn ups(world: &World, host: usize) -> usize {
    let events = world.hosts[host].events.iter();
    events
        .filter(|(_, event)| matches!(event, TunnelEvent::Up { .. }))
        .count()
}

#[test]
fn a_restarted_peer_resets_the_session_and_is_dialled_at_once() {
    let mut world = World::new(40);
    world.connect();
    world.live(ALICE, true);
    world.restart(BOB);
    let restarted = world.elapsed();
    world.send(ALICE, b"\0\0into the void");
    world.run(SECOND / 2);
    assert_eq!(
        downs(&world, ALICE),
        ["the peer restarted (stateless reset)"]
    );
    let (up, _) = world.hosts[ALICE].events.last().unwrap();
    // One round trip for the reset, one for the handshake, one for the greeting.
    assert!(
        *up - restarted < Duration::from_millis(350),
        "{:?}",
        *up - restarted
    );
    world.send(ALICE, b"\0\0again");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0again"]);
}

#[test]
fn a_peer_that_comes_back_by_itself_takes_over_at_once() {
    let mut world = World::new(41);
    world.connect();
    world.restart(BOB);
    world.open(BOB);
    world.run_until_up(BOB, SECOND);
    world.send(BOB, b"\0\0from bob");
    world.run(SECOND / 10);
    assert_eq!(world.received(ALICE), ["\0\0from bob"]);
    assert!(!world.session(ALICE).dialled);
    world.send(ALICE, b"\0\0to bob");
    world.run(5 * SECOND);
    assert_eq!(world.received(BOB), ["\0\0to bob"]);
    assert!(downs(&world, ALICE).is_empty());
}

#[test]
fn a_newer_session_of_one_direction_supersedes_the_older() {
    let mut world = World::new(42);
    world.connect();
    world.restart(ALICE);
    world.open(ALICE);
    world.run(SECOND / 2);
    let bob = world.tunnel(BOB);
    assert_eq!(world.hosts[BOB].tunnels.tunnels[&bob].up.len(), 2);
    world.send(BOB, b"\0\0to the new one");
    world.run(SECOND / 10);
    assert_eq!(world.received(ALICE), ["\0\0to the new one"]);
    world.run(3 * SECOND);
    assert_eq!(world.hosts[BOB].tunnels.tunnels[&bob].up.len(), 1);
    assert!(downs(&world, BOB).is_empty());
}

#[test]
fn simultaneous_dials_agree_on_the_session_of_the_smaller_identity() {
    let mut world = World::new(43);
    world.open(ALICE);
    world.open(BOB);
    world.run(SECOND);
    for host in [ALICE, BOB] {
        let tunnel = world.tunnel(host);
        assert_eq!(world.hosts[host].tunnels.tunnels[&tunnel].up.len(), 2);
        assert_eq!(world.session(host).dialled, host == ALICE);
        world.live(host, true);
    }
    world.send(ALICE, b"\0\0x");
    world.run(60 * SECOND);
    for host in [ALICE, BOB] {
        let tunnel = world.tunnel(host);
        assert_eq!(
            world.hosts[host].tunnels.tunnels[&tunnel].up.len(),
            1,
            "the idle one ends"
        );
        assert_eq!(world.state(host), TunnelState::Up);
        assert!(downs(&world, host).is_empty());
    }
}

#[test]
fn a_draining_peer_is_left_and_found_again_after_its_restart() {
    let mut world = World::new(44);
    world.connect();
    world.live(ALICE, true);
    let now = world.now;
    world.hosts[BOB].tunnels.drain("upgrade", now);
    world.run(SECOND / 2);
    assert_eq!(world.state(ALICE), TunnelState::Draining);
    let last_error = world.hosts[ALICE]
        .tunnels
        .snapshot(&world.hosts[ALICE].keys)[0]
        .last_error
        .clone();
    assert!(last_error.unwrap().contains("upgrade"));
    // What is on its way still arrives.
    world.send(ALICE, b"\0\0late");
    world.run(SECOND / 10);
    assert_eq!(world.received(BOB), ["\0\0late"]);
    world.restart(BOB);
    world.run_until_up(ALICE, 3 * SECOND);
    world.send(ALICE, b"\0\0again");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0again"]);
}

#[test]
fn a_draining_host_closes_its_sessions_and_opens_no_others() {
    let mut world = World::new(45);
    world.connect();
    let now = world.now;
    world.hosts[BOB].tunnels.drain("upgrade", now);
    world.run(5 * SECOND);
    assert_eq!(world.state(BOB), TunnelState::Idle);
    assert_eq!(world.state(ALICE), TunnelState::Idle);
    assert_eq!(downs(&world, BOB), ["idle"]);
    world.open(BOB);
    world.run(SECOND);
    assert_eq!(world.state(BOB), TunnelState::Idle);
}

#[test]
fn a_session_that_comes_up_after_the_drain_began_drains_too() {
    let mut world = World::new(59);
    world.open(ALICE);
    let now = world.now;
    world.hosts[ALICE].tunnels.drain("upgrade", now);
    world.run(SECOND / 2);
    assert_eq!((ups(&world, ALICE), ups(&world, BOB)), (1, 1));
    for host in [ALICE, BOB] {
        assert_eq!(world.state(host), TunnelState::Draining);
    }
    // What waited for the session still crosses.
    world.send(ALICE, b"\0\0late");
    world.run(SECOND / 10);
    assert_eq!(world.received(BOB), ["\0\0late"]);
    world.run(5 * SECOND);
    assert_eq!(world.state(ALICE), TunnelState::Idle);
    assert_eq!(downs(&world, ALICE), ["idle"]);
}

#[test]
fn a_session_survives_a_rebound_nat_port() {
    let mut world = World::new(46);
    world.connect();
    world.hosts[ALICE].source.set_port(40_000);
    world.send(ALICE, b"\0\0from the new port");
    world.run(SECOND);
    world.send(BOB, b"\0\0to the new port");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0from the new port"]);
    assert_eq!(world.received(ALICE), ["\0\0to the new port"]);
    let bob = &world.hosts[BOB];
    assert_eq!(
        bob.tunnels.snapshot(&bob.keys)[0].remote,
        Some(world.hosts[ALICE].source)
    );
    assert_eq!(bob.tunnels.snapshot(&bob.keys)[0].gateway, address(ALICE));
}

#[test]
fn one_ping_keeps_a_session_alive_for_both_ends() {
    let mut world = World::new(29);
    world.connect();
    let pings = |world: &mut World| {
        [ALICE, BOB].map(|host| world.session(host).connection.stats().frame_tx.ping)
    };
    let before = pings(&mut world);
    for host in [ALICE, BOB] {
        world.live(host, true);
    }
    world.run(Duration::from_secs(65));
    assert_eq!(world.state(ALICE), TunnelState::Up);
    let after = pings(&mut world);
    assert_eq!(after[BOB], before[BOB], "the acceptor need not");
    assert!(
        (5..=6).contains(&(after[ALICE] - before[ALICE])),
        "{after:?}"
    );

    // What the dialler has no use for, the acceptor keeps by itself.
    world.live(ALICE, false);
    world.run(Duration::from_secs(65));
    assert_eq!(world.state(BOB), TunnelState::Up);
    assert!(pings(&mut world)[BOB] >= after[BOB] + 4);
}

#[test]
fn live_flows_keep_an_idle_session_and_without_them_it_ends() {
    let mut world = World::new(47);
    world.connect();
    for host in [ALICE, BOB] {
        world.live(host, true);
    }
    world.run(600 * SECOND);
    assert_eq!((ups(&world, ALICE), downs(&world, ALICE).len()), (1, 0));
    for host in [ALICE, BOB] {
        world.live(host, false);
    }
    world.run(60 * SECOND);
    assert_eq!(world.state(ALICE), TunnelState::Idle);
    assert_eq!(world.state(BOB), TunnelState::Idle);
}

#[test]
fn no_session_outlives_a_certificate() {
    let mut world = World::new(48);
    let short = world.identities_of(&world.ca, "bob", 50 * SECOND);
    world.hosts[BOB] = world.host(BOB, world.settings(BOB), short);
    world.connect();
    world.live(ALICE, true);
    world.live(BOB, true);
    world.run(45 * SECOND);
    assert_eq!(world.state(ALICE), TunnelState::Up);
    world.run(6 * SECOND);
    assert_ne!(world.state(ALICE), TunnelState::Up);
    assert!(
        downs(&world, ALICE)[0].contains("expired"),
        "{:?}",
        downs(&world, ALICE)
    );
    world.run(60 * SECOND);
    assert_eq!(ups(&world, ALICE), 1);
}

#[test]
fn a_rotated_identity_replaces_its_sessions_before_they_end() {
    let mut world = World::new(54);
    world.connect();
    world.live(ALICE, true);
    world.run(61 * SECOND);
    let rotated = world.identities_of(&world.ca, "alice", 7_200 * SECOND);
    let now = world.now;
    let policy = policy(ALICE, &["alice", "bob"], "");
    world.hosts[ALICE]
        .tunnels
        .handle_config(Arc::new(rotated), policy, now);
    for _ in 0..10 {
        world.send(ALICE, b"\0\0x");
        world.run(SECOND / 10);
    }
    world.run(120 * SECOND);
    assert_eq!(world.received(BOB).len(), 10);
    assert_eq!((ups(&world, ALICE), downs(&world, ALICE).len()), (2, 0));
    assert_eq!((ups(&world, BOB), downs(&world, BOB).len()), (2, 0));
    assert_eq!(world.session(ALICE).own_not_after, EPOCH + 7_200);
}

#[test]
fn a_host_that_goes_away_closes_every_session() {
    let mut world = World::new(55);
    world.connect();
    let now = world.now;
    world.hosts[BOB].tunnels.close("shutdown", now);
    world.run(SECOND / 10);
    assert_eq!(
        downs(&world, ALICE),
        ["the peer closed it: \"shutdown\" (0x100)"]
    );
    assert_eq!(world.state(ALICE), TunnelState::Idle);
}

#[test]
fn what_new_policy_or_trust_forbids_closes_at_once() {
    let nobody = |world: &mut World| (world.identities("bob"), policy(BOB, &["bob"], ""));
    let distrust = |world: &mut World| {
        let mut identities = world.identities("bob");
        let domain = "cluster.local".parse().unwrap();
        let other = Ca::new(&domain, EPOCH, 100_000 * SECOND).unwrap();
        identities.bundles = TrustBundles::from_pem(domain, &other.to_pem().certificate).unwrap();
        (identities, policy(BOB, &["alice", "bob"], ""))
    };
    let no_identity = |world: &mut World| {
        (
            world.identities("carol"),
            policy(BOB, &["alice", "bob"], ""),
        )
    };
    let cases: [&dyn Fn(&mut World) -> _; 3] = [&nobody, &distrust, &no_identity];
    for (number, case) in cases.into_iter().enumerate() {
        let mut world = World::new(49);
        world.connect();
        let (identities, policy) = case(&mut world);
        let now = world.now;
        world.hosts[BOB]
            .tunnels
            .handle_config(Arc::new(identities), policy, now);
        world.run(SECOND / 5);
        assert_eq!(downs(&world, BOB).len(), 1, "case {number}");
        assert!(downs(&world, ALICE)[0].contains("0x10c"), "case {number}");
        let state = world.state(ALICE);
        assert!(
            matches!(
                state,
                TunnelState::Refused {
                    code: RefusedCode::NotAllowed,
                    ..
                }
            ),
            "{state:?}"
        );
    }
}

#[test]
fn a_peer_need_not_learn_what_ends_its_session() {
    for (reveals, told) in [(true, "of the registry"), (false, "no longer allowed")] {
        let mut world = World::new(50);
        world.hosts[BOB].tunnels.reveal_reasons = reveals;
        world.connect();
        let (identities, policy) = (world.identities("bob"), policy(BOB, &["bob"], ""));
        let now = world.now;
        let bob = &mut world.hosts[BOB].tunnels;
        bob.handle_config(Arc::new(identities), policy, now);
        world.run(SECOND / 5);
        assert!(
            downs(&world, ALICE)[0].contains(told),
            "{:?}",
            downs(&world, ALICE)
        );
        assert!(downs(&world, BOB)[0].contains("of the registry"));
    }
}

#[test]
fn what_is_still_allowed_goes_on_through_a_new_configuration() {
    let mut world = World::new(50);
    world.connect();
    let now = world.now;
    let identities = Arc::new(world.identities("bob"));
    world.hosts[BOB]
        .tunnels
        .handle_config(identities, policy(BOB, &["alice", "bob"], ""), now);
    world.run(SECOND);
    world.send(ALICE, b"\0\0x");
    world.run(SECOND);
    assert_eq!(world.received(BOB), ["\0\0x"]);
    assert_eq!(ups(&world, BOB), 1);
}

#[test]
fn a_full_queue_has_no_room_and_drops_by_name() {
    let mut world = World::with(51, |_, settings| settings.max_in_flight = 64 * 1024);
    world.connect();
    world.link.loss = 100;
    let tunnel = world.tunnel(ALICE);
    let datagram = Bytes::from(vec![0; 1_200]);
    let now = world.now;
    let alice = &mut world.hosts[ALICE].tunnels;
    assert!(alice.has_room(tunnel));
    let send = |alice: &mut crate::tunnel::Tunnels| {
        let one = std::iter::once(datagram.clone());
        alice.send(tunnel, 1, one, now);
    };
    while alice.has_room(tunnel) {
        send(alice);
    }
    assert!(alice.queued_bytes() > 3 << 20);
    assert_eq!(alice.take_losses().next(), None);
    (0..10_000).for_each(|_| send(alice));
    assert!(alice.queued_bytes() <= 4 << 20);
    let losses: Vec<_> = alice.take_losses().collect();
    assert!(matches!(losses[..], [(DropReason::QueueFull, 9_000..)]));
    while alice.has_room(tunnel) {
        send(alice);
    }
    assert!(!alice.has_room(tunnel));
    let before = world.sent[ALICE];
    world.run(SECOND / 10);
    let on_the_wire = world.sent[ALICE] - before;
    assert!(on_the_wire < 200 * 1024, "{on_the_wire} bytes in flight");
}

#[test]
fn bulk_datagrams_arrive_whole_and_in_order_at_the_discovered_size() {
    let mut world = World::new(52);
    world.connect();
    world.run(5 * SECOND);
    let tunnel = world.tunnel(ALICE);
    let limits = world.hosts[ALICE].tunnels.limits(tunnel).unwrap();
    assert_eq!(
        (limits.inner, limits.fragment, limits.partial_checksum),
        (1_432, true, true)
    );
    let mut expected = Vec::new();
    for round in 0..20_u8 {
        for number in 0..50_u8 {
            let mut datagram = vec![round; limits.inner + 2];
            datagram[0] = number;
            let (one, now) = (std::iter::once(datagram.clone().into()), world.now);
            let alice = &mut world.hosts[ALICE].tunnels;
            alice.send(tunnel, 1, one, now);
            expected.push(Bytes::from(datagram));
        }
        world.run(SECOND / 10);
    }
    world.run(SECOND);
    assert_eq!(world.received(BOB), expected);
}

#[test]
fn a_control_capsule_passes_a_backlog_of_datagrams() {
    let mut world = World::with(53, |_, settings| settings.max_in_flight = 32 * 1024);
    world.connect();
    world.run(5 * SECOND);
    let tunnel = world.tunnel(ALICE);
    // Datagrams that leave no room beside them in a packet.
    let size = world.hosts[ALICE].tunnels.limits(tunnel).unwrap().inner + 2;
    for _ in 0..700 {
        let datagram = Bytes::from(vec![0; size]);
        let (one, now) = (std::iter::once(datagram), world.now);
        world.hosts[ALICE].tunnels.send(tunnel, 1, one, now);
    }
    let now = world.now;
    world.hosts[ALICE].tunnels.drain("bye", now);
    world.run(SECOND);
    assert_eq!(world.state(BOB), TunnelState::Draining);
}

#[test]
fn the_same_seed_gives_the_same_story() {
    let story = |seed| {
        let mut world = World::new(seed);
        world.link.loss = 10;
        world.link.jitter = Duration::from_millis(20);
        world.open(ALICE);
        world.open(BOB);
        world.live(ALICE, true);
        world.run(10 * SECOND);
        let events = world.hosts.iter().flat_map(|host| &host.events);
        let names =
            events.map(|(_, event)| format!("{event:?}").split(' ').next().map(str::to_owned));
        (names.collect::<Vec<_>>(), world.hosts[ALICE].events.len())
    };
    assert_eq!(story(60), story(60));
}
