//! How much traffic is denied, by Prometheus' query API (`/api/v1/query`).

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Largest answer that is read, in bytes.
const ANSWER: u64 = 1024 * 1024;
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Host with port, and the path before `/api`.
pub(crate) fn endpoint(url: &str) -> Result<(String, String), String> {
    let wrong = || format!("{url:?} is not http://host:port");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let clean = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && !"?#\"@".contains(c));
    if port.is_none() || host.starts_with(':') || !clean(host) || !clean(path) {
        return Err(wrong());
    }
    let path = path.trim_end_matches('/');
    let path = if path.is_empty() {
        String::new()
    } else {
        format!("/{path}")
    };
    Ok((host.to_owned(), path))
}

/// Asks for a number: the sum of what the query answers; 0 when it answers nothing.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn ask(url: &str, query: &str) -> Result<f64, String> {
    let (host, path) = endpoint(url)?;
    let exchange = async {
        let mut stream = TcpStream::connect(&host).await?;
        // Version 1.0 has no chunks, and the end of the answer is the end of the connection.
        let request = format!(
            "GET {path}/api/v1/query?query={} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n",
            encode(query)
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(LIMIT, exchange)
        .await
        .map_err(|_| format!("{host} does not answer within {LIMIT:?}"))?
        .map_err(|error| format!("{host} does not answer: {error}"))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(format!("{host} answers with status {status:?}"));
    }
    sum(body)
}

fn sum(body: &str) -> Result<f64, String> {
    let answer: Value = serde_json::from_str(body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let number = |sample: &Value| -> Result<f64, String> {
        let text = sample.get(1).and_then(Value::as_str);
        let number = text.and_then(|text| text.parse::<f64>().ok());
        number
            .filter(|n| n.is_finite())
            .ok_or_else(|| format!("{sample} is not a sample"))
    };
    let data = &answer["data"];
    match data["resultType"].as_str() {
        Some("scalar") => number(&data["result"]),
        Some("vector") => {
            let samples = data["result"].as_array().map(Vec::as_slice).unwrap_or_default();
            samples.iter().map(|sample| number(&sample["value"])).sum()
        }
        _ => Err("the answer is neither a scalar nor an instant vector".to_owned()),
    }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_summed() {
        let vector = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"direction":"INGRESS"},"value":[1893456000.1,"1.5"]},{"metric":{},"value":[1893456000.1,"2"]}]}}"#;
        assert_eq!(sum(vector), Ok(3.5));
        assert_eq!(sum(r#"{"data":{"resultType":"scalar","result":[1,"7"]}}"#), Ok(7.0));
        assert_eq!(sum(r#"{"data":{"resultType":"vector","result":[]}}"#), Ok(0.0));
        for wrong in [
            "",
            "{}",
            r#"{"data":{"resultType":"matrix","result":[]}}"#,
            r#"{"data":{"resultType":"scalar","result":[1,"NaN"]}}"#,
        ] {
            assert!(sum(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn endpoints_are_plain() {
        assert_eq!(endpoint("http://p:9090"), Ok(("p:9090".to_owned(), String::new())));
        assert_eq!(endpoint("http://p:9090/a/"), Ok(("p:9090".to_owned(), "/a".to_owned())));
        for wrong in [
            "p:9090",
            "https://p:9090",
            "http://p",
            "http://:9",
            "http://p:9/a b",
            "http://u@p:9",
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
        assert_eq!(encode("sum(a{b=\"c\"})"), "sum%28a%7Bb%3D%22c%22%7D%29");
    }
}
