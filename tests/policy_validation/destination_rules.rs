//! Section 3: DestinationRule.

use identun::policy::load::resolve_host;

use crate::{check, networking, row, valid};

fn host(host: &str) -> String {
    networking("DestinationRule", &format!("host: {host}"))
}

fn rule(fields: &str) -> String {
    networking("DestinationRule", &format!("host: web, {fields}"))
}

fn policy(fields: &str) -> String {
    rule(&format!("trafficPolicy: {{{fields}}}"))
}

fn tls(fields: &str) -> String {
    policy(&format!("tls: {{{fields}}}"))
}

#[test]
fn section_3_1_hosts() {
    check(vec![
        row(
            "one dot: warn, looks like name.namespace",
            "warning IDT0458",
            host("¦web.shop"),
        ),
        valid("short name", host("web")),
        valid("a name in full", host("web.shop.svc.cluster.local")),
        valid("any host", host("\"*\"")),
        valid("a suffix", host("\"*.local\"")),
        valid("an address", host("10.0.0.1")),
        valid("capitals are lowered", host("WEB")),
    ]);
}

#[test]
fn section_3_4_export_to() {
    check(vec![
        valid("empty: all namespaces", rule("exportTo: []")),
        valid(
            "own namespace and another one",
            rule("exportTo: [., other]"),
        ),
        row(
            "`.` and the own namespace are the same",
            "error IDT0209",
            rule("exportTo: [., ¦shop]"),
        ),
        row("duplicates", "error IDT0209", rule("exportTo: [a, ¦a]")),
        row(
            "`*` with anything else",
            "error IDT0211",
            rule("exportTo: ¦[\"*\", a]"),
        ),
        row("invalid labels", "error IDT0206", rule("exportTo: [¦a_b]")),
        row(
            "`~` is for services",
            "error IDT0206",
            rule("exportTo: [¦\"~\"]"),
        ),
    ]);
}

#[test]
fn section_3_6_tls() {
    check(vec![
        row(
            "without a mode: DISABLE, said aloud",
            "warning IDT0453",
            policy("¦tls: {}"),
        ),
        valid(
            "null is unset",
            policy("tls: ~, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]"),
        ),
        row(
            "MUTUAL: error",
            "error IDT0405",
            tls("mode: ¦MUTUAL, clientCertificate: c, privateKey: k"),
        ),
        row("SIMPLE: error", "error IDT0405", tls("mode: ¦SIMPLE")),
        valid(
            "subjectAltNames and sni with ISTIO_MUTUAL",
            tls("mode: ISTIO_MUTUAL, sni: x, subjectAltNames: [spiffe://a/b]"),
        ),
        row(
            "clientCertificate with ISTIO_MUTUAL",
            "error IDT0407",
            tls("mode: ISTIO_MUTUAL, ¦clientCertificate: c"),
        ),
        row(
            "privateKey with ISTIO_MUTUAL",
            "error IDT0407",
            tls("mode: ISTIO_MUTUAL, ¦privateKey: c"),
        ),
        row(
            "caCertificates with ISTIO_MUTUAL",
            "error IDT0407",
            tls("mode: ISTIO_MUTUAL, ¦caCertificates: c"),
        ),
        row(
            "credentialName with ISTIO_MUTUAL",
            "error IDT0407",
            tls("mode: ISTIO_MUTUAL, ¦credentialName: c"),
        ),
        row(
            "caCrl with ISTIO_MUTUAL",
            "error IDT0407",
            tls("mode: ISTIO_MUTUAL, ¦caCrl: c"),
        ),
        row(
            "insecureSkipVerify: true",
            "error IDT0406",
            tls("mode: ISTIO_MUTUAL, insecureSkipVerify: ¦true"),
        ),
        row(
            "insecureSkipVerify: true, whatever the mode",
            "error IDT0406",
            tls("mode: DISABLE, insecureSkipVerify: ¦true"),
        ),
        valid(
            "insecureSkipVerify: false",
            tls("mode: ISTIO_MUTUAL, insecureSkipVerify: false"),
        ),
        row(
            "a subset with tls: warn",
            "warning IDT0456",
            rule("subsets: [{name: v1, ¦trafficPolicy: {tls: {mode: DISABLE}}}]"),
        ),
        row(
            "a subset with tls of a port: warn",
            "warning IDT0456",
            rule(
                "subsets: [{name: v1, ¦trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: DISABLE}}]}}]",
            ),
        ),
        row(
            "7.1: `subjectAltNames: []` is absent: warn",
            "warning IDT0454",
            tls("mode: ISTIO_MUTUAL, subjectAltNames: ¦[]"),
        ),
        row(
            "4.4: a name that is no SPIFFE ID: said aloud",
            "warning IDT0455",
            tls("mode: ISTIO_MUTUAL, subjectAltNames: [¦a.example]"),
        ),
    ]);
}

