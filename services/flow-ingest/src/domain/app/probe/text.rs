//! Protocols that begin with text: HTTP, SSH, mail, FTP, SIP, RTSP, syslog, IRC, XMPP; and TLS, which most begin in.

use super::{Guess, Look, begins_with, contains, line, printable};
use crate::domain::app::{http, http2, tls};

/// TLS: a hello, or a whole record followed by another.
pub fn tls(look: &Look<'_>) -> Guess {
    match tls::begins(look.data) {
        Some(false) => Guess::sure(tls::goes_on(look.data, look.on_port)),
        known => Guess::begins(known),
    }
}

/// HTTP/1 (RFC 9112).
pub fn http(look: &Look<'_>) -> Guess {
    let response = Guess::begins(http::begins_response(look.data));
    if response != Guess::No {
        return response;
    }
    match http::begins_request(look.data) {
        // Others use the same methods: the line ends in the version.
        Some(true) => match line(look.data) {
            Some(first) => Guess::sure(contains(first, b" HTTP/1.")),
            None => Guess::sure(!contains(&look.data[..look.data.len().min(64)], b" sip:") && look.data.len() > 512)
                .or_maybe(look.data.len() <= 512),
        },
        known => Guess::begins(known),
    }
}

/// HTTP/2 with prior knowledge (RFC 9113 §3.4).
pub fn http2(look: &Look<'_>) -> Guess {
    http2::begins(look.data)
}

/// SSH (RFC 4253 §4.2).
pub fn ssh(look: &Look<'_>) -> Guess {
    begins_with(look.data, b"SSH-")
}

impl Guess {
    fn or_maybe(self, maybe: bool) -> Self {
        if self == Self::No && maybe { Self::Maybe } else { self }
    }
}

fn word(data: &[u8], words: &[&[u8]]) -> bool {
    words.iter().any(|word| {
        data.len() > word.len()
            && data[..word.len()].eq_ignore_ascii_case(word)
            && matches!(data[word.len()], b' ' | b'\r' | b'\n' | b':')
    })
}

fn holds(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

// A reply of FTP or SMTP: three digits and a space or a hyphen (RFC 959 §4.2, RFC 5321 §4.2).
fn greets(data: &[u8]) -> bool {
    matches!(data, [b'2' | b'4' | b'5', b'2', b'0' | b'1', b' ' | b'-', ..]) && line(data).is_some_and(printable)
}

/// SMTP (RFC 5321): a greeting on its port or that names it, or the client's first word.
pub fn smtp(look: &Look<'_>) -> Guess {
    let data = look.data;
    if look.side == 0 {
        return Guess::sure(word(data, &[b"EHLO", b"HELO", b"LHLO"]));
    }
    let named = || line(data).is_some_and(|l| holds(l, b"SMTP") || holds(l, b" mail"));
    Guess::sure(greets(data) && (look.on_port || named()))
}

/// FTP's control connection (RFC 959).
pub fn ftp(look: &Look<'_>) -> Guess {
    let data = look.data;
    if look.side == 0 {
        let commands: [&[u8]; 6] = [b"USER", b"AUTH TLS", b"AUTH SSL", b"FEAT", b"SYST", b"PASV"];
        return Guess::sure(word(data, &commands) && (look.on_port || word(data, &commands[1..3])));
    }
    let named = || line(data).is_some_and(|l| holds(l, b"FTP"));
    Guess::sure(greets(data) && (look.on_port || named()))
}

/// POP3 (RFC 1939).
pub fn pop3(look: &Look<'_>) -> Guess {
    let data = look.data;
    if look.side == 0 {
        return Guess::sure(
            look.on_port && word(data, &[b"USER", b"CAPA", b"APOP", b"AUTH", b"STLS", b"QUIT", b"PASS"]),
        );
    }
    let named = || line(data).is_some_and(|l| holds(l, b"POP"));
    Guess::sure(data.starts_with(b"+OK") && line(data).is_some_and(printable) && (look.on_port || named()))
}

/// IMAP (RFC 9051).
pub fn imap(look: &Look<'_>) -> Guess {
    let data = look.data;
    if look.side == 1 {
        let greeting = data.starts_with(b"* OK") || data.starts_with(b"* PREAUTH");
        let named = || line(data).is_some_and(|l| holds(l, b"IMAP"));
        return Guess::sure(greeting && (look.on_port || named()));
    }
    let Some(first) = line(data) else { return Guess::No };
    let mut words = first.split(|&b| b == b' ');
    let tag = words.next().unwrap_or_default();
    let tagged = !tag.is_empty() && tag.len() <= 16 && tag.iter().all(u8::is_ascii_alphanumeric);
    let command = words.next().unwrap_or_default();
    let known: [&[u8]; 7] = [
        b"CAPABILITY",
        b"LOGIN",
        b"STARTTLS",
        b"AUTHENTICATE",
        b"SELECT",
        b"ID",
        b"NOOP",
    ];
    Guess::sure(tagged && look.on_port && known.iter().any(|k| k.eq_ignore_ascii_case(command)))
}

/// SIP (RFC 3261 §7).
pub fn sip(look: &Look<'_>) -> Guess {
    let data = look.data;
    if data.starts_with(b"SIP/2.0 ") {
        return Guess::Yes;
    }
    let methods: [&[u8]; 14] = [
        b"INVITE ",
        b"REGISTER ",
        b"OPTIONS ",
        b"ACK ",
        b"BYE ",
        b"CANCEL ",
        b"SUBSCRIBE ",
        b"NOTIFY ",
        b"MESSAGE ",
        b"INFO ",
        b"PRACK ",
        b"UPDATE ",
        b"REFER ",
        b"PUBLISH ",
    ];
    if !methods.iter().any(|method| data.starts_with(method)) {
        return Guess::No;
    }
    let whole = line(data).is_some_and(|first| first.ends_with(b"SIP/2.0"));
    let target = data[..data.len().min(32)]
        .splitn(2, |&b| b == b' ')
        .nth(1)
        .unwrap_or_default();
    Guess::sure(whole || target.starts_with(b"sip:") || target.starts_with(b"sips:") || target.starts_with(b"tel:"))
}

/// RTSP (RFC 7826).
pub fn rtsp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let version = |first: &[u8]| first.ends_with(b" RTSP/1.0") || first.ends_with(b" RTSP/2.0");
    // Methods are in capitals.
    let begins = data.first().is_some_and(u8::is_ascii_uppercase);
    Guess::sure(
        begins && (data.starts_with(b"RTSP/1.0 ") || data.starts_with(b"RTSP/2.0 ") || line(data).is_some_and(version)),
    )
}

