//! What a source says of a value.

use crate::value::Value;

/// When a statement holds, seconds since the epoch, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// From when on.
    pub from: u32,
    /// Until when.
    pub until: u32,
}

impl Span {
    /// Always.
    pub const ALWAYS: Self = Self {
        from: 0,
        until: u32::MAX,
    };

    /// From and until, as far as they are known. Times before 1970 and after 2106 are as good as none.
    pub fn of(from: Option<i64>, until: Option<i64>) -> Self {
        let clamp = |t: i64| u32::try_from(t.clamp(0, u32::MAX.into())).unwrap_or(u32::MAX);
        Self {
            from: from.map_or(0, clamp),
            until: until.map_or(u32::MAX, clamp),
        }
    }

    /// It holds at this time.
    pub fn contains(self, seconds: i64) -> bool {
        i64::from(self.from) <= seconds && !self.over(seconds)
    }

    /// It held before this time and does not any more.
    pub fn over(self, seconds: i64) -> bool {
        self.until != u32::MAX && seconds > i64::from(self.until)
    }
}

/// An indicator as a feed gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indicator {
    /// What it is about.
    pub value: Value,
    /// How sure the source is, 0 to 100; `None` where it does not say.
    pub confidence: Option<u8>,
    /// When it holds.
    pub span: Span,
    /// What the source calls it: `c2`, `phishing`, a family of malware.
    pub labels: Vec<String>,
    /// Ids of MITRE ATT&CK techniques.
    pub techniques: Vec<String>,
    /// The source's id of it: a STIX id, a UUID. Empty where there is none.
    pub reference: String,
    /// One line on where it comes from: a report's or event's title. Empty where there is none.
    pub context: String,
}

impl Indicator {
    /// Of a value of which nothing more is said.
    pub fn of(value: Value) -> Self {
        Self {
            value,
            confidence: None,
            span: Span::ALWAYS,
            labels: Vec::new(),
            techniques: Vec::new(),
            reference: String::new(),
            context: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_closed_or_open() {
        let span = Span::of(Some(10), Some(20));
        assert!(!span.contains(9) && span.contains(10) && span.contains(20) && !span.contains(21));
        assert!(span.over(21) && !span.over(5));
        let late = i64::from(u32::MAX) + 5;
        assert!(Span::ALWAYS.contains(late) && Span::of(Some(10), None).contains(late));
        assert!(!Span::of(Some(10), None).contains(9));
        assert_eq!(Span::of(Some(-5), Some(i64::MAX)), Span::ALWAYS);
    }
}
