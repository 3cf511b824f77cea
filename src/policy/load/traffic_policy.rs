//! trafficPolicy of a DestinationRule: tls, ports, and what is accepted without effect (policy.md 3.6 to 3.8).

use std::collections::BTreeSet;

use super::{
    read::Map,
    report::Report,
    suggest::Quoted,
    tree::{Entry, Node, Value},
};
use crate::{
    policy::{
        diagnostic::{Code, Diagnostic, codes},
        document::{ClientMode, ClientTls, PortPolicy, TrafficPolicy},
    },
    spiffe::SpiffeId,
};

const BLOCKS: &[&str] = &["tls", "connectionPool", "loadBalancer", "outlierDetection"];
const POLICY: &[&str] = &[
    "tls",
    "connectionPool",
    "loadBalancer",
    "outlierDetection",
    "portLevelSettings",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];
const PORT_POLICY: &[&str] = &[
    "port",
    "tls",
    "connectionPool",
    "loadBalancer",
    "outlierDetection",
];
const TLS: &[&str] = &[
    "mode",
    "subjectAltNames",
    "sni",
    "clientCertificate",
    "privateKey",
    "caCertificates",
    "caCrl",
    "credentialName",
    "insecureSkipVerify",
];
const TLS_FILES: &[&str] = &[
    "clientCertificate",
    "privateKey",
    "caCertificates",
    "caCrl",
    "credentialName",
];
const POOL: &[&str] = &["tcp", "http"];
const POOL_TCP: &[&str] = &[
    "maxConnections",
    "connectTimeout",
    "tcpKeepalive",
    "idleTimeout",
    "maxConnectionDuration",
];
const POOL_HTTP: &[&str] = &[
    "http1MaxPendingRequests",
    "http2MaxRequests",
    "maxRequestsPerConnection",
    "maxRetries",
    "idleTimeout",
    "h2UpgradePolicy",
    "useClientProtocol",
    "maxConcurrentStreams",
];
const BALANCER: &[&str] = &[
    "simple",
    "consistentHash",
    "localityLbSetting",
    "warmupDurationSecs",
    "warmup",
];
const HASH: &[&str] = &[
    "httpHeaderName",
    "httpCookie",
    "useSourceIp",
    "httpQueryParameterName",
    "ringHash",
    "maglev",
    "minimumRingSize",
];
const OUTLIER: &[&str] = &[
    "splitExternalLocalOriginErrors",
    "consecutiveLocalOriginFailures",
    "consecutiveGatewayErrors",
    "consecutive5xxErrors",
    "consecutiveErrors",
    "interval",
    "baseEjectionTime",
    "maxEjectionPercent",
    "minHealthPercent",
];
const BALANCERS: &[(&str, ())] = &[
    ("UNSPECIFIED", ()),
    ("LEAST_CONN", ()),
    ("LEAST_REQUEST", ()),
    ("RANDOM", ()),
    ("PASSTHROUGH", ()),
    ("ROUND_ROBIN", ()),
];

/// Reads a trafficPolicy, of a rule or of a subset.
pub(super) fn read(node: &Node<'_>, report: &mut Report<'_>) -> Option<TrafficPolicy> {
    let policy = report.map(node, "trafficPolicy", POLICY)?;
    if policy.is_empty() {
        let found = Diagnostic::new(&codes::EMPTY, "trafficPolicy sets nothing");
        report.add(node.mark, found.with_label("expected at least one field"));
        return None;
    }
    for key in ["tunnel", "proxyProtocol"] {
        report.on_key(&policy, key, || {
            let found = Diagnostic::new(&codes::CHANGES_WIRE, format!("`{key}` is not supported"));
            found.with_label("changes the bytes on the wire")
        });
    }
    report.on_key(&policy, "retryBudget", || {
        without_effect(&codes::IGNORED_AT_L7, "retryBudget")
    });
    inert_blocks(&policy, report);
    let tls = tls(&policy, report);
    let ports = policy
        .get("portLevelSettings")
        .map(|node| ports(node, report))
        .unwrap_or_default();
    Some(TrafficPolicy { tls, ports })
}

