//! Between use cases and messages.

use garrison_proto::{
    policy::v1::{self as proto, diagnostic::Level},
    to_timestamp,
};
use garrison_ztp::{Diagnostic, Explanation, Verdict, compile::Compiled, document::Mode};

use crate::store::{CountRow, Review, StoredPolicy};

pub(super) fn policy(policy: StoredPolicy) -> proto::Policy {
    let mode = match policy.mode {
        Mode::Observe => proto::Mode::Observe,
        Mode::Stage => proto::Mode::Stage,
        Mode::Enforce => proto::Mode::Enforce,
    };
    let review = match policy.review {
        Review::NotNeeded => proto::Review::NotNeeded,
        Review::Pending => proto::Review::Pending,
        Review::Approved => proto::Review::Approved,
        Review::Rejected => proto::Review::Rejected,
        Review::Superseded => proto::Review::Superseded,
    };
    let (reviewer, reviewed, review_note) = match policy.decision {
        Some(decision) => (decision.reviewer, Some(to_timestamp(decision.decided)), decision.note),
        None => Default::default(),
    };
    proto::Policy {
        name: format!("policies/{}", policy.name),
        version: policy.version,
        mode: mode.into(),
        document: policy.document,
        sha256: policy.sha256,
        author: policy.author,
        created: Some(to_timestamp(policy.created)),
        withdrawn: policy.withdrawn,
        review: review.into(),
        reviewer,
        reviewed,
        review_note,
        in_force: policy.in_force,
    }
}

pub(super) fn diagnostic(found: Diagnostic) -> proto::Diagnostic {
    let level = match found.level {
        garrison_ztp::Level::Error => Level::Error,
        garrison_ztp::Level::Warning => Level::Warning,
    };
    proto::Diagnostic {
        level: level.into(),
        code: found.code.to_string(),
        field: found.field,
        line: found.position.line,
        column: found.position.column,
        message: found.message,
        remedy: found.remedy,
    }
}

pub(super) fn compiled(compiled: Compiled) -> proto::CompilePolicyResponse {
    let files = compiled.files.into_iter().map(|file| proto::CompiledFile {
        path: file.path,
        content: file.content,
    });
    let gaps = compiled.gaps.into_iter().map(|gap| proto::Gap {
        rule: gap.rule,
        reason: gap.reason,
    });
    proto::CompilePolicyResponse {
        files: files.collect(),
        gaps: gaps.collect(),
    }
}

pub(super) fn verdict(verdict: Verdict) -> proto::Verdict {
    match verdict {
        Verdict::Allow => proto::Verdict::Allow,
        Verdict::Deny => proto::Verdict::Deny,
        Verdict::Ungoverned => proto::Verdict::Ungoverned,
    }
}

pub(super) fn explanation(explanation: Explanation) -> proto::ExplainConnectionResponse {
    let (policy, version, rule) = match explanation.entry {
        Some(entry) => (format!("policies/{}", entry.policy), entry.version, entry.rule),
        None => Default::default(),
    };
    proto::ExplainConnectionResponse {
        verdict: verdict(explanation.verdict).into(),
        reason: explanation.reason,
        policy,
        version,
        rule,
    }
}

pub(super) fn count(row: CountRow) -> proto::VerdictCount {
    proto::VerdictCount {
        policy: if row.policy.is_empty() {
            String::new()
        } else {
            format!("policies/{}", row.policy)
        },
        rule: row.rule,
        verdict: verdict(row.verdict).into(),
        flows: row.flows,
        last_seen: Some(to_timestamp(row.last_seen)),
    }
}
