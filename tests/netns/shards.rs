//! Several shards a host: what is spread over them, and that nothing of it is lost, mixed or in the clear.

use std::{
    fs,
    net::{Ipv6Addr, UdpSocket},
    thread,
    time::Duration,
};

use crate::{
    capture::{Capture, MARKER},
    life::{Who, connect, exchange},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces},
    traffic::{control, ping, udp_echo},
};

/// The kernel forgets which queue of a TUN a flow was on after 3 s of silence (TUN_FLOW_EXPIRE).
const FORGOTTEN: Duration = Duration::from_secs(4);

fn set_shards(rig: &Rig, host: &str, count: u8) {
    let text = fs::read_to_string(rig.settings(host)).unwrap();
    let rest: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("shards:"))
        .collect();
    fs::write(
        rig.settings(host),
        format!("{}\nshards: {count}\n", rest.join("\n")),
    )
    .unwrap();
}

/// Flows of each shard, and all of them.
fn flows(rig: &Rig, host: &str) -> (Vec<u64>, u64) {
    let status = rig.status(host).unwrap();
    let shards = status["shards"].as_array().unwrap();
    let each = shards.iter().map(|shard| shard["flows"].as_u64().unwrap());
    (each.collect(), status["flow_count"].as_u64().unwrap())
}

fn assert_spread(rig: &Rig, shards: usize) {
    for host in ["client", "server"] {
        let (each, all) = flows(rig, host);
        println!("{host}: flows {each:?}");
        assert_eq!(each.len(), shards, "{host}");
        assert_eq!(each.iter().sum::<u64>(), all, "{host}");
        assert!(
            each.iter().filter(|&&flows| flows > 0).count() > 1,
            "{host}: {each:?}"
        );
        let drops = &rig.status(host).unwrap()["drops"];
        assert!(drops.get("handover_full").is_none(), "{host}: {drops}");
    }
}

/// A UDP echo on the server, beside the TCP listeners of the test.
fn echo() {
    let socket = in_namespace("server", || {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap()
    });
    thread::spawn(move || {
        let mut buffer = [0; 1 << 12];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

#[test]
fn three_shards_carry_everything_and_go_on_with_it_after_silence_reload_and_kill_9() {
    in_namespaces(
        "shards::three_shards_carry_everything_and_go_on_with_it_after_silence_reload_and_kill_9",
        |rig| {
            rig.standard(STRICT);
            for host in ["client", "server"] {
                set_shards(&rig, host, 3);
            }
            let (mut server, mut client) = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            echo();
            let mut all: Vec<_> = [SERVER_4, SERVER_6]
                .into_iter()
                .cycle()
                .take(60)
                .map(connect)
                .collect();
            let every = |all: &mut Vec<_>, who: fn() -> Who| {
                all.iter_mut().for_each(|ends| exchange(ends, who()));
            };
            every(&mut all, || Who::Both);
            assert_spread(&rig, 3);
            for to in [SERVER_4, SERVER_6] {
                for _ in 0..12 {
                    udp_echo("client", (to, PORT), MARKER, PATIENCE).unwrap();
                }
                assert!(ping("client", to));
            }
            assert!(ping("server", CLIENT_4) && ping("server", CLIENT_6));
            thread::sleep(FORGOTTEN);
            every(&mut all, || Who::OnlyClient);
            thread::sleep(FORGOTTEN);
            every(&mut all, || Who::OnlyServer);
            assert_spread(&rig, 3);
            client.reload();
            every(&mut all, || Who::Both);
            client.kill_9();
            client = rig.start("client");
            every(&mut all, || Who::OnlyServer);
            server.kill_9();
            server = rig.start("server");
            every(&mut all, || Who::OnlyClient);
            every(&mut all, || Who::Both);
            assert_spread(&rig, 3);
            control("client");
            capture.stop().assert_no_plaintext();
            drop((server, client));
        },
    );
}

#[test]
fn the_number_of_shards_may_change_at_a_restart_and_differ_between_hosts() {
    in_namespaces(
        "shards::the_number_of_shards_may_change_at_a_restart_and_differ_between_hosts",
        |rig| {
            rig.standard(STRICT);
            set_shards(&rig, "server", 3);
            let (server, mut client) = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            let mut ends = [connect(SERVER_4), connect(SERVER_6)];
            ends.iter_mut().for_each(|ends| exchange(ends, Who::Both));
            for count in [4, 2, 1] {
                client.terminate();
                set_shards(&rig, "client", count);
                client = rig.start("client");
                assert_eq!(flows(&rig, "client").0.len(), usize::from(count));
                ends.iter_mut()
                    .for_each(|ends| exchange(ends, Who::OnlyServer));
                ends.iter_mut()
                    .for_each(|ends| exchange(ends, Who::OnlyClient));
            }
            client.terminate();
            let down = rig.identun("client", &["down", "--config", &rig.settings("client")]);
            assert!(down.contains("identun0"), "{down}");
            set_shards(&rig, "client", 2);
            client = rig.start("client");
            client.terminate();
            rig.identun("client", &["down", "--config", &rig.settings("client")]);
            control("client");
            capture.stop().assert_no_plaintext();
            drop(server);
        },
    );
}
