//! Engines of two shards of one host: who has a flow, who takes it over, and who may not.

use super::*;

fn two() -> [Rig; 2] {
    let directory = Arc::new(FlowDirectory::default());
    [0, 1].map(|lane| {
        let rig = rig("STRICT");
        let seat = Seat::new(Arc::clone(&directory), lane);
        Rig {
            engine: rig.engine.with_seat(lane, Some(seat)),
            ..rig
        }
    })
}

fn is_elsewhere(verdict: &Egress, shard: u8) -> bool {
    matches!(verdict, Egress::Elsewhere(found) if *found == shard)
}

#[test]
fn packets_of_another_shards_flow_and_errors_about_them_go_there_while_it_has_the_flow() {
    let [mut first, mut second] = two();
    first.tunnel_of(&tcp(A, B, [1000, PORT], SYN));
    let next = tcp(A, B, [1000, PORT], ACK);
    assert!(is_elsewhere(&second.out(&next), 0));
    let error = icmp_error(A, B, &tcp(B, A, [PORT, 1000], ACK));
    assert!(is_elsewhere(&second.out(&error), 0));
    assert!(second.engine.flows().is_empty());
    // Handed over, it stays: the shard that has the flow knows it, and one that does not opens it.
    let packet = Packet::new_checked(&next).unwrap();
    let stays = second
        .engine
        .handle_handed_over(&packet, second.now, &mut second.keys);
    assert!(matches!(stays, Egress::Tunnel(_)));
    second
        .engine
        .handle_timeout(second.now + Duration::from_secs(10_000), &mut second.keys);
    let mut later = first.now + Duration::from_secs(10_000);
    first.engine.handle_timeout(later, &mut first.keys);
    assert!(first.engine.flows().is_empty());
    later += Duration::from_secs(1);
    (first.now, second.now) = (later, later);
    second.tunnel_of(&tcp(A, B, [1000, PORT], SYN));
    assert!(is_elsewhere(&first.out(&next), 1));
}

#[test]
fn a_reply_by_another_shards_session_takes_its_flow_along() {
    let [mut first, mut second] = two();
    let opening = udp(A, B, [1000, PORT]);
    first.tunnel_of(&opening);
    let b = second.b();
    assert!(second.delivers(b, &udp(B, A, [PORT, 1000])));
    assert_eq!(second.tunnel_of(&opening), b);
    let (shard, tuple) = second.engine.poll_release().unwrap();
    assert_eq!(shard, 0);
    first.engine.handle_release(&tuple);
    assert!(first.engine.flows().is_empty());
    assert!(is_elsewhere(&first.out(&opening), 1));
    assert!(second.engine.poll_event().is_none(), "it was opened once");
}

#[test]
fn a_peer_cannot_take_over_the_flow_that_another_shard_has_for_another_peer() {
    let [mut first, mut second] = two();
    let (b, c) = (first.b(), first.c());
    assert_eq!((b, c), (second.b(), second.c()));
    let theirs = tcp(SHARED, A, [2000, PORT], SYN);
    assert!(first.delivers(b, &theirs));
    assert_eq!(
        second.in_reason(c, &theirs),
        Some(DropReason::ForeignSource)
    );
    assert!(second.engine.poll_release().is_none());
    assert!(second.delivers(b, &theirs), "the same peer may");
}

#[test]
fn a_flow_found_in_conntrack_goes_to_whichever_shard_gets_its_next_packet() {
    let [mut first, mut second] = two();
    let packet = tcp(A, B, [1000, PORT], ACK);
    let tuple = Packet::new_checked(&packet).unwrap().five_tuple();
    let seeded = first.engine.handle_seed(&tuple, first.now, &mut first.keys);
    assert!(seeded.is_some());
    second.tunnel_of(&packet);
    assert_eq!(second.engine.poll_release(), Some((0, tuple)));
    first.engine.handle_release(&tuple);
    assert!(first.engine.flows().is_empty());
    assert!(is_elsewhere(&first.out(&packet), 1));
}

#[test]
fn what_made_room_is_in_no_directory_and_what_took_its_ports_is() {
    let directory = Arc::new(FlowDirectory::default());
    let rig = rig_with("STRICT", few_flows());
    let seat = Seat::new(Arc::clone(&directory), 0);
    let mut rig = Rig {
        engine: rig.engine.with_seat(0, Some(seat)),
        ..rig
    };
    let b = rig.b();
    let mut connect = |port| {
        rig.now += Duration::from_millis(1);
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], SYN)), "{port}");
        assert!(rig.delivers(b, &tcp(B, A, [port, PORT], ACK | FIN)));
    };
    // the first makes room, and comes back before anybody was told
    [1, 2, 3, 1].into_iter().for_each(&mut connect);
    while rig.engine.poll_event().is_some() {}
    assert_eq!(rig.engine.flows().len(), 2);
    assert_eq!(directory.len(), 2);
}
