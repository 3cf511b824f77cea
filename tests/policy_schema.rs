//! The JSON schemas say what the loader does: the same fields, the same words, the same verdict on real documents.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use identun::policy::{
    Diagnostic, MeshSettings, SourceFile,
    load::load,
    schema::{self, KINDS, Kind},
};
use serde_json::{Map, Value, json};

/// One step from a value to one inside it.
#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Item,
}

/// Where a schema stands: the steps from the document to it.
type Steps = Vec<Step>;

#[test]
fn the_loader_knows_exactly_the_fields_of_the_schema() {
    let words = words();
    let mut tried = 0;
    for kind in KINDS {
        let root = kind.schema();
        for (path, object) in objects(&root) {
            let known = object["properties"].as_object().unwrap();
            for word in &words {
                let value = known.get(word).map_or_else(|| json!({}), smallest);
                let document = with_field(&root, &path, word, value);
                let unknown = load_json(&document).iter().any(|found| {
                    found.code == "IDT0201"
                        && found.message.contains(&format!("unknown field `{word}`"))
                });
                assert_eq!(
                    unknown,
                    !known.contains_key(word),
                    "{}: {path:?} {word}",
                    kind.name
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 3_000, "{tried}");
}

#[test]
fn the_smallest_value_of_each_field_has_the_type_that_the_loader_wants() {
    for kind in KINDS {
        let root = kind.schema();
        let mut found = errors(&smallest(&root));
        // resolution NONE, the default, needs addresses
        found.remove("IDT0410");
        assert!(found.is_empty(), "{}: {found:?}", kind.name);
        for (path, object) in objects(&root) {
            for (name, field) in object["properties"].as_object().unwrap() {
                let document = with_field(&root, &path, name, smallest(field));
                let found = errors(&document);
                // apart from fields that need or exclude one another
                let about_types = [
                    "IDT0202", "IDT0203", "IDT0205", "IDT0206", "IDT0207", "IDT0208", "IDT0213",
                ];
                let wrong: Vec<_> = found
                    .iter()
                    .filter(|code| about_types.contains(code))
                    .collect();
                assert!(
                    wrong.is_empty(),
                    "{}: {path:?} {name}: {wrong:?}",
                    kind.name
                );
                if field.get("not") == Some(&json!({})) {
                    assert!(
                        !found.is_empty(),
                        "{}: {path:?} {name} is not refused",
                        kind.name
                    );
                }
            }
        }
    }
}

#[test]
fn the_loader_takes_every_word_of_the_schema_and_no_other() {
    let mut tried = 0;
    for kind in KINDS {
        let root = kind.schema();
        for (path, object) in objects(&root) {
            for (name, field) in object["properties"].as_object().unwrap() {
                let Some(words) = field.get("enum").and_then(Value::as_array) else {
                    continue;
                };
                if path.is_empty() || !words.iter().all(Value::is_string) {
                    continue;
                }
                let unknown = |word: &Value| {
                    let document = with_field(&root, &path, name, word.clone());
                    load_json(&document)
                        .iter()
                        .any(|found| found.code == "IDT0203")
                };
                for word in words {
                    assert!(!unknown(word), "{}: {path:?} {name} {word}", kind.name);
                }
                assert!(
                    unknown(&json!("NONSENSE")),
                    "{}: {path:?} {name}",
                    kind.name
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 10, "{tried}");
}

#[test]
fn kind_and_api_version_belong_together() {
    for kind in KINDS {
        for other in KINDS {
            for version in other.api_versions {
                let mut document = smallest(&kind.schema());
                document["apiVersion"] = json!(version);
                let fits = kind.api_versions.contains(version);
                assert_eq!(
                    errors(&document).contains("IDT0302"),
                    !fits,
                    "{} {version}",
                    kind.name
                );
                assert_eq!(problems(&kind.schema(), &document).is_empty(), fits);
            }
        }
    }
}

#[test]
fn every_field_has_a_description() {
    for kind in KINDS {
        for (path, object) in objects(&kind.schema()) {
            for (name, field) in object["properties"].as_object().unwrap() {
                let text = field
                    .get("description")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                assert!(
                    text.ends_with('.'),
                    "{}: {path:?} {name}: {text}",
                    kind.name
                );
            }
        }
    }
}

#[test]
fn shipped_documents_are_valid_by_the_schema_of_their_kind_and_by_the_one_for_all() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut texts = Vec::new();
    for folder in ["policies", "example"] {
        for entry in fs::read_dir(config.join(folder)).unwrap() {
            texts.push(fs::read_to_string(entry.unwrap().path()).unwrap());
        }
    }
    let mut tried = 0;
    for text in &texts {
        for document in documents(text) {
            let kind = Kind::find(document["kind"].as_str().unwrap()).unwrap();
            assert_eq!(problems(&kind.schema(), &document), Vec::<String>::new());
            assert_eq!(problems(&schema::all(), &document), Vec::<String>::new());
            let mut wrong = document.clone();
            wrong["spec"]["nonsense"] = json!(1);
            assert_ne!(problems(&schema::all(), &wrong), Vec::<String>::new());
            tried += 1;
        }
    }
    assert!(tried >= 5, "{tried}");
}

/// Documents on which both must agree: whether they are right.
#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    let rule = |spec: &str| {
        format!(
            "{{kind: DestinationRule, apiVersion: networking.istio.io/v1, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    let peer = |spec: &str| {
        format!(
            "{{kind: PeerAuthentication, apiVersion: security.istio.io/v1, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    let call = |spec: &str| {
        format!(
            "{{kind: AuthorizationPolicy, apiVersion: security.istio.io/v1, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    let work = |spec: &str| {
        format!(
            "{{kind: WorkloadEntry, apiVersion: networking.istio.io/v1, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    for (text, right) in [
        (
            rule("{host: web, trafficPolicy: {tls: {mode: DISABLE}}}"),
            true,
        ),
        (rule("{host: web, trafficPolicy: {}}"), false),
        (rule("{trafficPolicy: {tls: {mode: DISABLE}}}"), false),
        (
            rule("{host: web, trafficPolicy: {tls: null, connectionPool: {}}}"),
            true,
        ),
        (
            rule("{host: web, trafficPolicy: {tls: {mode: disable}}}"),
            false,
        ),
        (
            rule("{host: web, trafficPolicy: {tls: {mode: SIMPLE}}}"),
            false,
        ),
        (
            rule(
                "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {}}]}}",
            ),
            true,
        ),
        (
            rule("{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 0}, tls: {}}]}}"),
            false,
        ),
        (
            rule("{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}}]}}"),
            false,
        ),
        (rule("{host: web, exportTo: ['.']}"), true),
        (rule("{host: web, exportTo: ['~']}"), false),
        (peer("null"), true),
        (peer("{mtls: null}"), true),
        (
            peer("{selector: {matchLabels: {app: web}}, portLevelMtls: {'80': {}, '90': null}}"),
            true,
        ),
        (
            peer("{selector: {matchLabels: {app: web}}, portLevelMtls: {'70000': {}}}"),
            false,
        ),
        (
            peer("{selector: {matchLabels: {app: web}}, portLevelMtls: {'080': {}}}"),
            false,
        ),
        (
            peer("{selector: {matchLabels: {app: web}}, portLevelMtls: {}}"),
            false,
        ),
        (peer("{selector: {matchLabels: {app: '*'}}}"), false),
        (call("{rules: [{}]}"), true),
        (call("{action: CUSTOM, rules: [{}]}"), false),
        (call("{rules: [{from: []}]}"), false),
        (call("{rules: [{from: [{source: {}}]}]}"), false),
        (
            call(
                "{rules: [{from: [{source: {principals: ['*']}}], to: [{operation: {ports: ['80']}}]}]}",
            ),
            true,
        ),
        (
            call("{rules: [{from: [{source: {principals: ['spiffe://a/b']}}]}]}"),
            false,
        ),
        (
            call("{rules: [{from: [{source: {principals: ['a*b']}}]}]}"),
            false,
        ),
        (call("{rules: [{to: [{operation: {ports: [80]}}]}]}"), false),
        (
            call("{rules: [{to: [{operation: {ports: ['0']}}]}]}"),
            false,
        ),
        (
            call("{rules: [{when: [{key: source.ip, values: [10.0.0.0/8]}]}]}"),
            true,
        ),
        (
            call("{rules: [{when: [{key: source.port, values: ['1']}]}]}"),
            false,
        ),
        (work("{address: 10.0.0.1, ports: {http: 8080}}"), true),
        (work("{address: web.example.com}"), false),
        (work("{address: 10.0.0.1, ports: {http: '8080'}}"), false),
        (work("{address: 10.0.0.1, weight: -1}"), false),
        (work("{}"), false),
    ] {
        let document = documents(&text).remove(0);
        let kind = Kind::find(document["kind"].as_str().unwrap()).unwrap();
        let loader = load_text(&text);
        let loads = !loader.iter().any(Diagnostic::is_error);
        assert_eq!(loads, right, "{text}: {loader:?}");
        let found = problems(&kind.schema(), &document);
        assert_eq!(found.is_empty(), right, "{text}: {found:?}");
    }
}

/// Every word in quotes in the loader's sources, and every field of the schemas: fields that some reader knows.
fn words() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/load");
    let mut words = BTreeSet::new();
    let is_field = |word: &&str| {
        word.len() > 1
            && word.chars().all(char::is_alphanumeric)
            && word.starts_with(|c: char| c.is_ascii_lowercase())
    };
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = fs::read_to_string(path).unwrap();
            words.extend(text.split('"').filter(is_field).map(ToOwned::to_owned));
        }
    }
    for kind in KINDS {
        for (_, object) in objects(&kind.schema()) {
            words.extend(object["properties"].as_object().unwrap().keys().cloned());
        }
    }
    assert!(
        words.contains("portLevelMtls") && words.len() > 100,
        "{words:?}"
    );
    // The parser answers these before any reader looks at fields.
    words.remove("items");
    words
}

/// Every map with named fields in a schema, and how a value gets there.
fn objects(root: &Value) -> Vec<(Steps, Value)> {
    fn collect(schema: &Value, path: &Steps, found: &mut Vec<(Steps, Value)>) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            found.push((path.clone(), schema.clone()));
            for (name, field) in properties {
                let step = Step::Field(name.clone());
                collect(field, &[&path[..], &[step]].concat(), found);
            }
        }
        if let Some(items) = schema.get("items") {
            collect(items, &[&path[..], &[Step::Item]].concat(), found);
        }
        if let Some(inside) = schema.get("additionalProperties") {
            let key = example(&schema["propertyNames"]);
            let step = Step::Field(key.as_str().unwrap_or("key").to_owned());
            collect(inside, &[&path[..], &[step]].concat(), found);
        }
    }
    let mut found = Vec::new();
    collect(root, &Vec::new(), &mut found);
    found
}

/// The smallest document in which the map at `path` has the field.
fn with_field(root: &Value, path: &[Step], name: &str, value: Value) -> Value {
    fn build(schema: &Value, path: &[Step], name: &str, value: &Value) -> Value {
        let mut here = smallest(schema);
        if !here.is_object() && !here.is_array() {
            here = json!({});
        }
        match path.split_first() {
            None => here[name] = value.clone(),
            Some((Step::Item, rest)) => {
                here = json!([build(&schema["items"], rest, name, value)]);
            }
            Some((Step::Field(field), rest)) => {
                let inside = schema["properties"]
                    .get(field)
                    .unwrap_or_else(|| &schema["additionalProperties"]);
                here[field] = build(inside, rest, name, value);
            }
        }
        here
    }
    build(root, path, name, &value)
}

fn example(schema: &Value) -> Value {
    schema
        .get("examples")
        .map_or(Value::Null, |examples| examples[0].clone())
}

/// A value that the schema takes.
fn smallest(schema: &Value) -> Value {
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(words) = schema.get("enum") {
        return words[0].clone();
    }
    let kind = schema["type"]
        .as_str()
        .or_else(|| schema["type"][0].as_str());
    match kind.unwrap_or_default() {
        "object" => {
            let mut fields = Map::new();
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                fields.insert(name.into(), smallest(&schema["properties"][name]));
            }
            Value::Object(fields)
        }
        "array" if schema.get("minItems").is_some() => json!([smallest(&schema["items"])]),
        "array" => json!([]),
        "boolean" => json!(false),
        "integer" => schema["minimum"].clone(),
        "string" => example(schema),
        _ => json!({}),
    }
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

fn load_text(text: &str) -> Vec<Diagnostic> {
    let file = SourceFile {
        name: "x".into(),
        text: text.into(),
    };
    load(&[Arc::new(file)], &MeshSettings::default()).1
}

fn load_json(document: &Value) -> Vec<Diagnostic> {
    load_text(&document.to_string())
}

fn errors(document: &Value) -> BTreeSet<&'static str> {
    let found = load_json(document).into_iter().filter(Diagnostic::is_error);
    found.map(|found| found.code).collect()
}

/// What a document breaks of a schema: the part of draft 2020-12 that the schemas use.
fn problems(schema: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, document, &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else {
        if schema == &json!(false) {
            found.push(format!("{value} is never valid"));
        }
        return;
    };
    for (keyword, wanted) in keywords {
        let is_right = match keyword.as_str() {
            "$ref" => {
                let target = wanted.as_str().unwrap().trim_start_matches('#');
                check(root, root.pointer(target).unwrap(), value, found);
                true
            }
            "additionalProperties" | "properties" | "propertyNames" | "items" | "allOf" => {
                inside(root, keywords, keyword, value, found);
                true
            }
            "if" => {
                let mut broken = Vec::new();
                check(root, wanted, value, &mut broken);
                if broken.is_empty() {
                    check(root, &schema["then"], value, found);
                }
                true
            }
            "not" => {
                let mut broken = Vec::new();
                check(root, wanted, value, &mut broken);
                !broken.is_empty()
            }
            keyword => simple(keyword, wanted, value),
        };
        if !is_right {
            found.push(format!("{keyword} {wanted}: {value}"));
        }
    }
}

fn inside(
    root: &Value,
    schema: &Map<String, Value>,
    keyword: &str,
    value: &Value,
    found: &mut Vec<String>,
) {
    let wanted = &schema[keyword];
    let fields = value.as_object().into_iter().flatten();
    match keyword {
        "allOf" => wanted
            .as_array()
            .unwrap()
            .iter()
            .for_each(|each| check(root, each, value, found)),
        "items" => value
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|item| check(root, wanted, item, found)),
        "propertyNames" => fields.for_each(|(name, _)| check(root, wanted, &json!(name), found)),
        "properties" => {
            for (name, field) in fields {
                if let Some(wanted) = wanted.get(name) {
                    check(root, wanted, field, found);
                }
            }
        }
        _ => {
            let known = schema.get("properties").and_then(Value::as_object);
            for (_, field) in
                fields.filter(|(name, _)| !known.is_some_and(|known| known.contains_key(*name)))
            {
                check(root, wanted, field, found);
            }
        }
    }
}

