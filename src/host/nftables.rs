//! The ruleset as one value, rendered to nft text. Pure: `command` hands the text to nft.
//!
//! `table.nft` and `family.nft` hold the chains, with the reason of a line beside it.
//! The sets `own*` and `tf*` are filled by the packet path (plaintext flows opened by
//! this host; flows seen from the TUN): whatever else changes, they are kept, because losing them cuts the first kind
//! off and lets replies of the second kind out in plaintext. No other set is emptied or made anew either. So the
//! specification of a set or the hook of a chain must not change under the same name.

pub(in crate::host) mod command;
mod elements;
pub(in crate::host) mod encode;
mod marks;
pub(in crate::host) mod owner;

use std::collections::BTreeSet;

pub use elements::Elements;
pub(in crate::host) use marks::mark_conflicts;

use crate::{
    host::{HostError, HostSettings},
    policy::Steering,
};

const TABLE: &str = include_str!("nftables/table.nft");
const FAMILY: &str = include_str!("nftables/family.nft");
/// Elements per statement, so that no line grows without bound.
const ELEMENTS_PER_STATEMENT: usize = 500;
/// An empty chain of this name says that the table is ours.
pub(in crate::host) const MARKER: &str = "made_by_identun";
pub(in crate::host) const COUNTERS: [&str; 4] =
    ["c_cross_plain", "c_cross_tun", "c_strict", "c_guard"];

/// Everything nft has to know: names, marks and elements.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ruleset {
    settings: HostSettings,
    elements: Elements,
}

/// The chains and sets of an existing table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Present {
    /// Chains by name.
    pub chains: BTreeSet<String>,
    /// Sets by name.
    pub sets: BTreeSet<String>,
}

impl Ruleset {
    /// The ruleset for these settings and this policy; names and marks that could not be rendered are an error.
    pub fn new(settings: &HostSettings, steering: &Steering) -> Result<Self, HostError> {
        settings.check()?;
        let interfaces = settings.workload_interfaces.iter().map(String::as_str);
        Ok(Self {
            settings: settings.clone(),
            elements: Elements::new(steering, interfaces),
        })
    }

    /// What stands where nothing but the chains can have been changed.
    pub fn complete(&self, chains: BTreeSet<String>) -> Present {
        let sets = elements::specifications().into_iter();
        Present {
            chains,
            sets: sets.map(|(name, _)| name).collect(),
        }
    }

    /// The text that creates the table on a host that has none.
    pub fn create(&self) -> String {
        let mut text = format!("table inet {} {{\n", self.settings.table);
        text.push_str(&self.declarations());
        text.push_str(&self.chains());
        text.push_str("}\n");
        self.elements.add_all(&self.settings.table, &mut text);
        text
    }

    /// The text that gives the table of an earlier run this ruleset's sets and elements, by differences from what the
    /// sets `hold`: an element that stays is there at every moment.
    /// `None` when nothing is to be done.
    pub fn adopt(&self, present: &Present, hold: &Elements) -> Option<String> {
        let table = &self.settings.table;
        let differences = self.elements.difference(hold, table);
        let complete = elements::specifications()
            .iter()
            .all(|(name, _)| present.sets.contains(name));
        if complete && differences.is_empty() {
            return None;
        }
        let declarations = self.declarations();
        Some(format!(
            "table inet {table} {{\n{declarations}}}\n{differences}"
        ))
    }

    /// The text that gives such a table this ruleset's chains, whatever theirs were. Chains that stay are refilled and
    /// not made anew: their hooks are registered throughout, and a packet meets the old rules or the new. To come
    /// after [`Self::adopt`] in a transaction of its own, because elements of a new interval set are visible only
    /// some time after the rules of the transaction that brings them.
    pub fn refill(&self, present: &Present) -> String {
        let table = &self.settings.table;
        let chains = self.chains();
        let mut text = String::new();
        for chain in &present.chains {
            text.push_str(&format!("flush chain inet {table} {chain}\n"));
        }
        let stays = |chain: &str| chains.contains(&format!("  chain {chain} {{"));
        for chain in present.chains.iter().filter(|chain| !stays(chain)) {
            text.push_str(&format!("delete chain inet {table} {chain}\n"));
        }
        let ours: Vec<_> = elements::specifications();
        for set in &present.sets {
            if !ours.iter().any(|(name, _)| name == set) {
                text.push_str(&format!("delete set inet {table} {set}\n"));
            }
        }
        // counters and sets that stand already are left as they are
        let declarations = self.declarations();
        text.push_str(&format!(
            "table inet {table} {{\n{declarations}{chains}}}\n"
        ));
        text
    }

