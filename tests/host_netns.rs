//! The host room on a real kernel, each test in a network namespace of its own: nothing of the machine is touched.
//!
//! A test starts itself again under `unshare -n` (as root) or `unshare -Urn`. Where that is not possible it fails in
//! CI and says so elsewhere.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this is a test, its helpers too"
)]

#[path = "policy/mesh.rs"]
#[expect(dead_code, reason = "a part of the builders is for other tests")]
mod mesh;
#[path = "host_netns/owner.rs"]
mod owner;
#[path = "host_netns/scale.rs"]
mod scale;
#[path = "host_netns/screen.rs"]
mod screen;
#[path = "host_netns/steering.rs"]
mod steering;
#[path = "host_netns/support.rs"]
mod support;

use identun::{
    host::{self, HostError, Rules, SteeringCounters},
    policy::Steering,
    wire::FiveTuple,
};
use support::{TUN, block_on, full, in_namespace, ip, machine, run, same, settings, tun};

#[test]
fn twice_up_and_twice_down_leave_nothing() {
    in_namespace("twice_up_and_twice_down_leave_nothing", || {
        run("nft add table inet other; nft add chain inet other keep");
        run(
            "ip rule add pref 7 from 10.1.1.1 lookup 99; ip -6 route add fd99::/64 dev lo table 99",
        );
        let before = machine();
        let settings = settings();
        tun();
        Rules::shared(&settings).install(&full()).unwrap();
        block_on(host::install_routes(&settings)).unwrap();
        let installed = machine();
        assert!(
            installed.contains("unreachable default dev lo table 7700"),
            "{installed}"
        );
        Rules::shared(&settings).install(&full()).unwrap();
        block_on(host::install_routes(&settings)).unwrap();
        same(&installed, &machine());
        let removed = block_on(host::down(&settings)).unwrap();
        assert_eq!(
            removed,
            [
                "nft table inet idt-host",
                "ipv4 rule 300: fwmark 0x10000000/0x30000000 lookup 7700",
                "ipv4 rule 301: fwmark 0x10000000/0x30000000 unreachable",
                "ipv4 route default over the TUN in table 7700",
                "ipv4 route unreachable default in table 7700",
                "ipv6 rule 300: fwmark 0x10000000/0x30000000 lookup 7700",
                "ipv6 rule 301: fwmark 0x10000000/0x30000000 unreachable",
                "ipv6 route default over the TUN in table 7700",
                "ipv6 route unreachable default in table 7700",
                "address 192.0.0.8/32 on idt-host-tun",
            ]
        );
        assert!(block_on(host::down(&settings)).unwrap().is_empty());
        run(&format!("ip link del {TUN}"));
        same(&before, &machine());
        assert!(block_on(host::down(&settings)).unwrap().is_empty());
    });
}

#[test]
fn down_removes_what_outlived_the_tun() {
    in_namespace("down_removes_what_outlived_the_tun", || {
        let before = machine();
        let settings = settings();
        tun();
        Rules::shared(&settings)
            .install(&Steering::default())
            .unwrap();
        block_on(host::install_routes(&settings)).unwrap();
        run(&format!("ip link del {TUN}; ip rule del pref 300"));
        assert_eq!(block_on(host::down(&settings)).unwrap().len(), 6);
        same(&before, &machine());
    });
}

