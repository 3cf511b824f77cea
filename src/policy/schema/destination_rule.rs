//! DestinationRule.

use serde_json::{Value, json};

use super::shape::{
    any, choice, export_to, labels, list, name, object, port, refused, selector, subject_alt_names,
    text, with,
};

const INERT: &str = "Accepted, not enforced.";
const LAYER_7: &str = "Of requests: ignored.";
const FILES: &str =
    "An error with ISTIO_MUTUAL, which uses the workload's identity; else not used.";

pub(super) fn rule() -> Value {
    let host = text(
        "A full name, `*suffix`, an address, or a short name of the rule's own namespace.",
        "web",
    );
    let subset = object(
        "Never selected here.",
        &["name"],
        [
            ("name", name("Its name.")),
            ("labels", labels("Labels of its endpoints.")),
            ("trafficPolicy", traffic_policy()),
        ],
    );
    object(
        "What clients must use towards a host.",
        &["host"],
        [
            ("host", with(host, "maxLength", 255.into())),
            ("trafficPolicy", traffic_policy()),
            (
                "subsets",
                list("Accepted; never selected, as no routes are read.", subset),
            ),
            (
                "exportTo",
                export_to("Namespaces whose clients see the rule; empty: all.", false),
            ),
            (
                "workloadSelector",
                selector(
                    "Client workloads of the rule's namespace; the rule is then private to it.",
                ),
            ),
        ],
    )
}

fn traffic_policy() -> Value {
    let port_policy = object(
        "Settings of one port; they replace those of the rule as a block.",
        &["port"],
        blocks().into_iter().chain([(
            "port",
            object(
                "The port.",
                &["number"],
                [("number", port("The service port."))],
            ),
        )]),
    );
    let port_policy = with(port_policy, "minProperties", 2.into());
    let fields = blocks().into_iter().chain([
        (
            "portLevelSettings",
            list("Settings of single ports.", port_policy),
        ),
        ("tunnel", refused("It changes the bytes on the wire.")),
        (
            "proxyProtocol",
            refused("It changes the bytes on the wire."),
        ),
        ("retryBudget", any(LAYER_7)),
    ]);
    let policy = object("How clients speak to the host.", &[], fields);
    with(policy, "minProperties", 1.into())
}

fn blocks() -> Vec<(&'static str, Value)> {
    vec![
        ("tls", tls()),
        ("connectionPool", connection_pool()),
        ("loadBalancer", load_balancer()),
        ("outlierDetection", outlier_detection()),
    ]
}

fn tls() -> Value {
    let mode = choice(
        "ISTIO_MUTUAL: mutual TLS or nothing. DISABLE: plaintext. Absent: DISABLE.",
        &["ISTIO_MUTUAL", "DISABLE"],
    );
    let file = || with(text(FILES, "/file.pem"), "minLength", 0.into());
    let skip = json!({"description": "Only false: true would accept any server.", "enum": [false]});
    let tls = object(
        "Absent: no demand, so `auto_mtls` decides.",
        &[],
        [
            ("mode", mode),
            (
                "subjectAltNames",
                subject_alt_names("Identities that may answer, instead of those of the registry."),
            ),
            (
                "sni",
                with(
                    text("Without meaning for security.", "web"),
                    "minLength",
                    0.into(),
                ),
            ),
            ("clientCertificate", file()),
            ("privateKey", file()),
            ("caCertificates", file()),
            ("caCrl", file()),
            ("credentialName", file()),
            ("insecureSkipVerify", skip),
        ],
    );
    with(tls, "type", json!(["object", "null"]))
}

fn all(names: &[&'static str], description: &str) -> Vec<(&'static str, Value)> {
    names.iter().map(|name| (*name, any(description))).collect()
}

fn connection_pool() -> Value {
    let tcp = all(
        &[
            "maxConnections",
            "connectTimeout",
            "tcpKeepalive",
            "idleTimeout",
            "maxConnectionDuration",
        ],
        INERT,
    );
    let http = all(
        &[
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "idleTimeout",
            "h2UpgradePolicy",
            "useClientProtocol",
            "maxConcurrentStreams",
        ],
        LAYER_7,
    );
    object(
        INERT,
        &[],
        [
            ("tcp", object(INERT, &[], tcp)),
            ("http", object(LAYER_7, &[], http)),
        ],
    )
}

fn load_balancer() -> Value {
    let hash = all(
        &[
            "httpHeaderName",
            "httpCookie",
            "useSourceIp",
            "httpQueryParameterName",
            "ringHash",
            "maglev",
            "minimumRingSize",
        ],
        INERT,
    );
    object(
        "Accepted, not enforced: addresses are not translated.",
        &[],
        [
            (
                "simple",
                choice(
                    INERT,
                    &[
                        "UNSPECIFIED",
                        "LEAST_CONN",
                        "LEAST_REQUEST",
                        "RANDOM",
                        "PASSTHROUGH",
                        "ROUND_ROBIN",
                    ],
                ),
            ),
            ("consistentHash", object(INERT, &[], hash)),
            ("localityLbSetting", any(INERT)),
            ("warmupDurationSecs", any(INERT)),
            ("warmup", any(INERT)),
        ],
    )
}

fn outlier_detection() -> Value {
    let names = [
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
    object(LAYER_7, &[], all(&names, LAYER_7))
}
