//! The sets of the ruleset and their elements, as nft writes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::{
    host::nftables::ELEMENTS_PER_STATEMENT,
    policy::{Steering, steering},
};

/// Set name to elements, each in nft's own notation (`10.0.0.1 . 10.0.0.2 . 6 . 80`; protocols as numbers).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Elements(BTreeMap<String, BTreeSet<String>>);

impl Elements {
    /// The elements of a compiled policy and of the interfaces behind which workloads are forwarded.
    pub fn new<'a>(steering: &Steering, interfaces: impl Iterator<Item = &'a str>) -> Self {
        let mut elements = Self::default();
        elements.toward(steering);
        elements.screens(steering);
        let speakers = steering.speakers.iter();
        elements.fill(
            "speaker",
            speakers.map(|address| (*address, address.to_string())),
        );
        let peers = steering.peers.iter();
        elements.fill("peer", peers.map(|address| (*address, address.to_string())));
        let exempt = steering.exempt.iter();
        let exempt = exempt.map(|(protocol, port)| format!("{protocol} . {port}"));
        elements.put("exempt", exempt.collect());
        let names: BTreeSet<_> = interfaces.map(|name| format!("\"{name}\"")).collect();
        elements.put("wl_idx", names.clone());
        elements.put("wl_if", names);
        elements
    }

    /// Where local workloads send to, and where the host may not from its other addresses.
    fn toward(&mut self, steering: &Steering) {
        for (set, stray, rules) in [
            ("must", "stray", &steering.must),
            ("plain", "stray_plain", &steering.plain),
        ] {
            let pairs = rules.iter().map(|(source, destination, protocol, port)| {
                (*source, *destination, format!(" . {protocol} . {port}"))
            });
            self.pairs((set, stray), pairs);
        }
        let pairs = steering.must_all.iter();
        let pairs = pairs.map(|(source, destination)| (*source, *destination, String::new()));
        self.pairs(("must_all", "stray_all"), pairs);
        for (set, stray, networks) in [
            ("must_net", "stray_net", &steering.must_net),
            ("plain_net", "stray_plain_net", &steering.plain_net),
        ] {
            let networks = networks.iter().map(|(source, network, protocol, port)| {
                ((*source, format!(" . {protocol} . {port}")), *network)
            });
            self.networks((set, stray), networks);
        }
        let networks = steering.must_all_net.iter();
        let networks = networks.map(|(source, network)| ((*source, String::new()), *network));
        self.networks(("must_all_net", "stray_all_net"), networks);
    }

    /// What reaches local workloads.
    fn screens(&mut self, steering: &Steering) {
        for (set, rules) in [
            ("strict_port", &steering.strict_port),
            ("permissive_port", &steering.permissive_port),
        ] {
            let element = |(address, protocol, port): &(IpAddr, u8, u16)| {
                (*address, format!("{address} . {protocol} . {port}"))
            };
            self.fill(set, rules.iter().map(element));
        }
        let strict = steering.strict_all.iter();
        self.fill(
            "strict_all",
            strict.map(|address| (*address, address.to_string())),
        );
        let by_port = steering
            .refuse_port
            .iter()
            .map(|(from, to, first, last)| (*from, *to, format!(" . {}", range(*first, *last))));
        let portless = steering.refuse_portless.iter();
        let portless = portless.map(|(from, to)| (*from, *to, String::new()));
        let mut at = BTreeSet::new();
        for (set, rules) in [
            ("refuse_port", by_port.collect::<Vec<_>>()),
            ("refuse_portless", portless.collect()),
        ] {
            at.extend(rules.iter().map(|(_, to, _)| *to));
            let rules = rules.into_iter();
            // no packet has addresses of two families
            let rules = rules.filter(|(from, to, _)| from.is_ipv4() == to.is_ipv4());
            self.fill(
                set,
                rules.map(|(from, to, rest)| (to, format!("{} . {to}{rest}", network(from)))),
            );
        }
        self.fill(
            "refuse_at",
            at.iter().map(|address| (*address, address.to_string())),
        );
    }

    /// Takes in the elements of one set as nft lists them in JSON.
    pub(in crate::host) fn read(&mut self, set: &str, listed: &[Value]) {
        let read = listed.iter();
        let read = read.filter_map(|element| notation(element, set.starts_with("wl_")));
        self.0.entry(set.to_owned()).or_default().extend(read);
    }

    /// Appends the statements that add every element.
    pub fn add_all(&self, table: &str, text: &mut String) {
        for (set, elements) in &self.0 {
            statements("add", table, set, elements.iter().map(String::as_str), text);
        }
    }

    /// The statements that turn `old` into this, deletions first (a network may be replaced by one that overlaps it).
    pub fn difference(&self, old: &Self, table: &str) -> String {
        let mut text = String::new();
        for (verb, from, without) in [("delete", old, self), ("add", self, old)] {
            for (set, elements) in &from.0 {
                let same = without.0.get(set);
                let differing = elements
                    .iter()
                    .filter(|element| !same.is_some_and(|same| same.contains(*element)));
                statements(verb, table, set, differing.map(String::as_str), &mut text);
            }
        }
        text
    }

    /// Source, destination and the rest of the element.
    fn pairs(&mut self, sets: (&str, &str), pairs: impl Iterator<Item = (IpAddr, IpAddr, String)>) {
        // no packet has addresses of two families
        let pairs = pairs.filter(|(source, to, _)| source.is_ipv4() == to.is_ipv4());
        self.from(
            sets,
            pairs.map(|(source, to, rest)| (source, format!("{to}{rest}"))),
        );
    }

    /// Elements of the sets of the first name, behind their source; for any source without it in those of the second.
    fn from(&mut self, sets: (&str, &str), elements: impl Iterator<Item = (IpAddr, String)>) {
        let is_stray = |(source, _): &(IpAddr, String)| steering::ANY.contains(source);
        let (strays, sources): (Vec<_>, Vec<_>) = elements.partition(is_stray);
        let sources = sources.into_iter();
        self.fill(
            sets.0,
            sources.map(|(source, rest)| (source, format!("{source} . {rest}"))),
        );
        self.fill(sets.1, strays.into_iter());
    }

    /// Networks by (source, rest of the element). The kernel refuses intervals that overlap in one set, and a network
    /// inside another one says nothing more: only the outermost are rendered.
    fn networks(
        &mut self,
        sets: (&str, &str),
        networks: impl Iterator<Item = ((IpAddr, String), IpNetwork)>,
    ) {
        let mut by_key: BTreeMap<_, BTreeSet<(u8, IpAddr)>> = BTreeMap::new();
        for (key, network) in networks {
            // no packet has addresses of two families
            if key.0.is_ipv4() == network.is_ipv4() {
                by_key
                    .entry(key)
                    .or_default()
                    .insert((network.prefix(), network.network()));
            }
        }
        let mut outermost = Vec::new();
        for ((source, rest), networks) in by_key {
            for (length, first) in &networks {
                let wider = |shorter| networks.contains(&(shorter, start(*first, shorter)));
                if !(0..*length).any(wider) {
                    let network = prefix(*first, *length);
                    // a key of one part would make it a set of another kind
                    let is_alone = rest.is_empty() && steering::ANY.contains(&source);
                    let rest = match is_alone {
                        true => format!(" . {network}"),
                        false => rest.clone(),
                    };
                    outermost.push((source, format!("{network}{rest}")));
                }
            }
        }
        self.from(sets, outermost.into_iter());
    }

    /// Elements of the two sets of this name, each with an address that tells which.
    fn fill(&mut self, set: &str, elements: impl Iterator<Item = (IpAddr, String)>) {
        let (four, six): (Vec<_>, Vec<_>) = elements.partition(|(address, _)| address.is_ipv4());
        for (family, elements) in [("4", four), ("6", six)] {
            let elements = elements.into_iter().map(|(_, element)| element);
            self.put(&format!("{set}{family}"), elements.collect());
        }
    }

    fn put(&mut self, set: &str, elements: BTreeSet<String>) {
        if !elements.is_empty() {
            self.0.insert(set.to_owned(), elements);
        }
    }
}

