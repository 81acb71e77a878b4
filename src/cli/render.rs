//! What the commands print: tables for people (columns as wide as their widest cell, numbers to the right), times, JSON.

use jiff::Timestamp;
use serde::Serialize;

/// Lays out rows under a head; a column whose cells are all numbers is set to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let numeric: Vec<bool> = (0..head.len())
        .map(|column| !rows.is_empty() && rows.iter().all(|row| row[column].bytes().all(|b| b.is_ascii_digit())))
        .collect();
    let line = |cells: &[&str]| {
        let set = |(column, cell): (usize, &&str)| {
            let width = widths[column];
            if numeric[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let line: Vec<String> = cells.iter().enumerate().map(set).collect();
        format!("{}\n", line.join("  ").trim_end())
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    text
}

pub(crate) fn to_pretty_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain structures always serialise") + "\n"
}

pub(crate) fn format_time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_stand_to_the_right() {
        let rows = [vec!["a".to_owned(), "7".to_owned()], vec!["bbb".to_owned(), "12".to_owned()]];
        assert_eq!(super::table(&["d", "n"], &rows), "d     n\na     7\nbbb  12\n");
    }
}
