//! A report as one HTML file without scripts and without anything to fetch.

use std::fmt::Write as _;

use chrono::SecondsFormat;
use garrison_proof::merkle;

use super::{
    assessment::{Fact, Status},
    oscal::Input,
};

const STYLE: &str = "\
:root{--ink:#1c2430;--soft:#5d6878;--line:#d9dfe7;--ok:#17693c;--bad:#a5281b;--none:#7a5a00}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:62rem;margin:2.5rem auto;padding:0 1.25rem}\
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}\
.soft,dt{color:var(--soft)}dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0}dd{margin:0;overflow-wrap:anywhere}\
section.objective{margin:1rem 0 1.4rem}p{margin:.3rem 0}.badge{font-weight:600}.satisfied{color:var(--ok)}.not-satisfied{color:var(--bad)}.no-evidence{color:var(--none)}\
table{border-collapse:collapse;width:100%;font-size:.86rem;margin:.5rem 0}th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line)}\
code,pre{font:12.5px/1.45 ui-monospace,monospace}td code{overflow-wrap:anywhere}pre{background:#f4f6f9;padding:.8rem;overflow:auto}\
@media print{body{margin:0;max-width:none}}";

/// Writes text so that no browser takes it for markup.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The report.
pub fn render(input: &Input<'_>) -> String {
    let time = |t: chrono::DateTime<chrono::Utc>| t.to_rfc3339_opts(SecondsFormat::Secs, true);
    let mut out = String::new();
    let count = |status| input.outcome.findings.iter().filter(|f| f.status == status).count();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>SOC 2 CC7.2–CC7.5 · {tenant}</title><style>{STYLE}</style></head><body>\n\
         <h1>SOC 2 · CC7.2 to CC7.5</h1>\n\
         <p class=\"soft\">What the audit log of {tenant} shows. Made automatically; a person's judgement is still needed.</p>\n\
         <dl><dt>Period</dt><dd>{since} to {until}</dd><dt>Made</dt><dd>{created}</dd>\
         <dt>Report</dt><dd><code>reports/{report}</code></dd>\
         <dt>Entries examined</dt><dd>{entries} ({denied} refusals), in a log of {size}</dd>\
         <dt>Result</dt><dd><span class=\"badge satisfied\">{ok} satisfied</span> · \
         <span class=\"badge not-satisfied\">{bad} not satisfied</span> · \
         <span class=\"badge no-evidence\">{none} without evidence</span></dd></dl>\n",
        tenant = escape(input.tenant),
        since = time(input.since),
        until = time(input.until),
        created = time(input.created),
        report = input.report,
        entries = input.outcome.entries,
        denied = input.outcome.denied,
        size = input.tree_size,
        ok = count(Status::Satisfied),
        bad = count(Status::NotSatisfied),
        none = count(Status::NoEvidence),
    );
    let mut control = "";
    for finding in &input.outcome.findings {
        if finding.control.id != control {
            control = finding.control.id;
            let _ = writeln!(out, "<h2>{} · {}</h2>", control, escape(finding.control.title));
        }
        let class = finding.status.label().replace(' ', "-");
        let _ = writeln!(
            out,
            "<section class=\"objective\" id=\"{id}\"><p><strong>{statement}.</strong></p>\
             <p><span class=\"badge {class}\">{label}</span> <span class=\"soft\">{reason}</span></p>",
            id = finding.objective.id,
            statement = escape(finding.objective.statement),
            label = finding.status.label(),
            reason = escape(&finding.reason),
        );
        table(
            &mut out,
            input,
            "Contradicting entries",
            &finding.contradictions,
            finding.contradictions_total,
        );
        table(
            &mut out,
            input,
            "Supporting entries",
            &finding.evidence,
            finding.evidence_total,
        );
        out.push_str("</section>\n");
    }
    let _ = write!(
        out,
        "<h2>How to check this</h2>\n<p>Every entry above is in the log that this checkpoint covers. The OSCAL form of \
         this report holds each entry's body and inclusion proof; <code>garrison audit verify</code> checks a whole export.</p>\n\
         <pre>{}</pre>\n<p class=\"soft\">Verifier key</p><pre>{}</pre>\n</body></html>\n",
        escape(input.checkpoint),
        escape(input.verifier_key)
    );
    out
}