#[test]
fn section_3_7_what_is_not_tls() {
    check(vec![
        row(
            "connectionPool.tcp: warn",
            "warning IDT0457",
            policy("connectionPool: {¦tcp: {maxConnections: 1}}"),
        ),
        row(
            "connectionPool.http: info",
            "info IDT0461",
            policy("connectionPool: {¦http: {maxRetries: 1}}"),
        ),
        row(
            "outlierDetection: ignored",
            "info IDT0461",
            policy("¦outlierDetection: {interval: 1s}"),
        ),
        row(
            "loadBalancer: warn",
            "warning IDT0457",
            policy("¦loadBalancer: {simple: PASSTHROUGH}"),
        ),
        row(
            "consistentHash.http*: warn",
            "warning IDT0457, warning IDT0452",
            policy("¦loadBalancer: {consistentHash: {¦httpHeaderName: x}}"),
        ),
        row(
            "tunnel: error",
            "error IDT0408",
            policy("tls: {mode: DISABLE}, ¦tunnel: {targetHost: x}"),
        ),
        row(
            "proxyProtocol: error",
            "error IDT0408",
            policy("tls: {mode: DISABLE}, ¦proxyProtocol: {version: V2}"),
        ),
        row(
            "retryBudget: ignored",
            "info IDT0461",
            policy("¦retryBudget: {}"),
        ),
    ]);
}

