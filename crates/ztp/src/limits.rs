/// Bounds on what is read. Whatever passes one ends in `GAR-POLICY-0002` that names the bound.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one file.
    pub bytes: usize,
    /// Documents in one file.
    pub documents: usize,
    /// Nesting of one document.
    pub depth: usize,
    /// YAML nodes (values and keys) of one document.
    pub nodes: usize,
    /// Uses of YAML aliases in one document, and how many events they may replay together.
    pub aliases: usize,
    /// Events that aliases may replay together.
    pub replayed: usize,
    /// Rules of one document, both directions together.
    pub rules: usize,
    /// Peers of one rule.
    pub peers: usize,
    /// Ports of one rule.
    pub ports: usize,
    /// HTTP matches, and gRPC matches, of one rule.
    pub requests: usize,
    /// Groups of one document.
    pub groups: usize,
    /// Networks of one group, subject or `except`.
    pub networks: usize,
    /// Labels or label values of one selector.
    pub labels: usize,
    /// Bytes of one text value.
    pub text: usize,
    /// Findings reported for one document.
    pub diagnostics: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 3 << 20,
            documents: 1_000,
            depth: 24,
            nodes: 400_000,
            aliases: 1_000,
            replayed: 50_000,
            rules: 10_000,
            peers: 1_000,
            ports: 256,
            requests: 64,
            groups: 1_000,
            networks: 10_000,
            labels: 64,
            text: 4_096,
            diagnostics: 100,
        }
    }
}
