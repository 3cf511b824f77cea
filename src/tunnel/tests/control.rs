//! Peers that break the rules of the control stream (wire.md §3.2).

use std::time::Duration;

use super::world::{ALICE, BOB, World, id};
use crate::{
    tunnel::{TunnelEvent, TunnelState, close_code},
    wire::{
        FiveTuple,
        capsule::{Capsule, FlowRefused, FlowRefusedCode, Hello, PeerFlags, RefusedCode},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn hello() -> Capsule {
    Capsule::Hello(Hello {
        version: 1,
        flags: PeerFlags::ALL,
        source: id("alice"),
        destination: id("bob"),
    })
}

fn down_reason(world: &World, host: usize) -> Option<String> {
    world.hosts[host].events.iter().find_map(|(_, event)| {
        if let TunnelEvent::Down { reason, .. } = event {
            Some(reason.clone())
        } else {
            None
        }
    })
}

/// Lets alice send capsules in UP; what she was closed with.
fn closed_after(capsules: &[Capsule]) -> Option<String> {
    let mut world = World::new(20);
    world.connect();
    for capsule in capsules {
        world.session(ALICE).control.send(capsule);
    }
    // Any input makes the session write its stream.
    world.live(ALICE, true);
    world.run(SECOND);
    down_reason(&world, ALICE)
}

#[test]
fn capsules_out_of_turn_close_with_a_protocol_error() {
    let ready = Capsule::Ready {
        version: 1,
        flags: PeerFlags::ALL,
    };
    let refused = Capsule::Refused {
        code: RefusedCode::Limited,
        reason: String::new(),
    };
    for capsule in [hello(), ready, refused] {
        let reason = closed_after(std::slice::from_ref(&capsule)).unwrap();
        assert!(reason.contains("0x101"), "{capsule:?}: {reason}");
    }
}

#[test]
fn a_capsule_before_hello_closes_with_a_protocol_error() {
    let mut world = World::new(21);
    let tunnel = world.open(ALICE);
    let tunnels = &mut world.hosts[ALICE].tunnels;
    let handle = tunnels.tunnels[&tunnel].dialling.unwrap();
    let session = tunnels.links.session_mut(handle).unwrap();
    session.control.send(&Capsule::Drain {
        reason: String::new(),
    });
    world.run(SECOND);
    assert!(matches!(world.state(BOB), TunnelState::Idle));
    let (_, TunnelEvent::DialFailed { error, .. }) = &world.hosts[ALICE].events[0] else {
        panic!("{:?}", world.hosts[ALICE].events)
    };
    assert!(error.to_string().contains("0x101"), "{error}");
}

#[test]
fn hello_must_name_the_certificates_identities() {
    for (local, peer) in [("carol", "bob"), ("alice", "carol")] {
        let mut world = World::new(22);
        let tunnel = world.open(ALICE);
        let tunnels = &mut world.hosts[ALICE].tunnels;
        let key = &mut tunnels.tunnels.get_mut(&tunnel).unwrap().key;
        let honest = key.clone();
        (key.local, key.peer) = (id(local), id(peer));
        if peer == "carol" {
            // The dialler's own check would stop it first, so the lie goes in by hand.
            *key = honest;
            let handle = tunnels.tunnels[&tunnel].dialling.unwrap();
            let lie = Capsule::Hello(Hello {
                version: 1,
                flags: PeerFlags::ALL,
                source: id("alice"),
                destination: id("carol"),
            });
            tunnels
                .links
                .session_mut(handle)
                .unwrap()
                .control
                .send(&lie);
        }
        world.run(SECOND);
        let refusal = world.hosts[BOB].events.iter().any(|(_, event)| {
            matches!(event, TunnelEvent::IncomingRefused { error, .. } if error.contains("HELLO"))
        });
        assert!(refusal, "{:?}", world.hosts[BOB].events);
        let state = world.state(ALICE);
        assert!(
            matches!(
                state,
                TunnelState::Refused {
                    code: RefusedCode::BadIdentity,
                    ..
                }
            ),
            "{state:?}"
        );
    }
}

#[test]
fn a_flood_of_capsules_closes_with_excessive_load() {
    let flood = vec![Capsule::Unknown { kind: 0x1d77 }; 300];
    let reason = closed_after(&flood).unwrap();
    assert!(reason.contains("0x107"), "{reason}");
}

#[test]
fn unknown_capsules_are_skipped_and_counted() {
    let mut world = World::new(23);
    world.connect();
    for kind in [0x1, 0x2, 0x3, 0x1d77] {
        world
            .session(ALICE)
            .control
            .send(&Capsule::Unknown { kind });
    }
    world.live(ALICE, true);
    world.run(SECOND);
    assert_eq!(world.session(BOB).control.unknown, 4);
    assert_eq!(world.state(BOB), TunnelState::Up);
}

#[test]
fn refused_flows_are_told_and_rate_limited() {
    let mut world = World::new(24);
    world.connect();
    let tunnel = world.tunnel(BOB);
    let refused = FlowRefused {
        code: FlowRefusedCode::DeniedByPolicy,
        tuple: FiveTuple {
            protocol: 6,
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: [10, 0, 0, 2].into(),
            destination_port: 80,
        },
        reason: "no".into(),
    };
    for _ in 0..500 {
        world.hosts[BOB]
            .tunnels
            .send_flow_refused(tunnel, refused.clone());
    }
    world.run(SECOND);
    let told: Vec<_> = world.hosts[ALICE]
        .events
        .iter()
        .filter_map(|(_, event)| {
            if let TunnelEvent::FlowRefused { refused, .. } = event {
                Some(refused)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(told.len(), 20);
    assert_eq!(*told[0], refused);
    assert_eq!(world.state(ALICE), TunnelState::Up);
}

#[test]
fn revoked_flows_are_all_told_in_order_and_the_session_bears_it() {
    const COUNT: u16 = 20_000;
    let mut world = World::new(28);
    world.connect();
    let tunnel = world.tunnel(BOB);
    for port in 0..COUNT {
        let revoked = FlowRefused {
            code: FlowRefusedCode::Revoked,
            tuple: FiveTuple {
                protocol: 6,
                source: [10, 0, 0, 1].into(),
                source_port: port,
                destination: [10, 0, 0, 2].into(),
                destination_port: 80,
            },
            reason: "no longer allowed: denied by AuthorizationPolicy default/somebody".into(),
        };
        world.hosts[BOB].tunnels.send_revocation(tunnel, revoked);
    }
    world.live(BOB, true);
    world.run(SECOND * 5);
    let mut told = Vec::new();
    for (_, event) in &world.hosts[ALICE].events {
        if let TunnelEvent::FlowRefused { refused, .. } = event {
            told.push(refused.tuple.source_port);
        }
    }
    assert_eq!(told.len(), usize::from(COUNT));
    assert!(told.is_sorted());
    assert_eq!(world.state(ALICE), TunnelState::Up);
}

#[test]
fn a_second_stream_is_impossible() {
    let mut world = World::new(25);
    world.connect();
    for dir in [quinn_proto::Dir::Bi, quinn_proto::Dir::Uni] {
        for host in [ALICE, BOB] {
            assert!(world.session(host).connection.streams().open(dir).is_none());
        }
    }
}

#[test]
fn a_control_stream_that_ends_is_a_protocol_error() {
    let mut world = World::new(26);
    world.connect();
    let stream = quinn_proto::StreamId::new(quinn_proto::Side::Client, quinn_proto::Dir::Bi, 0);
    world
        .session(ALICE)
        .connection
        .send_stream(stream)
        .finish()
        .unwrap();
    world.send(ALICE, b"\0\0x");
    world.run(SECOND);
    assert!(down_reason(&world, BOB).unwrap().contains("ended"));
    let code = format!("{:#x}", close_code::PROTOCOL);
    assert!(down_reason(&world, ALICE).unwrap().contains(&code));
}

#[test]
fn a_control_stream_that_the_peer_does_not_read_is_a_protocol_error() {
    let mut world = World::new(27);
    world.connect();
    let stream = quinn_proto::StreamId::new(quinn_proto::Side::Client, quinn_proto::Dir::Bi, 0);
    let mut alice = world.session(ALICE).connection.recv_stream(stream);
    alice.stop(quinn_proto::VarInt::from_u32(0)).unwrap();
    world.send(ALICE, b"\0\0x");
    world.run(SECOND);
    assert!(down_reason(&world, BOB).unwrap().contains("stopped"));
}