#[test]
fn section_3_8_validation() {
    let ports = |entries: &str| policy(&format!("portLevelSettings: [{entries}]"));
    let subsets = |entries: &str| rule(&format!("subsets: [{entries}]"));
    let label = "a".repeat(63);
    let long = [label.as_str(); 4].join(".");
    check(vec![
        row(
            "host: required",
            "error IDT0204",
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: ¦{}\n",
        ),
        row("host: non-empty", "error IDT0210", host("¦\"\"")),
        row(
            "host: <=255 characters",
            "error IDT0207",
            host(&format!("¦{long}.a")),
        ),
        row(
            "host: labels of at most 63",
            "error IDT0207",
            host(&format!("¦a{label}.a.b")),
        ),
        row("host: DNS-1123 labels", "error IDT0207", host("¦a_b.c.d")),
        row("host: no empty label", "error IDT0207", host("¦a..b")),
        row(
            "host: `*` only in the first label",
            "error IDT0207",
            host("¦a.*.b"),
        ),
        row("host: `*` only once", "error IDT0207", host("¦\"*.*.b\"")),
        row(
            "trafficPolicy: {}",
            "error IDT0210",
            rule("trafficPolicy: ¦{}"),
        ),
        row(
            "port entry without port",
            "error IDT0204",
            ports("¦{tls: {mode: DISABLE}}"),
        ),
        row(
            "port entry without number",
            "error IDT0204",
            ports("{port: ¦{}, tls: {mode: DISABLE}}"),
        ),
        row(
            "port entry without a block",
            "error IDT0210",
            ports("¦{port: {number: 80}}"),
        ),
        row(
            "port 0",
            "error IDT0205",
            ports("{port: {number: ¦0}, tls: {mode: DISABLE}}"),
        ),
        row(
            "port above 65535",
            "error IDT0205",
            ports("{port: {number: ¦65536}, tls: {mode: DISABLE}}"),
        ),
        row(
            "duplicate port",
            "error IDT0209",
            ports(
                "{port: {number: 80}, tls: {mode: DISABLE}}, {port: {number: ¦80}, tls: {mode: DISABLE}}",
            ),
        ),
        row("subset null", "error IDT0202", subsets("¦~")),
        row(
            "subset without name",
            "error IDT0204",
            subsets("¦{labels: {a: b}}"),
        ),
        row(
            "subset name empty",
            "error IDT0210",
            subsets("{name: ¦\"\"}"),
        ),
        row(
            "subset name invalid",
            "error IDT0206",
            subsets("{name: ¦a_b}"),
        ),
        row(
            "subset name twice",
            "error IDT0209",
            subsets("{name: a}, {name: ¦a}"),
        ),
        row(
            "subset with a bad label key",
            "error IDT0213",
            subsets("{name: a, labels: {¦\"\": b}}"),
        ),
        row(
            "subset with a bad label value",
            "error IDT0213",
            subsets("{name: a, labels: {a: ¦b c}}"),
        ),
        row(
            "subset with an empty trafficPolicy",
            "error IDT0210",
            subsets("{name: a, trafficPolicy: ¦{}}"),
        ),
        row(
            "MUTUAL without key",
            "error IDT0405",
            tls("mode: ¦MUTUAL, clientCertificate: c"),
        ),
        row(
            "MUTUAL without certificate",
            "error IDT0405",
            tls("mode: ¦MUTUAL, privateKey: c"),
        ),
        row(
            "SIMPLE with credentialName and caCertificates",
            "error IDT0405",
            tls("mode: ¦SIMPLE, credentialName: x, caCertificates: y"),
        ),
        row(
            "SIMPLE with insecureSkipVerify and caCertificates",
            "error IDT0405, error IDT0406",
            tls("mode: ¦SIMPLE, insecureSkipVerify: ¦true, caCertificates: y"),
        ),
        row(
            "MUTUAL with insecureSkipVerify and subjectAltNames",
            "error IDT0405, error IDT0406",
            tls("mode: ¦MUTUAL, insecureSkipVerify: ¦true, subjectAltNames: [spiffe://a/b]"),
        ),
        row(
            "tunnel with proxyProtocol",
            "error IDT0408, error IDT0408",
            policy("¦tunnel: {}, ¦proxyProtocol: {}"),
        ),
        row(
            "workloadSelector with export beyond the own namespace",
            "error IDT0410",
            rule("workloadSelector: {matchLabels: {a: b}}, exportTo: ¦[other]"),
        ),
        valid(
            "workloadSelector exported to the own namespace",
            rule("workloadSelector: {matchLabels: {a: b}}, exportTo: [.]"),
        ),
        row(
            "workloadSelector: {}",
            "warning IDT0460",
            rule("workloadSelector: ¦{}"),
        ),
        row(
            "SIMPLE without caCertificates: the mode error",
            "error IDT0405",
            tls("mode: ¦SIMPLE"),
        ),
        row("no such mode", "error IDT0203", tls("mode: ¦istio_mutual")),
        row(
            "a field of tls that is none",
            "error IDT0201",
            tls("mode: DISABLE, ¦maxProtocolVersion: x"),
        ),
    ]);
}

#[test]
fn p24_short_names_are_resolved_in_the_namespace_of_the_rule() {
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
fn p28_traffic_policies_that_say_nothing_or_half() {
    check(vec![
        row(
            "trafficPolicy: {}",
            "error IDT0210",
            rule("trafficPolicy: ¦{}"),
        ),
        row(
            "portLevelSettings entry without port",
            "error IDT0204",
            policy("portLevelSettings: [¦{tls: {mode: DISABLE}}]"),
        ),
        row(
            "MUTUAL with certificate and no key",
            "error IDT0405",
            tls("mode: ¦MUTUAL, clientCertificate: c"),
        ),
    ]);
}

#[test]
fn p29_skipping_the_check_of_names_is_an_error() {
    let fields = "mode: ¦SIMPLE, insecureSkipVerify: ¦true, subjectAltNames: [spiffe://a/b]";
    check(vec![row(
        "SIMPLE",
        "error IDT0405, error IDT0406",
        tls(fields),
    )]);
}
