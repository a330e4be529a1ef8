//! Text in a picture: escaped, and never longer than its place.

/// How wide one cell of the fixed-width font is, in tenths of a pixel (0.6 of 12 pixels, rounded up).
const CELL: usize = 73;

/// What stands for a character that would break the file, or change the way in which it reads.
fn safe(c: char) -> char {
    let hidden = matches!(c,
        // Marks, embeddings, overrides and isolates of direction, and what has no width.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}'
        // Not characters of XML 1.0.
        | '\u{fffe}' | '\u{ffff}');
    if c.is_control() || hidden { '\u{fffd}' } else { c }
}

/// Text for XML, in an element or an attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(safe) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// How many cells a character takes, or more: Hangul, and what stands behind the radicals of Chinese, may be wide.
fn cells_of(c: char) -> usize {
    let wide = matches!(c, '\u{1100}'..='\u{115f}') || c >= '\u{2e80}';
    if wide { 2 } else { 1 }
}

/// How many cells a text takes.
pub(super) fn cells(text: &str) -> usize {
    text.chars().map(cells_of).sum()
}

/// Pixels for so many cells.
pub(super) fn pixels(cells: usize) -> usize {
    (cells * CELL).div_ceil(10)
}

/// The start of a text, as much as fits.
pub(super) fn start(text: &str, most: usize) -> String {
    if cells(text) <= most {
        return text.to_owned();
    }
    let mut out = taken(text.chars(), most.saturating_sub(1));
    out.push('…');
    out
}

/// The start and the end of a text, as much as fits: generated names differ at their end.
pub(super) fn ends(text: &str, most: usize) -> String {
    if cells(text) <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(1);
    let end: String = taken(text.chars().rev(), room / 3).chars().rev().collect();
    let start = taken(text.chars(), room - cells(&end));
    format!("{start}…{end}")
}

fn taken(chars: impl Iterator<Item = char>, most: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += cells_of(*c);
            used <= most
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_their_place() {
        assert_eq!(start("TCP/5432", 8), "TCP/5432");
        assert_eq!(start("TCP/5432", 7), "TCP/54…");
        assert_eq!(ends("checkout-7d9f4c-x2z9k", 13), "checkout…2z9k");
        for most in 1..12 {
            for text in ["", "short", "a-very-long-name-indeed", "数据库数据库数据库"] {
                assert!(cells(&start(text, most)) <= most.max(2), "{text} {most}");
                assert!(cells(&ends(text, most)) <= most.max(2), "{text} {most}");
            }
        }
    }

    #[test]
    fn nothing_in_a_name_is_markup() {
        assert_eq!(
            escaped("<a href=\"x\" b='y'>&\u{0}\u{202e}\u{ffff}"),
            "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd}\u{fffd}"
        );
    }
}
