//! JSON in one form only, so that equal values are equal bytes.

use serde_json::Value;

/// Writes a value without white space and with object keys sorted by their UTF-16 code units, after RFC 8785.
///
/// Numbers are written as `serde_json` writes them, which is RFC 8785's form for integers; nothing that Garrison
/// hashes holds other numbers.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push(b'{');
            for (i, (key, item)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::from(key.as_str()).to_string().as_bytes());
                out.push(b':');
                write(item, out);
            }
            out.push(b'}');
        }
        scalar => out.extend_from_slice(scalar.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn sorts_keys_at_every_depth_and_writes_no_space() {
        let value = json!({"b": [1, {"z": null, "a": "é\n\u{1}"}], "a": true, "\u{20ac}": 1, "\r": 2});
        assert_eq!(
            String::from_utf8(canonical(&value)).unwrap(),
            "{\"\\r\":2,\"a\":true,\"b\":[1,{\"a\":\"é\\n\\u0001\",\"z\":null}],\"€\":1}"
        );
    }

    proptest! {
        #[test]
        fn reads_back_as_the_same_value(map in proptest::collection::btree_map(".*", ".*", 0..8)) {
            let value = json!(map);
            let bytes = canonical(&value);
            prop_assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), value);
        }
    }
}
