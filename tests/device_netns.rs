//! Ring 4: the TUN device against the real driver, in a network namespace that each test makes for itself.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may talk, and fails by panicking"
)]

use std::{
    env,
    io::ErrorKind,
    net::UdpSocket,
    process::{Command, Stdio},
};

use identun::device::{
    MAX_FRAME, PacketDevice,
    tun::{Tun, TunError, TunSettings},
};
use rustix::event::{PollFd, PollFlags, poll};

/// Set in the process that runs a test's body inside of its namespace.
const INSIDE: &str = "IDENTUN_TEST_IN_NETNS";
const NAME: &str = "identun0";

/// Runs `body` in a network namespace of its own: this test alone, again, in a child process under `unshare`.
fn in_namespace(test: &str, body: fn()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let flags = if rustix::process::geteuid().is_root() {
        "-n"
    } else {
        "-Urn"
    };
    let unshare = |command: &mut Command| {
        command
            .env(INSIDE, "1")
            .status()
            .is_ok_and(|status| status.success())
    };
    if !unshare(
        Command::new("unshare")
            .args([flags, "true"])
            .stderr(Stdio::null()),
    ) {
        assert!(
            env::var_os("CI").is_none(),
            "{test} must run in CI and cannot make a network namespace"
        );
        eprintln!("{test} did not run: this user cannot make a network namespace");
        return;
    }
    let this = env::current_exe().unwrap();
    let passed = unshare(Command::new("unshare").arg(flags).arg(this).args([
        "--exact",
        test,
        "--nocapture",
    ]));
    assert!(passed, "{test} failed in its namespace");
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn settings(name: &str) -> TunSettings {
    TunSettings {
        name: name.to_owned(),
        mtu: 1_400,
        queue_length: 1_234,
    }
}

fn open() -> Tun {
    Tun::open(&settings(NAME)).unwrap()
}

#[test]
fn a_tun_stays_when_its_daemon_goes_and_is_ours_again() {
    in_namespace("a_tun_stays_when_its_daemon_goes_and_is_ours_again", || {
        drop(open());
        let link = ip("-d link show identun0");
        for part in [
            "alias identun",
            "mtu 1400",
            "qlen 1234",
            "tun type tun",
            "vnet_hdr on",
            "persist on",
        ] {
            assert!(link.contains(part), "no {part:?} in {link}");
        }
        ip("link set identun0 mtu 1300");
        drop(open());
        assert!(ip("link show identun0").contains("mtu 1400"));
    });
}

#[test]
fn a_tun_that_is_in_use_is_neither_opened_nor_removed() {
    in_namespace("a_tun_that_is_in_use_is_neither_opened_nor_removed", || {
        let first = open();
        assert!(matches!(Tun::open(&settings(NAME)), Err(TunError::Busy { name }) if name == NAME));
        assert!(matches!(Tun::remove(NAME), Err(TunError::Busy { name }) if name == NAME));
        drop(first);
        drop(open());
    });
}

#[test]
fn queues_are_adopted_and_a_device_with_another_number_of_them_is_replaced() {
    in_namespace(
        "queues_are_adopted_and_a_device_with_another_number_of_them_is_replaced",
        || {
            let index = || {
                ip("-o link show identun0")
                    .split(':')
                    .next()
                    .unwrap()
                    .to_owned()
            };
            let open_queues = |queues| Tun::open_queues(&settings(NAME), queues);
            let three = open_queues(3).unwrap();
            assert_eq!(three.len(), 3);
            let first = index();
            for queues in [1, 2] {
                let busy = open_queues(queues).unwrap_err();
                assert!(
                    matches!(&busy, TunError::Busy { name } if name == NAME),
                    "{busy}"
                );
            }
            assert!(matches!(Tun::remove(NAME), Err(TunError::Busy { name }) if name == NAME));
            drop(three);
            assert_eq!(open_queues(2).unwrap().len(), 2);
            assert_eq!(index(), first, "it is the same device");
            drop(open());
            let second = index();
            assert_ne!(second, first);
            assert_eq!(open_queues(2).unwrap().len(), 2);
            assert_ne!(index(), second);
            assert!(Tun::remove(NAME).unwrap());
            assert!(!Tun::remove(NAME).unwrap());
        },
    );
}

#[test]
fn removing_takes_the_interface_away_and_twice_is_no_error() {
    in_namespace(
        "removing_takes_the_interface_away_and_twice_is_no_error",
        || {
            let before = ip("link");
            assert!(!Tun::remove(NAME).unwrap());
            drop(open());
            assert_ne!(ip("link"), before);
            assert!(Tun::remove(NAME).unwrap());
            assert_eq!(ip("link"), before);
            assert!(!Tun::remove(NAME).unwrap());
        },
    );
}

#[test]
fn an_interface_of_another_program_is_left_alone_and_named() {
    in_namespace(
        "an_interface_of_another_program_is_left_alone_and_named",
        || {
            ip("tuntap add dev other mode tun");
            ip("tuntap add dev tap0 mode tap");
            ip("link add left type veth peer name right");
            let before = ip("-d link");
            for name in ["other", "tap0"] {
                for error in [
                    Tun::open(&settings(name)).unwrap_err(),
                    Tun::remove(name).unwrap_err(),
                ] {
                    assert!(
                        matches!(&error, TunError::Foreign { name: named } if named == name),
                        "{error:?}"
                    );
                }
            }
            for (name, kind) in [("left", "a veth interface"), ("lo", "a hardware interface")] {
                for error in [
                    Tun::open(&settings(name)).unwrap_err(),
                    Tun::remove(name).unwrap_err(),
                ] {
                    assert!(
                        matches!(&error, TunError::NotTun { what, .. } if what == kind),
                        "{error:?}"
                    );
                }
            }
            assert_eq!(ip("-d link"), before);
        },
    );
}

#[test]
fn a_tap_that_carries_our_alias_is_still_no_tun() {
    in_namespace("a_tap_that_carries_our_alias_is_still_no_tun", || {
        ip("tuntap add dev identun0 mode tap vnet_hdr");
        ip("link set identun0 alias identun");
        assert!(matches!(
            Tun::open(&settings(NAME)),
            Err(TunError::NotTun { .. })
        ));
    });
}

#[test]
fn packets_of_the_kernel_are_read_and_ours_are_taken() {
    in_namespace("packets_of_the_kernel_are_read_and_ours_are_taken", || {
        let mut tun = up();
        let mut frame = vec![0; MAX_FRAME];
        let socket = UdpSocket::bind("192.0.2.1:4000").unwrap();
        socket.send_to(b"to the tunnel", "192.0.2.2:5000").unwrap();
        let length = tun.read(&mut frame).unwrap();
        let packet = &frame[10..length];
        assert_eq!(
            (packet[0], &packet[12..20], &packet[28..]),
            (
                0x45,
                &[192, 0, 2, 1, 192, 0, 2, 2][..],
                &b"to the tunnel"[..]
            )
        );
        assert_eq!(
            tun.read(&mut frame).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );

        tun.write(&udp_frame(b"from the tunnel")).unwrap();
        let mut received = [0; 64];
        let (length, from) = socket.recv_from(&mut received).unwrap();
        assert_eq!(
            (&received[..length], from.to_string().as_str()),
            (&b"from the tunnel"[..], "192.0.2.2:5000")
        );
    });
}

#[test]
fn the_descriptor_wakes_for_a_frame() {
    in_namespace("the_descriptor_wakes_for_a_frame", || {
        let tun = up();
        let ready = |tun: &Tun| {
            let fd = tun.fd().unwrap();
            poll(
                &mut [PollFd::new(&fd, PollFlags::IN)],
                Some(&rustix::time::Timespec::default()),
            )
            .unwrap()
        };
        assert_eq!(ready(&tun), 0);
        UdpSocket::bind("192.0.2.1:0")
            .unwrap()
            .send_to(b"x", "192.0.2.2:5000")
            .unwrap();
        assert_eq!(ready(&tun), 1);
    });
}

#[test]
fn a_frame_with_an_impossible_offload_is_refused_and_the_next_one_passes() {
    in_namespace(
        "a_frame_with_an_impossible_offload_is_refused_and_the_next_one_passes",
        || {
            let mut tun = up();
            let socket = UdpSocket::bind("192.0.2.1:4000").unwrap();
            let mut bad = udp_frame(b"bad");
            // TCP segmentation with segments of no bytes.
            bad[1] = 1;
            assert_eq!(tun.write(&bad).unwrap_err().kind(), ErrorKind::InvalidInput);
            tun.write(&udp_frame(b"good")).unwrap();
            let mut received = [0; 64];
            assert_eq!(socket.recv(&mut received).unwrap(), 4);
        },
    );
}

#[test]
fn udp_batches_leave_the_kernel_as_one_super_packet() {
    in_namespace("udp_batches_leave_the_kernel_as_one_super_packet", || {
        let mut tun = up();
        let length = 40_000;
        let socket = UdpSocket::bind("192.0.2.1:4000").unwrap();
        let state = quinn_udp::UdpSocketState::new((&socket).into()).unwrap();
        let contents = vec![7; length];
        let transmit = quinn_udp::Transmit {
            destination: "192.0.2.2:5000".parse().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(1_000),
            src_ip: None,
        };
        state.try_send((&socket).into(), &transmit).unwrap();
        let mut frame = vec![0; MAX_FRAME];
        let read = tun.read(&mut frame).unwrap();
        if tun.udp_offload() {
            // VIRTIO_NET_HDR_GSO_UDP_L4 with segments of 1000 bytes, little endian.
            assert_eq!(
                (read, frame[1], &frame[4..6]),
                (10 + 20 + 8 + length, 5, &1_000_u16.to_le_bytes()[..])
            );
        } else {
            // Before Linux 6.2 the kernel cuts the batch itself.
            assert_eq!((read, frame[1]), (10 + 20 + 8 + 1_000, 0));
        }
    });
}

#[test]
fn a_tun_that_someone_deletes_says_so() {
    in_namespace("a_tun_that_someone_deletes_says_so", || {
        let mut tun = up();
        ip("link delete identun0");
        let mut fds = [PollFd::from_borrowed_fd(
            tun.fd().unwrap(),
            PollFlags::empty(),
        )];
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
        assert!(fds[0].revents().contains(PollFlags::ERR));
        let error = tun.read(&mut [0; MAX_FRAME]).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::WouldBlock);
    });
}

/// A TUN with 192.0.2.1/24 that is up, and silent: nothing of IPv6 comes out of it by itself.
fn up() -> Tun {
    let tun = open();
    ip("link set identun0 addrgenmode none");
    ip("address add 192.0.2.1/24 dev identun0");
    ip("link set identun0 up");
    tun
}

/// A frame from 192.0.2.2:5000 to 192.0.2.1:4000, its checksum left out as IPv4 allows.
fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend([0x13, 0x88, 0x0f, 0xa0]);
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    [&[0; 10][..], &packet].concat()
}