/// Syslog (RFC 5424, RFC 3164; framed after RFC 6587 over TCP).
pub fn syslog(look: &Look<'_>) -> Guess {
    let mut data = look.data;
    // Octet counting: a length before the message.
    let counted = data.iter().take(6).position(|&b| b == b' ').unwrap_or(0);
    if counted > 0 && data[..counted].iter().all(u8::is_ascii_digit) {
        data = &data[counted + 1..];
    }
    let Some(end) = data.iter().take(5).position(|&b| b == b'>') else {
        return Guess::No;
    };
    let digits = data.get(1..end).unwrap_or_default();
    let priority = digits
        .iter()
        .fold(0_u16, |sum, &b| sum * 10 + u16::from(b.wrapping_sub(b'0')));
    if data.first() != Some(&b'<') || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || priority > 191 {
        return Guess::No;
    }
    let rest = &data[end + 1..];
    const MONTHS: [&[u8]; 12] = [
        b"Jan ", b"Feb ", b"Mar ", b"Apr ", b"May ", b"Jun ", b"Jul ", b"Aug ", b"Sep ", b"Oct ", b"Nov ", b"Dec ",
    ];
    let dated = rest.starts_with(b"1 ") || MONTHS.iter().any(|month| rest.starts_with(month));
    let start = &rest[..rest.len().min(16)];
    Guess::sure(dated || (look.on_port && start.len() >= 4 && printable(start)))
}

/// IRC (RFC 1459).
pub fn irc(look: &Look<'_>) -> Guess {
    let data = look.data;
    let (Some(b':' | b'C'..=b'U'), Some(first)) = (data.first(), line(data)) else {
        return Guess::No;
    };
    if look.side == 0 {
        let two = || {
            let next = data.get(first.len() + 1..).unwrap_or_default();
            contains(next, b"USER ") || contains(next, b"NICK ")
        };
        let opens = first.starts_with(b"NICK ") || first.starts_with(b"CAP LS") || first.starts_with(b"USER ");
        let upgrade = first.starts_with(b"STARTTLS");
        return Guess::sure((opens && (look.on_port || two())) || (upgrade && look.on_port));
    }
    let notice =
        contains(first, b" NOTICE AUTH :") || contains(first, b" NOTICE * :") || first.starts_with(b"NOTICE AUTH :");
    Guess::sure(notice && printable(first))
}

/// XMPP (RFC 6120): the opening of a stream.
pub fn xmpp(look: &Look<'_>) -> Guess {
    let head = &look.data[..look.data.len().min(512)];
    let xml = head.starts_with(b"<?xml") || head.starts_with(b"<stream:stream");
    let names = || contains(head, b"http://etherx.jabber.org/streams") || contains(head, b"jabber:");
    Guess::sure(xml && contains(head, b"<stream:stream") && names())
}
