//! Tables and values as people read them.

use comfy_table::{ContentArrangement, Table, presets};

/// The width that tables keep to.
pub(super) const WIDTH: u16 = 80;

/// Rows in columns two spaces apart, at most [`WIDTH`] wide, without lines.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for index in 0..header.len() {
        if let Some(column) = table.column_mut(index) {
            let last = index + 1 == header.len();
            column.set_padding((0, if last { 0 } else { 2 }));
        }
    }
    table.trim_fmt()
}

/// `text` broken at spaces into lines of at most [`WIDTH`]; all but the first begin with `indent` spaces, and the first
/// has that much before it already. A word that is too long stays whole, so that it can be copied.
pub(super) fn wrap(text: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > indent && column + 1 + length > usize::from(WIDTH) {
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if !wrapped.is_empty() {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

/// `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1_024.0;
    let mut units = UNITS.iter().peekable();
    let mut unit = "KiB";
    while let Some(next) = units.next() {
        unit = next;
        if value < 1_023.95 || units.peek().is_none() {
            break;
        }
        value /= 1_024.0;
    }
    format!("{value:.1} {unit}")
}

/// `2m13s`, `5h2m`, `3d4h`.
pub(super) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_at_spaces_and_indented() {
        assert_eq!(wrap("short text", 8), "short text");
        let text = ["word"; 20].join(" ");
        let wrapped = wrap(&text, 8);
        assert!(wrapped.lines().all(|line| line.len() <= 80), "{wrapped}");
        assert!(
            wrapped
                .lines()
                .skip(1)
                .all(|line| line.starts_with("        word"))
        );
        assert_eq!(wrapped.split_whitespace().count(), 20);
        let long = "x".repeat(200);
        assert_eq!(wrap(&format!("id {long}"), 2), format!("id\n  {long}"));
    }

    #[test]
    fn bytes_and_ages_have_at_most_two_units() {
        let cases = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(1_048_575), "1.0 MiB");
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (133, "2m13s"),
            (18_120, "5h2m"),
            (273_600, "3d4h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }
}
