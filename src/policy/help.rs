//! The help pages of `identun explain`: one for each code of a finding, reason of a decision and reason of a drop.

use crate::{
    policy::{
        compiled::ReasonCode,
        diagnostic::{Code, codes},
    },
    wire::DropReason,
};

/// Pages, each under a heading with its name; text of at most 80 columns.
const PAGES: &[&str] = &[
    include_str!("help/text.md"),
    include_str!("help/values.md"),
    include_str!("help/documents.md"),
    include_str!("help/resources.md"),
    include_str!("help/set.md"),
    include_str!("help/files.md"),
    include_str!("help/reasons.md"),
];

/// What a page is about.
#[derive(Clone, Copy, Debug)]
pub enum Topic {
    /// A class of findings.
    Code(&'static Code),
    /// Why a flow ends as it does, why packets are dropped, or both where the two have one name.
    Reason(Option<ReasonCode>, Option<DropReason>),
}

impl Topic {
    /// The code or reason of this name, whatever its capitals and with `-` for `_`.
    pub fn find(name: &str) -> Option<Self> {
        if let Some(code) = Code::find(&name.to_ascii_uppercase()) {
            return Some(Self::Code(code));
        }
        let name = name.to_ascii_lowercase().replace('-', "_");
        let reasons = ReasonCode::ALL.iter().copied();
        let reason = reasons.clone().find(|reason| reason.as_str() == name);
        let drops = DropReason::ALL.iter().copied();
        let dropped = drops.clone().find(|reason| reason.as_str() == name);
        (reason.is_some() || dropped.is_some()).then_some(Self::Reason(reason, dropped))
    }

    /// The name under which it is found.
    pub fn name(self) -> &'static str {
        match self {
            Self::Code(code) => code.id,
            Self::Reason(Some(reason), _) => reason.as_str(),
            Self::Reason(None, Some(dropped)) => dropped.as_str(),
            Self::Reason(None, None) => "",
        }
    }

    /// Its help page, which ends with a line's end.
    pub fn page(self) -> &'static str {
        page(self.name())
    }

    /// The name of every topic, codes first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let codes = codes::ALL.iter().map(|code| code.id);
        let reasons = ReasonCode::ALL.iter().map(|reason| reason.as_str());
        let drops = DropReason::ALL.iter().map(|reason| reason.as_str());
        codes.chain(reasons).chain(drops)
    }
}

fn page(name: &str) -> &'static str {
    let sections = PAGES.iter().flat_map(|pages| pages.split("\n# "));
    sections
        .filter_map(|section| section.trim_start_matches("# ").split_once('\n'))
        .find(|(heading, _)| *heading == name)
        .map_or("", |(_, text)| text.trim_end())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;
    use crate::policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load};

    /// The indented block of a page, without its indent.
    fn example(page: &str) -> String {
        let lines = page
            .lines()
            .skip_while(|line| !line.starts_with("Example:"));
        let inside = lines
            .skip(1)
            .take_while(|line| line.is_empty() || line.starts_with("    "));
        inside
            .map(|line| line.get(4..).unwrap_or_default().to_owned() + "\n")
            .collect::<String>()
            .trim_matches('\n')
            .to_owned()
            + "\n"
    }

    /// Examples leave apiVersion and metadata out where they do not matter.
    fn complete(document: &str) -> String {
        let kind = document
            .lines()
            .find_map(|line| line.strip_prefix("kind: "))
            .unwrap_or_default();
        let (version, name) = match kind {
            "MeshPolicy" => ("authentication.istio.io/v1alpha1", "{name: default}"),
            "Policy" => ("authentication.istio.io/v1alpha1", "{name: x}"),
            "PeerAuthentication" | "AuthorizationPolicy" => ("security.istio.io/v1", "{name: x}"),
            _ => ("networking.istio.io/v1", "{name: x}"),
        };
        let mut text = String::new();
        let has = |field: &str| document.lines().any(|line| line.starts_with(field));
        if !has("apiVersion:") && !kind.is_empty() {
            text += &format!("apiVersion: {version}\n");
        }
        if !has("metadata:") && !kind.is_empty() {
            text += &format!("metadata: {name}\n");
        }
        text + document
    }

    fn codes_of(text: &str) -> BTreeSet<&'static str> {
        let file = Arc::new(SourceFile {
            name: "x".into(),
            text: text.into(),
        });
        let mesh = MeshSettings::default();
        let host = HostFacts {
            underlay: ["10.0.0.1".parse().unwrap()].into(),
            port: 15008,
            ..HostFacts::default()
        };
        let (resources, mut found) = load(&[file], &mesh);
        if let Some(resources) = resources {
            found.extend(Compiled::new(&resources, &mesh, host, 1).1);
        }
        found.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn every_code_has_a_page_with_cause_example_and_fix() {
        for code in codes::ALL {
            let page = page(code.id);
            for part in ["Cause: ", "Example:\n\n    ", "Fix: "] {
                let begins = page.starts_with(part) || page.contains(&format!("\n\n{part}"));
                assert!(begins, "{}: no {part}", code.id);
            }
        }
    }

    #[test]
    fn every_reason_has_a_page_with_meaning_and_fix() {
        let reasons = ReasonCode::ALL.iter().map(|reason| reason.as_str());
        let drops = DropReason::ALL.iter().map(|reason| reason.as_str());
        for name in reasons.chain(drops) {
            let page = page(name);
            assert!(
                page.starts_with("Meaning: ") && page.contains("\n\nFix: "),
                "{name}"
            );
            assert_eq!(Topic::find(name).unwrap().name(), name);
        }
    }

    #[test]
    fn pages_fit_a_terminal_and_no_heading_stands_twice() {
        let mut seen = BTreeSet::new();
        for line in PAGES.iter().flat_map(|pages| pages.lines()) {
            assert!(line.chars().count() <= 84, "{line}");
            if let Some(heading) = line.strip_prefix("# ") {
                assert!(seen.insert(heading), "{heading}");
            } else if !line.starts_with("    ") {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    /// An example that is a resource gives its code when it is loaded.
    #[test]
    fn examples_show_what_they_are_about() {
        let mut tried = 0;
        for code in codes::ALL {
            let example = example(page(code.id));
            // a document without kind, and a code that nothing finds yet
            let is_exempt = code.id == "IDT0301";
            if !example.contains("kind: ") || example.starts_with('$') || is_exempt {
                continue;
            }
            let documents: Vec<_> = example.split("---\n").map(complete).collect();
            let text = match example.starts_with('%') {
                true => example,
                false => documents.join("---\n"),
            };
            let found = codes_of(&text);
            assert!(found.contains(code.id), "{}: {found:?}\n{text}", code.id);
            tried += 1;
        }
        assert!(tried > 70, "{tried}");
    }

    #[test]
    fn names_are_found_whatever_their_capitals() {
        let name = |text: &str| Topic::find(text).map(Topic::name);
        assert_eq!(name("idt0101"), Some("IDT0101"));
        assert_eq!(name("Denied-By_Policy"), Some("denied_by_policy"));
        assert_eq!(name("IDT9999"), None);
        assert_eq!(name("10.0.0.1"), None);
    }
}
