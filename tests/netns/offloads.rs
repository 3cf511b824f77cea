//! The kernel as the judge of super-packets: whatever a shard joins is taken by a real TUN, and what it holds arrives.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

use identun::device::{
    PacketDevice,
    tun::{Tun, TunSettings},
};

use crate::{
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT, service, workload},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, spawn_in},
    segment::{
        choices::Choices,
        read::{UDP, sight},
        scene::{Staged, calm, wild},
    },
};

const NAME: &str = "judge0";
/// Scenes; each joins some hundred packets.
const SCENES: u64 = 150;
/// Bytes of one transfer.
const AMOUNT: usize = 8 << 20;

#[test]
fn the_kernel_takes_every_super_packet_and_what_it_holds_arrives() {
    in_namespaces(
        "offloads::the_kernel_takes_every_super_packet_and_what_it_holds_arrives",
        |rig| {
            rig.on("naked", &["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"]);
            in_namespace("naked", judge);
        },
    );
}

fn judge() {
    let mut tun = open();
    let sinks = ["10.0.0.2:80", "[2001:db8::2]:80"].map(|address| {
        let sink = UdpSocket::bind(address).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&sink, 64 << 20).unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        sink
    });
    let (mut frames, mut supers, mut datagrams) = (0, 0, 0);
    for seed in 0..SCENES {
        let write = |staged: &Staged, tun: &mut Tun| {
            for (at, frame) in staged.frames.iter().enumerate() {
                tun.write(frame).unwrap_or_else(|error| {
                    panic!(
                        "scene {seed}, frame {at}: {error}: {:x?}",
                        &frame[..frame.len().min(80)]
                    )
                });
            }
        };
        let staged = calm(&mut Choices::Seed(seed), tun.udp_offload());
        write(&staged, &mut tun);
        frames += staged.frames.len();
        supers += staged.frames.iter().filter(|frame| frame[1] != 0).count();
        for (sink, v6) in sinks.iter().zip([false, true]) {
            datagrams += arrives(sink, &staged, v6, seed);
        }
        // Anything at all may come from a peer: the kernel takes it too, and drops what is broken by itself.
        let mut staged = wild(&mut Choices::Seed(seed));
        // A kernel before 6.2 has no USO, and a shard on it makes none.
        staged
            .frames
            .retain(|frame| tun.udp_offload() || frame[1] != 5);
        write(&staged, &mut tun);
        frames += staged.frames.len();
        drain(&sinks);
    }
    println!("{frames} frames, {supers} calm super-packets, {datagrams} datagrams arrived");
    assert!(supers > 100 && datagrams > 1_000);
    assert_eq!(frame_errors(NAME), "0");
    // The counter can count.
    let mut bad = [0; 60];
    (bad[1], bad[10]) = (1, 0x45);
    tun.write(&bad).unwrap_err();
    assert_eq!(frame_errors(NAME), "1");
}

/// The calm scene's datagrams arrive at the socket, each flow's in order.
fn arrives(sink: &UdpSocket, staged: &Staged, v6: bool, seed: u64) -> usize {
    let mut expected: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    let mut count = 0;
    for (packet, _) in &staged.packets {
        let seen = sight(packet);
        if seen.protocol == UDP && seen.v6 == v6 {
            let port = u16::from_be_bytes([packet[seen.transport], packet[seen.transport + 1]]);
            expected
                .entry(port)
                .or_default()
                .push(packet[seen.payload..].to_vec());
            count += 1;
        }
    }
    let mut arrived: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    let mut buffer = vec![0; 1 << 16];
    for number in 0..count {
        let (len, from) = sink
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("scene {seed}: {number} of {count} arrived: {error}"));
        arrived
            .entry(from.port())
            .or_default()
            .push(buffer[..len].to_vec());
    }
    assert!(
        expected == arrived,
        "scene {seed}: other datagrams than were sent"
    );
    count
}

fn drain(sinks: &[UdpSocket; 2]) {
    let mut buffer = vec![0; 1 << 16];
    for sink in sinks {
        sink.set_nonblocking(true).unwrap();
        while sink.recv(&mut buffer).is_ok() {}
        sink.set_nonblocking(false).unwrap();
    }
}

fn open() -> Tun {
    let tun = Tun::open(&TunSettings {
        name: NAME.to_owned(),
        mtu: 1_500,
        queue_length: 100,
    })
    .unwrap();
    for arguments in [
        "address add 10.0.0.2/24 dev judge0",
        "-6 address add 2001:db8::2/64 dev judge0 nodad",
        "link set judge0 up",
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.unwrap().success(), "ip {arguments}");
    }
    tun
}

/// Frames whose header the driver did not take.
fn frame_errors(device: &str) -> String {
    // Not /sys: that shows the network namespace it was mounted in.
    let output = Command::new("ip")
        .args(["-j", "-s", "-s", "link", "show", device])
        .output()
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["stats64"]["rx"]["frame_errors"].to_string()
}