fn ports(node: &Node<'_>, report: &mut Report<'_>) -> Vec<PortPolicy> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for node in report.list(node, "portLevelSettings") {
        let Some(policy) = report.map(node, "an entry of portLevelSettings", PORT_POLICY) else {
            continue;
        };
        let port = report
            .required(&policy, "port")
            .and_then(|node| port_number(node, &mut seen, report));
        if BLOCKS.iter().all(|block| policy.get(block).is_none()) {
            let found =
                Diagnostic::new(&codes::EMPTY, "an entry of portLevelSettings sets nothing");
            report.add(
                node.mark,
                found.with_label("expected `tls` or another block"),
            );
        }
        inert_blocks(&policy, report);
        let tls = tls(&policy, report);
        ports.extend(port.map(|port| PortPolicy { port, tls }));
    }
    ports
}

fn port_number(node: &Node<'_>, seen: &mut BTreeSet<u16>, report: &mut Report<'_>) -> Option<u16> {
    let port = report.map(node, "`port`", &["number"])?;
    let node = report.required(&port, "number")?;
    let number = report.port(node, "port")?;
    if !seen.insert(number) {
        let message = format!("the port {number} stands twice in portLevelSettings");
        report.add(node.mark, Diagnostic::new(&codes::DUPLICATE_ENTRY, message));
    }
    Some(number)
}

/// The tls block; null is unset, and without a mode it is DISABLE.
fn tls(policy: &Map<'_, '_>, report: &mut Report<'_>) -> Option<ClientTls> {
    let entry = policy.entry("tls").filter(|entry| !entry.node.is_null())?;
    let tls = report.map(&entry.node, "`tls`", TLS)?;
    let mode = match tls.get("mode") {
        Some(node) => client_mode(node, report),
        None => {
            let message = "`tls` without a mode means DISABLE: plaintext";
            let found = Diagnostic::new(&codes::IMPLICIT_PLAINTEXT, message);
            report.add(
                entry.key_mark,
                found.with_help("write `mode: ISTIO_MUTUAL` or `mode: DISABLE`"),
            );
            Some(ClientMode::Disable)
        }
    };
    let subject_alt_names = names(tls.entry("subjectAltNames"), report);
    if let Some(node) = tls.get("sni") {
        report.text(node, "sni");
    }
    refuse_weak(&tls, mode, report);
    let mark = tls.get("mode").map_or(entry.key_mark, |node| node.mark);
    Some(ClientTls {
        mode: mode?,
        subject_alt_names,
        place: report.place(mark),
    })
}

fn client_mode(node: &Node<'_>, report: &mut Report<'_>) -> Option<ClientMode> {
    let modes = [
        ("DISABLE", Some(ClientMode::Disable)),
        ("ISTIO_MUTUAL", Some(ClientMode::IstioMutual)),
        ("SIMPLE", None),
        ("MUTUAL", None),
    ];
    let mode = report.choice(node, "TLS mode", &modes)?;
    if mode.is_none() {
        let found = Diagnostic::new(
            &codes::TLS_MODE,
            "the TLS modes SIMPLE and MUTUAL are not supported",
        )
        .with_label("expected ISTIO_MUTUAL or DISABLE");
        report.add(
            node.mark,
            found.with_help("ISTIO_MUTUAL uses the identity of the workload"),
        );
    }
    mode
}

/// subjectAltNames; empty is absent.
fn names(
    entry: Option<&Entry<'_>>,
    report: &mut Report<'_>,
) -> Option<BTreeSet<std::sync::Arc<str>>> {
    let entry = entry.filter(|entry| !entry.node.is_null())?;
    if matches!(&entry.node.value, Value::Seq(list) if list.is_empty()) {
        let found = Diagnostic::new(
            &codes::EMPTY_NAMES,
            "an empty subjectAltNames counts as absent",
        );
        report.add(
            entry.node.mark,
            found.with_help("the identities of the service's endpoints are expected"),
        );
        return None;
    }
    let names = report.subject_alt_names(&entry.node);
    Some(names.into_iter().collect())
}

