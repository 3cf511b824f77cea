//! Settings files: one document into a type of the caller, with the same refusals as policy files.

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use super::{
    report::Report,
    suggest::{MAX_LABEL, Quoted, did_you_mean, one_of},
    tree::{self, Mark, Node, Value},
};
use crate::policy::{
    Diagnostic, SourceFile,
    diagnostic::{Code, codes},
};

/// Parses the one YAML document of `file` into `T`. An empty file is an empty map, so that every default holds.
///
/// # Errors
/// The first thing that is wrong: what [`load`](super::load) refuses in any text, an unknown field where `T` denies them, a
/// missing field, a wrong type, a value out of range.
#[expect(
    clippy::result_large_err,
    reason = "read once at start; a diagnostic is the value that callers print"
)]
pub fn parse_settings<T: DeserializeOwned>(file: &SourceFile) -> Result<T, Diagnostic> {
    let mut report = Report::new(&file.name);
    let documents = tree::parse(&file.text, &mut report);
    if let [_, second, ..] = documents.as_slice() {
        let found = Diagnostic::new(
            &codes::ONE_DOCUMENT,
            "a settings file holds one document only",
        );
        report.add(second.mark, found.with_label("a second one begins here"));
    }
    let root = documents.first().filter(|root| !root.is_null());
    if let Some(root) = root
        && !matches!(root.value, Value::Map(_))
    {
        report.wrong_type(root, "a settings file", "a map");
    }
    if let Some(found) = report
        .into_findings()
        .into_iter()
        .find(Diagnostic::is_error)
    {
        return Err(found);
    }
    let text = if root.is_some() {
        tree::without_bom(&file.text)
    } else {
        "{}"
    };
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let mut report = Report::new(&file.name);
        let (mark, found) = explain(error.without_snippet(), root);
        report.add(mark, found);
        report
            .into_findings()
            .pop()
            .unwrap_or_else(|| Diagnostic::new(&codes::INVALID_VALUE, "invalid settings"))
    })
}

/// The error in our words, at the key or value it is about.
fn explain(error: &Error, root: Option<&Node<'_>>) -> (Mark, Diagnostic) {
    let location = error.location();
    let at = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).max(1);
    let (line, column) = location.map_or((1, 1), |location| {
        (at(location.line()), at(location.column()))
    });
    let found = root.and_then(|root| find(root, line, column));
    let mark = found.map_or(
        Mark {
            line,
            column,
            length: 1,
        },
        |(mark, _)| mark,
    );
    let written = found.and_then(|(_, text)| text).unwrap_or_default();
    (mark, describe(error, written))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the errors of a parser with dozens of kinds; the rest has one wording"
)]
fn describe(error: &Error, written: &str) -> Diagnostic {
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => unknown(&codes::UNKNOWN_FIELD, "field", field, expected),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => unknown(&codes::UNKNOWN_VALUE, "value", variant, expected),
        Error::SerdeMissingField { field, .. } => {
            Diagnostic::new(&codes::MISSING_FIELD, format!("missing field `{field}`"))
                .with_label(format!("expected `{field}`"))
        }
        Error::InvalidScalar { ty, .. } => scalar(ty, written),
        Error::SerdeInvalidType {
            unexpected,
            expected,
            ..
        } => wrong_type(written, unexpected, in_words(expected)),
        Error::SerdeInvalidValue {
            unexpected,
            expected,
            ..
        } => Diagnostic::new(
            &codes::INVALID_VALUE,
            format!("{unexpected} is not allowed"),
        )
        .with_label(format!("expected {}", in_words(expected))),
        Error::Unexpected { expected, .. } => wrong_type(written, "a map or list", shape(expected)),
        Error::NullIntoString { .. } => wrong_type("", "null", "text"),
        Error::InvalidBooleanStrict { .. } => {
            wrong_type(written, "something else", "true or false")
        }
        Error::Message { msg, .. } => Diagnostic::new(&codes::INVALID_VALUE, msg.clone()),
        other => Diagnostic::new(&codes::WRONG_TYPE, without_place(&other.to_string())),
    }
}

fn unknown(code: &'static Code, what: &str, text: &str, expected: &[&str]) -> Diagnostic {
    let mut found = Diagnostic::new(code, format!("unknown {what} {}", Quoted(text)));
    let label = format!("expected {}", one_of(expected));
    found.label = Some(label).filter(|label| label.len() <= MAX_LABEL);
    found.help = did_you_mean(text, expected);
    found
}

