//! Live flows under another policy, and flows that a peer ends: cut at once, reset, told, never revived.

use super::*;
use crate::wire::field::get32;

fn segment(from: &str, to: &str, ports: [u16; 2], flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    let [sequence, acknowledgment] = numbers;
    let segment = Tcp {
        ports,
        flags,
        sequence,
        acknowledgment,
        payload: if flags == ACK { vec![7; 10] } else { vec![] },
        ..Tcp::default()
    };
    between(segment.build(), from, to)
}

/// The sequence number of a reset from B to A, and A's port.
fn reset_of(packet: &[u8]) -> (u32, u16) {
    let packet = Packet::new_checked(packet).unwrap();
    let tuple = packet.five_tuple();
    assert!(packet.tcp_flags().is_some_and(TcpFlags::is_rst));
    assert_eq!((tuple.source, tuple.destination), (address(B), address(A)));
    (
        get32(packet.transport(), 4).unwrap(),
        tuple.destination_port,
    )
}

impl Rig {
    fn events(&mut self) -> Vec<EngineEvent> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    fn revocations(&mut self) -> Vec<FlowRefused> {
        let all = std::iter::from_fn(|| self.engine.poll_revocation());
        all.map(|(_, refused)| refused).collect()
    }

    /// A's connection to B with one segment each way; A expects 5,011 next.
    fn connection(&mut self, port: u16) -> TunnelId {
        let tunnel = self.tunnel_of(&segment(A, B, [port, PORT], SYN, [100, 0]));
        for (flags, numbers) in [(SYN | ACK, [5_000, 101]), (ACK, [5_001, 101])] {
            assert!(self.delivers(tunnel, &segment(B, A, [PORT, port], flags, numbers)));
        }
        tunnel
    }

    /// B's connection to A; A expects 111 next.
    fn served(&mut self, port: u16) -> TunnelId {
        let tunnel = self.b();
        let opening = segment(B, A, [port, PORT], SYN, [100, 0]);
        assert!(self.delivers(tunnel, &opening));
        assert_eq!(
            self.tunnel_of(&segment(A, B, [PORT, port], SYN | ACK, [1, 101])),
            tunnel
        );
        assert!(self.delivers(tunnel, &segment(B, A, [port, PORT], ACK, [101, 2])));
        tunnel
    }

    /// Looks at every flow, and returns how many calls that took.
    fn revisit_all(&mut self) -> usize {
        let is_due = |rig: &Self| rig.engine.poll_timeout().is_some_and(|due| due <= rig.now);
        let mut calls = 0;
        while is_due(self) {
            self.engine.handle_timeout(self.now, &mut self.keys);
            calls += 1;
            assert!(calls < 100, "it is due for ever");
        }
        calls
    }
}

fn cut_reasons(events: &[EngineEvent]) -> Vec<(u16, DropReason)> {
    let mut reasons = Vec::new();
    for event in events {
        if let EngineEvent::FlowCut {
            tuple, reason, key, ..
        } = event
        {
            assert_eq!(key.as_ref().unwrap().peer, id("b"));
            reasons.push((tuple.source_port, *reason));
        }
    }
    reasons
}

#[test]
fn an_idle_connection_is_reset_on_both_ends_when_policy_turns_against_it() {
    let mut rig = rig("STRICT");
    rig.connection(1000);
    rig.events();
    rig.configure("STRICT", "DISABLE", 2);
    assert_eq!(rig.revisit_all(), 1);
    let resets = rig.resets();
    assert_eq!(resets.len(), 1);
    assert_eq!(reset_of(&resets[0]), (5_011, 1000));
    let told = rig.revocations();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].code, FlowRefusedCode::Revoked);
    // As the peer's packets travel.
    let reply = tcp(B, A, [PORT, 1000], ACK);
    assert_eq!(
        told[0].tuple,
        Packet::new_checked(&reply).unwrap().five_tuple()
    );
    assert!(
        told[0].reason.contains("DestinationRule"),
        "{}",
        told[0].reason
    );
    assert_eq!(
        cut_reasons(&rig.events()),
        [(1000, DropReason::PolicyPlaintext)]
    );
    assert!(rig.engine.flows().is_empty());
}

#[test]
fn a_connection_that_a_peer_opened_is_decided_as_ingress_is() {
    let mut rig = rig("STRICT");
    rig.served(2000);
    rig.configure("DISABLE", "ISTIO_MUTUAL", 2);
    rig.revisit_all();
    assert_eq!(reset_of(&rig.resets()[0]), (111, PORT));
    assert_eq!(
        cut_reasons(&rig.events()),
        [(PORT, DropReason::ModeDisable)]
    );
}

