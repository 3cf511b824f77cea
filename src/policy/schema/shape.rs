//! The shapes that schemas are made of. Each has a description, and a value that a test may try.

use serde_json::{Map, Value, json};

/// A label of RFC 1123.
pub(super) const DNS_LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// Such labels joined by dots.
pub(super) const DNS_NAME: &str =
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";
/// A label's key: `name` or `domain/name`.
const LABEL_KEY: &str =
    "^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$";
/// A port as text, 1 to 65535.
pub(super) const PORT_TEXT: &str =
    "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// `schema` with one more keyword.
pub(super) fn with(mut schema: Value, keyword: &str, value: Value) -> Value {
    if let Some(keywords) = schema.as_object_mut() {
        keywords.insert(keyword.into(), value);
    }
    schema
}

/// A map with exactly these fields.
pub(super) fn object(
    description: &str,
    required: &[&str],
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> Value {
    let properties: Map<_, _> = fields
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    json!({
        "description": description,
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": false,
    })
}

/// A list of items of one shape.
pub(super) fn list(description: &str, items: Value) -> Value {
    json!({"description": description, "type": "array", "items": items})
}

/// A list that says something, if it is there.
pub(super) fn filled(description: &str, items: Value) -> Value {
    with(list(description, items), "minItems", 1.into())
}

/// Text that says something.
pub(super) fn text(description: &str, example: &str) -> Value {
    json!({"description": description, "type": "string", "minLength": 1, "examples": [example]})
}

/// Text of a pattern.
pub(super) fn matching(description: &str, pattern: &str, example: &str) -> Value {
    with(text(description, example), "pattern", pattern.into())
}

/// A label of RFC 1123.
pub(super) fn name(description: &str) -> Value {
    matching(description, DNS_LABEL, "web")
}

/// One of several words.
pub(super) fn choice(description: &str, words: &[&str]) -> Value {
    json!({"description": description, "enum": words})
}

/// True or false.
pub(super) fn boolean(description: &str) -> Value {
    json!({"description": description, "type": "boolean"})
}

/// A port number.
pub(super) fn port(description: &str) -> Value {
    json!({"description": description, "type": "integer", "minimum": 1, "maximum": 65_535})
}

/// An IP address or network.
pub(super) fn network(description: &str) -> Value {
    matching(description, "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$", "10.0.0.0/24")
}

/// Anything.
pub(super) fn any(description: &str) -> Value {
    json!({ "description": description })
}

/// A field that exists in Istio and is an error here.
pub(super) fn refused(description: &str) -> Value {
    json!({"description": format!("Refused. {description}"), "not": {}})
}

/// Labels of Kubernetes.
pub(super) fn labels(description: &str) -> Value {
    json!({
        "description": description,
        "type": "object",
        "propertyNames": {"pattern": LABEL_KEY},
        "additionalProperties": {"type": "string", "pattern": LABEL_VALUE, "examples": ["web"]},
    })
}

/// Any text by any key.
pub(super) fn texts_by_key(description: &str) -> Value {
    json!({
        "description": description,
        "type": "object",
        "additionalProperties": {"type": "string", "examples": ["web"]},
    })
}

/// `selector` of security.istio.io, and `workloadSelector` of a DestinationRule.
pub(super) fn selector(description: &str) -> Value {
    let labels = labels("Labels that a workload must have, each with exactly this value.");
    object(description, &[], [("matchLabels", labels)])
}

/// `exportTo`.
pub(super) fn export_to(description: &str, nobody: bool) -> Value {
    let pattern = match nobody {
        true => "^([.*~]|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$",
        false => "^([.*]|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$",
    };
    list(
        description,
        matching("`.`, `*` or a namespace.", pattern, "."),
    )
}

/// `subjectAltNames`.
pub(super) fn subject_alt_names(description: &str) -> Value {
    list(
        description,
        text("A SPIFFE ID.", "spiffe://cluster.local/ns/default/sa/web"),
    )
}
