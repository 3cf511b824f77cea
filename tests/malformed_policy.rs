//! Malformed policy files: each gives one error with its exact place, code and words, and a twin that differs only in the marked part
//! loads without an error.
//!
//! A case is written `«wrong|right»`. The error is expected at `«`, or at `¦` where that stands elsewhere.

#[path = "malformed_policy/cases.rs"]
mod cases;
#[path = "malformed_policy/security.rs"]
mod security;

use std::{collections::BTreeSet, sync::Arc};

use identun::{
    policy::{
        Diagnostic, MeshSettings, Resources, Severity, SourceFile,
        diagnostic::codes,
        load::{load, parse_settings},
        render,
        settings::L7,
    },
    registry::Place,
};
use proptest::prelude::*;

use cases::{bombs, cases, mesh_policy, remarks};

fn mesh_settings() -> MeshSettings {
    MeshSettings::default()
}

fn load_text(text: &str) -> (Option<Resources>, Vec<Diagnostic>) {
    let file = SourceFile {
        name: "test.yaml".into(),
        text: text.into(),
    };
    load(&[Arc::new(file)], &mesh_settings())
}

fn errors(findings: &[Diagnostic]) -> Vec<&Diagnostic> {
    findings
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .collect()
}

/// The text of one side of the marks, and where `¦` or else `«` stands in it: line and column from 1.
fn side(marked: &str, wrong: bool) -> (String, u32, u32) {
    let (before, rest) = marked.split_once('«').expect("a case has «");
    let (middle, after) = rest.split_once('»').expect("a case has »");
    let (left, right) = middle.split_once('|').expect("a case has |");
    let text = [before, if wrong { left } else { right }, after].concat();
    let at = text.find('¦').unwrap_or(before.len());
    let (line, column) =
        text[..at]
            .chars()
            .fold((1, 1), |(line, column), character| match character {
                '\n' => (line + 1, 1),
                _ => (line, column + 1),
            });
    (text.replace('¦', ""), line, column)
}

