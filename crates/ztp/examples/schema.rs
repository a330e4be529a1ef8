//! Prints the JSON Schema of a policy document, of `v1alpha1` or of the version that is named, for editors and for the
//! documentation.

use std::io::{Error, Write as _};

use garrison_ztp::{Version, version::json_schema};

fn main() -> std::io::Result<()> {
    let version = match std::env::args().nth(1) {
        None => Version::default(),
        Some(name) => Version::ALL
            .into_iter()
            .find(|version| version.name() == name)
            .ok_or_else(|| Error::other(format!("{name:?} is no version; there are v1alpha1 and v1beta1")))?,
    };
    writeln!(std::io::stdout(), "{:#}", json_schema(version))
}