    /// The text that turns the elements of `old` into those of this ruleset; `None` when nothing differs.
    pub fn difference(&self, old: &Self) -> Option<String> {
        let text = self
            .elements
            .difference(&old.elements, &self.settings.table);
        (!text.is_empty()).then_some(text)
    }

    fn declarations(&self) -> String {
        let mut text = String::new();
        for (set, specification) in elements::specifications() {
            text.push_str(&format!("  set {set} {{ {specification} }}\n"));
        }
        for counter in COUNTERS {
            text.push_str(&format!("  counter {counter} {{ packets 0 bytes 0 }}\n"));
        }
        text
    }

    fn chains(&self) -> String {
        let settings = &self.settings;
        let mut text = TABLE.to_owned();
        for (family, ip) in [("4", "ip"), ("6", "ip6")] {
            text.push_str(&FAMILY.replace("$F", family).replace("$IP", ip));
        }
        text.replace("$MARKER", MARKER)
            .replace("$TUNNEL", &format!("{:#x}", settings.tunnel_mark))
            .replace("$TUN", &settings.tun_name)
            .replace("$MASK", &format!("{:#x}", settings.mark_mask))
            .replace("$KEEP", &format!("{:#x}", !settings.mark_mask))
            .replace("$BYPASS", &format!("{:#x}", settings.bypass_mark))
            .replace("$PORT", &settings.port.to_string())
            .replace("$UID", &settings.daemon_uid.to_string())
    }
}

