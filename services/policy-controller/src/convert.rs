//! The conversion webhook (`apiextensions.k8s.io/v1`): objects of one version of the API as those of another.
//!
//! All or nothing, as the protocol has it: an object that cannot be converted makes the answer a failure that names it,
//! and nothing is stored or shown half.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use garrison_ztp::version::{Version, convert};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::Semaphore;

use crate::Metrics;

/// Largest review that is read, in bytes: a page of ten thousand objects, which is what the API server reads at a time.
const REVIEW: usize = 48 << 20;
/// Bytes of all reviews together that are held at a time, in units of [`UNIT`].
const HELD: u32 = 96 << 10;
const UNIT: usize = 1 << 10;
/// How long a review may take to arrive.
const ARRIVE: Duration = Duration::from_secs(20);
/// Reviews that are larger are converted beside the executor.
const LARGE: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'r> {
    api_version: &'r str,
    kind: &'r str,
    #[serde(borrow)]
    request: Asked<'r>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'r> {
    uid: String,
    #[serde(rename = "desiredAPIVersion")]
    desired: String,
    #[serde(borrow, default)]
    objects: Vec<&'r RawValue>,
}

/// Converts objects.
#[derive(Clone, Debug)]
pub struct Conversion {
    metrics: Metrics,
    room: Arc<Semaphore>,
}

impl Conversion {
    /// One that counts into `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            room: Arc::new(Semaphore::new(HELD as usize)),
        }
    }

    /// Answers a `ConversionReview`; `None` when it is none.
    pub fn review(&self, body: &[u8]) -> Option<Vec<u8>> {
        let began = Instant::now();
        let review: Review<'_> = serde_json::from_slice(body).ok()?;
        if review.api_version != "apiextensions.k8s.io/v1" || review.kind != "ConversionReview" {
            return None;
        }
        let asked = review.request;
        let objects = asked.objects.len();
        let converted = converted(&asked, body.len());
        self.metrics
            .converted(converted.is_ok(), objects, began.elapsed().as_secs_f64());
        let mut out = Vec::with_capacity(body.len() + 256);
        out.extend(b"{\"apiVersion\":\"apiextensions.k8s.io/v1\",\"kind\":\"ConversionReview\",\"response\":{\"uid\":");
        serde_json::to_writer(&mut out, &asked.uid).ok()?;
        out.extend(b",\"result\":");
        match converted {
            Ok(objects) => {
                out.extend(b"{\"status\":\"Success\"},\"convertedObjects\":[");
                out.extend(objects);
                out.push(b']');
            }
            Err(message) => {
                tracing::warn!(message, code = "GAR-CTL-0010", "a conversion was refused");
                let result = json!({"status": "Failure", "reason": "Invalid", "code": 422, "message": format!("{message} (GAR-CTL-0010)")});
                serde_json::to_writer(&mut out, &result).ok()?;
            }
        }
        out.extend(b"}}");
        Some(out)
    }
}

/// The objects with commas between.
fn converted(asked: &Asked<'_>, bytes: usize) -> Result<Vec<u8>, String> {
    let Some(to) = Version::from_api_version(&asked.desired) else {
        let desired: String = asked.desired.chars().take(100).collect();
        return Err(format!(
            "desiredAPIVersion {desired:?} is not a version that is known here"
        ));
    };
    let mut out = Vec::with_capacity(bytes);
    for (i, raw) in asked.objects.iter().enumerate() {
        // One at a time: trees are many times as large as their text.
        let mut object: Value =
            serde_json::from_str(raw.get()).map_err(|error| format!("object {i} cannot be read: {error}"))?;
        convert(&mut object, to).map_err(|why| format!("{}: {why}", named(i, &object)))?;
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, &object).map_err(|error| error.to_string())?;
    }
    Ok(out)
}

fn named(i: usize, object: &Value) -> String {
    let text = |pointer: &str| {
        let text = object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        text.chars().take(253).collect::<String>()
    };
    match (text("/metadata/namespace"), text("/metadata/name")) {
        (_, name) if name.is_empty() => format!("object {i}"),
        (namespace, name) if namespace.is_empty() => format!("{} {name}", text("/kind")),
        (namespace, name) => format!("{} {namespace}/{name}", text("/kind")),
    }
}

