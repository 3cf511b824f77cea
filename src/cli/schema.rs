//! `identun schema`: the fields of each kind for people, and as JSON Schema for editors and CI.

use std::io::Write;

use serde_json::{Value, json};

use crate::{
    cli::{Exit, Failure, Format, table::wrap},
    daemon::status::API_VERSION,
    policy::schema::{self, KINDS, Kind},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun schema                                     the kinds
  identun schema PeerAuthentication                  its fields
  identun schema --all > policy.schema.json          for an editor")]
pub(super) struct Arguments {
    /// The kind; capitals do not matter
    kind: Option<String>,
    /// One JSON Schema for documents of every kind
    #[arg(long, conflicts_with = "kind")]
    all: bool,
    /// Output format; json is the JSON Schema (draft 2020-12)
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    if arguments.all {
        writeln!(out, "{:#}", schema::all())?;
        return Ok(Exit::Ok);
    }
    let Some(name) = &arguments.kind else {
        list(arguments.output, out)?;
        return Ok(Exit::Ok);
    };
    let Some(kind) = Kind::find(name) else {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        let help = format!("known are {}", known.join(", "));
        return Err(Failure::new(Exit::Usage, format!("there is no kind `{name}`"), help).into());
    };
    match arguments.output {
        Format::Table => describe(kind, out)?,
        Format::Json => writeln!(out, "{:#}", kind.schema())?,
    }
    Ok(Exit::Ok)
}

fn list(format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    match format {
        Format::Table => {
            for kind in KINDS {
                writeln!(out, "{}", kind.name)?;
                let versions = kind.api_versions.join(" ");
                writeln!(out, "    {}", wrap(&versions, 4))?;
                writeln!(out, "    {}", wrap(kind.summary, 4))?;
            }
        }
        Format::Json => {
            let kinds: Vec<_> = KINDS
                .iter()
                .map(|kind| {
                    json!({
                        "kind": kind.name,
                        "apiVersions": kind.api_versions,
                        "namespaced": kind.is_namespaced,
                        "summary": kind.summary,
                    })
                })
                .collect();
            let value = json!({"apiVersion": API_VERSION, "kind": "KindList", "kinds": kinds});
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(())
}

fn describe(kind: &Kind, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{:12}{}", "kind", kind.name)?;
    writeln!(
        out,
        "{:12}{}",
        "apiVersion",
        wrap(&kind.api_versions.join(" "), 12)
    )?;
    writeln!(out, "{}\n", wrap(kind.summary, 0))?;
    let schema = kind.schema();
    let spec = schema.pointer("/properties/spec").unwrap_or(&Value::Null);
    writeln!(out, "spec")?;
    fields(spec, 2, out)?;
    writeln!(
        out,
        "\n* must be there. metadata has name, namespace, labels, annotations and\ncreationTimestamp; `-o json` has everything."
    )
}

/// Every field of an object, with those inside it below.
fn fields(schema: &Value, indent: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| {
        required.is_some_and(|names| names.iter().any(|known| known.as_str() == Some(name)))
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, field) in properties.into_iter().flatten() {
        let star = if is_required(name) { "*" } else { "" };
        let head = format!("{name}{star} <{}>", type_of(field));
        writeln!(out, "{:indent$}{}", "", wrap(&head, indent + 4))?;
        let deeper = indent + 4;
        if let Some(text) = field.get("description").and_then(Value::as_str) {
            writeln!(out, "{:deeper$}{}", "", wrap(text, deeper))?;
        }
        for inside in [Some(field), field.get("items"), additional(field)] {
            fields(inside.unwrap_or(&Value::Null), deeper, out)?;
        }
    }
    Ok(())
}

fn additional(field: &Value) -> Option<&Value> {
    field
        .get("additionalProperties")
        .filter(|inside| inside.is_object())
}

/// The field's type in a word, or the words that it may be.
fn type_of(field: &Value) -> String {
    if field.get("not") == Some(&json!({})) {
        return "refused".into();
    }
    if let Some(words) = field.get("enum").and_then(Value::as_array) {
        let words = words
            .iter()
            .map(|word| word.as_str().map_or_else(|| word.to_string(), Into::into));
        let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        return words.join(" | ");
    }
    let kind = field.get("type");
    let kind = kind.and_then(|kind| kind.as_str().or_else(|| kind.get(0)?.as_str()));
    match (kind, field.get("items"), additional(field)) {
        (Some("array"), Some(items), _) => format!("list of {}", type_of(items)),
        (Some("object"), _, Some(inside)) => format!("map of {}", type_of(inside)),
        (Some("object"), ..) => "map".into(),
        (Some("string"), ..) => "text".into(),
        (Some("integer"), ..) => "number".into(),
        (Some("boolean"), ..) => "true | false".into(),
        (Some(other), ..) => other.into(),
        (None, ..) => "any".into(),
    }
}