/// The names of all chains.
pub(in crate::host) fn chains() -> impl Iterator<Item = String> {
    let names = |text: &str| -> Vec<String> {
        let names = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("  chain ")?;
            Some(rest.split_once(' ')?.0.to_owned())
        });
        names.collect()
    };
    let families = ["4", "6"].map(|family| names(&FAMILY.replace("$F", family)));
    names(&TABLE.replace("$MARKER", MARKER))
        .into_iter()
        .chain(families.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::settings;

    fn ruleset(settings: &HostSettings, steering: &Steering) -> Ruleset {
        Ruleset::new(settings, steering).unwrap()
    }

    fn policy() -> Steering {
        let mut steering = Steering::default();
        let (host, peer) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        steering.must.insert((host, peer, 6, 443));
        steering.must_all.insert((host, peer));
        steering.plain.insert((host, peer, 17, 53));
        steering.strict_all.insert(host);
        steering.strict_all.insert("fd00::1".parse().unwrap());
        steering.exempt.insert((6, 22));
        let net = "10.9.0.0/16".parse().unwrap();
        steering.refuse_port.insert((net, host, 81, 65_535));
        steering.refuse_portless.insert((peer.into(), host));
        steering
    }

    #[test]
    fn every_line_that_decides_carries_the_settings() {
        let mut settings = settings();
        settings.workload_interfaces = vec!["br-1.7".into()];
        let text = ruleset(&settings, &policy()).create();
        for line in [
            "table inet identun {",
            "set own4 { type ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service; flags dynamic,timeout; size 65536; timeout 10m; }",
            "set must_net6 { type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags interval; }",
            "type filter hook postrouting priority 290; policy accept;",
            "type route hook output priority mangle; policy accept;",
            "meta mark & 0x30000000 == 0x20000000 meta skuid 994 udp sport 15008 return",
            "meta mark set meta mark & 0xcfffffff | 0x10000000",
            "meta mark & 0x30000000 == 0x10000000 counter name c_guard drop",
            "iifname \"identun0\" goto from_tun",
            "oifname \"identun0\" return",
            "ct direction reply goto reply6",
            "add element inet identun must4 { 10.0.0.1 . 10.0.0.2 . 6 . 443 }",
            "add element inet identun must_all4 { 10.0.0.1 . 10.0.0.2 }",
            "add element inet identun strict_all6 { fd00::1 }",
            "add element inet identun exempt { 6 . 22 }",
            "add element inet identun refuse_port4 { 10.9.0.0/16 . 10.0.0.1 . 81-65535 }",
            "add element inet identun refuse_portless4 { 10.0.0.2 . 10.0.0.1 }",
            "add element inet identun refuse_at4 { 10.0.0.1 }",
            "add element inet identun wl_idx { \"br-1.7\" }",
        ] {
            let found = text.lines().any(|other| other.trim().starts_with(line));
            assert!(found, "{line} is not in {text}");
        }
        assert!(!text.contains('$'), "a name was not replaced in {text}");
    }

    #[test]
    fn exceptions_are_looked_up_before_what_they_are_taken_from() {
        let text = ruleset(&settings(), &policy()).create();
        for family in ["4", "6"] {
            let (_, steer) = text.split_once(&format!("chain steer{family} {{")).unwrap();
            let at = |set: &str| steer.find(&format!("@{set}{family} ")).unwrap();
            let order = [
                "must",
                "tf",
                "plain",
                "must_net",
                "plain_net",
                "must_all",
                "must_all_net",
            ]
            .map(at);
            assert!(order.is_sorted(), "{order:?}");
            // a STRICT source's plaintext to a registered peer
            for set in ["plain", "plain_net"] {
                assert!(text.contains(&format!("@{set}{family} goto keep{family}")));
            }
        }
    }

    #[test]
    fn plaintext_is_taken_on_exempt_ports_whatever_else_is_said_and_refused_by_source_first() {
        let text = ruleset(&settings(), &policy()).create();
        let chain = |name: &str| {
            let (_, rest) = text.split_once(&format!("chain {name} {{")).unwrap();
            rest.split_once("\n  }").unwrap().0
        };
        for hook in ["in", "forw"] {
            let chain = chain(hook);
            assert!(chain.contains("goto screen") && !chain.contains("@exempt"));
        }
        let at = |name: &str, part: &str| chain(name).find(part).unwrap();
        assert!(at("screen", "@exempt return") < at("screen", "goto screen4"));
        for family in ["4", "6"] {
            let order = ["refuse_at", "strict_port", "strict_all", "permissive_port"]
                .map(|set| at(&format!("screen{family}"), &format!("@{set}{family} ")));
            assert!(order.is_sorted(), "{order:?}");
        }
    }

    #[test]
    fn a_table_that_stands_loses_no_set_and_no_hook() {
        let (old, new) = (
            ruleset(&settings(), &Steering::default()),
            ruleset(&settings(), &policy()),
        );
        let mut present = Present::default();
        for line in old.create().lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("chain"), Some(name)) => present.chains.insert(name.to_owned()),
                (Some("set"), Some(name)) => present.sets.insert(name.to_owned()),
                _ => false,
            };
        }
        present.chains.insert("of_an_older_version".to_owned());
        present.sets.insert("set_of_an_older_version".to_owned());
        assert!(present.chains.contains("guard") && present.sets.contains("tf6"));
        assert_eq!(old.adopt(&present, &old.elements), None);
        let text = new.adopt(&present, &old.elements).unwrap() + &new.refill(&present);
        let deletions: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("delete"))
            .collect();
        assert_eq!(
            deletions,
            [
                "delete chain inet identun of_an_older_version",
                "delete set inet identun set_of_an_older_version",
            ]
        );
        assert!(!text.contains("flush set") && text.contains("flush chain inet identun guard"));
        assert!(text.contains("add element inet identun must4 { 10.0.0.1 . 10.0.0.2 . 6 . 443 }"));
    }

    #[test]
    fn only_differences_are_written_deletions_first() {
        let old = ruleset(&settings(), &policy());
        let mut changed = policy();
        changed.must.clear();
        changed.peers.insert("10.0.0.2".parse().unwrap());
        let new = ruleset(&settings(), &changed);
        assert_eq!(old.difference(&old), None);
        assert_eq!(
            new.difference(&old).unwrap(),
            "delete element inet identun must4 { 10.0.0.1 . 10.0.0.2 . 6 . 443 }\n\
             add element inet identun peer4 { 10.0.0.2 }\n"
        );
    }
}