#[test]
fn changes_keep_what_the_packet_path_has_learnt() {
    in_namespace("changes_keep_what_the_packet_path_has_learnt", || {
        let settings = settings();
        Rules::shared(&settings).install(&full()).unwrap();
        for (set, flow) in [
            ("own4", "10.77.0.1 . 10.9.9.9 . tcp . 40000 . 443"),
            ("own6", "fd77::1 . fd99::9 . udp . 40000 . 443"),
            ("tf4", "10.77.0.1 . 10.77.0.2 . tcp . 8080 . 40000"),
            ("tf6", "fd77::1 . fd77::2 . sctp . 8080 . 40000"),
        ] {
            run(&format!(
                "nft add element inet idt-host {set} '{{ {flow} }}'"
            ));
        }
        let learnt = || {
            let sets = ["own4", "own6", "tf4", "tf6"];
            sets.map(|set| {
                run(&format!("nft list set inet idt-host {set}"))
                    .matches("40000")
                    .count()
            })
        };
        // the wider network overlaps those it replaces: order within the transaction matters
        let mut wider = full();
        wider.must_net.clear();
        wider
            .must_net
            .insert((ip("10.77.0.1"), "10.0.0.0/8".parse().unwrap(), 6, 80));
        wider.must_all.clear();
        wider.must.insert((ip("fd77::1"), ip("fd77::3"), 17, 53));
        Rules::shared(&settings).update(&full(), &wider).unwrap();
        let updated = run("nft list table inet idt-host");
        for part in [
            "10.77.0.1 . 10.0.0.0/8 . tcp . 80 }",
            "fd77::1 . fd77::3 . udp . 53",
        ] {
            assert!(updated.contains(part), "{part} in {updated}");
        }
        assert!(
            !updated.contains("fd77::1 . fd80::/32 . sctp . 80"),
            "{updated}"
        );
        assert_eq!(learnt(), [1; 4]);
        Rules::shared(&settings).update(&wider, &full()).unwrap();
        Rules::shared(&settings).update(&full(), &full()).unwrap();
        assert_eq!(learnt(), [1; 4]);
        // a restart with another policy, and one with another mark: chains are exchanged
        Rules::shared(&settings).install(&wider).unwrap();
        let mut marks = settings.clone();
        (marks.tunnel_mark, marks.bypass_mark) = (0x2000_0000, 0x1000_0000);
        Rules::shared(&marks).install(&wider).unwrap();
        assert!(
            run("nft list table inet idt-host")
                .contains("meta mark & 0x30000000 == 0x20000000 counter")
        );
        assert_eq!(learnt(), [1; 4]);
    });
}

#[test]
fn whatever_was_done_to_the_table_is_healed() {
    in_namespace("whatever_was_done_to_the_table_is_healed", || {
        let settings = settings();
        let table = || run("nft list ruleset");
        Rules::shared(&settings).install(&full()).unwrap();
        let good = table();
        for damage in [
            "nft flush table inet idt-host",
            "nft flush set inet idt-host must4",
            "nft insert rule inet idt-host out accept",
            "nft add chain inet idt-host stray; nft add rule inet idt-host steer jump stray",
        ] {
            run(damage);
            assert!(table() != good, "{damage} did nothing");
            Rules::shared(&settings).install(&full()).unwrap();
            same(&good, &table());
        }
        // an update that meets another state than it was told installs the whole
        let mut more = full();
        more.must_all.clear();
        for damage in ["nft flush set inet idt-host must_all4", "nft flush ruleset"] {
            run(damage);
            Rules::shared(&settings).update(&full(), &more).unwrap();
            Rules::shared(&settings).update(&more, &full()).unwrap();
            same(&good, &table());
        }
    });
}

#[test]
fn foreign_things_are_named_and_left_alone() {
    in_namespace("foreign_things_are_named_and_left_alone", || {
        let settings = settings();
        run("nft add table inet idt-host; nft add chain inet idt-host theirs");
        let before = machine();
        let taken = Rules::shared(&settings).install(&full()).unwrap_err();
        assert!(matches!(taken, HostError::TableTaken { .. }), "{taken}");
        assert!(block_on(host::down(&settings)).unwrap().is_empty());
        same(&before, &machine());
        tun();
        for (add, delete) in [
            (
                "ip rule add pref 300 from 10.1.1.1 lookup 5",
                "ip rule del pref 300",
            ),
            (
                "ip rule add pref 301 fwmark 0x10000000/0x30000000 prohibit",
                "ip rule del pref 301",
            ),
            (
                "ip -6 rule add pref 300 fwmark 0x10000000/0x30000000 lookup 7700",
                "ip -6 rule del pref 300",
            ),
            (
                "ip route add 10.5.0.0/16 dev lo table 7700",
                "ip route flush table 7700",
            ),
            (
                "ip -6 route add unreachable default table 7700",
                "ip -6 route flush table 7700",
            ),
        ] {
            run(add);
            let before = machine();
            let refused = block_on(host::install_routes(&settings)).unwrap_err();
            assert!(
                matches!(
                    refused,
                    HostError::ForeignRule { .. } | HostError::ForeignRoute { .. }
                ),
                "{refused}"
            );
            assert!(block_on(host::down(&settings)).unwrap().is_empty());
            same(&before, &machine());
            run(delete);
        }
        block_on(host::install_routes(&settings)).unwrap();
    });
}

