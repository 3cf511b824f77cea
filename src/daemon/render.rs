//! A set of diagnostics as text for people.

use std::{fmt::Write, sync::Arc};

use crate::policy::{self, Diagnostic, Severity, SourceFile};

/// Every diagnostic of `least` severity or a worse one with its line in the files, errors first; ends with an empty line
/// unless there is none.
pub fn render(diagnostics: &[Diagnostic], files: &[Arc<SourceFile>], least: Severity) -> String {
    let mut sorted: Vec<_> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity <= least)
        .collect();
    sorted.sort_by_key(|diagnostic| diagnostic.severity);
    let mut text = String::new();
    for diagnostic in sorted {
        let place = diagnostic.place.as_ref();
        let file = place.and_then(|place| files.iter().find(|file| file.name == place.file));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{}\n",
            policy::render(diagnostic, file.map(|file| &**file), false)
        );
    }
    text
}

/// `2 errors, 1 warning`.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    format!(
        "{}, {}",
        plural(count(diagnostics, Severity::Error), "error"),
        plural(count(diagnostics, Severity::Warning), "warning")
    )
}

/// How many diagnostics are of exactly this severity.
pub fn count(diagnostics: &[Diagnostic], severity: Severity) -> usize {
    diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == severity)
        .count()
}

/// `1 error`, `2 errors`.
pub fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Tells whether an error is among them.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Place;

    #[test]
    fn errors_come_first_with_their_lines_and_are_counted() {
        let file = Arc::new(SourceFile {
            name: "web.yaml".into(),
            text: "mtls:\n  mode: PERMISIVE\n".into(),
        });
        let error = Diagnostic {
            severity: Severity::Error,
            code: "IDT0203",
            message: "unknown mTLS mode `PERMISIVE`".into(),
            place: Some(Place {
                file: "web.yaml".into(),
                line: 2,
                column: 9,
            }),
            length: 9,
            label: Some("expected STRICT".into()),
            help: Some("did you mean `PERMISSIVE`?".into()),
        };
        let warning = Diagnostic {
            severity: Severity::Warning,
            place: None,
            ..error.clone()
        };
        let info = Diagnostic {
            severity: Severity::Info,
            message: "worth knowing".into(),
            ..warning.clone()
        };
        let set = [info, warning, error];
        let file = [file];
        let text = render(&set, &file, Severity::Warning);
        assert!(!text.contains("worth knowing"), "{text}");
        assert!(render(&set, &file, Severity::Info).contains("info[IDT0203]: worth knowing"));
        assert!(
            text.starts_with("error[IDT0203]: unknown mTLS mode"),
            "{text}"
        );
        assert!(text.contains("--> web.yaml:2:9\n"), "{text}");
        assert!(
            text.contains("2 |   mode: PERMISIVE\n  |         ^^^^^^^^^ expected STRICT"),
            "{text}"
        );
        assert_eq!(summary(&set), "1 error, 1 warning");
        assert!(has_errors(&set));
    }
}
