//! ServiceEntry and WorkloadEntry.

use serde_json::{Value, json};

use super::shape::{
    DNS_LABEL, choice, export_to, filled, labels, list, matching, name, network, object, port,
    subject_alt_names, text, with,
};

pub(super) fn workload_entry() -> Value {
    endpoint(
        "A workload.",
        "The namespace's account that runs it: with it the workload has an identity and is in the mesh.",
    )
}

pub(super) fn service_entry() -> Value {
    let host = with(
        text("A DNS name, lower case, or `*.domain`.", "web.example.com"),
        "maxLength",
        255.into(),
    );
    let selector = object(
        "WorkloadEntries of the same namespace; not together with `endpoints`.",
        &[],
        [("labels", labels("Labels that they must have."))],
    );
    let endpoint = endpoint(
        "A workload of this service.",
        "The account of the ServiceEntry's namespace that runs it.",
    );
    object(
        "A service.",
        &["hosts"],
        [
            (
                "hosts",
                filled("Its names; each is a service of its own.", host),
            ),
            (
                "addresses",
                list(
                    "Its own addresses and networks; they are not translated.",
                    network("An address or network."),
                ),
            ),
            ("ports", list("Its ports.", service_port())),
            (
                "location",
                choice(
                    "MESH_INTERNAL takes part in `auto_mtls`; absent: MESH_EXTERNAL, which does not.",
                    &["MESH_INTERNAL", "MESH_EXTERNAL"],
                ),
            ),
            (
                "resolution",
                choice(
                    "STATIC: to the endpoints. NONE: to the address itself; absent: NONE. DNS is refused.",
                    &["STATIC", "NONE"],
                ),
            ),
            ("endpoints", list("Its workloads; not with NONE.", endpoint)),
            ("workloadSelector", selector),
            (
                "exportTo",
                export_to(
                    "Namespaces whose clients see it; `~`: nobody; empty: all.",
                    true,
                ),
            ),
            (
                "subjectAltNames",
                subject_alt_names("Further identities that may answer."),
            ),
        ],
    )
}

fn service_port() -> Value {
    let words = [
        "HTTP",
        "HTTP2",
        "HTTP_PROXY",
        "GRPC",
        "GRPC-WEB",
        "HTTPS",
        "TLS",
        "TCP",
        "UDP",
        "MONGO",
        "MYSQL",
        "REDIS",
        "http",
        "http2",
        "http_proxy",
        "grpc",
        "grpc-web",
        "https",
        "tls",
        "tcp",
        "udp",
        "mongo",
        "mysql",
        "redis",
        "",
    ];
    let protocol = choice("Only for information.", &words);
    object(
        "A port.",
        &["number", "name"],
        [
            ("number", port("The number that clients use.")),
            ("name", name("Its name, unique in the service.")),
            ("protocol", protocol),
            (
                "targetPort",
                port("The endpoints' port, where it is another one."),
            ),
        ],
    )
}

fn endpoint(description: &str, account: &str) -> Value {
    let address = matching(
        "Its IP address; names are not resolved.",
        "^[0-9A-Fa-f:.]+$",
        "10.0.0.2",
    );
    let ports = json!({
        "description": "Its own port by the name of the service port, where it is another one.",
        "type": "object",
        "propertyNames": {"pattern": DNS_LABEL},
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 65_535},
    });
    let unused = |example| with(text("Accepted, not used.", example), "minLength", 0.into());
    let weight = json!({"description": "Accepted, not used.", "type": "integer", "minimum": 0});
    let account = with(text(account, "web"), "minLength", 0.into());
    object(
        description,
        &["address"],
        [
            ("address", address),
            ("ports", ports),
            (
                "labels",
                labels(
                    "Its labels; `security.istio.io/tlsMode` other than `istio`: not in the mesh.",
                ),
            ),
            ("network", unused("net")),
            ("locality", unused("region/zone")),
            ("weight", weight),
            ("serviceAccount", account),
        ],
    )
}
