//! JSON Schema (draft 2020-12) of every kind of resource that the loader reads: for editors and for CI.
//!
//! A test compares each field with what the loader accepts, so that the two cannot drift apart.

mod authentication;
mod authorization;
mod destination_rule;
mod registry;
mod shape;

use serde_json::{Map, Value, json};

use self::shape::{any, labels, name, object, refused, text, texts_by_key, with};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A kind of resource that has a schema.
#[derive(Debug)]
pub struct Kind {
    /// Its name, as `kind` has it.
    pub name: &'static str,
    /// Every apiVersion of it.
    pub api_versions: &'static [&'static str],
    /// One sentence.
    pub summary: &'static str,
    /// The resource has a namespace.
    pub is_namespaced: bool,
    /// The resource means something without `spec`.
    spec_is_optional: bool,
    spec: fn() -> Value,
}

const NETWORKING: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const AUTHENTICATION: &[&str] = &["authentication.istio.io/v1alpha1"];

/// Every kind, by name.
pub static KINDS: &[Kind] = &[
    Kind {
        name: "AuthorizationPolicy",
        api_versions: SECURITY,
        summary: "Who may open connections to which workloads.",
        is_namespaced: true,
        spec_is_optional: true,
        spec: authorization::policy,
    },
    Kind {
        name: "DestinationRule",
        api_versions: NETWORKING,
        summary: "What clients must use towards a host: mutual TLS or plaintext, and who may answer.",
        is_namespaced: true,
        spec_is_optional: false,
        spec: destination_rule::rule,
    },
    Kind {
        name: "MeshPolicy",
        api_versions: AUTHENTICATION,
        summary: "What every server of the mesh accepts (Istio 1.1 to 1.5).",
        is_namespaced: false,
        spec_is_optional: true,
        spec: authentication::mesh_policy,
    },
    Kind {
        name: "PeerAuthentication",
        api_versions: SECURITY,
        summary: "What workloads accept: by mesh, namespace or labels, and by port.",
        is_namespaced: true,
        spec_is_optional: true,
        spec: authentication::peer_authentication,
    },
    Kind {
        name: "Policy",
        api_versions: AUTHENTICATION,
        summary: "What the servers of services or of a namespace accept (Istio 1.1 to 1.5).",
        is_namespaced: true,
        spec_is_optional: true,
        spec: authentication::policy,
    },
    Kind {
        name: "ServiceEntry",
        api_versions: NETWORKING,
        summary: "A service: its hosts, addresses, ports and endpoints.",
        is_namespaced: true,
        spec_is_optional: false,
        spec: registry::service_entry,
    },
    Kind {
        name: "WorkloadEntry",
        api_versions: NETWORKING,
        summary: "A workload: its address, its identity and the host that serves it.",
        is_namespaced: true,
        spec_is_optional: false,
        spec: registry::workload_entry,
    },
];

impl Kind {
    /// The kind of this name, whatever its capitals.
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|kind| kind.name.eq_ignore_ascii_case(name))
    }

    /// Its schema, complete in itself.
    pub fn schema(&self) -> Value {
        let mut schema = self.body();
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("$schema".into(), DRAFT.into());
            fields.insert("$id".into(), format!("urn:identun:v1:{}", self.name).into());
        }
        schema
    }

    fn body(&self) -> Value {
        let one_of = |values: &[&str]| json!({"enum": values});
        let required: &[&str] = match self.spec_is_optional {
            true => &["apiVersion", "kind", "metadata"],
            false => &["apiVersion", "kind", "metadata", "spec"],
        };
        let mut spec = (self.spec)();
        if self.spec_is_optional {
            spec = with(spec, "type", json!(["object", "null"]));
        }
        let fields = [
            (
                "apiVersion",
                described("The API and its version.", one_of(self.api_versions)),
            ),
            ("kind", described("The kind.", json!({"const": self.name}))),
            ("metadata", self.metadata()),
            ("spec", spec),
            ("status", any("What a cluster reports; ignored.")),
        ];
        with(
            object(self.summary, required, fields),
            "title",
            self.name.into(),
        )
    }

    fn metadata(&self) -> Value {
        let namespace = match self.is_namespaced {
            true => name("The namespace; absent: `default_namespace` of daemon.yaml."),
            false => refused("Holds for the whole mesh and has no namespace."),
        };
        let resource = text("The name, unique in its kind and namespace.", "default");
        let resource = with(resource, "pattern", shape::DNS_NAME.into());
        let mut fields = vec![
            ("name", with(resource, "maxLength", 253.into())),
            ("namespace", namespace),
            (
                "labels",
                labels("Labels; of a WorkloadEntry they count as its own."),
            ),
            (
                "annotations",
                texts_by_key(
                    "`identun.io/gateway` on a WorkloadEntry, `istio.io/dry-run` on an AuthorizationPolicy; others are ignored.",
                ),
            ),
            (
                "creationTimestamp",
                with(
                    text(
                        "Of two rules the older one counts; absent: older than any, then by name.",
                        "2024-01-31T12:00:00Z",
                    ),
                    "format",
                    "date-time".into(),
                ),
            ),
        ];
        for ignored in [
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
            "generateName",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
            "uid",
        ] {
            fields.push((ignored, any("Set by a cluster; ignored.")));
        }
        object("Name, namespace and labels.", &["name"], fields)
    }
}

/// One schema for a document of any kind.
pub fn all() -> Value {
    let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
    let definitions: Map<_, _> = KINDS
        .iter()
        .map(|kind| (kind.name.to_owned(), kind.body()))
        .collect();
    let choices: Vec<_> = names
        .iter()
        .map(|name| {
            json!({
                "if": {"properties": {"kind": {"const": name}}},
                "then": {"$ref": format!("#/$defs/{name}")},
            })
        })
        .collect();
    json!({
        "$schema": DRAFT,
        "$id": "urn:identun:v1:Resource",
        "title": "identun policy",
        "description": "One document of a policy file.",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {"kind": {"description": "The kind.", "enum": names}},
        "allOf": choices,
        "$defs": definitions,
    })
}

fn described(description: &str, schema: Value) -> Value {
    with(schema, "description", description.into())
}
