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
