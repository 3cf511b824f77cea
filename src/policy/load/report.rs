//! Collects the findings of one file, bounded in number.

use std::sync::Arc;

use super::tree::Mark;
use crate::{
    policy::diagnostic::{Diagnostic, Severity, codes},
    registry::Place,
};

/// How many findings of one severity are kept of one file.
pub(super) const MAX_FINDINGS: usize = 100;

/// The findings of one file; however wrong it is, their number is bounded.
#[derive(Debug)]
pub(super) struct Report<'m> {
    file: &'m Arc<str>,
    found: Vec<Diagnostic>,
    /// Errors, warnings, infos among them.
    counts: [usize; 3],
}

impl<'m> Report<'m> {
    pub(super) const fn new(file: &'m Arc<str>) -> Self {
        Self {
            file,
            found: Vec::new(),
            counts: [0; 3],
        }
    }

    /// Adds `found` at `mark`. Beyond the bound only the fact that there is more is kept.
    pub(super) fn add(&mut self, mark: Mark, found: Diagnostic) {
        let count = *self.count_mut(found.severity);
        let mut found = found;
        if count == MAX_FINDINGS {
            let message = format!(
                "more than {MAX_FINDINGS} findings of this weight in the file; the rest is not listed"
            );
            found = Diagnostic {
                severity: found.severity,
                ..Diagnostic::new(&codes::TOO_MANY_FINDINGS, message)
            };
        }
        if count <= MAX_FINDINGS {
            *self.count_mut(found.severity) += 1;
            self.found
                .push(found.at(self.place(mark), mark.length as usize));
        }
    }

    /// The place of `mark` in this file.
    pub(super) fn place(&self, mark: Mark) -> Place {
        Place {
            file: self.file.clone(),
            line: mark.line,
            column: mark.column,
        }
    }

    /// Whether the bound for errors is reached, so that reading on would only cost time.
    pub(super) const fn is_full(&self) -> bool {
        let [errors, ..] = self.counts;
        errors > MAX_FINDINGS
    }

    /// The findings in the order of the text.
    pub(super) fn into_findings(mut self) -> Vec<Diagnostic> {
        self.found
            .sort_by_key(|found| found.place.as_ref().map(|place| (place.line, place.column)));
        self.found
    }

    const fn count_mut(&mut self, severity: Severity) -> &mut usize {
        let [errors, warnings, infos] = &mut self.counts;
        match severity {
            Severity::Error => errors,
            Severity::Warning => warnings,
            Severity::Info => infos,
        }
    }
}