#[test]
fn the_kernel_that_doubts_a_reset_gets_the_exact_one() {
    let mut rig = rig("STRICT");
    for port in 1..=1_000 {
        rig.connection(port);
    }
    rig.configure("STRICT", "DISABLE", 2);
    rig.revisit_all();
    assert_eq!(rig.resets().len(), 1_000);
    // A challenge acknowledgment (RFC 5961): of each connection, however many others are answered.
    for port in 1..=1_000 {
        let challenge = segment(A, B, [port, PORT], ACK, [101, 5_011 + u32::from(port)]);
        let Egress::Drop { answer, .. } = rig.out(&challenge) else {
            panic!("it passes");
        };
        let exact = (5_011 + u32::from(port), port);
        assert_eq!(reset_of(&answer.unwrap()), exact);
    }
    let answered = (0..100).filter(|_| {
        let packet = segment(A, B, [1, PORT], ACK, [101, 7]);
        matches!(
            rig.out(&packet),
            Egress::Drop {
                answer: Some(_),
                ..
            }
        )
    });
    assert_eq!(answered.count(), 7 + 50, "its own and the common limit");
}

#[test]
fn a_lost_segment_sent_again_moves_no_number_back() {
    let mut rig = rig("STRICT");
    let tunnel = rig.connection(1000);
    for sequence in [5_021, 5_011, 5_001] {
        let packet = segment(B, A, [PORT, 1000], ACK, [sequence, 101]);
        assert!(rig.delivers(tunnel, &packet));
    }
    rig.configure("STRICT", "DISABLE", 2);
    rig.revisit_all();
    assert_eq!(reset_of(&rig.resets()[0]), (5_031, 1000));
}

#[test]
fn flows_that_stay_allowed_notice_nothing_of_another_policy() {
    let mut rig = rig("STRICT");
    let tunnels = [rig.connection(1000), rig.served(2000)];
    rig.events();
    rig.configure("PERMISSIVE", "ISTIO_MUTUAL", 2);
    rig.revisit_all();
    assert_eq!(rig.engine.flows().len(), 2);
    let flows: Vec<_> = rig.engine.flows().iter().map(|(_, flow)| flow).collect();
    assert!(
        flows
            .iter()
            .all(|flow| flow.generation == 2 && flow.tunnel == tunnels[0])
    );
    assert!(flows.iter().all(|flow| flow.counts.bytes_received > 0));
    assert_eq!(rig.engine.drops().iter().count(), 0);
    assert!(rig.events().is_empty() && rig.resets().is_empty() && rig.revocations().is_empty());
}

#[test]
fn a_full_table_is_looked_at_some_flows_at_a_time() {
    let mut rig = rig("STRICT");
    for port in 1..=5_000 {
        rig.connection(port);
    }
    rig.configure("STRICT", "ISTIO_MUTUAL", 2);
    assert_eq!(rig.revisit_all(), 5, "1,024 in each call");
    rig.configure("STRICT", "DISABLE", 3);
    let mut resets = 0;
    for _ in 0..5 {
        rig.engine.handle_timeout(rig.now, &mut rig.keys);
        let new = rig.resets().len();
        assert!(new <= 1_024);
        resets += new;
        assert_eq!(rig.revocations().len(), new);
    }
    assert_eq!(resets, 5_000);
    assert!(rig.engine.flows().is_empty());
    assert!(rig.engine.poll_timeout().is_none_or(|due| due > rig.now));
}

#[test]
fn nobody_who_polls_nothing_makes_the_queues_grow() {
    let mut rig = rig("STRICT");
    for port in 1..=10_000 {
        rig.connection(port);
    }
    rig.configure("STRICT", "DISABLE", 2);
    for _ in 0..100 {
        rig.engine.handle_timeout(rig.now, &mut rig.keys);
    }
    assert_eq!(rig.resets().len(), 4_096);
    assert_eq!(rig.revocations().len(), 4_096);
    assert_eq!(rig.engine.flows().len(), 10_000 - 4_096);
}

#[test]
fn nothing_but_a_new_connection_revives_a_cut_one() {
    let mut rig = rig("STRICT");
    let tunnel = rig.connection(1000);
    rig.configure("STRICT", "DISABLE", 2);
    rig.revisit_all();
    // The peer may open flows to A under this policy, and this is none.
    let late = tcp(B, A, [PORT, 1000], ACK);
    assert_eq!(
        rig.in_reason(tunnel, &late),
        Some(DropReason::PolicyPlaintext)
    );
    rig.configure("STRICT", "ISTIO_MUTUAL", 3);
    assert_eq!(
        rig.out_reason(&tcp(A, B, [1000, PORT], ACK)),
        Some(DropReason::PolicyPlaintext)
    );
    assert!(rig.engine.flows().is_empty());
    assert_eq!(rig.tunnel_of(&tcp(A, B, [1000, PORT], SYN)), tunnel);
    assert!(rig.delivers(tunnel, &tcp(B, A, [PORT, 1000], SYN | ACK)));
}

