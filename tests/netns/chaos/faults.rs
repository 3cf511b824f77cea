//! What happens to a host: by chance, by an administrator, by another program or by the network.

use std::{thread, time::Duration};

use crate::{
    chaos::Chaos,
    delays::{Impairment, Link},
    mesh::{STRICT, permissive},
    rig::identun,
};

/// The kinds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Fault {
    Killed,
    Stopped,
    Upgraded,
    Reloaded,
    Rotated,
    RulesDeleted,
    RoutesFlushed,
    RulesetFlushed,
    RouteHijacked,
    TunDown,
    TunDeleted,
    ConntrackFlushed,
    CablePulled,
    LinkDown,
    AddressChanged,
    Lossy,
    Delayed,
}

pub(super) const ALL: [Fault; 17] = [
    Fault::Killed,
    Fault::Stopped,
    Fault::Upgraded,
    Fault::Reloaded,
    Fault::Rotated,
    Fault::RulesDeleted,
    Fault::RoutesFlushed,
    Fault::RulesetFlushed,
    Fault::RouteHijacked,
    Fault::TunDown,
    Fault::TunDeleted,
    Fault::ConntrackFlushed,
    Fault::CablePulled,
    Fault::LinkDown,
    Fault::AddressChanged,
    Fault::Lossy,
    Fault::Delayed,
];

impl Fault {
    /// A daemon ends, or becomes another program.
    pub(super) const fn ends_a_daemon(self) -> bool {
        matches!(
            self,
            Self::Killed | Self::Stopped | Self::Upgraded | Self::TunDeleted
        )
    }
}

const MS: Duration = Duration::from_millis(1);
/// How long what passes lasts at most.
const MOST: u64 = 1_000;

impl Chaos {
    /// Lets it happen to a host; what passes by itself has passed on return. Tells whether it did happen: a dead daemon is
    /// not upgraded.
    pub(super) fn strike(&mut self, fault: Fault, host: usize) -> bool {
        let name = Self::HOSTS[host];
        let shell = |script: &str| {
            let output = self.rig.try_on(name, &["sh", "-ec", script]);
            output.status.success()
        };
        let while_ = MS * u32::try_from(100 + self.chance.below(MOST)).unwrap();
        match fault {
            Fault::Killed => {
                self.managers[host].kill_9();
                true
            }
            Fault::Stopped => {
                let told = self.managers[host].tell("term");
                thread::sleep(while_);
                self.managers[host].start();
                told.starts_with("ended")
            }
            Fault::Upgraded => {
                let socket = self.rig.path(&format!("{name}/admin.sock"));
                shell(&format!("{} upgrade --socket {socket}", identun()))
            }
            Fault::Reloaded => {
                let policy = match self.chance.below(2) {
                    0 => STRICT.to_owned(),
                    _ => permissive(),
                };
                self.rig.write("policies/policy.yaml", &policy);
                let socket = self.rig.path(&format!("{name}/admin.sock"));
                shell(&format!("{} reload --socket {socket}", identun()))
            }
            Fault::Rotated => {
                let (ca, out) = (
                    self.rig.path("ca"),
                    self.rig.path(&format!("{name}/{name}")),
                );
                let id = format!("spiffe://cluster.local/ns/default/sa/{name}");
                shell(&format!(
                    "{} ca issue {id} --dir {ca} --out {out}",
                    identun()
                ))
            }
            Fault::RulesDeleted => {
                shell("for f in -4 -6; do ip $f rule del pref 300; ip $f rule del pref 301; done")
            }
            Fault::RoutesFlushed => {
                shell("ip route flush table 7700; ip -6 route flush table 7700")
            }
            // the table has an owner: the kernel leaves it out
            Fault::RulesetFlushed => shell("nft flush ruleset"),
            Fault::RouteHijacked => {
                let (here, there) = (Self::WORKLOADS[host], Self::WORKLOADS[1 - host]);
                let (four, six) = (gateway(host, 4), gateway(host, 6));
                let hijack = |what: &str| {
                    shell(&format!(
                        "ip route {what} {}/32 via {four} src {} table 4242; ip -6 route {what} {}/128 via {six} src {} table 4242; \
                         ip rule {what} pref 100 lookup 4242; ip -6 rule {what} pref 100 lookup 4242",
                        there[0], here[0], there[1], here[1]
                    ))
                };
                let hijacked = hijack("add");
                thread::sleep(while_);
                // a link that went down meanwhile took the routes along
                hijack("del");
                hijacked
            }
            Fault::TunDown => shell("ip link set identun0 down"),
            Fault::TunDeleted => shell("ip link del identun0"),
            Fault::ConntrackFlushed => shell("conntrack -F"),
            Fault::CablePulled => {
                self.on_wire(&format!("ip link set {name} down"));
                thread::sleep(while_);
                self.on_wire(&format!("ip link set {name} up"));
                self.connect_wire(host);
                true
            }
            Fault::LinkDown => {
                let down = shell("ip link set eth0 down");
                thread::sleep(while_);
                down && shell("ip link set eth0 up") && self.connect_host(host, 2)
            }
            Fault::AddressChanged => {
                let changed = self.connect_host(host, 9) && self.remove_address(host, 2);
                thread::sleep(while_ * 2);
                self.connect_host(host, 2) && self.remove_address(host, 9) && changed
            }
            Fault::Lossy => self.impair(
                Impairment {
                    loss: 0.05,
                    duplicate: 0.02,
                    reorder: 0.02,
                    delay: MS,
                    ..Impairment::default()
                },
                while_ * 2,
            ),
            Fault::Delayed => self.impair(
                Impairment {
                    delay: 20 * MS,
                    jitter: 10 * MS,
                    ..Impairment::default()
                },
                while_ * 2,
            ),
        }
    }

