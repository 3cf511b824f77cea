//! Typed reading of the tree: each function returns the value, or reports what is wrong with it and returns nothing.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    report::Report,
    suggest::{MAX_LABEL, Quoted, did_you_mean, one_of},
    tree::{Entry, Mark, Node, Value},
};
use crate::policy::diagnostic::{Diagnostic, codes};

/// A map whose every key has been checked to be known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map<'t, 's> {
    /// Where it begins.
    pub(super) mark: Mark,
    /// What it is, for messages: `the spec of a DestinationRule`.
    pub(super) what: &'static str,
    entries: &'t [Entry<'s>],
}

impl<'t, 's> Map<'t, 's> {
    /// A map whose keys nobody has looked at.
    pub(super) fn unchecked(node: &'t Node<'s>, what: &'static str) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self {
                mark: node.mark,
                what,
                entries,
            }),
            Value::Seq(_) | Value::Plain(_) | Value::Quoted(_) | Value::Null => None,
        }
    }

    /// A map that is not written, and so has no keys; what is said about it stands at `mark`.
    pub(super) const fn absent(mark: Mark, what: &'static str) -> Self {
        Self {
            mark,
            what,
            entries: &[],
        }
    }

    /// The value of `key`; null counts as absent, as it does for Kubernetes.
    pub(super) fn get(&self, key: &str) -> Option<&'t Node<'s>> {
        self.entry(key)
            .map(|entry| &entry.node)
            .filter(|node| !node.is_null())
    }

    /// The key and value of `key`, null included.
    pub(super) fn entry(&self, key: &str) -> Option<&'t Entry<'s>> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Whether no key has a value.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.node.is_null())
    }
}

