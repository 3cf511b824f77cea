//! Findings that somebody has looked at and does not want to see again: `CODE=Kind name.namespace`.

use std::str::FromStr;

use crate::policy::{Diagnostic, diagnostic::Code, load::Owner};

/// Findings of one code about the resources of a pattern.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Suppression {
    code: &'static str,
    /// `Kind name.namespace`, with `*` for any text.
    resource: String,
}

/// Why a text is no [`Suppression`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseSuppressionError {
    /// The part before `=` is no code.
    #[error("there is no code `{0}`; `identun analyze -L` lists all")]
    UnknownCode(String),
    /// The part behind `=` is neither `*` nor a kind and a name.
    #[error(
        "expected CODE=Kind name.namespace, with * for any text: `IDT0551=DestinationRule *.shop`"
    )]
    NoResource,
}

impl FromStr for Suppression {
    type Err = ParseSuppressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (code, resource) = text.split_once('=').unwrap_or((text, "*"));
        let known = Code::find(&code.trim().to_ascii_uppercase());
        let code = known.ok_or_else(|| ParseSuppressionError::UnknownCode(code.into()))?;
        let words: Vec<_> = resource.split_whitespace().collect();
        match &words[..] {
            ["*"] | [_, _] => Ok(Self {
                code: code.id,
                resource: words.join(" "),
            }),
            _ => Err(ParseSuppressionError::NoResource),
        }
    }
}

impl Suppression {
    /// The finding, about `owner`, is one of those meant. `CODE=*` means also those about no resource.
    pub fn covers(&self, finding: &Diagnostic, owner: Option<&Owner>) -> bool {
        let resource = owner.map(ToString::to_string).unwrap_or_default();
        self.code == finding.code && matches(&self.resource, &resource)
    }
}

/// `*` in `pattern` stands for any text, also none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    let Some((middles, tail)) = rest.rsplit_once('*') else {
        return text.ends_with(rest);
    };
    let Some(mut text) = text.strip_suffix(tail) else {
        return false;
    };
    // Each piece at its first occurrence leaves the most for the next ones.
    for piece in middles.split('*') {
        match text.split_once(piece) {
            Some((_, behind)) => text = behind,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{SourceFile, diagnostic::codes, load::Owners};
    use crate::registry::Place;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("a b.c", "a b.c", true),
            ("a b.c", "a b.cc", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a *.c", "a b.c", true),
            ("a *.c", "a .c", true),
            ("a *.c", "x b.c", false),
            ("a b.*", "a b.c", true),
            ("* b.*", "a b.c", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("ab*ba", "aba", false),
            ("a*a*a", "aa", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_suppression_names_code_and_resource() {
        let file = SourceFile {
            name: "a".into(),
            text: "kind: DestinationRule\nmetadata: {name: web.x, namespace: shop}\n".into(),
        };
        let owners = Owners::new(&file, "default");
        let place = Place {
            file: "a".into(),
            line: 1,
            column: 1,
        };
        let owner = owners.at(&place);
        let finding = Diagnostic::new(&codes::RULE_HIDDEN, "text");
        let covers = |text: &str, owner| {
            let suppression: Suppression = text.parse().unwrap();
            suppression.covers(&finding, owner)
        };
        let id = codes::RULE_HIDDEN.id;
        assert!(covers(&format!("{id}=DestinationRule web.x.shop"), owner));
        assert!(covers(&format!("{id}=DestinationRule *.shop"), owner));
        assert!(covers(id, owner) && covers(id, None));
        assert!(!covers(&format!("{id}=DestinationRule web.x"), owner));
        assert!(!covers(&format!("{id}=* *"), None));
        assert!(!covers("IDT0101", owner));
        for bad in ["IDT9999=*", "", "IDT0101=web", "IDT0101=A b c", "IDT0101="] {
            assert!(bad.parse::<Suppression>().is_err(), "{bad}");
        }
    }
}
