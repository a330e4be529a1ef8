//! STIX patterns (STIX 2.1, part 9), as far as a single value can stand for one.
//!
//! Understood: `=`, `IN` and, for addresses, `ISSUBSET`, on addresses, domain names, URLs, and hashes of files and
//! certificates; `OR` anywhere; `AND` between hashes of the same object, each of which identifies it. Anything else asks
//! for more than one value to come together, or for a value that flows do not have: it is reported, never guessed at.

use crate::value::{Kind, Value};

/// Deepest nesting of brackets.
const DEEPEST: usize = 16;
/// Longest pattern, octets.
const LONGEST: usize = 64 << 10;
/// Most values of a pattern.
const MOST: usize = 4_096;

/// What a pattern asks for: the values of which one is enough, and why parts of it were not understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) values: Vec<Value>,
    pub(super) not_understood: Vec<String>,
}

/// Reads a pattern. Nothing that it gives matches where the pattern would not.
pub(super) fn read(text: &str, subdomains: bool) -> Read {
    let refuse = |why: String| Read {
        values: Vec::new(),
        not_understood: vec![why],
    };
    if text.len() > LONGEST {
        return refuse("the pattern is longer than 64 KiB".to_owned());
    }
    let tokens = match tokens(text) {
        Ok(tokens) => tokens,
        Err(why) => return refuse(why),
    };
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        subdomains,
    };
    match parser.pattern() {
        Ok(read) => read,
        Err(why) => refuse(why),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    ListOpen,
    ListClose,
    Comma,
    /// `=`, `!=`, `<`, ….
    Sign(String),
    /// A word or an object path.
    Word(String),
    Text(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            c if c.is_whitespace() => {}
            '[' => tokens.push(Token::Open),
            ']' => tokens.push(Token::Close),
            '(' => tokens.push(Token::ListOpen),
            ')' => tokens.push(Token::ListClose),
            ',' => tokens.push(Token::Comma),
            '\'' => {
                let mut value = String::new();
                loop {
                    match rest.next() {
                        Some((_, '\'')) => break,
                        Some((_, '\\')) => value.extend(rest.next().map(|(_, c)| c)),
                        Some((_, c)) => value.push(c),
                        None => return Err(format!("the text at octet {at} is not closed")),
                    }
                }
                tokens.push(Token::Text(value));
            }
            '=' | '!' | '<' | '>' => {
                let mut sign = c.to_string();
                while let Some((_, c)) = rest.next_if(|(_, c)| matches!(c, '=' | '>')) {
                    sign.push(c);
                }
                tokens.push(Token::Sign(sign));
            }
            c => {
                // A path may hold quoted keys and numbered items: `hashes.'SHA-256'`, `values[0]`.
                let mut word = c.to_string();
                while let Some((_, c)) =
                    rest.next_if(|(_, c)| c.is_alphanumeric() || matches!(c, '_' | '-' | ':' | '.' | '*'))
                {
                    word.push(c);
                    if c == '.'
                        && let Some((_, quote)) = rest.next_if(|(_, c)| *c == '\'')
                    {
                        word.push(quote);
                        for (_, c) in rest.by_ref() {
                            word.push(c);
                            if c == '\'' {
                                break;
                            }
                        }
                    }
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

/// The values of an expression, and what hashes of a single object they are, if that is all they are.
struct Values {
    values: Vec<Value>,
    hashes_of: Option<String>,
    not_understood: Vec<String>,
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    subdomains: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn word(&self) -> &str {
        match self.peek() {
            Some(Token::Word(word)) => word,
            _ => "",
        }
    }

    fn takes(&mut self, token: &Token) -> bool {
        let it_is = self.peek() == Some(token);
        self.at += usize::from(it_is);
        it_is
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let it_is = self.word().eq_ignore_ascii_case(word);
        self.at += usize::from(it_is);
        it_is
    }

    // Observations, of which one is enough.
    fn pattern(&mut self) -> Result<Read, String> {
        let mut read = Read::default();
        let mut depth = 0_usize;
        loop {
            while self.takes(&Token::ListOpen) {
                depth += 1;
            }
            if !self.takes(&Token::Open) {
                return Err("an observation in square brackets is missing".to_owned());
            }
            let found = self.expression(0)?;
            if !self.takes(&Token::Close) {
                return Err(format!("a comparison cannot be followed by {}", self.shown()));
            }
            read.values.extend(found.values);
            read.not_understood.extend(found.not_understood);
            while depth > 0 && self.takes(&Token::ListClose) {
                depth -= 1;
            }
            if self.peek().is_none() {
                return if depth == 0 {
                    Ok(read)
                } else {
                    Err("a bracket is not closed".to_owned())
                };
            }
            if !self.takes_word("OR") {
                // Several observations, in an order or a time, are more than one flow shows.
                return Err(format!("{} between or after observations", self.shown()));
            }
            if read.values.len() > MOST {
                return Err(format!("it asks for more than {MOST} values"));
            }
        }
    }

    fn shown(&self) -> String {
        match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            Some(Token::Text(text)) => format!("'{text}'"),
            Some(Token::Sign(sign)) => sign.clone(),
            Some(token) => format!("{token:?}").to_lowercase(),
            None => "the end".to_owned(),
        }
    }

    fn expression(&mut self, depth: usize) -> Result<Values, String> {
        let mut any = self.all_of(depth)?;
        while self.takes_word("OR") {
            let next = self.all_of(depth)?;
            if any.hashes_of != next.hashes_of {
                any.hashes_of = None;
            }
            any.values.extend(next.values);
            any.not_understood.extend(next.not_understood);
            if any.values.len() > MOST {
                return Err(format!("it asks for more than {MOST} values"));
            }
        }
        Ok(any)
    }

    fn all_of(&mut self, depth: usize) -> Result<Values, String> {
        let mut all = self.one(depth)?;
        while self.takes_word("AND") {
            let next = self.one(depth)?;
            if all.hashes_of.is_some() && all.hashes_of == next.hashes_of {
                all.values.extend(next.values);
            } else {
                all.values.clear();
                all.hashes_of = None;
                all.not_understood.clear();
                all.not_understood
                    .push("AND of what does not identify one object".to_owned());
            }
        }
        Ok(all)
    }

    fn one(&mut self, depth: usize) -> Result<Values, String> {
        if depth > DEEPEST {
            return Err(format!("its brackets nest deeper than {DEEPEST}"));
        }
        if self.takes(&Token::ListOpen) {
            let inner = self.expression(depth + 1)?;
            return if self.takes(&Token::ListClose) {
                Ok(inner)
            } else {
                Err("a bracket is not closed".to_owned())
            };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Values, String> {
        let mut path = self.word().to_owned();
        if !path.contains(':') {
            return Err(format!("an object's property is missing before {}", self.shown()));
        }
        self.at += 1;
        // `values[0]`: an item of a list.
        if self.takes(&Token::Open) {
            while !matches!(self.peek(), None | Some(Token::Close)) {
                self.at += 1;
            }
            self.takes(&Token::Close);
            path.push_str("[]");
            if self.word().starts_with('.') {
                path.push_str(self.word());
                self.at += 1;
            }
        }
        let negated = self.takes_word("NOT");
        let operator = match self.peek() {
            Some(Token::Sign(sign)) => sign.clone(),
            Some(Token::Word(word)) => word.to_ascii_uppercase(),
            _ => return Err(format!("a comparison is missing after {path}")),
        };
        self.at += 1;
        let operands = self.operands()?;
        let mut values = Values {
            values: Vec::new(),
            hashes_of: None,
            not_understood: Vec::new(),
        };
        if negated || !matches!(operator.as_str(), "=" | "==" | "IN" | "ISSUBSET") {
            let not = if negated { "NOT " } else { "" };
            values
                .not_understood
                .push(format!("{path} {not}{operator} is not looked up"));
            return Ok(values);
        }
        let (object, property) = path.split_once(':').unwrap_or_default();
        let property = property.replace('\'', "");
        let subset = operator == "ISSUBSET";
        for operand in operands {
            let read = match (object, property.as_str()) {
                ("ipv4-addr" | "ipv6-addr", "value") | ("network-traffic", "dst_ref.value" | "src_ref.value")
                    if subset || operand.contains('/') =>
                {
                    Value::parse(Kind::Network, &operand)
                }
                (_, _) if subset => {
                    values.not_understood.push(format!("{path} ISSUBSET is not looked up"));
                    continue;
                }
                ("ipv4-addr" | "ipv6-addr", "value") | ("network-traffic", "dst_ref.value" | "src_ref.value") => {
                    Value::parse(Kind::Address, &operand)
                }
                ("domain-name", "value") if self.subdomains => Value::parse(Kind::DomainTree, &operand),
                ("domain-name", "value") => Value::parse(Kind::Domain, &operand),
                ("url", "value") => Value::parse(Kind::Url, &operand),
                ("file" | "x509-certificate", hash) if hash.starts_with("hashes.") => {
                    values.hashes_of = Some(object.to_owned());
                    let kind = if object == "file" {
                        Kind::File
                    } else {
                        Kind::Certificate
                    };
                    Value::parse(kind, &operand)
                }
                _ => {
                    values.not_understood.push(format!("{path} is not looked up"));
                    continue;
                }
            };
            match read {
                Ok(value) => values.values.push(value),
                Err(error) => values.not_understood.push(error.to_string()),
            }
        }
        Ok(values)
    }

    fn operands(&mut self) -> Result<Vec<String>, String> {
        if !self.takes(&Token::ListOpen) {
            return Ok(vec![self.operand()?]);
        }
        let mut all = vec![self.operand()?];
        while self.takes(&Token::Comma) {
            all.push(self.operand()?);
        }
        if self.takes(&Token::ListClose) {
            Ok(all)
        } else {
            Err("a list is not closed".to_owned())
        }
    }

    fn operand(&mut self) -> Result<String, String> {
        let operand = match self.peek() {
            Some(Token::Text(text)) => text.clone(),
            // A number, a truth value, or `t'2026-01-01T00:00:00Z'`.
            Some(Token::Word(word)) => word.clone(),
            _ => return Err(format!("a value is missing before {}", self.shown())),
        };
        self.at += 1;
        if operand == "t" && matches!(self.peek(), Some(Token::Text(_))) {
            self.at += 1;
        }
        Ok(operand)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(text: &str) -> Vec<String> {
        let read = read(text, false);
        let found = read.values.iter().map(|v| format!("{} {v}", v.kind().name()));
        found
            .chain(read.not_understood.iter().map(|w| format!("! {w}")))
            .collect()
    }

    #[test]
    fn comparisons_become_values() {
        let md5 = "0123456789abcdef0123456789abcdef";
        for (text, want) in [
            ("[ipv4-addr:value = '192.0.2.1']", vec!["address 192.0.2.1"]),
            ("[ipv4-addr:value='192.0.2.1/24']", vec!["network 192.0.2.0/24"]),
            (
                "[ipv4-addr:value ISSUBSET '192.0.2.0/24']",
                vec!["network 192.0.2.0/24"],
            ),
            (
                "[ipv6-addr:value IN ('2001:db8::1', '2001:db8::2')]",
                vec!["address 2001:db8::1", "address 2001:db8::2"],
            ),
            (
                "[domain-name:value = 'Evil.example' OR url:value = 'http://evil.example/it\\'s']",
                vec!["domain evil.example", "url evil.example/it's"],
            ),
            (
                "([domain-name:value = 'a.example'] OR [(domain-name:value = 'b.example')])",
                vec!["domain a.example", "domain b.example"],
            ),
            (
                "[file:hashes.MD5 = '0123456789abcdef0123456789abcdef' AND file:hashes.'SHA-1' = '0123456789012345678901234567890123456789']",
                vec![
                    "file 0123456789abcdef0123456789abcdef",
                    "file 0123456789012345678901234567890123456789",
                ],
            ),
            (
                "[x509-certificate:hashes.'SHA-1' = '0123456789012345678901234567890123456789']",
                vec!["certificate 0123456789012345678901234567890123456789"],
            ),
            (
                "[network-traffic:dst_ref.value = '192.0.2.1']",
                vec!["address 192.0.2.1"],
            ),
        ] {
            assert_eq!(values(text), want, "{text}");
        }
        let with_size = format!("[file:hashes.MD5 = '{md5}' AND file:size = 12]");
        assert_eq!(values(&with_size), ["! AND of what does not identify one object"]);
    }

    #[test]
    fn what_one_value_cannot_stand_for_is_reported() {
        for (text, why) in [
            (
                "[ipv4-addr:value = '192.0.2.1' AND network-traffic:dst_port = 443]",
                "AND of what does not identify one object",
            ),
            (
                "[domain-name:value LIKE '%.example']",
                "domain-name:value LIKE is not looked up",
            ),
            (
                "[domain-name:value NOT = 'a.example']",
                "domain-name:value NOT = is not looked up",
            ),
            (
                "[ipv4-addr:value != '192.0.2.1']",
                "ipv4-addr:value != is not looked up",
            ),
            ("[process:command_line = 'x']", "process:command_line is not looked up"),
            ("[a:b[*].c = 'x']", "a:b[].c is not looked up"),
            (
                "[url:value = 'http://a.example/'] FOLLOWEDBY [url:value = 'http://b.example/']",
                "FOLLOWEDBY between or after observations",
            ),
            (
                "[url:value = 'http://a.example/'] WITHIN 5 SECONDS",
                "WITHIN between or after observations",
            ),
            ("[url:value = 'http://a.example/", "the text at octet 13 is not closed"),
            ("", "an observation in square brackets is missing"),
            ("[ipv4-addr:value = 'x.y']", "\"x.y\" is no"),
        ] {
            let found = values(text);
            assert!(
                found.iter().any(|f| f.starts_with("! ") && f.contains(why)),
                "{text}: {found:?}"
            );
        }
        // One side of an OR is enough.
        assert_eq!(
            values("[process:name = 'x' OR domain-name:value = 'a.example']"),
            ["domain a.example", "! process:name is not looked up"]
        );
        let deep = format!("[{}a:b = 'x'{}]", "(".repeat(40), ")".repeat(40));
        assert!(values(&deep)[0].contains("nest deeper"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(\\[|\\]|\\(|\\)|'|\\\\|=| |AND|OR|NOT|IN|ipv4-addr:value|a\\.b|1|é){0,40}") {
            let read = read(&text, true);
            prop_assert!(!read.values.is_empty() || !read.not_understood.is_empty());
        }
    }
}
