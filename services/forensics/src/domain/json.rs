//! Protobuf messages as JSON, in protobuf's own mapping.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(garrison_proto::FILE_DESCRIPTOR_SET).ok());

/// A message as JSON. `None` for a message that is in none of the fleet's `.proto` files.
pub fn of<M: prost::Message + prost::Name>(message: &M) -> Option<Value> {
    of_bytes(&M::full_name(), &message.encode_to_vec())
}

/// An encoded message as JSON. `None` when it is unknown or malformed.
pub fn of_bytes(name: &str, bytes: &[u8]) -> Option<Value> {
    let descriptor = POOL.as_ref()?.get_message_by_name(name)?;
    let message = DynamicMessage::decode(descriptor, bytes).ok()?;
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .ok()
}

#[cfg(test)]
mod tests {
    use garrison_proto::alert::v1::Alert;
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_look_as_protobuf_says() {
        let alert = Alert {
            alert_id: "1".into(),
            severity: 4,
            count: 1 << 60,
            ..Alert::default()
        };
        let expected = json!({"alertId": "1", "severity": "SEVERITY_HIGH", "count": "1152921504606846976"});
        assert_eq!(of(&alert), Some(expected));
        assert_eq!(of_bytes("garrison.alert.v1.Alert", &[0xff]), None);
        assert_eq!(of_bytes("garrison.nothing.v1.Nothing", &alert.encode_to_vec()), None);
    }
}
