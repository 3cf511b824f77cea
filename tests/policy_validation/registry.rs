//! Section 4: ServiceEntry and WorkloadEntry.

use crate::{check, networking, row, valid};

fn service(fields: &str) -> String {
    networking("ServiceEntry", fields)
}

/// A service with a host and an address.
fn hosted(fields: &str) -> String {
    service(&format!(
        "hosts: [a.example], addresses: [10.0.0.1], {fields}"
    ))
}

fn hosts(list: &str) -> String {
    service(&format!("hosts: {list}, addresses: [10.0.0.1]"))
}

fn addresses(list: &str) -> String {
    service(&format!("hosts: [a.example], addresses: {list}"))
}

fn ports(list: &str) -> String {
    hosted(&format!("ports: [{list}]"))
}

fn endpoint(fields: &str) -> String {
    hosted(&format!(
        "resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{{fields}}}]"
    ))
}

fn workload(fields: &str) -> String {
    networking("WorkloadEntry", fields)
}

#[test]
fn section_4_1_resolutions() {
    check(vec![
        valid("NONE with addresses", hosted("resolution: NONE")),
        valid("NONE is the default", hosted("location: MESH_INTERNAL")),
        valid("STATIC", hosted("resolution: STATIC")),
        row("DNS: error", "error IDT0409", hosted("resolution: ¦DNS")),
        row(
            "DNS_ROUND_ROBIN: error",
            "error IDT0409",
            hosted("resolution: ¦DNS_ROUND_ROBIN"),
        ),
        row(
            "DYNAMIC_DNS: error",
            "error IDT0409",
            hosted("resolution: ¦DYNAMIC_DNS"),
        ),
        row(
            "NONE and no addresses: error",
            "error IDT0410",
            service("hosts: [a.b], resolution: ¦NONE"),
        ),
        row(
            "NONE by default and no addresses: error",
            "error IDT0410",
            service("hosts: [a.b]").replace("{hosts", "¦{hosts"),
        ),
        row(
            "an endpoint without address: error",
            "error IDT0204",
            endpoint("network: x").replace("[{network", "[¦{network"),
        ),
        row(
            "no such location",
            "error IDT0203",
            hosted("location: ¦INTERNAL"),
        ),
    ]);
}

#[test]
fn section_4_2_workloads() {
    check(vec![
        valid("an address", workload("address: 10.0.0.1")),
        row(
            "only IPs: a name",
            "error IDT0208",
            workload("address: ¦a.example"),
        ),
        row(
            "only IPs: a unix path",
            "error IDT0208",
            workload("address: ¦unix:///run/x"),
        ),
        valid(
            "weight 0 counts as 1",
            workload("address: 10.0.0.1, weight: 0"),
        ),
        valid(
            "network and locality are of no use here",
            workload("address: 10.0.0.1, network: n, locality: a/b"),
        ),
    ]);
}

#[test]
fn section_4_5_hosts_and_addresses() {
    check(vec![
        row(
            "no hosts",
            "error IDT0204",
            service("addresses: [10.0.0.1]").replace("{addresses", "¦{addresses"),
        ),
        row("an empty list of hosts", "error IDT0210", hosts("¦[]")),
        row("host `*`", "error IDT0207", hosts("[¦\"*\"]")),
        row("invalid host", "error IDT0207", hosts("[¦a_b]")),
        row("the same host twice", "error IDT0209", hosts("[a.b, ¦A.b]")),
        row(
            "partial wildcard (warning)",
            "warning IDT0459",
            hosts("[¦\"*foo.com\"]"),
        ),
        valid("wildcard", hosts("[\"*.foo.com\"]")),
        row("bad IP", "error IDT0208", addresses("[¦10.0.0.256]")),
        row("bad CIDR", "error IDT0208", addresses("[¦10.0.0.0/33]")),
        row(
            "a mask is no CIDR",
            "error IDT0208",
            addresses("[¦10.0.0.0/255.0.0.0]"),
        ),
        row(
            "CIDR with DNS",
            "error IDT0409",
            service("hosts: [a.b], addresses: [10.0.0.0/8], resolution: ¦DNS"),
        ),
        valid("CIDR with NONE", addresses("[10.0.0.0/8]")),
        valid(
            "CIDR with STATIC",
            service("hosts: [a.b], addresses: [10.0.0.0/8], resolution: STATIC"),
        ),
        valid(
            "no addresses with STATIC",
            service("hosts: [a.b], resolution: STATIC"),
        ),
        row(
            "no addresses with NONE",
            "error IDT0410",
            service("hosts: [a.b], addresses: [], resolution: ¦NONE"),
        ),
    ]);
}