#[test]
fn other_users_of_our_mark_bits_are_listed() {
    in_namespace("other_users_of_our_mark_bits_are_listed", || {
        let settings = settings();
        tun();
        Rules::shared(&settings).install(&full()).unwrap();
        block_on(host::install_routes(&settings)).unwrap();
        run(
            "ip rule add pref 90 fwmark 0x4000/0xff00 lookup 9; nft add table ip kube; nft add chain ip kube c",
        );
        run("nft add rule ip kube c meta mark set meta mark or 0x4000");
        run("nft add rule ip kube c ct mark and 0xff00 == 0x100 accept");
        assert_eq!(block_on(host::conflicts(&settings)).unwrap(), [""; 0]);
        run(
            "ip rule add pref 91 fwmark 0x1 lookup 9; nft add chain ip kube d; nft add chain ip kube e",
        );
        run("nft add rule ip kube d ct mark set 0x7; nft add rule ip kube e meta mark 0x7 accept");
        let lines = block_on(host::conflicts(&settings)).unwrap();
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(
            lines[0].starts_with("ipv4 rule 91 looks at mark 0x1/0xffffffff"),
            "{lines:#?}"
        );
        assert!(
            lines[1].starts_with("nft chain ip kube d uses"),
            "{lines:#?}"
        );
        assert!(
            lines[2].starts_with("nft chain ip kube e uses"),
            "{lines:#?}"
        );
    });
}

#[test]
fn a_missing_interface_is_named() {
    in_namespace("a_missing_interface_is_named", || {
        let mut settings = settings();
        let before = machine();
        let absent = block_on(host::install_routes(&settings)).unwrap_err();
        assert_eq!(absent.to_string(), "there is no interface idt-host-tun");
        settings.workload_interfaces = vec!["lo".into(), "idt-host-w0".into()];
        let absent = Rules::shared(&settings).install(&full()).unwrap_err();
        assert_eq!(absent.to_string(), "there is no interface idt-host-w0");
        same(&before, &machine());
        run("ip link add idt-host-w0 type veth peer name idt-host-w1");
        Rules::shared(&settings).install(&full()).unwrap();
        for set in ["wl_if", "wl_idx"] {
            let listing = run(&format!("nft list set inet idt-host {set}"));
            assert!(listing.contains("\"idt-host-w0\""), "{listing}");
        }
        // the interface comes back with another number
        run("ip link del idt-host-w0; ip link add idt-host-w0 type veth peer name idt-host-w1");
        assert!(!run("nft list set inet idt-host wl_idx").contains("\"idt-host-w0\""));
        Rules::shared(&settings).install(&full()).unwrap();
        assert!(run("nft list set inet idt-host wl_idx").contains("\"idt-host-w0\""));
    });
}

