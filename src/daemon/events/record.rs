//! One event as values by name, safe to print: what the log and `GET /v1/events` say.

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use crate::daemon::clock::unix_millis;

/// The longest string of a peer that is kept, in characters.
pub(super) const MAX_TEXT: usize = 400;

/// One thing that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// `tunnel_up`, `tunnel_down`, `dial_failed`, `incoming_refused`, `flow_refused`, `dropped`, `opened`, `closed`,
    /// `cut`.
    pub kind: String,
    /// The values, by name.
    pub fields: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn new(kind: &str, fields: &[(&str, String)]) -> Self {
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        let fields = fields
            .map(|(name, value)| ((*name).to_owned(), escape(value)))
            .collect();
        Self {
            time_ms: unix_millis(),
            kind: kind.into(),
            fields,
        }
    }

    /// A value, escaped, where the record has it.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// `name=value ...` in one line.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.fields {
            let quote = if value.contains([' ', '"']) { "\"" } else { "" };
            let _ = write!(text, "{name}={quote}{value}{quote} ");
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Control characters, line ends and direction marks become `\u{..}`; what is too long is cut.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        if index == MAX_TEXT {
            escaped.push('…');
            break;
        }
        let direction_mark = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || direction_mark {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    escaped
}
