//! What we change on the machine and how it is undone: one nft table, two routing rules and two routes per address
//! family, the TUN's address and its sysctls. Everything is installed so that running it again changes nothing, and
//! `down` takes away exactly that, recognised by its content; what others have made is never touched.

pub mod account;
pub mod changes;
pub mod conntrack;
pub mod conntrack_events;
pub mod guard;
pub mod handover;
mod interfaces;
pub mod memory;
mod netlink;
pub mod nftables;
pub mod rights;
pub mod routes;
mod rules;
pub mod sockets;
pub mod sysctl;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

pub use rules::Rules;

use crate::host::nftables::command;

/// Names and numbers of what we install.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct HostSettings {
    /// nft table (inet): `identun`.
    pub table: String,
    /// Name of the TUN device.
    pub tun_name: String,
    /// 192.0.0.8/32, scope host. Without an IPv4 address on the device, loose reverse-path filtering drops
    /// everything that arrives there.
    pub tun_address: Ipv4Addr,
    /// The bits of packet and conntrack mark that are ours; all others are left as they are.
    pub mark_mask: u32,
    /// Within the mask: this packet or flow belongs into the tunnel.
    pub tunnel_mark: u32,
    /// Within the mask: a packet of the tunnel itself, not captured if it is also the daemon's and from `port`.
    pub bypass_mark: u32,
    /// 7700
    pub routing_table: u32,
    /// 300; the unreachable rule is the next number.
    pub rule_priority: u32,
    /// UDP port of the tunnels.
    pub port: u16,
    /// The user whose packets may carry the bypass mark.
    pub daemon_uid: u32,
    /// Interfaces of forwarded workloads.
    pub workload_interfaces: Vec<String>,
}

