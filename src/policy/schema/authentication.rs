//! MeshPolicy, Policy and PeerAuthentication.

use serde_json::{Value, json};

use super::shape::{PORT_TEXT, boolean, choice, list, name, object, port, refused, selector, with};

const END_USER: &str = "Packets do not show end users.";

pub(super) fn mesh_policy() -> Value {
    let targets = list("Empty: a MeshPolicy holds for every service.", json!(true));
    let targets = with(targets, "maxItems", 0.into());
    spec(targets)
}

pub(super) fn policy() -> Value {
    let port = object(
        "A service port, by number or by name.",
        &[],
        [
            ("number", port("Its number in the service.")),
            ("name", name("Its name in the service.")),
        ],
    );
    let port = with(port, "minProperties", 1.into());
    let port = with(port, "maxProperties", 1.into());
    let target = object(
        "A service of the Policy's own namespace.",
        &["name"],
        [
            ("name", name("Its short name.")),
            ("labels", refused("Istio never implemented it.")),
            ("ports", list("Service ports; empty: all.", port)),
        ],
    );
    spec(list(
        "The services; empty: the whole namespace, and the name is `default`.",
        target,
    ))
}

fn spec(targets: Value) -> Value {
    let mtls = object(
        "Mutual TLS; null or empty: STRICT.",
        &[],
        [
            (
                "mode",
                choice(
                    "STRICT refuses plaintext, PERMISSIVE takes both; absent: STRICT.",
                    &["STRICT", "PERMISSIVE"],
                ),
            ),
            ("allowTls", boolean("Ignored: it does not weaken the mode.")),
        ],
    );
    let mtls = with(mtls, "type", json!(["object", "null"]));
    let peer = object(
        "One method.",
        &["mtls"],
        [("mtls", mtls), ("jwt", refused(END_USER))],
    );
    let origins = with(list(END_USER, json!(true)), "maxItems", 0.into());
    object(
        "What the servers accept.",
        &[],
        [
            ("targets", targets),
            (
                "peers",
                list("The first mtls entry decides; none: plaintext only.", peer),
            ),
            (
                "peerIsOptional",
                boolean("Ignored: it does not weaken the mode."),
            ),
            ("origins", origins),
            ("originIsOptional", boolean("Ignored.")),
            (
                "principalBinding",
                choice("Ignored.", &["USE_PEER", "USE_ORIGIN"]),
            ),
        ],
    )
}

pub(super) fn peer_authentication() -> Value {
    let mode = |description: &str| {
        let mode = choice(
            "UNSET inherits; DISABLE takes plaintext only, PERMISSIVE both, STRICT mutual TLS only.",
            &["UNSET", "DISABLE", "PERMISSIVE", "STRICT"],
        );
        let block = object(description, &[], [("mode", mode)]);
        with(block, "type", json!(["object", "null"]))
    };
    let ports = json!({
        "description": "Modes of single ports of the workloads; only with a selector.",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": PORT_TEXT, "examples": ["8080"]},
        "additionalProperties": mode("The mode of this port; UNSET: that of the workload."),
    });
    object(
        "What the workloads accept.",
        &[],
        [
            (
                "selector",
                selector(
                    "The workloads; absent: the whole namespace, or the mesh in the root namespace.",
                ),
            ),
            ("mtls", mode("The mode; absent: inherited.")),
            ("portLevelMtls", ports),
        ],
    )
}