#[test]
fn a_packet_that_comes_first_has_its_flow_decided() {
    let mut rig = rig("STRICT");
    let tunnel = rig.served(2000);
    rig.configure("DISABLE", "ISTIO_MUTUAL", 2);
    // The client direction would be allowed, and a reply is not that.
    assert_eq!(
        rig.out_reason(&tcp(A, B, [PORT, 2000], ACK)),
        Some(DropReason::ModeDisable)
    );
    assert_eq!(
        rig.in_reason(tunnel, &tcp(B, A, [2000, PORT], ACK)),
        Some(DropReason::ModeDisable)
    );
    assert!(rig.engine.flows().is_empty());
}

#[test]
fn a_flow_whose_destination_moved_goes_on_by_the_other_gateway() {
    let mut rig = rig("STRICT");
    let old = rig.connection(1000);
    let moved = policy_with("STRICT", "ISTIO_MUTUAL", 2, |text| {
        text.replace(
            "identun.io/gateway: \"192.0.2.2\"",
            "identun.io/gateway: \"192.0.2.22\"",
        )
    });
    rig.engine.handle_policy(moved, rig.now);
    rig.revisit_all();
    let new = rig.tunnel("b", "192.0.2.22");
    assert_eq!(rig.tunnel_of(&tcp(A, B, [1000, PORT], ACK)), new);
    let live: Vec<_> = std::iter::from_fn(|| rig.engine.poll_live()).collect();
    assert_eq!(live, [(old, true), (new, true), (old, false)]);
    assert!(rig.resets().is_empty());
}

#[test]
fn a_flow_to_an_address_that_another_identity_has_is_cut() {
    let mut rig = rig("STRICT");
    rig.connection(1000);
    let taken = policy_with("STRICT", "ISTIO_MUTUAL", 2, |text| {
        text.replace(
            "address: 10.0.0.2, serviceAccount: b",
            "address: 10.0.0.2, serviceAccount: c",
        )
    });
    rig.engine.handle_policy(taken, rig.now);
    rig.revisit_all();
    assert_eq!(rig.resets().len(), 1);
    let events = rig.events();
    let EngineEvent::FlowCut { why: Some(why), .. } = events.last().unwrap() else {
        panic!("{events:?}");
    };
    assert!(why.text.contains("sa/c"), "{}", why.text);
}