/// Why something could not be changed or read on this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A setting that cannot be installed.
    #[error("{what} cannot be {value:?}: {wanted}")]
    Setting {
        /// The setting's name.
        what: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// No nft program.
    #[error("nft is not installed; apt install nftables")]
    NftMissing,
    /// nft could not be run.
    #[error("cannot run nft to {operation}")]
    NftStart {
        /// What it was to do.
        operation: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// nft said no.
    #[error("nft could not {operation}: {message}")]
    Nft {
        /// What it was to do.
        operation: &'static str,
        /// Its own words.
        message: String,
    },
    /// A listing that is not JSON.
    #[error("nft's answer is not understood ({operation})")]
    NftListing {
        /// What it was to do.
        operation: &'static str,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },
    /// The kernel refused for lack of rights.
    #[error("not permitted to {operation}; this needs root or the capability CAP_NET_ADMIN")]
    Permission {
        /// What was to be done.
        operation: &'static str,
    },
    /// A table of our name that we did not make.
    #[error(
        "nft table inet {table} exists and was not made by identun; choose another name or remove it"
    )]
    TableTaken {
        /// Its name.
        table: String,
    },
    /// A table of our name that belongs to another socket.
    #[error(
        "nft table inet {table} belongs to another running process, which alone can change it; stop that, or choose \
         another name"
    )]
    TableOwned {
        /// Its name.
        table: String,
    },
    /// The kernel refused a part of the ruleset, and with it all of it.
    #[error("cannot apply the ruleset ({what})")]
    Ruleset {
        /// The part.
        what: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A routing rule with our priority that is not ours.
    #[error(
        "a foreign routing rule has priority {priority} ({family}); choose another rule priority or remove it"
    )]
    ForeignRule {
        /// Its priority.
        priority: u32,
        /// Address family.
        family: routes::Family,
    },
    /// A route in our table that is not ours.
    #[error(
        "a foreign route stands in routing table {table} ({family}); choose another table or remove it"
    )]
    ForeignRoute {
        /// The table.
        table: u32,
        /// Address family.
        family: routes::Family,
    },
    /// An interface that is not there.
    #[error("there is no interface {name}")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Not one interface from which an MTU could be taken.
    #[error("no interface but loopback and the TUN is up, and there is no Ethernet link")]
    NoUnderlay,
    /// Routing netlink refused.
    #[error("cannot {operation}")]
    Route {
        /// What was to be done.
        operation: &'static str,
        /// The kernel's reason.
        #[source]
        source: rtnetlink::Error,
    },
    /// A netlink socket failed or the kernel refused.
    #[error("cannot {operation}")]
    Netlink {
        /// What was to be done.
        operation: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The counters of the ruleset, packets.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct SteeringCounters {
    /// Plaintext packets (or forged errors) that tried to enter a tunnel flow.
    pub cross_plain: u64,
    /// Tunnel packets that tried to enter a plaintext flow.
    pub cross_tunnel: u64,
    /// Plaintext refused by a mode or an authorization.
    pub strict: u64,
    /// Packets for the tunnel that were about to leave in plaintext.
    pub guard: u64,
}

/// Second step, after the TUN exists: its address, up, sysctls, routes and rules (both families). A foreign rule of
/// our priority or a foreign route in our table is an error before anything is changed.
pub async fn install_routes(settings: &HostSettings) -> Result<(), HostError> {
    settings.check()?;
    routes::install(settings).await
}

/// What is not as [`Rules::install`] and [`install_routes`] left it, one line each: chains of the table, the TUN and its
/// state, rules and routes. Cheap enough to be asked every few seconds; the contents of chains and sets are not looked
/// at. For an error to show and for a decision to install again.
pub async fn check(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    settings.check()?;
    let table = &settings.table;
    let mut missing = Vec::new();
    match command::chains(table) {
        Ok(Some(chains)) => {
            let gone = nftables::chains().filter(|chain| !chains.contains(chain));
            missing.extend(gone.map(|chain| format!("chain {chain} of nft table inet {table}")));
        }
        Ok(None) | Err(HostError::TableTaken { .. }) => {
            missing.push(format!("nft table inet {table}"));
        }
        Err(error) => return Err(error),
    }
    missing.extend(routes::missing(settings).await?);
    Ok(missing)
}

/// Removes exactly what was added; returns a line for each thing removed; nothing there is no error. The TUN itself
/// is the device's business, and its sysctls vanish with it.
pub async fn down(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    settings.check()?;
    let mut removed = Vec::new();
    match command::chains(&settings.table) {
        Ok(Some(_)) => {
            command::delete(&settings.table)?;
            removed.push(format!("nft table inet {}", settings.table));
        }
        // not ours, or no program that could have made it
        Ok(None) | Err(HostError::TableTaken { .. } | HostError::NftMissing) => {}
        Err(error) => return Err(error),
    }
    removed.extend(routes::remove(settings).await?);
    Ok(removed)
}

/// The packet counters of the table.
pub fn counters(settings: &HostSettings) -> Result<SteeringCounters, HostError> {
    settings.check()?;
    command::counters(&settings.table)
}

/// Every address of the host's interfaces except the TUN's, loopback and link-local. Needs no right.
pub fn addresses(tun_name: &str) -> Result<BTreeSet<IpAddr>, HostError> {
    interfaces::addresses(tun_name)
}

/// The smallest MTU of all interfaces that are up, loopback and the TUN excluded; where none is up, of the Ethernet links.
/// Needs no right.
pub fn underlay_mtu(tun_name: &str) -> Result<u16, HostError> {
    interfaces::smallest_mtu(tun_name)
}

/// Foreign routing rules and nft rules that use bits of our mark, one line each; for a warning at start and for
/// `check`: they may undo the steering (the guard still holds) or be confused by it.
pub async fn conflicts(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    settings.check()?;
    let mut lines = routes::mark_conflicts(settings).await?;
    lines.extend(nftables::mark_conflicts(settings, &command::rules()?));
    Ok(lines)
}

impl HostSettings {
    /// Everything that is interpolated into nft text or paths, and the relations between the numbers.
    fn check(&self) -> Result<(), HostError> {
        let bad = |what, value: String, wanted| {
            Err(HostError::Setting {
                what,
                value,
                wanted,
            })
        };
        if !is_table_name(&self.table) {
            let wanted = "wanted: at most 31 of a-z, 0-9, _ and -, the first a letter";
            return bad("table", self.table.clone(), wanted);
        }
        for name in self.workload_interfaces.iter().chain([&self.tun_name]) {
            if !is_interface_name(name) {
                let wanted =
                    "wanted: at most 15 of a-z, A-Z, 0-9, _, - and ., the first a letter or digit";
                return bad("interface", name.clone(), wanted);
            }
        }
        for (what, mark) in [
            ("tunnel mark", self.tunnel_mark),
            ("bypass mark", self.bypass_mark),
        ] {
            if mark == 0 || mark & !self.mark_mask != 0 {
                return bad(
                    what,
                    format!("{mark:#x}"),
                    "wanted: one or more bits of the mask",
                );
            }
        }
        if self.tunnel_mark == self.bypass_mark {
            let wanted = "wanted: another mark than the tunnel's";
            return bad("bypass mark", format!("{:#x}", self.bypass_mark), wanted);
        }
        if matches!(self.routing_table, 0 | 252..=255) {
            let wanted = "wanted: a table that the system does not use itself";
            return bad("routing table", self.routing_table.to_string(), wanted);
        }
        // the rule for the main table has 32766
        if !(1..32_765).contains(&self.rule_priority) {
            return bad(
                "rule priority",
                self.rule_priority.to_string(),
                "wanted: 1 to 32764",
            );
        }
        if self.port == 0 {
            return bad("port", self.port.to_string(), "wanted: 1 to 65535");
        }
        Ok(())
    }
}

fn is_table_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    name.len() <= 31
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(allowed)
}

