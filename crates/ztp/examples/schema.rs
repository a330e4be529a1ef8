//! Prints the JSON Schema of a policy document, for editors and for the documentation.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{:#}", garrison_ztp::json_schema())
}
