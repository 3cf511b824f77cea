//! From the first packet to UP, and the ways not to get there.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;

use super::world::{ALICE, BOB, EPOCH, Link, World, id, policy};
use crate::{
    identity::{Ca, VerifyError},
    tunnel::{DialError, TunnelEvent, TunnelState, UnderlayDatagram},
    wire::{
        DropReason,
        capsule::{PeerFlags, RefusedCode},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn dial_error(world: &World) -> &DialError {
    let failed = world.hosts[ALICE].events.iter().find_map(|(_, event)| {
        if let TunnelEvent::DialFailed { error, .. } = event {
            Some(error)
        } else {
            None
        }
    });
    failed.unwrap_or_else(|| panic!("{:?}", world.hosts[ALICE].events))
}

fn incoming_refused(world: &World) -> Option<(Option<String>, String)> {
    world.hosts[BOB].events.iter().find_map(|(_, event)| {
        let TunnelEvent::IncomingRefused {
            presented, error, ..
        } = event
        else {
            return None;
        };
        Some((presented.clone(), error.clone()))
    })
}

#[test]
fn a_session_comes_up_at_both_ends_and_carries_datagrams_both_ways() {
    let mut world = World::new(1);
    world.connect();
    let [(_, up)] = world.hosts[ALICE].events.as_slice() else {
        panic!("{:?}", world.hosts[ALICE].events)
    };
    let TunnelEvent::Up {
        key,
        dialled: true,
        version,
        cipher,
        group,
        peer_not_after,
        ..
    } = up
    else {
        panic!("{up:?}")
    };
    assert_eq!(*key, world.key(ALICE));
    assert_eq!(
        (*version, cipher.as_str(), group.as_str()),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768")
    );
    assert_eq!(*peer_not_after, EPOCH + 3_600);
    assert!(matches!(
        &world.hosts[BOB].events[..],
        [(_, TunnelEvent::Up { dialled: false, .. })]
    ));

    world.send(ALICE, b"\0\0to bob");
    world.send(BOB, b"\0\0to alice");
    world.run(SECOND);
    assert!(
        world.hosts[BOB]
            .received
            .iter()
            .all(|(_, flags, _)| *flags == PeerFlags::ALL)
    );
    assert_eq!(world.received(BOB), ["\0\0to bob"]);
    assert_eq!(world.received(ALICE), ["\0\0to alice"]);
    let snapshot = world.hosts[ALICE]
        .tunnels
        .snapshot(&world.hosts[ALICE].keys);
    assert_eq!((snapshot[0].bytes_sent, snapshot[0].bytes_received), (6, 8));
    assert_eq!(
        (snapshot[0].handshakes, snapshot[0].inner_mtu),
        (1, Some(1_432))
    );
}

#[test]
fn greeting_costs_one_round_trip_more_than_the_handshake_and_retry_another() {
    let rtt = 2 * Link::default().delay;
    let slack = rtt / 4;
    for (retry_above, round_trips) in [(32, 2), (0, 3)] {
        let mut world = World::with(2, |_, settings| settings.retry_above = retry_above);
        world.open(ALICE);
        let up = world.run_until_up(ALICE, 5 * SECOND);
        assert!(
            up >= rtt * round_trips && up < rtt * round_trips + slack,
            "{up:?}"
        );
    }
}

#[test]
fn a_flood_of_first_packets_keeps_no_host_of_the_registry_from_connecting() {
    let mut world = World::with(2, |_, settings| settings.retry_above = 0);
    let (now, bob) = (world.now, &mut world.hosts[BOB]);
    let header = [0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
    for n in 0..50_000u32 {
        let mut data = BytesMut::zeroed(1_200);
        data[..header.len()].copy_from_slice(&header);
        let [a, b, c, d] = n.to_be_bytes();
        let datagram = UnderlayDatagram {
            remote: ([203, b, c, d], 1_000 + u16::from(a)).into(),
            local: None,
            ecn: 0,
            data,
        };
        bob.tunnels.handle_underlay(now, datagram, &mut bob.keys);
    }
    let told = std::iter::from_fn(|| bob.tunnels.poll_event());
    let told: Vec<_> = told.map(|event| format!("{event:?}")).collect();
    assert!(told.len() == 1 && told[0].contains("flood"), "{told:?}");
    world.connect();
}

#[test]
fn a_stranger_proves_its_address_when_strangers_began_many_handshakes_and_a_known_host_does_not() {
    let rtt = 2 * Link::default().delay;
    for (stranger, round_trips) in [(true, 3), (false, 2)] {
        let mut world = World::new(5);
        if stranger {
            world.hosts[ALICE].source = ([203, 0, 113, 9], 15_008).into();
        }
        let now = world.now;
        let begun = (0..1_000).filter(|_| world.hosts[BOB].tunnels.gate.begins(now));
        assert_eq!(begun.count(), 500);
        world.open(ALICE);
        let up = world.run_until_up(ALICE, 5 * SECOND);
        assert!(
            up >= rtt * round_trips && up < rtt * (round_trips + 1),
            "{up:?}"
        );
    }
}

#[test]
fn what_the_acceptor_sends_first_is_not_lost_behind_ready() {
    let mut world = World::new(13);
    world.open(ALICE);
    world.run_until_up(BOB, SECOND);
    world.send(BOB, b"\0\0first");
    assert_eq!(world.state(ALICE), TunnelState::Dialing);
    world.run(SECOND);
    assert_eq!(world.received(ALICE), ["\0\0first"]);
}

#[test]
fn the_handshake_stays_within_the_amplification_limit() {
    let mut world = World::new(3);
    world.open(ALICE);
    // The client's first flight has arrived, its second has not.
    world.run(Link::default().delay);
    let [client, server] = world.sent;
    assert_eq!(client, 2 * 1_200);
    assert!(server <= 3 * client, "{server} bytes for {client}");
}

#[test]
fn an_identity_that_the_peer_does_not_hold_is_named() {
    let mut world = World::new(4);
    let identities = world.identities("carol");
    world.hosts[BOB] = world.host(BOB, world.settings(BOB), identities);
    world.open(ALICE);
    world.run(SECOND);
    let error = dial_error(&world);
    assert!(
        matches!(error, DialError::PeerClosed { code: 0x131, .. }),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("does not hold the expected identity"),
        "{error}"
    );
    assert_eq!(error.drop_reason(), DropReason::WrongIdentity);
    let (presented, error) = incoming_refused(&world).unwrap();
    assert_eq!(presented, None);
    assert!(!error.is_empty());
}

#[test]
fn an_untrusted_dialler_never_gets_up_and_learns_why() {
    let mut world = World::new(5);
    let other = Ca::new(&"cluster.local".parse().unwrap(), EPOCH, 100_000 * SECOND).unwrap();
    let identities = world.identities_of(&other, "alice", 3_600 * SECOND);
    world.hosts[ALICE] = world.host(ALICE, world.settings(ALICE), identities);
    world.open(ALICE);
    world.run(SECOND);
    let error = dial_error(&world);
    assert!(
        matches!(
            error,
            DialError::PeerClosed {
                code: 0x100..0x200,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(
        incoming_refused(&world).unwrap().0,
        Some(id("alice").to_string())
    );
    let ups = world.hosts[ALICE]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, TunnelEvent::Up { .. }));
    assert_eq!(ups.count(), 0);
}

#[test]
fn an_untrusted_acceptor_is_named_with_its_issuer() {
    let mut world = World::new(6);
    let other = Ca::new(&"cluster.local".parse().unwrap(), EPOCH, 100_000 * SECOND).unwrap();
    let identities = world.identities_of(&other, "bob", 3_600 * SECOND);
    world.hosts[BOB] = world.host(BOB, world.settings(BOB), identities);
    world.open(ALICE);
    world.run(SECOND);
    let error = dial_error(&world);
    let DialError::Verify {
        error: reason,
        presented,
        issuer,
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(!matches!(reason, VerifyError::WrongIdentity { .. }));
    assert_eq!(*presented, Some(id("bob").to_string()));
    assert!(issuer.is_some());
    assert_eq!(error.drop_reason(), DropReason::WrongIdentity);
}

#[test]
fn without_a_local_identity_nothing_is_dialled() {
    let mut world = World::new(7);
    let identities = world.identities("carol");
    world.hosts[ALICE] = world.host(ALICE, world.settings(ALICE), identities);
    world.open(ALICE);
    world.run(SECOND / 100);
    assert_eq!(*dial_error(&world), DialError::NoIdentity);
    assert_eq!(world.sent[ALICE], 0);
}

#[test]
fn a_disabled_mode_refuses_the_session_with_its_reason() {
    let mut world = World::new(8);
    let disable = "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: default\nspec: {}\n";
    let identities = Arc::new(world.identities("bob"));
    let now = world.now;
    world.hosts[BOB].tunnels.handle_config(
        identities,
        policy(BOB, &["alice", "bob"], disable),
        now,
    );
    world.open(ALICE);
    world.run(SECOND);
    let error = dial_error(&world);
    assert!(
        matches!(
            error,
            DialError::Refused {
                code: RefusedCode::NotAllowed,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("DISABLE"), "{error}");
    assert!(matches!(
        world.state(ALICE),
        TunnelState::Refused {
            code: RefusedCode::NotAllowed,
            ..
        }
    ));
    world.run(6 * SECOND);
    assert_eq!(world.state(ALICE), TunnelState::Idle);
    assert!(incoming_refused(&world).is_some());
}

#[test]
fn an_identity_without_a_workload_is_asked_for_once_more_at_once() {
    let mut world = World::new(9);
    let identities = Arc::new(world.identities("bob"));
    let now = world.now;
    world.hosts[BOB]
        .tunnels
        .handle_config(identities, policy(BOB, &["alice"], ""), now);
    world.open(ALICE);
    world.run(SECOND);
    assert!(matches!(
        dial_error(&world),
        DialError::Refused {
            code: RefusedCode::NotHere,
            ..
        }
    ));
    let refused = world.hosts[BOB]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, TunnelEvent::IncomingRefused { .. }));
    assert_eq!(refused.count(), 2);
}

#[test]
fn loss_and_reordering_delay_the_handshake_within_bounds() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.link.loss = 1 + seed;
        world.link.jitter = Duration::from_millis(30);
        world.open(ALICE);
        world.live(ALICE, true);
        let up = world.run_until_up(ALICE, 30 * SECOND);
        world.link.loss = 0;
        world.send(ALICE, b"\0\0first");
        world.run(SECOND);
        assert_eq!(
            world.received(BOB),
            ["\0\0first"],
            "seed {seed}, up after {up:?}"
        );
    }
}

#[test]
fn a_silent_peer_fails_the_dial_after_five_seconds_and_backoff_repeats_with_the_seed() {
    let failures = |seed| {
        let mut world = World::new(seed);
        world.link.loss = 100;
        world.open(ALICE);
        world.live(ALICE, true);
        world.run(120 * SECOND);
        let events = world.hosts[ALICE].events.iter();
        events
            .filter(|(_, event)| matches!(event, TunnelEvent::DialFailed { .. }))
            .map(|&(at, _)| at)
            .collect::<Vec<_>>()
    };
    let times = failures(10);
    assert_eq!(times[0], 5 * SECOND);
    assert!(times.len() > 5 && times.len() < 24, "{times:?}");
    assert_eq!(failures(10), times);
    assert_ne!(failures(11), times);
}

#[test]
fn handshakes_above_the_limit_are_refused() {
    let mut world = World::with(12, |_, settings| settings.max_incoming = 0);
    world.open(ALICE);
    world.run(SECOND);
    assert!(matches!(
        dial_error(&world),
        DialError::PeerClosed { code: 2, .. }
    ));
}
