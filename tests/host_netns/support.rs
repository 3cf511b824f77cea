//! Namespaces, shell commands and a policy for the tests.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Command, Output, Stdio},
};

use identun::{
    host::HostSettings,
    policy::{Steering, steering::ANY},
};

const INSIDE: &str = "IDENTUN_TEST_NAMESPACE";
pub(crate) const TUN: &str = "idt-host-tun";

/// Runs `body` in a fresh network namespace; `name` is the calling test's.
pub(crate) fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        body();
        return;
    }
    let user = if uid() == 0 { "-n" } else { "-Urn" };
    let usable = Command::new("unshare").args([user, "true"]).output();
    if !usable.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "no network namespaces here: {usable:?}"
        );
        println!("{name} DID NOT RUN: no network namespaces here: {usable:?}");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut test = Command::new("unshare");
    test.arg(user)
        .arg(this)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1");
    let output = test.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("1 passed"),
        "{name} is not the name of a test: {text}"
    );
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn output(command: &str) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    shell.output().unwrap()
}

pub(crate) fn run(command: &str) -> String {
    let output = output(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A command that must not succeed.
pub(crate) fn failed(command: &str) {
    assert!(!output(command).status.success(), "{command}");
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

pub(crate) fn settings() -> HostSettings {
    HostSettings {
        table: "idt-host".into(),
        tun_name: TUN.into(),
        tun_address: Ipv4Addr::new(192, 0, 0, 8),
        mark_mask: 0x3000_0000,
        tunnel_mark: 0x1000_0000,
        bypass_mark: 0x2000_0000,
        routing_table: 7700,
        rule_priority: 300,
        port: 15008,
        daemon_uid: 0,
        workload_interfaces: Vec::new(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A policy that has an element in every set, both families.
pub(crate) fn full() -> Steering {
    let mut steering = Steering::default();
    for (local, peer, all, net, inner) in [
        (
            "10.77.0.1",
            "10.77.0.2",
            "0.0.0.0/0",
            "10.80.0.0/16",
            "10.80.7.0/24",
        ),
        ("fd77::1", "fd77::2", "::/0", "fd80::/32", "fd80:0:7::/48"),
    ] {
        let (local, peer) = (ip(local), ip(peer));
        let any = ANY.into_iter().find(|any| any.is_ipv4() == local.is_ipv4());
        let (wide, inner_net) = (net.parse().unwrap(), inner.parse().unwrap());
        for source in [local, any.unwrap()] {
            for protocol in [6, 17, 132] {
                steering.must.insert((source, peer, protocol, 8080));
                steering.must_net.insert((source, wide, protocol, 80));
                steering.must_net.insert((source, inner_net, protocol, 80));
                steering.plain.insert((source, peer, protocol, 53));
                steering.plain_net.insert((source, inner_net, protocol, 53));
            }
            steering.must_all.insert((source, peer));
            steering.must_all_net.insert((source, wide));
            steering.must_all_net.insert((source, inner_net));
        }
        for protocol in [6, 17, 132] {
            steering.strict_port.insert((local, protocol, 9090));
            steering.permissive_port.insert((local, protocol, 9091));
        }
        steering.speakers.insert(local);
        steering.strict_all.insert(local);
        steering
            .refuse_port
            .insert((net.parse().unwrap(), local, 9091, 9091));
        steering
            .refuse_port
            .insert((net.parse().unwrap(), peer, 1, 79));
        steering
            .refuse_port
            .insert((inner.parse().unwrap(), peer, 80, 65_535));
        steering
            .refuse_portless
            .insert((all.parse().unwrap(), peer));
        steering.refuse_portless.insert((peer.into(), local));
        steering.peers.insert(peer);
    }
    steering.exempt.insert((6, 22));
    steering
}

pub(crate) fn tun() {
    run(&format!("ip tuntap add dev {TUN} mode tun"));
}

/// Everything `down` has to bring back to what it was.
pub(crate) fn machine() -> String {
    run(
        "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip addr; \
         grep -r . /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/addr_gen_mode",
    )
}

pub(crate) fn same(before: &str, after: &str) {
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let added: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        gone.is_empty() && added.is_empty(),
        "gone {gone:#?}, added {added:#?}"
    );
    assert!(before == after, "the order changed");
}