#[test]
fn without_ipv6_on_the_tun_only_the_unreachable_route_stands() {
    in_namespace(
        "without_ipv6_on_the_tun_only_the_unreachable_route_stands",
        || {
            run("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
            let before = machine();
            tun();
            block_on(host::install_routes(&settings())).unwrap();
            block_on(host::install_routes(&settings())).unwrap();
            let routes = run("ip -6 route show table 7700");
            assert!(routes.starts_with("unreachable default"), "{routes}");
            assert_eq!(routes.lines().count(), 1, "{routes}");
            assert_eq!(block_on(host::down(&settings())).unwrap().len(), 8);
            run(&format!("ip link del {TUN}"));
            same(&before, &machine());
        },
    );
}

#[test]
fn marked_conntrack_entries_are_read_back() {
    in_namespace("marked_conntrack_entries_are_read_back", || {
        let entry = |mark: &str, rest: &str| run(&format!("conntrack -I -t 300 -m {mark} {rest}"));
        entry(
            "0x10000000",
            "-p tcp -s 10.77.0.1 -d 10.77.0.2 --sport 40000 --dport 8080 --state ESTABLISHED",
        );
        // other programs' bits do not matter
        entry(
            "0x10004001",
            "-p udp -s 10.77.0.2 -d 10.77.0.1 --sport 40001 --dport 53",
        );
        entry(
            "0x10000000",
            "-p udp -s fd77::1 -d fd77::2 --sport 40002 --dport 53",
        );
        entry(
            "0x10000000",
            "-p icmp -s 10.77.0.1 -d 10.77.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 9",
        );
        for (port, mark) in [(1, "0"), (2, "0x1"), (3, "0x20000000"), (4, "0x30000000")] {
            let other = "-p tcp -s 10.77.0.1 -d 10.77.0.3 --dport 80 --state ESTABLISHED";
            entry(mark, &format!("{other} --sport {port}"));
        }
        // nothing depends on what is over or was not answered yet
        for (port, state) in (40_010..).zip(["SYN_SENT", "TIME_WAIT", "CLOSE"]) {
            let over = format!("-p tcp -s 10.77.0.1 -d 10.77.0.2 --sport {port} --dport 8080");
            entry("0x10000000", &format!("{over} --state {state}"));
        }
        for (port, state) in (40_020..).zip(["SYN_RECV", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"]) {
            let open = format!("-p tcp -s 10.77.0.4 -d 10.77.0.2 --sport {port} --dport 8080");
            entry("0x10000000", &format!("{open} --state {state}"));
        }
        let flow = |protocol, source, source_port, destination, destination_port| FiveTuple {
            protocol,
            source: ip(source),
            source_port,
            destination: ip(destination),
            destination_port,
        };
        assert_eq!(
            host::conntrack::tunnel_flows(&settings()).unwrap().flows,
            [
                flow(1, "10.77.0.1", 0, "10.77.0.2", 0),
                flow(6, "10.77.0.1", 40000, "10.77.0.2", 8080),
                flow(6, "10.77.0.4", 40020, "10.77.0.2", 8080),
                flow(6, "10.77.0.4", 40021, "10.77.0.2", 8080),
                flow(6, "10.77.0.4", 40022, "10.77.0.2", 8080),
                flow(6, "10.77.0.4", 40023, "10.77.0.2", 8080),
                flow(17, "10.77.0.2", 40001, "10.77.0.1", 53),
                flow(17, "fd77::1", 40002, "fd77::2", 53),
            ]
        );
        run("conntrack -F");
        assert!(
            host::conntrack::tunnel_flows(&settings())
                .unwrap()
                .flows
                .is_empty()
        );
    });
}

#[test]
fn beginnings_outside_tunnels_are_told_and_those_inside_are_not() {
    use identun::host::conntrack_events::{Connection, Heard, NewConnections};
    in_namespace(
        "beginnings_outside_tunnels_are_told_and_those_inside_are_not",
        || {
            let entry = |mark: &str, tuple: &str| {
                run(&format!("conntrack -I --mark {mark} -t 60 {tuple}"));
            };
            entry("0", "-p udp -s 10.77.0.9 -d 10.77.0.1 --sport 1 --dport 53");
            let mut events = NewConnections::subscribe(&settings()).unwrap();
            let tcp = "-p tcp -s 10.77.0.1 -d 10.77.0.2 --dport 80 --state ESTABLISHED";
            entry("0x10000000", &format!("{tcp} --sport 1"));
            entry("0x30000001", &format!("{tcp} --sport 2"));
            entry("0", &format!("{tcp} --sport 3"));
            entry(
                "0",
                "-p udp -s fd77::1 -d fd77::2 --sport 4 --dport 53 --reply-src fd77::7 --reply-dst fd77::1 \
                 --reply-port-src 5353 --reply-port-dst 4",
            );
            let mut told = Vec::new();
            let step = std::time::Duration::from_millis(50);
            for _ in 0..400 {
                if told.len() == 3 {
                    break;
                }
                let heard = events.wait(step, |connection| told.push(connection));
                assert_eq!(heard.unwrap(), Heard::All);
            }
            let connection =
                |protocol, from: (&str, u16), to: (&str, u16), answers: (&str, u16)| {
                    let original = FiveTuple {
                        protocol,
                        source: ip(from.0),
                        source_port: from.1,
                        destination: ip(to.0),
                        destination_port: to.1,
                    };
                    Connection {
                        original,
                        answers: (ip(answers.0), answers.1),
                        over: false,
                    }
                };
            let web = ("10.77.0.2", 80);
            let wanted = [
                connection(6, ("10.77.0.1", 2), web, web),
                connection(6, ("10.77.0.1", 3), web, web),
                connection(17, ("fd77::1", 4), ("fd77::2", 53), ("fd77::7", 5353)),
            ];
            assert_eq!(told, wanted);
            let mut held = Vec::new();
            host::conntrack_events::connections_outside_tunnels(&settings(), |connection| {
                held.push(connection);
                true
            })
            .unwrap();
            held.sort_unstable();
            // a dump is asked for flows without any of our bits
            assert_eq!(held.len(), 3, "{held:?}");
            assert!(!held.contains(&wanted[0]) && held.contains(&wanted[2]));
        },
    );
}

#[test]
fn the_hosts_own_addresses_and_mtu_are_found() {
    in_namespace("the_hosts_own_addresses_and_mtu_are_found", || {
        let none = host::underlay_mtu(TUN).unwrap_err();
        assert!(matches!(none, HostError::NoUnderlay), "{none}");
        assert!(host::addresses(TUN).unwrap().is_empty());
        run(
            "ip tuntap add idt-host-t mode tun; ip link set idt-host-t mtu 1280
             ip link add idt-host-a mtu 1400 type veth peer name idt-host-b mtu 9000",
        );
        // nothing is up yet: the least that Ethernet links will have
        assert_eq!(host::underlay_mtu(TUN).unwrap(), 1_400);
        run("ip link set idt-host-b up");
        run(
            "ip addr add 10.77.0.1/24 dev idt-host-a; ip addr add 10.77.1.1 peer 10.77.1.2 dev idt-host-b",
        );
        run("ip addr add fd77::1/64 dev idt-host-b nodad; ip addr add 10.77.9.9/32 dev lo");
        tun();
        run(&format!(
            "ip addr add 192.0.0.8/32 dev {TUN}; ip link set {TUN} up mtu 1280"
        ));
        let expected = ["10.77.0.1", "10.77.1.1", "10.77.9.9", "fd77::1"].map(ip);
        assert_eq!(host::addresses(TUN).unwrap(), expected.into());
        assert_eq!(host::underlay_mtu(TUN).unwrap(), 9000);
        run("ip link set idt-host-a up");
        assert_eq!(host::underlay_mtu(TUN).unwrap(), 1400);
    });
}

#[test]
fn counters_start_at_nothing_and_need_the_table() {
    in_namespace("counters_start_at_nothing_and_need_the_table", || {
        assert!(host::counters(&settings()).is_err());
        Rules::shared(&settings())
            .install(&Steering::default())
            .unwrap();
        assert_eq!(
            host::counters(&settings()).unwrap(),
            SteeringCounters::default()
        );
        host::rights::check().unwrap();
    });
}