#[test]
fn each_malformed_file_gives_one_error_with_place_code_and_words() {
    let cases = cases();
    let mut failures = Vec::new();
    for (code, words, marked) in &cases {
        let (text, line, column) = side(marked, true);
        let (resources, findings) = load_text(&text);
        let errors = errors(&findings);
        let place = Place {
            file: "test.yaml".into(),
            line,
            column,
        };
        let is_right = matches!(errors[..], [found] if found.code == *code && found.message.contains(words) && found.place == Some(place.clone()));
        if resources.is_some() || !is_right {
            failures.push(format!(
                "{code} {words} at {place} in\n{text}\ngot {errors:#?}"
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    let classes: BTreeSet<&str> = cases.iter().map(|(code, ..)| *code).collect();
    let files: BTreeSet<&str> = cases.iter().map(|(.., text)| text.as_str()).collect();
    assert!(files.len() >= 60, "{} files", files.len());
    assert!(classes.len() >= 15, "{} classes", classes.len());
    println!(
        "{} malformed files of {} classes",
        files.len(),
        classes.len()
    );
}

#[test]
fn the_twin_of_each_malformed_file_loads() {
    for (code, words, marked) in cases() {
        let (text, ..) = side(&marked, false);
        let (resources, findings) = load_text(&text);
        assert!(
            resources.is_some() && errors(&findings).is_empty(),
            "{code} {words}:\n{text}\n{findings:#?}"
        );
    }
}

#[test]
fn what_is_accepted_with_a_remark_says_so_at_its_place() {
    for (code, words, marked) in remarks() {
        let (text, line, column) = side(&marked, true);
        let (resources, findings) = load_text(&text);
        assert!(resources.is_some(), "{text}\n{findings:#?}");
        // Every MeshPolicy and Policy has the info about its old API.
        let others: Vec<&Diagnostic> = findings
            .iter()
            .filter(|found| found.code == code || found.code != "IDT0462")
            .collect();
        let [found] = others[..] else {
            panic!("{code} {text}\n{findings:#?}")
        };
        assert_eq!(
            (found.code, &found.place),
            (
                code,
                &Some(Place {
                    file: "test.yaml".into(),
                    line,
                    column
                })
            ),
            "{text}"
        );
        assert!(found.message.contains(words), "{text}\n{}", found.message);
    }
}

#[test]
fn bombs_are_refused_by_a_budget_and_not_by_patience() {
    for (code, text) in bombs() {
        let (resources, findings) = load_text(&text);
        let errors = errors(&findings);
        assert!(resources.is_none(), "{code}: {:.200}", text);
        assert!(errors.len() <= 101, "{code}: {} errors", errors.len());
        assert!(
            errors.iter().any(|found| found.code == code),
            "{code}: {errors:#?}"
        );
        assert!(
            errors.iter().all(|found| found.message.len() < 200),
            "{code}"
        );
    }
}

#[test]
fn the_deepest_nesting_that_is_allowed_loads() {
    let text = format!(
        "apiVersion: v1\nkind: X\ndata: {}{}\n",
        "[".repeat(63),
        "]".repeat(63)
    );
    assert!(load_text(&text).0.is_some());
}

#[test]
fn every_code_about_one_file_is_produced_by_some_file() {
    let files = cases()
        .into_iter()
        .chain(remarks())
        .map(|(.., marked)| side(&marked, true).0)
        .chain(bombs().into_iter().map(|(_, text)| text));
    let mut produced: BTreeSet<&str> = files
        .flat_map(|text| load_text(&text).1)
        .map(|found| found.code)
        .collect();
    for text in ["a: 1\n---\nb: 2", "trust_domain: A"] {
        let file = SourceFile {
            name: "daemon.yaml".into(),
            text: text.into(),
        };
        let settings: Result<std::collections::BTreeMap<String, identun::spiffe::TrustDomain>, _> =
            parse_settings(&file);
        produced.insert(settings.unwrap_err().code);
    }
    produced.extend(dropped_requests());
    let expected: BTreeSet<&str> = codes::ALL
        .iter()
        .map(|code| code.id)
        .filter(|id| *id < "IDT0500")
        .collect();
    let missing: Vec<_> = expected.difference(&produced).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The codes of a file that only a setting lets pass.
fn dropped_requests() -> Vec<&'static str> {
    let rules = "{rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let file = SourceFile {
        name: "test.yaml".into(),
        text: format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: x}}\nspec: {rules}\n"
        ),
    };
    let mesh = MeshSettings {
        l7: L7::StrictDrop,
        ..mesh_settings()
    };
    let (resources, findings) = load(&[Arc::new(file)], &mesh);
    assert!(resources.is_some(), "{findings:#?}");
    findings.iter().map(|found| found.code).collect()
}

#[test]
fn a_foreign_kind_is_mentioned_once_in_all_files() {
    let file = |name: &str| {
        Arc::new(SourceFile {
            name: name.into(),
            text: "apiVersion: v1\nkind: Secret\n---\napiVersion: v1\nkind: Secret\n".into(),
        })
    };
    let (resources, findings) = load(&[file("a"), file("b")], &mesh_settings());
    assert!(resources.is_some());
    assert_eq!(findings.len(), 1, "{findings:#?}");
}

#[test]
fn all_errors_of_all_files_are_found_in_the_order_of_the_text() {
    let broken = mesh_policy("{peer: [], origins: [{jwt: {}}]}");
    let files = ["b.yaml", "a.yaml"].map(|name| {
        Arc::new(SourceFile {
            name: name.into(),
            text: format!("{broken}---\n[]\n---\nx: *y\n"),
        })
    });
    let (_, findings) = load(&files, &mesh_settings());
    let places: Vec<String> = errors(&findings)
        .iter()
        .map(|found| format!("{} {}", found.place.as_ref().unwrap(), found.code))
        .collect();
    let expected = ["4:8 IDT0201", "4:18 IDT0403", "6:1 IDT0301", "8:4 IDT0103"];
    let of = |file: &str| expected.map(|place| format!("{file}:{place}"));
    let mut expected = of("b.yaml").to_vec();
    // The same MeshPolicy again.
    expected.push("a.yaml:3:18 IDT0305".into());
    expected.extend(of("a.yaml"));
    assert_eq!(places, expected);
}