fn table(out: &mut String, input: &Input<'_>, caption: &str, facts: &[Fact], total: u64) {
    if facts.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<table><caption class=\"soft\" style=\"text-align:left\">{caption}: {} of {total}</caption>\
         <tr><th>Entry</th><th>Time</th><th>Who</th><th>What</th><th>On</th><th>Leaf hash</th></tr>",
        facts.len()
    );
    for fact in facts {
        let hash = input
            .proven
            .get(&fact.index)
            .map(|entry| hex::encode(merkle::leaf_hash(&entry.body)))
            .unwrap_or_default();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{hash}</code></td></tr>",
            fact.index,
            fact.occurred.to_rfc3339_opts(SecondsFormat::Millis, true),
            escape(&fact.actor),
            escape(&fact.action),
            escape(&fact.resource),
        );
    }
    out.push_str("</table>");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        assessment::Assessment,
        oscal::{OSCAL_VERSION, Proven},
    };

    fn with_input<T>(actor: &str, take: impl FnOnce(&Input<'_>) -> T) -> T {
        let start = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let mut assessment = Assessment::new(5);
        let mut proven = BTreeMap::new();
        for (index, action) in (0..).zip(["incident.opened", "response.applied", "response.failed"]) {
            let body = format!("{{\"action\":\"{action}\"}}").into_bytes();
            proven.insert(
                index,
                Proven {
                    index,
                    body,
                    proof: vec![[3; 32]],
                },
            );
            assessment.observe(&Fact {
                index,
                occurred: start,
                actor: actor.to_owned(),
                action: action.to_owned(),
                resource: format!("things/{index}"),
                denied: false,
            });
        }
        let outcome = assessment.finish();
        take(&Input {
            report: Uuid::from_u128(7),
            tenant: "acme",
            since: start,
            until: start + chrono::Duration::days(1),
            created: start,
            outcome: &outcome,
            proven: &proven,
            checkpoint: "garrison.dev/lab/acme\n3\nAAAA\n\n— garrison.dev/lab/acme AAAA\n",
            tree_size: 3,
            verifier_key: "garrison.dev/lab/acme+00000000+AAAA",
        })
    }

    #[test]
    fn the_page_fetches_nothing_and_says_what_is_not_satisfied() {
        let html = with_input("users/1", render);
        for forbidden in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        assert!(html.contains("not satisfied") && html.contains("no evidence") && html.contains("id=\"cc7.4-c\""));
    }

    #[test]
    fn the_oscal_document_has_the_structure_of_assessment_results() {
        let document = with_input("users/1", |input| input.document());
        let results = &document["assessment-results"];
        assert_eq!(results["metadata"]["oscal-version"], OSCAL_VERSION);
        for pointer in [
            "/uuid",
            "/metadata/title",
            "/metadata/last-modified",
            "/metadata/version",
            "/import-ap/href",
            "/results/0/uuid",
            "/results/0/title",
            "/results/0/description",
            "/results/0/start",
            "/results/0/reviewed-controls/control-selections/0/include-controls/0/control-id",
        ] {
            assert!(results.pointer(pointer).is_some_and(|v| v.is_string()), "{pointer}");
        }
        let resources: Vec<&str> = results["back-matter"]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["uuid"].as_str().unwrap())
            .collect();
        let result = &results["results"][0];
        let observations: Vec<&str> = result["observations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["uuid"].as_str().unwrap())
            .collect();
        for finding in result["findings"].as_array().unwrap() {
            let status = finding["target"]["status"]["state"].as_str().unwrap();
            assert!(["satisfied", "not-satisfied"].contains(&status));
            let observation = finding["related-observations"][0]["observation-uuid"].as_str().unwrap();
            assert!(observations.contains(&observation));
        }
        let mut linked = 0;
        for observation in result["observations"].as_array().unwrap() {
            for evidence in observation["relevant-evidence"].as_array().into_iter().flatten() {
                let href = evidence["href"].as_str().unwrap().strip_prefix('#').unwrap();
                assert!(resources.contains(&href));
                linked += 1;
            }
        }
        assert!(linked >= 3);
        // OSCAL takes UUIDs of version 4 or 5 only, and no empty arrays.
        check(&document);
        fn check(value: &serde_json::Value) {
            match value {
                serde_json::Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                    if key == "uuid" {
                        assert!(matches!(
                            Uuid::parse_str(value.as_str().unwrap()).unwrap().get_version_num(),
                            4 | 5
                        ));
                    }
                    check(value);
                }),
                serde_json::Value::Array(items) => {
                    assert!(!items.is_empty());
                    items.iter().for_each(check);
                }
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_from_the_log_becomes_markup(actor in ".{0,40}") {
            let html = with_input(&format!("<b onload='x'>{actor}</b>"), render);
            prop_assert!(!html.contains("<b ") && !html.contains("</b>"));
            prop_assert_eq!(html.matches("<table").count(), html.matches("</table>").count());
        }
    }
}