/// Every set of the table with its specification.
pub(super) fn specifications() -> Vec<(String, String)> {
    let mut sets = Vec::new();
    let mut declare = |name: String, kind: &str| sets.push((name, format!("type {kind};")));
    let port = "inet_proto . inet_service";
    let families = [("4", "ipv4_addr"), ("6", "ipv6_addr")];
    // these first: a replacement keeps them and puts the others behind them, so that the order stays
    for (family, ip) in families {
        let flow = format!("{ip} . {ip} . {port} . inet_service; flags dynamic,timeout");
        declare(
            format!("own{family}"),
            &format!("{flow}; size 65536; timeout 10m"),
        );
        declare(
            format!("tf{family}"),
            &format!("{flow}; size 262144; timeout 1h"),
        );
    }
    for (family, ip) in families {
        let (pair, pair_port) = (format!("{ip} . {ip}"), format!("{ip} . {ip} . {port}"));
        declare(format!("must{family}"), &pair_port);
        declare(
            format!("must_net{family}"),
            &format!("{pair_port}; flags interval"),
        );
        declare(format!("plain{family}"), &pair_port);
        declare(
            format!("plain_net{family}"),
            &format!("{pair_port}; flags interval"),
        );
        declare(format!("must_all{family}"), &pair);
        declare(
            format!("must_all_net{family}"),
            &format!("{pair}; flags interval"),
        );
        declare(format!("strict_port{family}"), &format!("{ip} . {port}"));
        declare(
            format!("permissive_port{family}"),
            &format!("{ip} . {port}"),
        );
        declare(format!("strict_all{family}"), ip);
        declare(format!("speaker{family}"), ip);
        declare(format!("stray{family}"), &format!("{ip} . {port}"));
        declare(
            format!("stray_net{family}"),
            &format!("{ip} . {port}; flags interval"),
        );
        declare(format!("stray_plain{family}"), &format!("{ip} . {port}"));
        declare(
            format!("stray_plain_net{family}"),
            &format!("{ip} . {port}; flags interval"),
        );
        declare(format!("stray_all{family}"), ip);
        declare(
            format!("stray_all_net{family}"),
            &format!("{pair}; flags interval"),
        );
        declare(format!("peer{family}"), ip);
        declare(
            format!("refuse_port{family}"),
            &format!("{pair} . inet_service; flags interval"),
        );
        declare(
            format!("refuse_portless{family}"),
            &format!("{pair}; flags interval"),
        );
        declare(format!("refuse_at{family}"), ip);
    }
    declare("exempt".to_owned(), port);
    declare("wl_if".to_owned(), "ifname");
    // the same interfaces by number: nft 1.0.6 cannot look "fib oifname" up in a set of names
    declare("wl_idx".to_owned(), "iface_index");
    sets
}