    fn impair(&mut self, impairment: Impairment, time: Duration) -> bool {
        let seed = self.chance.below(u64::MAX);
        let link = Link::insert(&self.rig, Impairment { seed, ..impairment });
        thread::sleep(time);
        let report = link.down(&self.rig);
        report.line.frames > 0
    }

    pub(super) fn on_wire(&self, script: &str) {
        self.rig.on("wire", &["sh", "-ec", script]);
    }

    /// What a network manager does for a link that is up: the address `.N`, and the ways out. The way to the other host's
    /// workload has this host's workload as its source, and comes first: the host's own address is no workload's, and what
    /// it sends is nobody's to encrypt.
    pub(super) fn connect_host(&self, host: usize, address: u8) -> bool {
        let (net, other) = (host + 1, 2 - host);
        let there = Self::WORKLOADS[1 - host];
        let here = Self::WORKLOADS[host];
        let script = format!(
            "ip addr replace 198.18.{net}.{address}/24 dev eth0; ip -6 addr replace fd00:{net}::{address}/64 dev eth0 nodad\n\
             g=198.18.{net}.1; h=fd00:{net}::1\n\
             ip route replace {}/32 via $g src {}; ip -6 route replace {}/128 via $h src {}\n\
             ip route replace 198.18.{other}.0/24 via $g; ip -6 route replace fd00:{other}::/64 via $h\n\
             ip route replace default via $g; ip -6 route replace default via $h",
            there[0], here[0], there[1], here[1]
        );
        let output = self.rig.try_on(Self::HOSTS[host], &["sh", "-ec", &script]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        true
    }

    fn remove_address(&self, host: usize, address: u8) -> bool {
        let net = host + 1;
        let script = format!(
            "ip addr del 198.18.{net}.{address}/24 dev eth0; ip -6 addr del fd00:{net}::{address}/64 dev eth0"
        );
        let output = self.rig.try_on(Self::HOSTS[host], &["sh", "-ec", &script]);
        output.status.success()
    }

    /// The wire's end of a host's link: its address, and the way to the host's workload.
    pub(super) fn connect_wire(&self, host: usize) {
        let (name, net, here) = (Self::HOSTS[host], host + 1, Self::WORKLOADS[host]);
        self.on_wire(&format!(
            "ip addr replace 198.18.{net}.1/24 dev {name}; ip -6 addr replace fd00:{net}::1/64 dev {name} nodad\n\
             ip route replace {}/32 dev {name}; ip -6 route replace {}/128 dev {name}",
            here[0], here[1]
        ));
    }
}

fn gateway(host: usize, family: u8) -> String {
    match family {
        4 => format!("198.18.{}.1", host + 1),
        _ => format!("fd00:{}::1", host + 1),
    }
}