#[test]
fn section_4_5_ports() {
    check(vec![
        row(
            "duplicate number",
            "error IDT0209",
            ports("{number: 80, name: a}, {number: ¦80, name: b}"),
        ),
        row(
            "duplicate name",
            "error IDT0209",
            ports("{number: 80, name: a}, {number: 81, name: ¦a}"),
        ),
        row("number 0", "error IDT0205", ports("{number: ¦0, name: a}")),
        row(
            "number 65536",
            "error IDT0205",
            ports("{number: ¦65536, name: a}"),
        ),
        row(
            "targetPort 0",
            "error IDT0205",
            ports("{number: 80, name: a, targetPort: ¦0}"),
        ),
        row(
            "targetPort 65536",
            "error IDT0205",
            ports("{number: 80, name: a, targetPort: ¦65536}"),
        ),
        row("bad name", "error IDT0206", ports("{number: 80, name: ¦A}")),
        row("no name", "error IDT0204", ports("¦{number: 80}")),
        row("no number", "error IDT0204", ports("¦{name: a}")),
        row(
            "bad protocol",
            "error IDT0203",
            ports("{number: 80, name: a, protocol: ¦HTTPX}"),
        ),
        valid(
            "protocols of any case",
            ports("{number: 80, name: a, protocol: grpc-web}"),
        ),
        row(
            "more than one host with a non-HTTP, non-TLS port",
            "error IDT0410",
            service(
                "¦hosts: [a.b, c.d], resolution: STATIC, ports: [{number: 80, name: a, protocol: TCP}]",
            ),
        ),
        row(
            "more than one host with a port without protocol",
            "error IDT0410",
            service("¦hosts: [a.b, c.d], resolution: STATIC, ports: [{number: 80, name: a}]"),
        ),
        valid(
            "more than one host with HTTP",
            service(
                "hosts: [a.b, c.d], resolution: STATIC, ports: [{number: 80, name: a, protocol: HTTP}]",
            ),
        ),
        valid(
            "unless NONE",
            service(
                "hosts: [a.b, c.d], addresses: [10.0.0.1], ports: [{number: 80, name: a, protocol: TCP}]",
            ),
        ),
    ]);
}

#[test]
fn section_4_5_endpoints() {
    let selector = "workloadSelector: {labels: {a: b}}";
    check(vec![
        row(
            "workloadSelector together with endpoints",
            "error IDT0410",
            hosted(&format!(
                "resolution: STATIC, {selector}, ¦endpoints: [{{address: 10.0.0.2}}]"
            )),
        ),
        row(
            "workloadSelector with NONE (warning)",
            "warning IDT0457",
            hosted(&format!("¦{selector}")),
        ),
        row(
            "selector without labels (warning)",
            "warning IDT0460",
            hosted("resolution: STATIC, workloadSelector: ¦{}"),
        ),
        row(
            "`*` in selector",
            "error IDT0213",
            hosted("resolution: STATIC, workloadSelector: {labels: {a: ¦\"*\"}}"),
        ),
        row(
            "empty key in selector",
            "error IDT0213",
            hosted("resolution: STATIC, workloadSelector: {labels: {¦\"\": a}}"),
        ),
        row(
            "NONE with endpoints",
            "error IDT0410",
            hosted("¦endpoints: [{address: 10.0.0.2}]"),
        ),
        row(
            "DNS without endpoints",
            "error IDT0409",
            service("hosts: [\"*.a.b\"], resolution: ¦DNS"),
        ),
        row(
            "DNS_ROUND_ROBIN with more than 1 endpoint",
            "error IDT0409",
            service(
                "hosts: [a.b], resolution: ¦DNS_ROUND_ROBIN, endpoints: [{address: 10.0.0.2}, {address: 10.0.0.3}]",
            ),
        ),
        row(
            "STATIC endpoint address not an IP",
            "error IDT0208",
            endpoint("address: ¦a.example"),
        ),
        row(
            "endpoint port name not among the entry's ports",
            "error IDT0411",
            endpoint("address: 10.0.0.2, ports: {¦htp: 81}"),
        ),
        row(
            "endpoint port out of range",
            "error IDT0205",
            endpoint("address: 10.0.0.2, ports: {http: ¦0}"),
        ),
    ]);
}

#[test]
fn section_4_5_export_to() {
    let export = |list: &str| hosted(&format!("exportTo: {list}"));
    check(vec![
        valid("`~` is nobody", export("[\"~\"]")),
        row("duplicates", "error IDT0209", export("[a, ¦a]")),
        row("`~` with others", "error IDT0211", export("¦[\"~\", a]")),
        row("`*` with others", "error IDT0211", export("¦[\"*\", a]")),
        row("a bad name", "error IDT0206", export("[¦A]")),
    ]);
}

#[test]
fn section_4_5_workload_entries() {
    check(vec![
        row(
            "address required",
            "error IDT0204",
            workload("").replace("{}", "¦{}"),
        ),
        row("address empty", "error IDT0210", workload("address: ¦\"\"")),
        row(
            "address required, even with network",
            "error IDT0204",
            workload("network: x").replace("{network", "¦{network"),
        ),
        row(
            "port range",
            "error IDT0205",
            workload("address: 10.0.0.1, ports: {http: ¦65536}"),
        ),
        row(
            "port name",
            "error IDT0206",
            workload("address: 10.0.0.1, ports: {¦Http: 80}"),
        ),
        row(
            "unix path",
            "error IDT0208",
            workload("address: ¦\"unix:@abstract\", ports: {http: 80}"),
        ),
        row(
            "service account",
            "error IDT0206",
            workload("address: 10.0.0.1, serviceAccount: ¦a/b"),
        ),
        row(
            "labels",
            "error IDT0213",
            workload("address: 10.0.0.1, labels: {a: ¦\"*\"}"),
        ),
        row(
            "weight",
            "error IDT0205",
            workload("address: 10.0.0.1, weight: ¦-1"),
        ),
    ]);
}