/// Tells whether a set is ours and holds what policy and settings say, not what the packet path has put there.
pub(super) fn is_from_policy(set: &str) -> bool {
    let dynamic = matches!(set, "own4" | "own6" | "tf4" | "tf6");
    !dynamic && specifications().iter().any(|(name, _)| name == set)
}

fn statements<'a>(
    verb: &str,
    table: &str,
    set: &str,
    elements: impl Iterator<Item = &'a str>,
    text: &mut String,
) {
    let elements: Vec<&str> = elements.collect();
    for chunk in elements.chunks(ELEMENTS_PER_STATEMENT) {
        let list = chunk.join(", ");
        text.push_str(&format!("{verb} element inet {table} {set} {{ {list} }}\n"));
    }
}

/// The first address of the network of this length that holds the address.
fn start(address: IpAddr, length: u8) -> IpAddr {
    IpNetwork::new(address, length).map_or(address, |network| network.network())
}

fn network(network: IpNetwork) -> String {
    prefix(network.network(), network.prefix())
}

/// A network in nft's notation: that of one address is the address.
fn prefix(first: IpAddr, length: u8) -> String {
    if length == full(first) {
        first.to_string()
    } else {
        format!("{first}/{length}")
    }
}

fn range(first: u16, last: u16) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

/// The length of a network of one address.
fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An element of a JSON listing as [`Elements`] would write it; `None` for forms that nft does not put in sets like
/// ours.
fn notation(element: &Value, interfaces: bool) -> Option<String> {
    let part = |part: &Value| notation(part, interfaces);
    if let Some(text) = element.as_str() {
        return Some(if interfaces {
            format!("\"{text}\"")
        } else {
            word(text)
        });
    }
    if element.is_u64() {
        return Some(element.to_string());
    }
    if let Some(parts) = element.get("concat").and_then(Value::as_array) {
        return Some(
            parts
                .iter()
                .map(part)
                .collect::<Option<Vec<_>>>()?
                .join(" . "),
        );
    }
    if let Some(prefix) = element.get("prefix") {
        return Some(format!(
            "{}/{}",
            part(prefix.get("addr")?)?,
            prefix.get("len")?.as_u64()?
        ));
    }
    if let Some(ends) = element.get("range").and_then(Value::as_array) {
        return Some(ends.iter().map(part).collect::<Option<Vec<_>>>()?.join("-"));
    }
    // an element with a comment, counter or timeout
    part(element.get("elem")?.get("val")?)
}