fn simple(keyword: &str, wanted: &Value, value: &Value) -> bool {
    let count = |value: usize| u64::try_from(value).unwrap();
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    };
    let text = value.as_str();
    match keyword {
        "type" if wanted.is_array() => wanted.as_array().unwrap().iter().any(is),
        "type" => is(wanted),
        "const" => value == wanted,
        "enum" => wanted.as_array().unwrap().contains(value),
        "pattern" => text.is_none_or(|text| {
            regex::Regex::new(wanted.as_str().unwrap())
                .unwrap()
                .is_match(text)
        }),
        "minLength" => {
            text.is_none_or(|text| count(text.chars().count()) >= wanted.as_u64().unwrap())
        }
        "maxLength" => {
            text.is_none_or(|text| count(text.chars().count()) <= wanted.as_u64().unwrap())
        }
        "minimum" => value
            .as_i64()
            .is_none_or(|number| number >= wanted.as_i64().unwrap()),
        "maximum" => value
            .as_i64()
            .is_none_or(|number| number <= wanted.as_i64().unwrap()),
        "minItems" => value
            .as_array()
            .is_none_or(|list| count(list.len()) >= wanted.as_u64().unwrap()),
        "maxItems" => value
            .as_array()
            .is_none_or(|list| count(list.len()) <= wanted.as_u64().unwrap()),
        "minProperties" => value
            .as_object()
            .is_none_or(|map| count(map.len()) >= wanted.as_u64().unwrap()),
        "maxProperties" => value
            .as_object()
            .is_none_or(|map| count(map.len()) <= wanted.as_u64().unwrap()),
        "required" => value.as_object().is_none_or(|map| {
            wanted
                .as_array()
                .unwrap()
                .iter()
                .all(|name| map.contains_key(name.as_str().unwrap()))
        }),
        "$schema" | "$id" | "$defs" | "title" | "description" | "examples" | "format" | "then" => {
            true
        }
        other => panic!("the checker does not know {other}"),
    }
}