fn refuse_weak(tls: &Map<'_, '_>, mode: Option<ClientMode>, report: &mut Report<'_>) {
    for key in TLS_FILES {
        let Some(entry) = tls.entry(key).filter(|entry| !entry.node.is_null()) else {
            continue;
        };
        report.text(&entry.node, key);
        if mode == Some(ClientMode::IstioMutual) {
            let found = Diagnostic::new(
                &codes::TLS_FILES,
                format!("`{key}` must be absent with ISTIO_MUTUAL"),
            );
            report.add(entry.key_mark, found.with_label("remove it"));
        } else if mode == Some(ClientMode::Disable) {
            report.add(entry.key_mark, without_effect(&codes::NOT_ENFORCED, key));
        }
    }
    if let Some(node) = tls.get("insecureSkipVerify")
        && report.boolean(node, "insecureSkipVerify") == Some(true)
    {
        let found = Diagnostic::new(
            &codes::SKIP_VERIFY,
            "insecureSkipVerify would accept any server",
        );
        report.add(node.mark, found.with_label("expected false"));
    }
}

/// Blocks that are checked and then have no effect.
fn inert_blocks(policy: &Map<'_, '_>, report: &mut Report<'_>) {
    if let Some(pool) = policy
        .get("connectionPool")
        .and_then(|node| report.map(node, "connectionPool", POOL))
    {
        known_only(&pool, "tcp", "connectionPool.tcp", POOL_TCP, report);
        known_only(&pool, "http", "connectionPool.http", POOL_HTTP, report);
        report.on_key(&pool, "tcp", || {
            without_effect(&codes::NOT_ENFORCED, "connectionPool.tcp")
        });
        report.on_key(&pool, "http", || {
            without_effect(&codes::IGNORED_AT_L7, "connectionPool.http")
        });
    }
    known_only(
        policy,
        "outlierDetection",
        "outlierDetection",
        OUTLIER,
        report,
    );
    report.on_key(policy, "outlierDetection", || {
        without_effect(&codes::IGNORED_AT_L7, "outlierDetection")
    });
    if let Some(balancer) = policy
        .get("loadBalancer")
        .and_then(|node| report.map(node, "loadBalancer", BALANCER))
    {
        balancer_fields(&balancer, report);
        report.on_key(policy, "loadBalancer", || {
            without_effect(&codes::NOT_ENFORCED, "loadBalancer")
        });
    }
}

fn balancer_fields(balancer: &Map<'_, '_>, report: &mut Report<'_>) {
    if let Some(node) = balancer.get("simple") {
        report.choice(node, "load balancer", BALANCERS);
    }
    let hash = balancer
        .get("consistentHash")
        .and_then(|node| report.map(node, "consistentHash", HASH));
    for key in ["httpHeaderName", "httpCookie", "httpQueryParameterName"] {
        if let Some(hash) = &hash {
            report.on_key(hash, key, || without_effect(&codes::IGNORED_AT_L4, key));
        }
    }
}

fn known_only(
    map: &Map<'_, '_>,
    key: &str,
    what: &'static str,
    known: &[&str],
    report: &mut Report<'_>,
) {
    if let Some(node) = map.get(key) {
        report.map(node, what, known);
    }
}

fn without_effect(code: &'static Code, what: &str) -> Diagnostic {
    Diagnostic::new(code, format!("`{what}` is accepted, but not enforced"))
        .with_label("has no effect")
}

impl Report<'_> {
    /// subjectAltNames, verbatim. A name that is no SPIFFE ID is kept, with a warning.
    pub(super) fn subject_alt_names(&mut self, node: &Node<'_>) -> Vec<std::sync::Arc<str>> {
        let names = self.texts(node, "subjectAltNames");
        for (name, node) in &names {
            if let Err(error) = name.parse::<SpiffeId>() {
                let message = format!("no identity can match {}: {error}", Quoted(name));
                let found = Diagnostic::new(&codes::NEVER_MATCHES, message);
                self.add(node.mark, found.with_label("expected a SPIFFE ID"));
            }
        }
        names.into_iter().map(|(name, _)| name.into()).collect()
    }
}
