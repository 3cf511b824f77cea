//! Offending text in messages: quoting, naming choices, and "did you mean".

use std::fmt;

/// The longest text that is compared with candidates, in characters.
const MAX_COMPARED: usize = 40;
/// The longest piece of a file that a message repeats, in characters.
const MAX_QUOTED: usize = 60;

/// The longest label that names every choice, in bytes; a longer one is left out.
pub(super) const MAX_LABEL: usize = 60;

/// Writes a text in backticks, on one line and of bounded length.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        for character in self.0.chars().take(MAX_QUOTED) {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        if self.0.chars().nth(MAX_QUOTED).is_some() {
            f.write_str("...")?;
        }
        f.write_str("`")
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn one_of(choices: &[&str]) -> String {
    match choices {
        [] => String::new(),
        [only] => (*only).into(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// "did you mean `x`?" when a candidate is close enough to be meant.
pub(super) fn did_you_mean(text: &str, candidates: &[&str]) -> Option<String> {
    closest(text, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// The candidate that is most probably meant: the same but for capitals and punctuation, or a few slips away.
pub(super) fn closest<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    if text.chars().nth(MAX_COMPARED).is_some() {
        return None;
    }
    let folded = fold(text);
    candidates
        .iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), *candidate))
        .filter(|(slips, candidate)| *slips <= allowed_slips(candidate.len()))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// At most half of a short candidate, and three in a long one.
fn allowed_slips(length: usize) -> usize {
    (length / 2).min(3)
}

fn fold(text: &str) -> Vec<char> {
    text.chars()
        .filter(|character| !matches!(character, '-' | '_' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Levenshtein's distance: insertions, deletions and replacements.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, left) in from.iter().enumerate() {
        let mut before = index + 1;
        let mut next = vec![before];
        for ((right, diagonal), above) in to.iter().zip(&row).zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(left != right);
            before = replaced.min(above + 1).min(before + 1);
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_capitals_are_forgiven_and_strangers_are_not() {
        let modes = ["STRICT", "PERMISSIVE"];
        assert_eq!(closest("PERMISIVE", &modes), Some("PERMISSIVE"));
        assert_eq!(closest("strict", &modes), Some("STRICT"));
        assert_eq!(closest("off", &modes), None);
        assert_eq!(closest("a", &["f"]), None);
        assert_eq!(closest(&"x".repeat(10_000), &modes), None);
    }

    #[test]
    fn distances_are_levenshteins() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        for (from, to, expected) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(&chars(from), &chars(to)), expected);
        }
    }

    #[test]
    fn quoted_text_stays_on_one_line_and_short() {
        assert_eq!(Quoted("a\nb").to_string(), "`a\\nb`");
        assert!(Quoted(&"x".repeat(1_000)).to_string().len() < 70);
    }

    #[test]
    fn choices_are_named_as_a_sentence() {
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
    }
}
