//! The syntax of names: DNS labels, hosts, labels of Kubernetes, addresses, exportTo.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    report::Report,
    suggest::Quoted,
    tree::{Mark, Node},
};
use crate::{
    policy::diagnostic::{Diagnostic, codes},
    registry::{key::TUNNEL_PORT, service::ExportTo},
};

const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;
const MAX_HOST: usize = 255;

/// The full name of a host as a rule in `namespace` writes it. With a dot, as `*` and as IP address it stays as written; a short name gets
/// namespace and domain appended. An empty namespace is left out. (Istio's `ResolveShortnameToFQDN`.)
pub fn resolve_host(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains('.') || host == "*" || host.parse::<IpAddr>().is_ok() {
        host.into()
    } else if namespace.is_empty() {
        format!("{host}.svc.{domain}")
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// A label of RFC 1123: 1 to 63 of a-z, 0-9 and `-`, at the ends no `-`.
pub(super) fn is_dns_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Labels of RFC 1123 joined by dots, at most 253 bytes.
pub(super) fn is_dns_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_dns_label)
}

/// `name` or `domain/name`, as Kubernetes wants a label key.
pub(super) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((domain, name)) => is_dns_name(domain) && !name.is_empty() && is_label_value(name),
        None => !text.is_empty() && is_label_value(text),
    }
}

/// At most 63 of letters, digits, `-`, `_` and `.`, at the ends letters or digits; empty is allowed.
pub(super) fn is_label_value(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= MAX_LABEL
        && text.bytes().all(inside)
        && is_end(text.as_bytes().first())
        && is_end(text.as_bytes().last())
}

/// An IP address that one host can have: not unspecified, not multicast, not an IPv4 address in IPv6 clothes.
pub(super) fn host_address(text: &str) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| "expected an IPv4 or IPv6 address")?;
    check_host_address(address)?;
    Ok(address)
}

fn check_host_address(address: IpAddr) -> Result<(), &'static str> {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        return Err("expected the address of one host");
    }
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err("expected the IPv4 address itself"),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

/// An address or network in CIDR form; bits beyond the prefix are cleared.
pub(super) fn network(text: &str) -> Result<IpNetwork, &'static str> {
    let network = cidr(text)?;
    if network.prefix() == IpNetwork::from(network.ip()).prefix() {
        check_host_address(network.ip())?;
    }
    Ok(network)
}

/// A network that addresses of packets are compared with. Those that no packet can have are refused: they would never match.
pub(super) fn compared_network(text: &str) -> Result<IpNetwork, &'static str> {
    let network = cidr(text)?;
    let is_mapped = matches!(network.ip(), IpAddr::V6(v6) if network.prefix() >= 96 && v6.to_ipv4_mapped().is_some());
    if is_mapped {
        return Err("expected the IPv4 address or network itself");
    }
    Ok(network)
}

/// The prefix is a number: a mask like 255.0.0.0 is not CIDR.
fn cidr(text: &str) -> Result<IpNetwork, &'static str> {
    let expected = "expected an IP address or a network like 10.0.0.0/8";
    let is_number = |prefix: &str| prefix.bytes().all(|byte| byte.is_ascii_digit());
    if text
        .split_once('/')
        .is_some_and(|(_, prefix)| !is_number(prefix))
    {
        return Err(expected);
    }
    let network: IpNetwork = text.parse().map_err(|_| expected)?;
    IpNetwork::new(network.network(), network.prefix()).map_err(|_| expected)
}

/// `IP`, `IP:port` or `[IPv6]:port`; without a port the tunnel port.
pub(super) fn gateway(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let gateway = match bare.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, TUNNEL_PORT),
        Err(_) => text.parse().ok()?,
    };
    (gateway.port() != 0 && check_host_address(gateway.ip()).is_ok()).then_some(gateway)
}