/// What the parser's words for a shape mean.
fn shape(expected: &str) -> &'static str {
    match expected {
        "sequence start" => "a list",
        "mapping start" => "a map",
        _ => "one value",
    }
}

/// What serde expected, without the names of Rust's types.
fn in_words(expected: &str) -> &str {
    match expected {
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "a nonzero u8" => "1 to 255",
        "a nonzero u16" => "1 to 65535",
        "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => "1 or more",
        other => other,
    }
}

/// A scalar that is not of the Rust type `ty`.
fn scalar(ty: &str, written: &str) -> Diagnostic {
    let range = match ty {
        "u8" => Some("0 to 255"),
        "u16" => Some("0 to 65535"),
        "u32" => Some("0 to 4294967295"),
        "i32" => Some("-2147483648 to 2147483647"),
        _ => None,
    };
    let is_whole = written
        .strip_prefix(['-', '+'])
        .unwrap_or(written)
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    let has_leading_zero = written.starts_with('0') && written.len() > 1;
    let is_integer = ty.starts_with(['u', 'i']) || ty.contains("integer");
    if is_integer && is_whole && !written.is_empty() && !has_leading_zero {
        let message = format!("the number {} is out of range", Quoted(written));
        return Diagnostic::new(&codes::OUT_OF_RANGE, message).with_label(format!(
            "expected {}",
            range.unwrap_or("a number that is not negative and not so large")
        ));
    }
    let expected = match ty {
        _ if is_integer && has_leading_zero => "a whole number without a leading zero",
        _ if is_integer => "a whole number",
        "bool" | "boolean" => "true or false",
        _ if ty.starts_with('f') => "a number",
        _ => ty,
    };
    wrong_type(written, "null", expected)
}

fn wrong_type(written: &str, unexpected: &str, expected: &str) -> Diagnostic {
    let message = format!(
        "expected {expected}, not {}",
        quoted_or(written, unexpected)
    );
    Diagnostic::new(&codes::WRONG_TYPE, message).with_label(format!("expected {expected}"))
}

fn quoted_or(written: &str, otherwise: &str) -> String {
    if written.is_empty() {
        otherwise.into()
    } else {
        Quoted(written).to_string()
    }
}

/// The key or value that begins at a place, and its text where it is a scalar.
fn find<'t>(node: &'t Node<'_>, line: u32, column: u32) -> Option<(Mark, Option<&'t str>)> {
    let is_here = |mark: Mark| mark.line == line && mark.column == column;
    match &node.value {
        Value::Map(entries) => entries.iter().find_map(|entry| {
            if is_here(entry.key_mark) {
                return Some((entry.key_mark, Some(entry.key.as_ref())));
            }
            find(&entry.node, line, column)
        }),
        Value::Seq(nodes) => nodes.iter().find_map(|node| find(node, line, column)),
        Value::Plain(text) | Value::Quoted(text) => {
            is_here(node.mark).then_some((node.mark, Some(text.as_ref())))
        }
        Value::Null => is_here(node.mark).then_some((node.mark, None)),
    }
}