fn is_interface_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    name.len() <= 15
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(allowed)
}

#[cfg(test)]
pub(in crate::host) mod tests {
    use super::*;

    pub(in crate::host) fn settings() -> HostSettings {
        HostSettings {
            table: "identun".into(),
            tun_name: "identun0".into(),
            tun_address: Ipv4Addr::new(192, 0, 0, 8),
            mark_mask: 0x3000_0000,
            tunnel_mark: 0x1000_0000,
            bypass_mark: 0x2000_0000,
            routing_table: 7700,
            rule_priority: 300,
            port: 15008,
            daemon_uid: 994,
            workload_interfaces: Vec::new(),
        }
    }

    /// The setting that is refused after a change to good settings.
    fn refused(change: impl FnOnce(&mut HostSettings)) -> Option<&'static str> {
        let mut settings = settings();
        change(&mut settings);
        match settings.check() {
            Ok(()) => None,
            Err(HostError::Setting { what, .. }) => Some(what),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_work_can_be_given_to_any_runtime_thread() {
        fn is_send<T: Send>(_: T) {}
        is_send(install_routes(&settings()));
        is_send(down(&settings()));
        is_send(conflicts(&settings()));
    }

    #[test]
    fn nothing_but_a_name_reaches_nft() {
        for name in [
            "",
            "0t",
            "Identun",
            "a b",
            "a;",
            "a\n",
            "a{",
            "ü",
            &"a".repeat(32),
        ] {
            assert_eq!(
                refused(|s| s.table = name.into()),
                Some("table"),
                "{name:?}"
            );
        }
        for name in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "a\"",
            "a*",
            "a b",
            "$x",
            "abcdefghijklmnop",
        ] {
            assert_eq!(
                refused(|s| s.tun_name = name.into()),
                Some("interface"),
                "{name:?}"
            );
            let interfaces = vec!["eth0".into(), name.into()];
            assert_eq!(
                refused(|s| s.workload_interfaces = interfaces),
                Some("interface")
            );
        }
        for name in ["eth0.100", "vethA1b2", "br-0a1b2c3d4e5f", "wl_0"] {
            assert_eq!(
                refused(|s| s.workload_interfaces = vec![name.into()]),
                None,
                "{name}"
            );
        }
    }

    #[test]
    fn marks_stay_within_their_mask_and_apart() {
        assert_eq!(refused(|_| ()), None);
        assert_eq!(refused(|s| s.tunnel_mark = 0), Some("tunnel mark"));
        assert_eq!(
            refused(|s| s.tunnel_mark = 0x4000_0000),
            Some("tunnel mark")
        );
        assert_eq!(
            refused(|s| s.bypass_mark = 0x2000_0001),
            Some("bypass mark")
        );
        assert_eq!(
            refused(|s| s.bypass_mark = s.tunnel_mark),
            Some("bypass mark")
        );
    }

    #[test]
    fn the_systems_own_tables_and_rules_are_not_taken() {
        for table in [0, 253, 254, 255] {
            assert_eq!(refused(|s| s.routing_table = table), Some("routing table"));
        }
        for priority in [0, 32_765, 32_766, u32::MAX] {
            assert_eq!(
                refused(|s| s.rule_priority = priority),
                Some("rule priority")
            );
        }
        assert_eq!(refused(|s| s.port = 0), Some("port"));
    }
}