impl Report<'_> {
    /// A map with keys among `known`. Every other key is an error, the map is returned all the same.
    pub(super) fn map<'t, 's>(
        &mut self,
        node: &'t Node<'s>,
        what: &'static str,
        known: &[&str],
    ) -> Option<Map<'t, 's>> {
        let Some(map) = Map::unchecked(node, what) else {
            self.wrong_type(node, what, "a map");
            return None;
        };
        for entry in map.entries {
            if self.is_full() {
                break;
            }
            if !known.contains(&entry.key.as_ref()) {
                let message = format!("unknown field {} in {what}", Quoted(&entry.key));
                let mut found = Diagnostic::new(&codes::UNKNOWN_FIELD, message);
                found.label = Some(format!("expected {}", one_of(known)))
                    .filter(|label| label.len() <= MAX_LABEL);
                found.help = did_you_mean(&entry.key, known);
                self.add(entry.key_mark, found);
            }
        }
        Some(map)
    }

    /// The value of a key that must be there.
    pub(super) fn required<'t, 's>(
        &mut self,
        map: &Map<'t, 's>,
        key: &str,
    ) -> Option<&'t Node<'s>> {
        let node = map.get(key);
        if node.is_none() {
            let mark = map.entry(key).map_or(map.mark, |entry| entry.key_mark);
            let message = format!("missing field `{key}` in {}", map.what);
            self.add(
                mark,
                Diagnostic::new(&codes::MISSING_FIELD, message)
                    .with_label(format!("expected `{key}`")),
            );
        }
        node
    }

    /// A list; an empty one stands for what is not.
    pub(super) fn list<'t, 's>(&mut self, node: &'t Node<'s>, what: &str) -> &'t [Node<'s>] {
        if let Value::Seq(nodes) = &node.value {
            return nodes;
        }
        self.wrong_type(node, what, "a list");
        &[]
    }

    /// Text, which may be empty. A plain number or truth value is not text.
    pub(super) fn text<'t>(&mut self, node: &'t Node<'_>, what: &str) -> Option<&'t str> {
        match &node.value {
            Value::Quoted(text) => Some(text),
            Value::Plain(text) if plain_type(text) == "text" => Some(text),
            Value::Plain(text) => {
                let message = format!(
                    "{what} must be text, and {} is {}",
                    Quoted(text),
                    plain_type(text)
                );
                let found =
                    Diagnostic::new(&codes::WRONG_TYPE, message).with_label("expected text");
                self.add(
                    node.mark,
                    found.with_help("put it in quotes to make it text"),
                );
                None
            }
            Value::Map(_) | Value::Seq(_) | Value::Null => {
                self.wrong_type(node, what, "text");
                None
            }
        }
    }

    /// Text that says something.
    pub(super) fn filled_text<'t>(&mut self, node: &'t Node<'_>, what: &str) -> Option<&'t str> {
        let text = self.text(node, what)?;
        if text.is_empty() {
            self.add(
                node.mark,
                Diagnostic::new(&codes::EMPTY, format!("{what} is empty"))
                    .with_label("expected text"),
            );
            return None;
        }
        Some(text)
    }

    /// A list of texts that say something, with their nodes.
    pub(super) fn texts<'t, 's>(
        &mut self,
        node: &'t Node<'s>,
        what: &str,
    ) -> Vec<(&'t str, &'t Node<'s>)> {
        let item = format!("an entry of {what}");
        let nodes = self.list(node, what);
        nodes
            .iter()
            .filter_map(|node| Some((self.filled_text(node, &item)?, node)))
            .collect()
    }

    /// A map of texts; null values are errors.
    pub(super) fn text_map<'t, 's>(
        &mut self,
        node: &'t Node<'s>,
        what: &str,
    ) -> Vec<(&'t Entry<'s>, &'t str)> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, what, "a map of texts");
            return Vec::new();
        };
        let item = format!("a value of {what}");
        entries
            .iter()
            .filter_map(|entry| Some((entry, self.text(&entry.node, &item)?)))
            .collect()
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node<'_>, what: &str) -> Option<bool> {
        match &node.value {
            Value::Plain(text) if matches!(text.as_ref(), "true" | "True" | "TRUE") => Some(true),
            Value::Plain(text) if matches!(text.as_ref(), "false" | "False" | "FALSE") => {
                Some(false)
            }
            Value::Plain(_) | Value::Quoted(_) | Value::Map(_) | Value::Seq(_) | Value::Null => {
                self.wrong_type(node, what, "true or false");
                None
            }
        }
    }

    /// A whole number of `min..=max`.
    pub(super) fn integer(
        &mut self,
        node: &Node<'_>,
        what: &str,
        min: u32,
        max: u32,
    ) -> Option<u32> {
        let Value::Plain(text) = &node.value else {
            self.wrong_type(node, what, "a whole number");
            return None;
        };
        let Some(number) = whole_number(text) else {
            self.wrong_type(node, what, "a whole number");
            return None;
        };
        let inside = u32::try_from(number)
            .ok()
            .filter(|number| (min..=max).contains(number));
        if inside.is_none() {
            let message = format!("{what} {} is out of range", Quoted(text));
            let found = Diagnostic::new(&codes::OUT_OF_RANGE, message);
            self.add(
                node.mark,
                found.with_label(format!("expected {min} to {max}")),
            );
        }
        inside
    }

    /// A port number that can be a destination.
    pub(super) fn port(&mut self, node: &Node<'_>, what: &str) -> Option<u16> {
        let number = self.integer(node, what, 1, u32::from(u16::MAX))?;
        u16::try_from(number).ok()
    }

    /// One of the named values; capitals count.
    pub(super) fn choice<T: Copy>(
        &mut self,
        node: &Node<'_>,
        what: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(node, what)?;
        let chosen = choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value);
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let mut found = Diagnostic::new(
                &codes::UNKNOWN_VALUE,
                format!("unknown {what} {}", Quoted(text)),
            )
            .with_label(format!("expected {}", one_of(&names)));
            found.help = did_you_mean(text, &names);
            self.add(node.mark, found);
        }
        chosen
    }

    /// Checks keys and values of a label map by the syntax of Kubernetes and collects them.
    pub(super) fn labels(&mut self, node: &Node<'_>, what: &str) -> BTreeMap<Arc<str>, Arc<str>> {
        let mut labels = BTreeMap::new();
        for (entry, value) in self.text_map(node, what) {
            if !super::names::is_label_key(&entry.key) {
                let message = format!("{} is not a label key", Quoted(&entry.key));
                let found = Diagnostic::new(&codes::BAD_LABEL, message);
                self.add(
                    entry.key_mark,
                    found.with_label("expected `name` or `domain/name`"),
                );
            } else if !super::names::is_label_value(value) {
                let message = format!("{} is not a label value", Quoted(value));
                let found = Diagnostic::new(&codes::BAD_LABEL, message);
                self.add(
                    entry.node.mark,
                    found.with_label("expected at most 63 of a-z, A-Z, 0-9, `-`, `_`, `.`"),
                );
            }
            labels.insert(entry.key.as_ref().into(), value.into());
        }
        labels
    }

    /// A finding on the key of a field, if the field has a value.
    pub(super) fn on_key(
        &mut self,
        map: &Map<'_, '_>,
        key: &str,
        found: impl FnOnce() -> Diagnostic,
    ) {
        if map.get(key).is_some()
            && let Some(entry) = map.entry(key)
        {
            self.add(entry.key_mark, found());
        }
    }

    /// Reports a value of another type than `expected`.
    pub(super) fn wrong_type(&mut self, node: &Node<'_>, what: &str, expected: &str) {
        let found = match &node.value {
            Value::Map(_) => "a map".into(),
            Value::Seq(_) => "a list".into(),
            Value::Null => "null".into(),
            Value::Quoted(text) => format!("the text {}", Quoted(text)),
            Value::Plain(text) => Quoted(text).to_string(),
        };
        let message = format!("{what} must be {expected}, not {found}");
        let found = Diagnostic::new(&codes::WRONG_TYPE, message);
        self.add(node.mark, found.with_label(format!("expected {expected}")));
    }
}

