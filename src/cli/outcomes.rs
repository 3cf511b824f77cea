//! How flows end, as tables show it: a word in the row, and the story below with rules and their places.

use std::io::{self, Write};

use crate::{
    cli::table::wrap, daemon::flowlog::view::DecisionView, policy::compiled::outcome::Outcome,
};

/// Every outcome with its name in JSON, its word in a table, and its words in a story.
const OUTCOMES: [(Outcome, &str, &str, &str); 4] = [
    (
        Outcome::Mtls,
        "MTLS",
        "mutual TLS",
        "mutual TLS in a tunnel",
    ),
    (Outcome::Plaintext, "PLAINTEXT", "plaintext", "plaintext"),
    (
        Outcome::RefusedByClient,
        "REFUSED_BY_CLIENT",
        "refused",
        "refused by the client's host",
    ),
    (
        Outcome::RefusedByServer,
        "REFUSED_BY_SERVER",
        "refused",
        "refused by the server's host",
    ),
];

/// The outcome of this name.
pub(super) fn outcome(decision: &DecisionView) -> Option<Outcome> {
    let mut outcomes = OUTCOMES.iter();
    outcomes
        .find(|(_, name, ..)| *name == decision.outcome)
        .map(|(outcome, ..)| *outcome)
}

/// One word or two.
pub(super) fn word(decision: &DecisionView) -> String {
    let mut outcomes = OUTCOMES.iter();
    let known = outcomes.find(|(_, name, ..)| *name == decision.outcome);
    known.map_or_else(
        || decision.outcome.clone(),
        |(_, _, word, _)| (*word).into(),
    )
}

/// Stories that rows point to, each told once.
#[derive(Default)]
pub(super) struct Stories(Vec<Vec<(&'static str, DecisionView)>>);

impl Stories {
    /// The mark of a story: decisions, each with the word before it.
    pub(super) fn mark(&mut self, story: Vec<(&'static str, DecisionView)>) -> String {
        let known = self.0.iter().position(|told| *told == story);
        let index = known.unwrap_or_else(|| {
            self.0.push(story);
            self.0.len() - 1
        });
        format!("[{}]", index + 1)
    }

    /// Tells all of them.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        for (index, story) in self.0.iter().enumerate() {
            writeln!(out)?;
            let mut mark = format!("[{}]", index + 1);
            for (label, decision) in story {
                let indent = INDENT;
                let text = wrap(&sentence(decision), indent);
                writeln!(out, "{mark:<4}{label:<width$}{text}", width = indent - 4)?;
                mark.clear();
                for rule in &decision.rules {
                    writeln!(out, "{:indent$}{}", "", wrap(rule, indent))?;
                }
            }
        }
        Ok(())
    }
}

/// Where the sentences of a story begin, in columns.
const INDENT: usize = 12;

fn sentence(decision: &DecisionView) -> String {
    let mut outcomes = OUTCOMES.iter();
    let known = outcomes.find(|(_, name, ..)| *name == decision.outcome);
    let words = known.map_or(&*decision.outcome, |(.., words)| words);
    format!("{words}: {} ({})", decision.reason, decision.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_known_by_its_name_in_json() {
        for (outcome_, name, ..) in OUTCOMES {
            assert_eq!(serde_json::to_value(outcome_).unwrap(), name);
            let decision = DecisionView {
                outcome: name.into(),
                code: String::new(),
                reason: String::new(),
                rules: Vec::new(),
            };
            assert_eq!(outcome(&decision), Some(outcome_));
        }
    }

    #[test]
    fn a_story_is_told_once_in_80_columns() {
        let decision = DecisionView {
            outcome: "REFUSED_BY_SERVER".into(),
            code: "mode_strict".into(),
            reason: "it is plaintext, and the destination's mode is STRICT".into(),
            rules: vec!["MeshPolicy default (policies/strict.yaml:9:13)".into()],
        };
        let mut stories = Stories::default();
        let story = || vec![("before", decision.clone()), ("after", decision.clone())];
        assert_eq!(stories.mark(story()), "[1]");
        assert_eq!(stories.mark(vec![("", decision.clone())]), "[2]");
        assert_eq!(stories.mark(story()), "[1]");
        let mut out = Vec::new();
        stories.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(
            text.starts_with(
                "\n[1] before  refused by the server's host: it is plaintext, and the destination's\n            \
                 mode is STRICT (mode_strict)\n            MeshPolicy default (policies/strict.yaml:9:13)\n    \
                 after   refused"
            ),
            "{text}"
        );
    }
}
