//! One number for what is in force, so that both sides can tell at a glance whether they agree.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// SHA-256 over the sorted ids in canonical text, each followed by a line feed; hexadecimal. The same ids in
/// any order give the same digest.
pub fn digest(ids: impl IntoIterator<Item = Uuid>) -> String {
    let mut ids: Vec<Uuid> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.to_string());
        hash.update(b"\n");
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_the_set_only() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(digest([a, b]), digest([b, a, b]));
        assert_ne!(digest([a]), digest([b]));
        assert_eq!(
            digest([]),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
