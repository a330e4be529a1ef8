//! An incident on one self-contained HTML page.

use std::fmt::Write as _;

use garrison_proto::{
    alert::v1::Alert,
    response::v1::{Incident, Response, TimelineEntry},
};

use crate::output::{time as instant, word};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem;border-bottom:1px solid #d5dbe1}\
time{white-space:nowrap}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .75rem .25rem 0;vertical-align:top}\
th{color:#5b6b7b;font-weight:600}code{font-size:.85em}.sev{padding:.1rem .5rem;border-radius:.6rem;color:#fff;background:#5b6b7b}\
.critical,.high{background:#b3261e}.medium{background:#b26a00}.low,.info{background:#3b6ea5}\
.facts{color:#5b6b7b}@media print{body{margin:0}}";

/// Writes the page. Every word that came from the network or from people is escaped.
pub fn page(incident: &Incident, alerts: &[Alert], responses: &[Response], timeline: &[TimelineEntry]) -> String {
    let mut page = String::new();
    let severity = word(incident.severity().as_str_name(), "SEVERITY_");
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\
         <h1>{title} <span class=\"sev {severity}\">{severity}</span></h1>\
         <p class=\"facts\">{name} · {status} · {first} to {last} · {count} alerts</p>",
        title = escaped(&incident.title),
        name = escaped(&incident.name),
        status = word(incident.status().as_str_name(), "INCIDENT_STATUS_"),
        first = time(incident.first_seen.as_ref()),
        last = time(incident.last_seen.as_ref()),
        count = incident.alert_count,
    );
    let entities: Vec<String> = incident
        .entities
        .iter()
        .map(|entity| format!("<code>{}</code>", escaped(&entity.value)))
        .collect();
    let _ = write!(page, "<h2>Who is involved</h2><p>{}</p>", entities.join(", "));

    let rows = incident.techniques.iter().map(|technique| {
        vec![
            escaped(&technique.id),
            escaped(&technique.name),
            escaped(&technique.tactic),
        ]
    });
    table(
        &mut page,
        "Techniques (MITRE ATT&amp;CK)",
        &["Id", "Technique", "Tactic"],
        rows,
    );

    let rows = responses.iter().map(|response| {
        vec![
            word(response.action().as_str_name(), "ACTION_"),
            format!("<code>{}</code>", escaped(&response.target)),
            word(response.state().as_str_name(), "RESPONSE_STATE_"),
            time(response.applied.as_ref()),
            escaped(&response.reason),
        ]
    });
    table(
        &mut page,
        "What was done",
        &["Action", "Target", "State", "In force from", "Why"],
        rows,
    );

    let rows = alerts.iter().map(|alert| {
        let why: Vec<String> = alert
            .features
            .iter()
            .map(|feature| {
                format!(
                    "{} {:.3} (usual {:.3})",
                    escaped(&feature.name),
                    feature.value,
                    feature.usual
                )
            })
            .collect();
        vec![
            time(alert.detected_time.as_ref()),
            word(alert.severity().as_str_name(), "SEVERITY_"),
            escaped(&alert.detector),
            escaped(&alert.title),
            why.join("<br>"),
        ]
    });
    table(
        &mut page,
        "What was found",
        &["Time", "Severity", "Detector", "Finding", "Why"],
        rows,
    );

    let rows = timeline.iter().map(|entry| {
        vec![
            time(entry.time.as_ref()),
            escaped(&entry.kind),
            escaped(&entry.actor),
            escaped(&entry.summary),
        ]
    });
    table(&mut page, "Timeline", &["Time", "Kind", "Who", "What"], rows);
    page.push_str("</body></html>\n");
    page
}

// Kept on one line, so that a column of times reads as a column.
fn time(at: Option<&garrison_proto::Timestamp>) -> String {
    format!("<time>{}</time>", instant(at))
}

fn table(page: &mut String, title: &str, headers: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = write!(page, "<h2>{title}</h2><table><tr>");
    headers.iter().for_each(|header| {
        let _ = write!(page, "<th>{header}</th>");
    });
    page.push_str("</tr>");
    let mut any = false;
    for row in rows {
        any = true;
        page.push_str("<tr>");
        row.iter().for_each(|cell| {
            let _ = write!(page, "<td>{cell}</td>");
        });
        page.push_str("</tr>");
    }
    page.push_str("</table>");
    if !any {
        page.push_str("<p class=\"facts\">None.</p>");
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use garrison_proto::alert::v1::Feature;

    use super::*;

    #[test]
    fn what_an_attacker_wrote_stays_text() {
        let evil = "<script>alert('x')</script>\u{1b}".to_owned();
        let incident = Incident {
            title: evil.clone(),
            ..Incident::default()
        };
        let alert = Alert {
            title: evil.clone(),
            features: vec![Feature {
                name: evil.clone(),
                ..Feature::default()
            }],
            ..Alert::default()
        };
        let response = Response {
            reason: evil.clone(),
            ..Response::default()
        };
        let entry = TimelineEntry {
            summary: evil,
            ..TimelineEntry::default()
        };
        let page = page(&incident, &[alert], &[response], &[entry]);
        assert!(!page.contains("<script>") && !page.contains('\u{1b}'));
        assert_eq!(page.matches("&lt;script&gt;").count(), 6);
    }
}
