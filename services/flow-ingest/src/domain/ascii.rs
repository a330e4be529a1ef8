//! Octets that are ASCII as text, without asking each of them: records tell some with every row.

#![allow(unsafe_code)] // the standard library has no safe form for a slice yet

/// The text of octets that are all ASCII; of others none.
#[inline]
pub(super) fn text(octets: &[u8]) -> &str {
    if !octets.is_ascii() {
        return "";
    }
    // SAFETY: every octet is ASCII, and ASCII is UTF-8.
    unsafe { std::str::from_utf8_unchecked(octets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_text_and_nothing_else_is() {
        assert_eq!(
            text(b"1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
        );
        assert_eq!(text(b""), "");
        assert_eq!(text("\u{e4}".as_bytes()), "");
        assert_eq!(text(&[b'a', 0xff]), "");
    }
}