/// `POST /convert`.
pub(crate) async fn serve(State(conversion): State<Conversion>, request: Request<Body>) -> Response {
    let refuse = |status: StatusCode, why: &'static str| (status, why).into_response();
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // What it takes is known before it is read, so that many large ones wait for each other.
    let Some(length) = length else {
        return refuse(
            StatusCode::LENGTH_REQUIRED,
            "a ConversionReview comes with its length\n",
        );
    };
    if length > REVIEW {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the ConversionReview is larger than 48 MiB: ask for fewer objects at a time\n",
        );
    }
    let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
    let arrived = tokio::time::timeout(ARRIVE, async {
        let room = Arc::clone(&conversion.room).acquire_many_owned(units).await.ok()?;
        let body = to_bytes(request.into_body(), length).await.ok()?;
        Some((room, body))
    });
    let Ok(Some((room, body))) = arrived.await else {
        return refuse(
            StatusCode::REQUEST_TIMEOUT,
            "the ConversionReview did not arrive in time\n",
        );
    };
    let large = body.len() > LARGE;
    let work = move || (conversion.review(&body), room);
    let answer = if large {
        tokio::task::spawn_blocking(work).await.ok()
    } else {
        Some(work())
    };
    match answer {
        Some((Some(answer), _room)) => ([(CONTENT_TYPE, "application/json")], answer).into_response(),
        Some((None, _)) => refuse(
            StatusCode::BAD_REQUEST,
            "not a ConversionReview of apiextensions.k8s.io/v1\n",
        ),
        None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the conversion failed\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(desired: &str, objects: Value) -> Value {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "request": {"uid": "u\"1", "desiredAPIVersion": desired, "objects": objects},
        })
    }

    fn answer(review: &Value) -> Option<Value> {
        let bytes = Conversion::new(Metrics::default()).review(review.to_string().as_bytes())?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    fn policy(name: &str, spec: Value) -> Value {
        json!({"apiVersion": "garrison.dev/v1alpha1", "kind": "ZeroTrustPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": spec})
    }

    #[test]
    fn objects_come_back_in_order_and_in_the_version() {
        let objects = json!([
            policy("a", json!({"owner": "x"})),
            policy("b", json!({})),
            policy("c", json!({"ticket": "y"}))
        ]);
        let there = answer(&asked("garrison.dev/v1beta1", objects.clone())).unwrap();
        let response = &there["response"];
        assert_eq!(
            (&response["uid"], &response["result"]["status"]),
            (&json!("u\"1"), &json!("Success"))
        );
        let converted = &response["convertedObjects"];
        assert_eq!(converted[0]["spec"], json!({"accountability": {"owner": "x"}}));
        assert_eq!(converted[1]["apiVersion"], "garrison.dev/v1beta1");
        assert_eq!(converted[2]["metadata"]["name"], "c");
        let back = answer(&asked("garrison.dev/v1alpha1", converted.clone())).unwrap();
        assert_eq!(back["response"]["convertedObjects"], objects);
        let none = answer(&asked("garrison.dev/v1beta1", json!([]))).unwrap();
        assert_eq!(none["response"]["convertedObjects"], json!([]));
    }

    #[test]
    fn what_cannot_be_converted_is_a_failure_that_names_it() {
        let good = policy("a", json!({}));
        let mut beta = policy("b", json!({"accountability": {"boss": "x"}}));
        beta["apiVersion"] = json!("garrison.dev/v1beta1");
        let mut pod = good.clone();
        pod["kind"] = json!("Pod");
        let mut old = good.clone();
        old["apiVersion"] = json!("garrison.dev/v0");
        for (desired, object, said) in [
            (
                "garrison.dev/v1alpha1",
                beta,
                "ZeroTrustPolicy shop/b: spec.accountability.boss",
            ),
            ("garrison.dev/v1beta1", pod, "Pod shop/a: kind"),
            ("garrison.dev/v1beta1", old, "ZeroTrustPolicy shop/a: apiVersion"),
            ("garrison.dev/v1beta1", json!(3), "object 1: kind"),
            ("garrison.dev/v9", good.clone(), "desiredAPIVersion"),
        ] {
            let answer = answer(&asked(desired, json!([good, object]))).unwrap();
            let result = &answer["response"]["result"];
            assert_eq!(result["status"], "Failure", "{answer}");
            assert!(result["message"].as_str().unwrap().contains(said), "{said}: {result}");
            assert_eq!(answer["response"].get("convertedObjects"), None);
        }
    }

    #[test]
    fn what_is_no_review_is_no_answer() {
        for odd in [
            json!(null),
            json!({}),
            json!({"apiVersion": "v1", "kind": "ConversionReview", "request": {"uid": "1", "desiredAPIVersion": "x"}}),
        ] {
            assert_eq!(answer(&odd), None);
        }
        // Nested beyond what the reader follows.
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let review = format!(
            "{{\"apiVersion\":\"apiextensions.k8s.io/v1\",\"kind\":\"ConversionReview\",\"request\":{{\"uid\":\"1\",\"desiredAPIVersion\":\"garrison.dev/v1beta1\",\"objects\":[{deep}]}}}}"
        );
        let bytes = Conversion::new(Metrics::default()).review(review.as_bytes());
        let said = bytes.map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default();
        assert!(said.is_empty() || said.contains("Failure"), "{said}");
    }
}