/// The first line of a message, without the place that stands at its end.
fn without_place(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(" at line ")
        .map_or(line, |(message, _)| message)
        .into()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde::Deserialize;

    use super::*;
    use crate::spiffe::TrustDomain;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        port: u16,
        queue: u64,
        limit: Option<std::num::NonZeroU16>,
        enabled: bool,
        name: String,
        trust_domain: Option<TrustDomain>,
        addresses: Vec<IpAddr>,
        inner: Option<Inner>,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        path: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "UPPERCASE")]
    enum Mode {
        Strict,
        Permissive,
    }

    fn parse(text: &str) -> Result<Settings, Box<Diagnostic>> {
        let file = SourceFile {
            name: "daemon.yaml".into(),
            text: text.into(),
        };
        parse_settings(&file).map_err(Box::new)
    }

    #[test]
    fn every_field_is_read_and_an_empty_file_is_all_defaults() {
        let text = "port: 80\nqueue: 7\nenabled: true\nname: a\ntrust_domain: td\naddresses: [10.0.0.1, ::1]\n\
                    inner: {path: /x}\nmode: STRICT\n";
        let settings = parse(text).unwrap();
        assert_eq!(
            (settings.port, settings.queue, settings.enabled),
            (80, 7, true)
        );
        assert_eq!(settings.name, "a");
        assert_eq!(settings.trust_domain.unwrap().as_str(), "td");
        assert_eq!(settings.addresses.len(), 2);
        assert_eq!(settings.inner.unwrap().path, "/x");
        assert!(matches!(settings.mode, Some(Mode::Strict)));
        assert!(matches!(
            parse("mode: PERMISSIVE").unwrap().mode,
            Some(Mode::Permissive)
        ));
        for empty in ["", "# nothing\n", "---\n", "{}", "\u{feff}"] {
            assert_eq!(parse(empty).unwrap().port, 0, "{empty:?}");
        }
    }

    #[test]
    fn every_fault_has_its_place_code_and_words() {
        for (text, place, code, words) in [
            ("a: 1\nprot: 2", "1:1", "IDT0201", "unknown field `a`"),
            ("# c\n\u{e9}: 2", "2:1", "IDT0201", "unknown field `\u{e9}`"),
            ("\u{feff}prt: 2", "1:1", "IDT0201", "unknown field `prt`"),
            (
                "port: 70000",
                "1:7",
                "IDT0205",
                "the number `70000` is out of range",
            ),
            (
                "port: -1",
                "1:7",
                "IDT0205",
                "the number `-1` is out of range",
            ),
            (
                "port: 8o",
                "1:7",
                "IDT0202",
                "expected a whole number, not `8o`",
            ),
            (
                "port: [1]",
                "1:7",
                "IDT0202",
                "expected one value, not a map or list",
            ),
            (
                "port: ~",
                "1:7",
                "IDT0202",
                "expected a whole number, not null",
            ),
            (
                "queue: 010",
                "1:8",
                "IDT0202",
                "expected a whole number without a leading zero, not `010`",
            ),
            ("limit: 0", "1:1", "IDT0214", "integer `0` is not allowed"),
            ("queue: -5", "1:8", "IDT0205", "out of range"),
            (
                "name: x\r\nenabled: yes\r\n",
                "2:10",
                "IDT0202",
                "expected true or false, not `yes`",
            ),
            ("name: null", "1:7", "IDT0202", "expected text, not null"),
            (
                "trust_domain: A_B",
                "1:15",
                "IDT0214",
                "the trust domain has the character 'A'",
            ),
            (
                "addresses: 10.0.0.1",
                "1:12",
                "IDT0202",
                "expected a list, not `10.0.0.1`",
            ),
            (
                "addresses: [10.0.0.1, 10.0.0]",
                "1:23",
                "IDT0214",
                "IP address",
            ),
            ("inner: {}", "1:8", "IDT0204", "missing field `path`"),
            (
                "inner:\n  path: x\n  pth: y",
                "3:3",
                "IDT0201",
                "unknown field `pth`",
            ),
            ("mode: Strict", "1:7", "IDT0203", "unknown value `Strict`"),
            (
                "- a",
                "1:1",
                "IDT0202",
                "a settings file must be a map, not a list",
            ),
            ("port: 1\n---\nport: 2", "3:1", "IDT0112", "one document"),
            (
                "port: 1\nport: 2",
                "2:1",
                "IDT0102",
                "the key `port` stands twice",
            ),
            ("port: &a 1", "1:7", "IDT0103", "anchor `&a`"),
            ("port: !!int 1", "1:7", "IDT0104", "tag `!!int`"),
            ("port: \"1", "1:7", "IDT0101", "not valid YAML"),
        ] {
            let found = parse(text).expect_err(text);
            let at = found
                .place
                .as_ref()
                .map(|place| format!("{}:{}", place.line, place.column));
            assert_eq!(
                (at.as_deref(), found.code),
                (Some(place), code),
                "{text:?}: {found:?}"
            );
            assert!(found.message.contains(words), "{text:?}: {}", found.message);
        }
    }

    #[test]
    fn a_slip_gets_a_suggestion() {
        assert_eq!(
            parse("prot: 1").unwrap_err().help.as_deref(),
            Some("did you mean `port`?")
        );
        assert_eq!(
            parse("mode: strict").unwrap_err().help.as_deref(),
            Some("did you mean `STRICT`?")
        );
    }
}