/// What a plain scalar is by the core schema of YAML 1.2.
fn plain_type(text: &str) -> &'static str {
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        "a truth value"
    } else if whole_number(text).is_some() || is_float(text) {
        "a number"
    } else {
        "text"
    }
}

/// A whole number by the core schema; saturated when too large for the type.
fn whole_number(text: &str) -> Option<i64> {
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 8),
        (None, None) => (text.strip_prefix(['+', '-']).unwrap_or(text), 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let size = i64::from_str_radix(digits, radix).unwrap_or(i64::MAX);
    Some(if text.starts_with('-') { -size } else { size })
}

fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (
            mantissa,
            exponent.strip_prefix(['+', '-']).unwrap_or(exponent),
        ),
        None => (unsigned, "0"),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_some = |text: &str| !text.is_empty();
    digits(whole)
        && digits(fraction)
        && digits(exponent)
        && is_some(exponent)
        && (is_some(whole) || is_some(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for number in [
            "0", "-1", "+12", "0x1F", "0o17", "1.5", ".5", "1.", "1e3", "-.inf", ".nan",
        ] {
            assert_eq!(plain_type(number), "a number", "{number}");
        }
        for text in [
            "a",
            "1.2.3.4",
            "-",
            ".",
            "+",
            "0x",
            "yes",
            "e3",
            "1e",
            "::1",
            "2024-01-01",
        ] {
            assert_eq!(plain_type(text), "text", "{text}");
        }
        assert_eq!(plain_type("True"), "a truth value");
    }

    #[test]
    fn whole_numbers_saturate() {
        assert_eq!(whole_number("99999999999999999999999"), Some(i64::MAX));
        assert_eq!(whole_number("-99999999999999999999999"), Some(-i64::MAX));
        assert_eq!(whole_number("0x10"), Some(16));
    }
}