/// No device of these hosts refused a frame, and no daemon had to split one.
pub(crate) fn assert_none_refused(rig: &Rig, hosts: &[&str]) {
    for host in hosts {
        let errors = in_namespace(host, || frame_errors("identun0"));
        assert_eq!(errors, "0", "frames that the TUN of {host} refused");
        assert!(
            !rig.log(host).contains("refused an offload"),
            "{}",
            rig.log(host)
        );
    }
}

#[test]
fn transfers_over_odd_paths_with_ecn_and_large_windows_bring_the_kernel_nothing_it_refuses() {
    in_namespaces(
        "offloads::transfers_over_odd_paths_with_ecn_and_large_windows_bring_the_kernel_nothing_it_refuses",
        |rig| {
            rig.standard(STRICT);
            for host in ["client", "server"] {
                rig.on(
                    host,
                    &[
                        "sysctl",
                        "-qw",
                        "net.ipv4.tcp_ecn=1",
                        "net.ipv4.tcp_window_scaling=1",
                    ],
                );
            }
            for mtu in ["1281", "1403", "1499", "8999"] {
                for (host, device) in [
                    ("wire", "server"),
                    ("server", "eth0"),
                    ("wire", "client"),
                    ("client", "eth0"),
                ] {
                    rig.on(host, &["ip", "link", "set", device, "mtu", mtu]);
                }
                let daemons = (rig.start("server"), rig.start("client"));
                for to in [SERVER_4, SERVER_6] {
                    transfer("client", ("server", to));
                }
                assert_none_refused(&rig, &["client", "server"]);
                daemons.0.kill_9();
                daemons.1.kill_9();
                for host in ["server", "client"] {
                    rig.identun(host, &["down", "--config", &rig.settings(host)]);
                }
            }
        },
    );
}

#[test]
fn forwarded_packets_whose_checksums_are_complete_are_joined_and_arrive() {
    in_namespaces(
        "offloads::forwarded_packets_whose_checksums_are_complete_are_joined_and_arrive",
        |rig| {
            let behind = ["198.18.12.2", "fd00:12::2"];
            rig.workload("server");
            let registry = [
                workload("client-4", CLIENT_4, "client", None),
                workload("client-6", CLIENT_6, "client", None),
                workload("inner-4", behind[0], "inner", Some(SERVER_4)),
                workload("inner-6", behind[1], "inner", Some(SERVER_6)),
                service("inner", &[PORT]),
                service("client", &[PORT]),
            ];
            rig.write("policies/policy.yaml", STRICT);
            rig.write("policies/registry.yaml", &registry.join("---\n"));
            rig.configure("client", &["client"], "");
            rig.configure("server", &["inner"], "workload_interfaces: [workload]");
            // Its packets come one by one and complete, as from a host behind a real wire.
            rig.on(
                "server-workload",
                &[
                    "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off",
                ],
            );
            rig.on("server", &["ethtool", "-K", "workload", "gro", "off"]);
            let daemons = (rig.start("server"), rig.start("client"));
            for to in [CLIENT_4, CLIENT_6] {
                transfer("server-workload", ("client", to));
            }
            for to in behind {
                transfer("client", ("server-workload", to));
            }
            let packets = in_namespace("client", || received_packets("identun0"));
            // Four transfers; without a join each of their segments is a frame of its own.
            let segments = 4 * AMOUNT as u64 / 1_500;
            println!("{packets} frames for at least {segments} segments");
            assert!(packets < segments, "nothing was joined");
            assert_none_refused(&rig, &["client", "server"]);
            drop(daemons);
        },
    );
}

/// Frames that were written to a device.
fn received_packets(device: &str) -> u64 {
    let output = Command::new("ip")
        .args(["-j", "-s", "link", "show", device])
        .output()
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// Bytes of no period that a lost or doubled segment leaves in step, both ways at once.
fn transfer(from: &str, to: (&'static str, &str)) {
    let content: Vec<u8> = (0..AMOUNT)
        .map(|at| (at % 251 + at / 65_521) as u8)
        .collect();
    let address: IpAddr = to.1.parse().unwrap();
    let address = SocketAddr::new(address, PORT);
    let listener = in_namespace(to.0, || TcpListener::bind(address).unwrap());
    let back = content.clone();
    let serving = spawn_in(to.0, move || both_ways(listener.accept().unwrap().0, &back));
    let stream = in_namespace(from, || {
        TcpStream::connect_timeout(&address, PATIENCE).unwrap()
    });
    both_ways(stream, &content);
    serving.join().unwrap();
}

fn both_ways(stream: TcpStream, content: &[u8]) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Writes of odd lengths, so that segments are.
            for piece in content.chunks(65_537) {
                (&stream).write_all(piece).unwrap();
            }
        });
        let mut came = vec![0; content.len()];
        (&stream).read_exact(&mut came).unwrap();
        assert!(came == content, "other bytes than were sent");
    });
}
