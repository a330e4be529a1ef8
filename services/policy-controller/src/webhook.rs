//! The validating admission webhook (`admission.k8s.io/v1`): a document with errors is refused before it is stored, with
//! every error at its field.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use garrison_ztp::Version;
use serde_json::{Value, json};

use crate::{
    Conversion, Metrics,
    domain::{
        check::{Finding, check},
        source::{Kind, PolicyId},
    },
};

/// Largest review that is read, in bytes: two objects of the API server's own limit.
const REVIEW: usize = 8 * 1024 * 1024;
/// Reviews that are larger are checked beside the executor.
const LARGE: usize = 64 * 1024;
/// Causes that an answer lists.
const CAUSES: usize = 50;
/// Warnings that an answer lists, and their length in characters: more would be cut by the API server.
const WARNINGS: (usize, usize) = (12, 120);

/// Decides about policies.
#[derive(Clone, Debug)]
pub struct Admission {
    lowest_tier: u16,
    metrics: Metrics,
}

impl Admission {
    /// `lowest_tier` is the lowest that a namespaced policy may name.
    pub fn new(lowest_tier: u16, metrics: Metrics) -> Self {
        Self { lowest_tier, metrics }
    }

    /// Answers an `AdmissionReview`; `None` when it is none.
    pub fn review(&self, review: &Value) -> Option<Value> {
        let request = review.get("request")?;
        let uid = request.get("uid")?.as_str()?;
        let began = Instant::now();
        let findings = self.findings(request);
        let errors: Vec<&Finding> = findings.iter().filter(|finding| finding.refused).collect();
        let mut response = json!({"uid": uid, "allowed": errors.is_empty()});
        if !errors.is_empty() {
            response["status"] = refusal(request, &errors);
        }
        let warnings: Vec<String> = findings
            .iter()
            .filter(|finding| !finding.refused)
            .take(WARNINGS.0)
            .map(|finding| finding.to_string().chars().take(WARNINGS.1).collect())
            .collect();
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        self.metrics.admitted(errors.is_empty(), began.elapsed().as_secs_f64());
        Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    }

    fn findings(&self, request: &Value) -> Vec<Finding> {
        let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let kind = text(request, "/kind/kind").and_then(|kind| Kind::from_name(&kind));
        let (Some(kind), Some(object)) = (kind, request.get("object").filter(|object| object.is_object())) else {
            return Vec::new();
        };
        // What goes is let go, and what stays as it is was decided before, under the rules of that time.
        if object
            .pointer("/metadata/deletionTimestamp")
            .is_some_and(|time| !time.is_null())
        {
            return Vec::new();
        }
        let old = request.get("oldObject").filter(|old| old.is_object());
        if old.is_some_and(|old| old.get("spec") == object.get("spec")) {
            return Vec::new();
        }
        let labels: BTreeMap<String, String> = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        let name = text(object, "/metadata/name")
            .filter(|name| !name.is_empty())
            // The API server adds five letters or digits.
            .or_else(|| Some(format!("{}00000", text(object, "/metadata/generateName")?)))
            .unwrap_or_default();
        let namespace = text(request, "/namespace").or_else(|| text(object, "/metadata/namespace"));
        let id = PolicyId {
            kind,
            namespace: namespace.filter(|_| kind == Kind::Namespaced),
            name,
        };
        let version = text(request, "/kind/version").unwrap_or_default();
        let version = Version::ALL.into_iter().find(|known| known.name() == version);
        check(
            &id,
            version.unwrap_or_default(),
            &labels,
            object.get("spec").unwrap_or(&Value::Null),
            self.lowest_tier,
        )
    }
}

// As the API server itself refuses an object.
fn refusal(request: &Value, errors: &[&Finding]) -> Value {
    let causes: Vec<Value> = errors
        .iter()
        .take(CAUSES)
        .map(|error| {
            json!({
                "reason": "FieldValueInvalid",
                "field": error.field,
                "message": format!("{}. {} ({})", error.message, error.remedy, error.code),
            })
        })
        .collect();
    let mut message: Vec<String> = errors.iter().take(CAUSES).map(ToString::to_string).collect();
    if errors.len() > CAUSES {
        message.push(format!("and {} more", errors.len() - CAUSES));
    }
    json!({
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": message.join("; "),
        "details": {
            "name": request.get("name"),
            "group": request.pointer("/kind/group"),
            "kind": request.pointer("/kind/kind"),
            "causes": causes,
        },
    })
}