impl Report<'_> {
    /// A name of `what` that satisfies `is_valid`.
    pub(super) fn name<'t>(
        &mut self,
        node: &'t Node<'_>,
        what: &str,
        is_valid: fn(&str) -> bool,
    ) -> Option<&'t str> {
        let text = self.filled_text(node, what)?;
        if is_valid(text) {
            return Some(text);
        }
        self.bad_name(text, what, node.mark);
        None
    }

    /// Reports a name of `what` that breaks RFC 1123.
    pub(super) fn bad_name(&mut self, text: &str, what: &str, mark: Mark) {
        let message = format!("{} is not a valid {what}", Quoted(text));
        let found = Diagnostic::new(&codes::BAD_NAME, message);
        self.add(
            mark,
            found.with_label("expected a-z, 0-9 and `-`, a letter or digit at both ends"),
        );
    }

    /// A host in lower case: DNS name, IP address, or a wildcard whose `*` is the very first character.
    pub(super) fn host(&mut self, node: &Node<'_>) -> Option<String> {
        let text = self.filled_text(node, "host")?;
        let host = text.to_ascii_lowercase();
        let problem = if host.len() > MAX_HOST {
            Some("longer than 255 characters")
        } else if is_host(&host) {
            None
        } else if host.chars().skip(1).any(|character| character == '*') {
            Some("expected `*` only as the first character")
        } else {
            Some("expected a DNS name, `*.domain` or an IP address")
        };
        if let Some(problem) = problem {
            let found = Diagnostic::new(
                &codes::BAD_HOST,
                format!("{} is not a valid host", Quoted(text)),
            );
            self.add(node.mark, found.with_label(problem));
            return None;
        }
        Some(host)
    }

    /// exportTo of a resource in `namespace`; absent means everybody, and `~` is known where `nobody` says so.
    pub(super) fn export_to(
        &mut self,
        node: Option<&Node<'_>>,
        namespace: &Arc<str>,
        nobody: bool,
    ) -> ExportTo {
        let Some(node) = node else {
            return ExportTo::All;
        };
        let mut names = BTreeSet::new();
        for (text, node) in self.texts(node, "exportTo") {
            let name: Arc<str> = if text == "." {
                namespace.clone()
            } else {
                text.into()
            };
            if !(text == "*" || (text == "~" && nobody) || is_dns_label(&name)) {
                self.bad_export(text, node, nobody);
            } else if !names.insert(name) {
                let message = format!("exportTo names {} twice", Quoted(text));
                let found = Diagnostic::new(&codes::DUPLICATE_ENTRY, message);
                self.add(node.mark, found.with_label("remove it"));
            }
        }
        let (all, none) = (names.contains("*"), names.contains("~"));
        if (all || none) && names.len() > 1 {
            let message = "`*` and `~` in exportTo stand alone";
            let found = Diagnostic::new(&codes::BAD_EXPORT, message);
            self.add(node.mark, found.with_label("one says all there is to say"));
        }
        if none {
            ExportTo::Nobody
        } else if all || names.is_empty() {
            ExportTo::All
        } else {
            ExportTo::Namespaces(names)
        }
    }

    fn bad_export(&mut self, text: &str, node: &Node<'_>, nobody: bool) {
        let message = format!("{} is not a namespace", Quoted(text));
        let found = Diagnostic::new(&codes::BAD_NAME, message);
        let label = if nobody {
            "expected `*`, `.`, `~` or a namespace"
        } else {
            "expected `*`, `.` or a namespace"
        };
        self.add(node.mark, found.with_label(label));
    }
}

/// `host` is in lower case. The rest of a wildcard is a plain suffix, so `*.local`, `*-x.local` and `*x.local` are wildcards.
fn is_host(host: &str) -> bool {
    if host == "*" || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    match host.strip_prefix('*') {
        Some(rest) => is_dns_name(rest.strip_prefix(['.', '-']).unwrap_or(rest)),
        None => is_dns_name(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_get_the_namespace_and_the_domain() {
        for (host, namespace, expected) in [
            ("foo", "default", "foo.default.svc.cluster.local"),
            ("foo.bar", "default", "foo.bar"),
            ("*", "default", "*"),
            ("42.185.131.210", "default", "42.185.131.210"),
            ("2a00:4000::614", "default", "2a00:4000::614"),
            ("foo", "", "foo.svc.cluster.local"),
        ] {
            assert_eq!(resolve_host(host, namespace, "cluster.local"), expected);
        }
    }

    #[test]
    fn hosts_are_names_wildcards_or_addresses() {
        for host in [
            "*", "*.local", "*foo.com", "a", "a.b-c.d1", "10.0.0.1", "::1",
        ] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "", "**", "*.", "a.*", "a..b", ".a", "a.", "-a", "a_b", "a b", "*.*.a", "http://a",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn gateways_are_an_address_with_or_without_a_port() {
        let at = |text: &str| gateway(text).map(|gateway| gateway.to_string());
        assert_eq!(at("192.0.2.1").as_deref(), Some("192.0.2.1:15008"));
        assert_eq!(at("192.0.2.1:99").as_deref(), Some("192.0.2.1:99"));
        assert_eq!(at("2001:db8::1").as_deref(), Some("[2001:db8::1]:15008"));
        assert_eq!(at("[2001:db8::1]").as_deref(), Some("[2001:db8::1]:15008"));
        assert_eq!(at("[2001:db8::1]:99").as_deref(), Some("[2001:db8::1]:99"));
        for bad in [
            "",
            "a",
            "192.0.2.1:0",
            "192.0.2.1:",
            "192.0.2.1:70000",
            "[192.0.2.1",
            "0.0.0.0",
            "ff02::1",
            "host:1",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_lose_the_bits_beyond_their_prefix() {
        assert_eq!(network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "a",
            "0.0.0.0",
            "::ffff:192.0.2.1",
            "10.0.0",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/+8",
            "10.0.0.0/",
        ] {
            assert!(network(bad).is_err(), "{bad}");
        }
        for good in ["0.0.0.0/0", "224.0.0.1", "::/0"] {
            assert!(compared_network(good).is_ok(), "{good}");
        }
        for bad in ["::ffff:192.0.2.1", "::ffff:0.0.0.0/96", "10.0.0.0/33", "a"] {
            assert!(compared_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_syntax_is_that_of_kubernetes() {
        for key in ["app", "app.kubernetes.io/name", "a_b.c-d"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "a b", "*"] {
            assert!(!is_label_key(key), "{key}");
        }
        assert!(is_label_value(""));
        assert!(!is_label_value(&"x".repeat(64)));
    }
}