#[test]
fn an_error_is_rendered_with_its_line() {
    let text = "# web\r\napiVersion: authentication.istio.io/v1alpha1\r\nkind: MeshPolicy\r\nmetadata: {name: default}\r\nspec:\r\n  peers:\r\n  - mtls: {mode: PERMISIVE} # größer\r\n";
    let file = SourceFile {
        name: "20-web.yaml".into(),
        text: text.into(),
    };
    let file = Arc::new(file);
    let (_, findings) = load(std::slice::from_ref(&file), &mesh_settings());
    let rendered = render(errors(&findings)[0], Some(&file), false);
    let expected = "error[IDT0203]: unknown mTLS mode `PERMISIVE`\n --> 20-web.yaml:7:18\n  |\n7 |   - mtls: {mode: PERMISIVE} # größer\n  |                  ^^^^^^^^^ expected STRICT or PERMISSIVE\n  |\n  = help: did you mean `PERMISSIVE`?";
    assert_eq!(rendered, expected);
    assert!(render(errors(&findings)[0], Some(&file), true).contains("\u{1b}["));
    let bare = render(errors(&findings)[0], None, false);
    assert!(
        bare.contains("20-web.yaml:7:18") && bare.contains("PERMISSIVE"),
        "{bare}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}|(?s).{0,200}") {
        survives(&text);
    }

    #[test]
    fn text_made_of_yaml_never_panics(words in prop::collection::vec(prop::sample::select(WORDS), 0..60)) {
        survives(&words.concat());
    }

    #[test]
    fn a_damaged_file_never_panics(index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), cut in 0_usize..5, put in "[\\PC\n\t]{0,3}") {
        let cases = cases();
        let (text, ..) = side(&index.get(&cases).2, false);
        let characters: Vec<char> = text.chars().collect();
        let at = at.index(characters.len());
        let kept = characters[..at].iter().copied().chain(put.chars());
        survives(&kept.chain(characters.iter().copied().skip(at + cut)).collect::<String>());
    }
}

const WORDS: &[&str] = &[
    "a",
    "'",
    "\"",
    ":",
    ": ",
    "- ",
    "? ",
    "\n",
    "\n  ",
    "\r\n",
    "\t",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "!t ",
    "#",
    "|\n",
    ">-\n",
    "---\n",
    "...\n",
    "%",
    "\\x",
    "\0",
    "\u{feff}",
    "é",
    "😀",
    "null",
    "~",
    "1",
    "spec:",
    "kind: MeshPolicy\n",
    "peers:\n",
    "apiVersion: v1\n",
    "<<: ",
];

/// Loads and renders, and every place lies in the text.
fn survives(text: &str) {
    let (resources, findings) = load_text(text);
    assert_eq!(
        resources.is_none(),
        findings.iter().any(Diagnostic::is_error)
    );
    let file = SourceFile {
        name: "test.yaml".into(),
        text: text.into(),
    };
    for found in &findings {
        let place = found.place.as_ref().expect("a finding has a place");
        assert!(place.line >= 1 && place.column >= 1);
        assert!(
            place.line as usize <= text.split(['\n', '\r']).count(),
            "{place} in {text:?}"
        );
        let rendered = render(found, Some(&file), false);
        assert!(
            rendered.contains(&place.to_string()),
            "{place} in {rendered}"
        );
    }
    let _: Result<std::collections::BTreeMap<String, String>, _> = parse_settings(&file);
}