#[test]
fn what_a_peer_ends_is_reset_and_only_what_it_carries() {
    let mut rig = rig("STRICT");
    let (tunnel, other) = (rig.connection(1000), rig.c());
    rig.served(2000);
    rig.events();
    let refusal = |from: [u16; 2], code| FlowRefused {
        code,
        tuple: Packet::new_checked(&tcp(A, B, from, ACK))
            .unwrap()
            .five_tuple(),
        reason: "denied by AuthorizationPolicy default/x".into(),
    };
    let revoked = refusal([1000, PORT], FlowRefusedCode::Revoked);
    assert!(rig.refused(other, &revoked).is_empty());
    assert_eq!(rig.engine.flows().len(), 2);
    assert_eq!(reset_of(&rig.refused(tunnel, &revoked)[0]), (5_011, 1000));
    let replies = refusal([PORT, 2000], FlowRefusedCode::DeniedByPolicy);
    assert_eq!(reset_of(&rig.refused(tunnel, &replies)[0]), (111, PORT));
    assert!(rig.revocations().is_empty(), "the peer knows");
    let events = rig.events();
    assert_eq!(events.len(), 2);
    for event in &events {
        let EngineEvent::FlowCut { reason, said, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!(*reason, DropReason::PeerRefusedFlow);
        assert_eq!(said.as_deref(), Some(&*revoked.reason));
    }
}

#[test]
fn another_protocol_is_cut_too_and_told_by_icmp_at_its_next_packet() {
    let mut rig = rig("STRICT");
    let tunnel = rig.tunnel_of(&udp(A, B, [1000, PORT]));
    assert!(rig.delivers(tunnel, &udp(B, A, [PORT, 1000])));
    assert!(rig.delivers(tunnel, &udp(B, A, [2000, PORT])));
    rig.configure("DISABLE", "DISABLE", 2);
    rig.revisit_all();
    assert!(rig.resets().is_empty());
    assert_eq!(rig.revocations().len(), 2);
    for ports in [[1000, PORT], [PORT, 2000]] {
        let Egress::Drop { answer, .. } = rig.out(&udp(A, B, ports)) else {
            panic!("it passes");
        };
        let answer = answer.unwrap();
        assert!(Packet::new_checked(&answer).unwrap().is_icmp_error());
    }
    // Nothing revives the one that B had opened but B; the other is A's to open.
    rig.configure("STRICT", "ISTIO_MUTUAL", 3);
    assert!(rig.out_reason(&udp(A, B, [PORT, 2000])).is_some());
    assert!(rig.delivers(tunnel, &udp(B, A, [2000, PORT])));
    assert_eq!(rig.tunnel_of(&udp(A, B, [PORT, 2000])), tunnel);
    assert_eq!(rig.tunnel_of(&udp(A, B, [1000, PORT])), tunnel);
}

#[test]
fn datagrams_that_the_peer_revoked_are_tried_again_after_a_while() {
    let mut rig = rig("STRICT");
    let tunnel = rig.tunnel_of(&udp(A, B, [1000, PORT]));
    assert!(rig.delivers(tunnel, &udp(B, A, [PORT, 1000])));
    let revoked = FlowRefused {
        code: FlowRefusedCode::Revoked,
        tuple: Packet::new_checked(&udp(A, B, [1000, PORT]))
            .unwrap()
            .five_tuple(),
        reason: "no".into(),
    };
    assert!(rig.refused(tunnel, &revoked).is_empty());
    assert_eq!(
        rig.out_reason(&udp(A, B, [1000, PORT])),
        Some(DropReason::PeerRefusedFlow)
    );
    // What was on its way does not bring it back.
    assert!(!rig.delivers(tunnel, &udp(B, A, [PORT, 1000])));
    rig.now += Duration::from_secs(5);
    assert_eq!(rig.tunnel_of(&udp(A, B, [1000, PORT])), tunnel);
}

#[test]
fn the_flows_of_a_revoked_session_end_with_it() {
    let mut rig = rig("STRICT");
    let tunnel = rig.connection(1000);
    rig.served(2000);
    assert_eq!(rig.tunnel_of(&tcp(A, B, [3000, PORT], SYN)), tunnel);
    let to_c = rig.tunnel_of(&tcp(A, C, [1000, PORT], SYN));
    assert!(rig.delivers(to_c, &tcp(C, A, [PORT, 1000], SYN | ACK)));
    rig.engine
        .handle_session_revoked(tunnel, true, "the mode is DISABLE", rig.now);
    rig.revisit_all();
    let mut ends: Vec<_> = rig.resets().iter().map(|reset| reset_of(reset)).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(111, PORT), (5_011, 1000)]);
    assert_eq!(
        rig.engine.flows().len(),
        2,
        "another session's, and what was not established"
    );
    assert!(rig.revocations().is_empty());
    // A session that comes up meanwhile keeps what is left.
    rig.engine.handle_session_revoked(to_c, true, "no", rig.now);
    rig.engine.handle_session_up(to_c);
    rig.revisit_all();
    assert_eq!(rig.engine.flows().len(), 2);
}

#[test]
fn a_connection_of_conntrack_that_policy_no_longer_allows_is_cut() {
    let mut rig = rig("DISABLE");
    let opening = Packet::new_checked(&tcp(B, A, [2000, PORT], SYN))
        .unwrap()
        .five_tuple();
    let seeded = rig.engine.handle_seed(&opening, rig.now, &mut rig.keys);
    assert_eq!(seeded, None);
    assert!(rig.engine.flows().is_empty());
}

#[test]
fn a_peer_learns_the_rule_only_where_that_may_be() {
    for (reveal_reasons, wanted) in [(true, "MeshPolicy default"), (false, "accepts no tunnels")] {
        let limits = EngineLimits {
            reveal_reasons,
            ..EngineLimits::default()
        };
        let mut rig = rig_with("STRICT", limits);
        let tunnel = rig.b();
        rig.configure("DISABLE", "ISTIO_MUTUAL", 2);
        let Ingress::Drop {
            refused: Some(refused),
            ..
        } = rig.bring(tunnel, &tcp(B, A, [1, PORT], SYN))
        else {
            panic!("it passes");
        };
        assert!(refused.reason.contains(wanted), "{}", refused.reason);
        assert_eq!(refused.reason.contains(".yaml"), reveal_reasons);
    }
}
