use std::sync::Arc;

use super::*;
use crate::{
    engine::flows::FlowSummary,
    policy::{HostFacts, MeshSettings, SourceFile, Why, load::load},
    registry::KeyTable,
    wire::flow::protocol::{ICMP, TCP},
};

const REGISTRY: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: own, namespace: default }
spec: { address: 10.0.0.1, serviceAccount: own }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: behind
  namespace: default
  annotations: { identun.io/gateway: 10.0.0.1 }
spec: { address: 10.9.0.1, serviceAccount: own }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: far, namespace: default }
spec: { address: 10.0.0.2, serviceAccount: far }
";

fn policy() -> Compiled {
    let file = Arc::new(SourceFile {
        name: "mesh.yaml".into(),
        text: REGISTRY.into(),
    });
    let mesh = MeshSettings::default();
    let resources = load(&[file], &mesh).0.unwrap();
    let facts = HostFacts {
        underlay: [ip("10.0.0.1"), ip("10.0.0.100"), ip("10.9.0.254")].into(),
        port: 15_008,
        identities: ["spiffe://cluster.local/ns/default/sa/own".parse().unwrap()].into(),
        ..HostFacts::default()
    };
    Compiled::new(&resources, &mesh, facts, 1).0.unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(protocol: u8, from: (&str, u16), to: (&str, u16)) -> FiveTuple {
    FiveTuple {
        protocol,
        source: ip(from.0),
        source_port: from.1,
        destination: ip(to.0),
        destination_port: to.1,
    }
}

fn connection(original: FiveTuple) -> Connection {
    Connection {
        original,
        answers: (original.destination, original.destination_port),
        over: false,
    }
}

fn opened(tuple: FiveTuple, opener: Opener) -> Event {
    let id = KeyTable::default().id(&crate::registry::TunnelKey {
        local: "spiffe://cluster.local/ns/default/sa/own".parse().unwrap(),
        peer: "spiffe://cluster.local/ns/default/sa/far".parse().unwrap(),
        gateway: "10.0.0.2:15008".parse().unwrap(),
        lane: 0,
    });
    Event::Engine(EngineEvent::FlowOpened {
        tuple,
        opener,
        tunnel: id,
        why: Arc::new(Why::default()),
    })
}

fn told(log: &FlowLog) -> Vec<String> {
    let line = |(key, entry): &(Key, Entry)| {
        let Question {
            source,
            destination,
            port,
            ..
        } = key.question;
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let (way, count) = (key.way, entry.connections);
        format!("{source} -> {destination}{port} {way:?} {count}")
    };
    log.contents().entries.iter().map(line).collect()
}

#[test]
fn the_port_of_the_client_does_not_count() {
    let (log, policy) = (FlowLog::default(), policy());
    for port in [40_000, 40_001] {
        let tuple = tuple(TCP, ("192.0.2.9", port), ("10.0.0.1", 80));
        log.plaintext(&connection(tuple), &policy, 5);
    }
    let ping = tuple(ICMP, ("10.0.0.1", 0), ("192.0.2.9", 0));
    log.plaintext(&connection(ping), &policy, 6);
    assert_eq!(
        told(&log),
        [
            "10.0.0.1 -> 192.0.2.9 Plaintext 1",
            "192.0.2.9 -> 10.0.0.1:80 Plaintext 2"
        ]
    );
    let (_, entry) = &log.contents().entries[1];
    assert_eq!(entry.code, Some("client_not_in_mesh"));
}

#[test]
fn what_stays_here_or_belongs_to_nobody_is_left_out() {
    let policy = policy();
    let is_counted = |protocol, from, to| {
        plaintext_key(&connection(tuple(protocol, from, to)), &policy).is_some()
    };
    assert!(
        is_counted(TCP, ("10.9.0.1", 1), ("192.0.2.9", 80)),
        "forwarded"
    );
    for (protocol, from, to) in [
        (TCP, ("127.0.0.1", 1), ("127.0.0.1", 80)),
        (TCP, ("10.0.0.1", 1), ("10.0.0.1", 80)),
        (TCP, ("10.0.0.1", 1), ("10.9.0.1", 80)),
        (TCP, ("10.9.0.254", 1), ("10.9.0.1", 80)),
        (TCP, ("192.0.2.1", 1), ("192.0.2.2", 80)),
        (TCP, ("10.0.0.100", 1), ("192.0.2.2", 80)),
        (UDP, ("10.0.0.1", 15_008), ("10.0.0.2", 15_008)),
        (UDP, ("10.0.0.2", 4_000), ("10.0.0.1", 15_008)),
        (UDP, ("10.0.0.1", 5_353), ("224.0.0.251", 5_353)),
        (UDP, ("10.0.0.1", 68), ("255.255.255.255", 67)),
    ] {
        assert!(!is_counted(protocol, from, to), "{from:?} {to:?}");
    }
}

#[test]
fn a_translated_destination_counts_as_the_workload_that_answers() {
    let (log, policy) = (FlowLog::default(), policy());
    let published = Connection {
        original: tuple(TCP, ("192.0.2.9", 1), ("10.0.0.100", 8_080)),
        answers: (ip("10.9.0.1"), 80),
        over: false,
    };
    log.plaintext(&published, &policy, 1);
    assert_eq!(told(&log), ["192.0.2.9 -> 10.9.0.1:80 Plaintext 1"]);
}

#[test]
fn tunnels_count_by_who_opened_them_and_their_bytes_by_direction() {
    let (log, policy) = (FlowLog::default(), policy());
    let out = tuple(TCP, ("10.0.0.1", 40_000), ("10.0.0.2", 80));
    let into = tuple(TCP, ("10.0.0.1", 443), ("10.0.0.2", 40_000));
    log.handle(&opened(out, Opener::Local), &policy, 1);
    log.handle(&opened(into, Opener::Peer), &policy, 2);
    for (tuple, now) in [(out, 3), (into, 4)] {
        let summary = FlowSummary {
            bytes_sent: 10,
            bytes_received: 200,
        };
        let closed = Event::Engine(EngineEvent::FlowClosed { tuple, summary });
        log.handle(&closed, &policy, now);
    }
    assert_eq!(
        told(&log),
        [
            "10.0.0.2 -> 10.0.0.1:443 Tunnel 1",
            "10.0.0.1 -> 10.0.0.2:80 Tunnel 1"
        ]
    );
    let entries = log.contents().entries;
    let bytes = |index: usize| {
        let (_, entry) = &entries[index];
        (entry.bytes_forth, entry.bytes_back)
    };
    assert_eq!((bytes(0), bytes(1)), ((200, 10), (10, 200)));
    assert_eq!((entries[0].1.first_seen, entries[0].1.last_seen), (2, 4));
}

#[test]
fn a_refusal_is_counted_with_its_reason_and_an_accident_is_not() {
    let (log, policy) = (FlowLog::default(), policy());
    let dropped = |reason, tuple| {
        Event::Engine(EngineEvent::Dropped {
            tuple,
            direction: crate::engine::verdict::Direction::Egress,
            local: None,
            peer: None,
            reason,
            why: None,
        })
    };
    let out = tuple(TCP, ("10.0.0.1", 40_000), ("10.0.0.2", 80));
    log.handle(&dropped(DropReason::QueueFull, out), &policy, 1);
    log.handle(&dropped(DropReason::Malformed, out), &policy, 1);
    assert!(told(&log).is_empty());
    log.handle(&dropped(DropReason::NotInMesh, out), &policy, 1);
    // The answer of a flow that was allowed before is no flow of its own.
    let into = tuple(TCP, ("10.0.0.1", 443), ("10.0.0.2", 40_000));
    log.handle(&opened(into, Opener::Peer), &policy, 2);
    log.handle(&dropped(DropReason::NoMatchingAllow, into), &policy, 3);
    assert_eq!(
        told(&log),
        [
            "10.0.0.2 -> 10.0.0.1:443 Refused 1",
            "10.0.0.2 -> 10.0.0.1:443 Tunnel 1",
            "10.0.0.1 -> 10.0.0.2:80 Refused 1"
        ]
    );
    assert_eq!(log.contents().entries[0].1.code, Some("no_matching_allow"));
}

#[test]
fn a_flow_that_is_cut_is_refused_and_what_it_carried_counts() {
    let (log, policy) = (FlowLog::default(), policy());
    let into = tuple(TCP, ("10.0.0.1", 443), ("10.0.0.2", 40_000));
    log.handle(&opened(into, Opener::Peer), &policy, 1);
    let cut = Event::Engine(EngineEvent::FlowCut {
        tuple: into,
        opener: Opener::Peer,
        key: None,
        reason: DropReason::DeniedByPolicy,
        why: None,
        said: None,
        summary: FlowSummary {
            bytes_sent: 10,
            bytes_received: 200,
        },
    });
    log.handle(&cut, &policy, 2);
    assert_eq!(
        told(&log),
        [
            "10.0.0.2 -> 10.0.0.1:443 Tunnel 1",
            "10.0.0.2 -> 10.0.0.1:443 Refused 1"
        ]
    );
    let entries = log.contents().entries;
    let (carried, refused) = (&entries[0].1, &entries[1].1);
    assert_eq!((carried.bytes_forth, carried.bytes_back), (200, 10));
    assert_eq!(refused.code, Some("denied_by_policy"));
}

#[test]
fn the_longest_unseen_makes_room_and_that_is_told() {
    let (log, policy) = (FlowLog::new(2), policy());
    let hit = |host: &str, now| {
        let tuple = tuple(TCP, (host, 1), ("10.0.0.1", 80));
        log.plaintext(&connection(tuple), &policy, now);
    };
    hit("192.0.2.1", 1);
    hit("192.0.2.2", 2);
    hit("192.0.2.1", 3);
    hit("192.0.2.3", 4);
    assert_eq!(
        told(&log),
        [
            "192.0.2.3 -> 10.0.0.1:80 Plaintext 1",
            "192.0.2.1 -> 10.0.0.1:80 Plaintext 2"
        ]
    );
    assert_eq!(log.contents().evicted, 1);
    // Time that goes back makes nothing older, and loses nothing.
    hit("192.0.2.1", 2);
    hit("192.0.2.4", 5);
    assert_eq!(log.contents().entries.len(), 2);
    assert_eq!(log.contents().evicted, 2);
}

#[test]
fn a_look_at_the_table_makes_good_what_was_not_heard_and_counts_nothing_twice() {
    let (log, policy) = (FlowLog::default(), policy());
    let tuple = tuple(TCP, ("192.0.2.9", 1), ("10.0.0.1", 80));
    for _ in 0..3 {
        log.plaintext(&connection(tuple), &policy, 1);
    }
    let key = plaintext_key(&connection(tuple), &policy).unwrap();
    let held = |connections, open| [(key, Held { connections, open })].into();
    log.merge(&held(2, true), &policy, 5);
    assert_eq!(told(&log), ["192.0.2.9 -> 10.0.0.1:80 Plaintext 3"]);
    assert_eq!(log.contents().entries[0].1.last_seen, 5);
    // What is over is not seen again by being held.
    log.merge(&held(7, false), &policy, 6);
    assert_eq!(told(&log), ["192.0.2.9 -> 10.0.0.1:80 Plaintext 7"]);
    assert_eq!(log.contents().entries[0].1.last_seen, 5);
}