/// The webhook's routes.
pub fn router(admission: Admission, conversion: Conversion) -> Router {
    let convert = Router::new()
        .route("/convert", post(crate::convert::serve))
        .with_state(conversion);
    Router::new()
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(REVIEW))
        .with_state(Arc::new(admission))
        .merge(convert)
}

async fn validate(State(admission): State<Arc<Admission>>, body: Bytes) -> Response {
    let large = body.len() > LARGE;
    let decide = move || {
        let review: Value = serde_json::from_slice(&body).ok()?;
        admission.review(&review)
    };
    let answer = if large {
        tokio::task::spawn_blocking(decide).await.unwrap_or_default()
    } else {
        decide()
    };
    match answer {
        Some(answer) => Json(answer).into_response(),
        None => (
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview of admission.k8s.io/v1\n",
        )
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(kind: &str, object: Value, old: Value) -> Value {
        json!({"request": {
            "uid": "1", "kind": {"group": "garrison.dev", "version": "v1alpha1", "kind": kind},
            "name": "web", "namespace": "shop", "operation": "CREATE", "object": object, "oldObject": old,
        }})
    }

    fn policy(spec: Value) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
    }

    #[test]
    fn errors_are_refused_at_their_fields() {
        let admission = Admission::new(100, Metrics::default());
        let wrong = policy(json!({"subject": {"workloads": {}}, "ingres": [], "tier": 3}));
        let answer = admission
            .review(&review("ZeroTrustPolicy", wrong.clone(), Value::Null))
            .unwrap();
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("1"), &json!(false)));
        let fields: Vec<&str> = response["status"]["details"]["causes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|cause| cause["field"].as_str())
            .collect();
        assert!(
            fields.contains(&"spec.ingres") && fields.contains(&"spec.tier"),
            "{fields:?}"
        );
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.contains("ingress") && message.contains("GAR-POLICY-0003"),
            "{message}"
        );
        // As it was before, or on its way out, it passes.
        let same = admission
            .review(&review("ZeroTrustPolicy", wrong.clone(), wrong.clone()))
            .unwrap();
        assert_eq!(same["response"]["allowed"], json!(true));
        let mut going = wrong;
        going["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        let answer = admission
            .review(&review("ZeroTrustPolicy", going, Value::Null))
            .unwrap();
        assert_eq!(answer["response"]["allowed"], json!(true));
    }

    #[test]
    fn each_version_is_told_its_own_fields() {
        let admission = Admission::new(100, Metrics::default());
        let spec = json!({"owner": "a", "accountability": {"reason": 3}, "subject": {"workloads": {}}, "ingress": []});
        let mut beta = review("ZeroTrustPolicy", policy(spec), Value::Null);
        beta["request"]["kind"]["version"] = json!("v1beta1");
        let answer = admission.review(&beta).unwrap();
        let causes = answer["response"]["status"]["details"]["causes"].to_string();
        assert!(
            causes.contains("\"spec.owner\"") && causes.contains("\"spec.accountability.reason\""),
            "{causes}"
        );
    }

    #[test]
    fn warnings_do_not_refuse() {
        let admission = Admission::new(100, Metrics::default());
        let wide = policy(json!({
            "mode": "enforce", "subject": {"workloads": {}}, "ingress": [{"name": "a", "from": [{"any": true}]}],
        }));
        let answer = admission.review(&review("ZeroTrustPolicy", wide, Value::Null)).unwrap();
        assert_eq!(answer["response"]["allowed"], json!(true), "{answer}");
        let warnings = answer["response"]["warnings"].as_array().unwrap();
        assert!(!warnings.is_empty() && warnings.iter().all(|w| w.as_str().unwrap().chars().count() <= 120));
    }

    #[test]
    fn what_is_no_review_is_no_answer() {
        let admission = Admission::new(100, Metrics::default());
        for odd in [
            json!(null),
            json!([]),
            json!({"request": {}}),
            json!({"request": {"uid": 3}}),
        ] {
            assert_eq!(admission.review(&odd), None);
        }
        let other = admission.review(&review("Pod", json!({}), Value::Null)).unwrap();
        assert_eq!(other["response"]["allowed"], json!(true));
    }
}