/// An address in Rust's spelling, a protocol as number, anything else as it is.
fn word(text: &str) -> String {
    match text {
        "tcp" => "6".to_owned(),
        "udp" => "17".to_owned(),
        "sctp" => "132".to_owned(),
        _ => text
            .parse()
            .map_or_else(|_| text.to_owned(), |address: IpAddr| address.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_outermost_networks_are_rendered() {
        let source = "10.0.0.1".parse().unwrap();
        let mut steering = Steering::default();
        for network in [
            "10.2.0.0/16",
            "10.2.9.9/24",
            "10.2.9.1/32",
            "10.3.0.1/32",
            "fd00::/8",
        ] {
            steering
                .must_net
                .insert((source, network.parse().unwrap(), 6, 80));
        }
        // another port is another question
        steering
            .must_net
            .insert((source, "10.2.9.0/24".parse().unwrap(), 6, 81));
        // the same network, written with other host bits
        steering
            .must_all_net
            .insert((source, "10.2.0.7/16".parse().unwrap()));
        steering
            .must_all_net
            .insert((source, "10.2.0.8/16".parse().unwrap()));
        let elements = Elements::new(&steering, std::iter::empty());
        let set = |name| {
            elements
                .0
                .get(name)
                .unwrap()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        };
        let expected = [
            "10.0.0.1 . 10.2.0.0/16 . 6 . 80",
            "10.0.0.1 . 10.2.9.0/24 . 6 . 81",
            "10.0.0.1 . 10.3.0.1 . 6 . 80",
        ];
        assert_eq!(set("must_net4"), expected);
        assert_eq!(set("must_all_net4"), ["10.0.0.1 . 10.2.0.0/16"]);
        assert_eq!(
            elements.0.len(),
            2,
            "two families in one element match nothing"
        );
    }

    #[test]
    fn long_lists_become_several_statements() {
        let mut steering = Steering::default();
        steering.exempt.extend((1..=1001).map(|port| (6, port)));
        let elements = Elements::new(&steering, std::iter::empty());
        let mut text = String::new();
        elements.add_all("t", &mut text);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.matches("6 . ").count(), 1001);
    }

    #[test]
    fn listings_are_read_in_our_own_notation() {
        let read = |set: &str, element| {
            let mut elements = Elements::default();
            elements.read(set, &[element]);
            elements.0.into_values().flatten().collect::<Vec<_>>()
        };
        let prefix = json!({"prefix": {"addr": "10.2.0.0", "len": 16}});
        for (set, element, expected) in [
            (
                "must_net4",
                json!({"concat": ["10.0.0.1", prefix, "tcp", 80]}),
                "10.0.0.1 . 10.2.0.0/16 . 6 . 80",
            ),
            (
                "must6",
                json!({"concat": ["fd00::1", "::1.2.3.4", "sctp", 80]}),
                "fd00::1 . ::102:304 . 132 . 80",
            ),
            (
                "must4",
                json!({"concat": ["10.0.0.1", "10.0.0.2", 253, 80]}),
                "10.0.0.1 . 10.0.0.2 . 253 . 80",
            ),
            (
                "peer4",
                json!({"elem": {"val": "10.0.0.1", "comment": "x"}}),
                "10.0.0.1",
            ),
            (
                "must_all_net4",
                json!({"concat": ["10.0.0.1", {"range": ["10.0.0.2", "10.0.0.9"]}]}),
                "10.0.0.1 . 10.0.0.2-10.0.0.9",
            ),
            ("wl_if", json!("tcp"), "\"tcp\""),
            ("wl_idx", json!(7), "7"),
        ] {
            assert_eq!(read(set, element), [expected]);
        }
        assert!(read("peer4", json!({"unheard": "of"})).is_empty());
        assert!(read("peer4", json!(null)).is_empty());
    }
}
