//! Files that are almost right: what people and generators of YAML get wrong.

use super::choices::Choices;

/// What is put in between.
const WORDS: &[&str] = &[
    "\n",
    "  ",
    "\t",
    ": ",
    "- ",
    "---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"",
    "'",
    "#",
    "|",
    ">-\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!x ",
    "%YAML 1.1\n",
    "? ",
    "null",
    "~",
    "true",
    "0x1F",
    "1e3",
    "65536",
    "-1",
    "99999999999999999999",
    "10.0.0.0/33",
    "fd00::/129",
    "*",
    "**",
    "spiffe://a/b",
    "STRICT",
    "UNSET",
    "DISABLE",
    "ISTIO_MUTUAL",
    "mtls",
    "spec",
    "\u{feff}",
    "\u{0}",
    "\u{2028}",
    "ä",
    "𝔘",
    "\r",
];

/// A text from `seeds` with some accidents.
pub(crate) fn mutated(choices: &mut Choices<'_>, seeds: &[String]) -> String {
    let mut text = choices.pick(seeds).clone();
    for _ in 0..1 + choices.below(6) {
        let (from, to) = (place(choices, &text), place(choices, &text));
        let (from, to) = (from.min(to), from.max(to));
        let near = (from..=to).find(|end| *end > from + 12 && text.is_char_boundary(*end));
        let to = near.unwrap_or(to);
        match choices.below(6) {
            0 => text.insert_str(from, choices.pick::<&str>(WORDS)),
            1 => text.replace_range(from..to, choices.pick::<&str>(WORDS)),
            2 => text.replace_range(from..to, ""),
            3 => {
                let copy = text[from..to].to_owned();
                let at = place(choices, &text);
                text.insert_str(at, &copy);
            }
            4 => line(choices, &mut text),
            _ => {
                let other = choices.pick(seeds);
                let cut = place(choices, other);
                text.truncate(from);
                text.push_str(&other[cut..]);
            }
        }
    }
    text
}

/// Doubles a line, or moves it in or out.
fn line(choices: &mut Choices<'_>, text: &mut String) {
    let mut lines: Vec<String> = text.lines().map(Into::into).collect();
    if lines.is_empty() {
        return;
    }
    let at = choices.below(lines.len());
    match choices.below(3) {
        0 => lines.insert(at, lines[at].clone()),
        1 => lines[at].insert_str(0, "  "),
        _ => lines[at] = lines[at].trim_start().to_owned(),
    }
    *text = lines.join("\n");
}

fn place(choices: &mut Choices<'_>, text: &str) -> usize {
    let mut at = choices.below(text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
