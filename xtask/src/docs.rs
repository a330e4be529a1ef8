//! Checks of the documentation itself.

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use crate::paths;

    fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let skipped = ["target", ".git", ".garrison", "node_modules", "corpus"]
                .iter()
                .any(|skip| name == *skip);
            if path.is_dir() && !skipped {
                files(&path, extension, found);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }

    fn all(dir: &str, extension: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        files(&paths::root().join(dir), extension, &mut found);
        found
    }

    #[test]
    fn every_link_between_pages_leads_somewhere() {
        let mut broken = Vec::new();
        for page in all(".", "md") {
            let text = fs::read_to_string(&page).unwrap();
            for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target = link.split('#').next().unwrap_or_default();
                if target.is_empty() || target.contains("://") || target.contains(' ') {
                    continue;
                }
                let path = page.parent().unwrap().join(target);
                if !path.exists() {
                    broken.push(format!("{}: {link}", page.display()));
                }
            }
        }
        assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    }

    #[test]
    fn every_page_of_the_book_is_in_its_summary() {
        let docs = paths::root().join("docs");
        let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
        let missing: Vec<String> = all("docs", "md")
            .iter()
            .map(|page| page.strip_prefix(&docs).unwrap().display().to_string())
            .filter(|page| page != "SUMMARY.md" && !summary.contains(&format!("]({page})")))
            .collect();
        assert!(
            missing.is_empty(),
            "not in docs/SUMMARY.md, run `cargo xtask docs`:\n{}",
            missing.join("\n")
        );
    }

    #[test]
    fn every_error_code_has_a_page() {
        let mut used = BTreeSet::new();
        for source in ["crates", "services", "cli"].iter().flat_map(|dir| all(dir, "rs")) {
            let text = fs::read_to_string(&source).unwrap();
            for (at, _) in text.match_indices("GAR-") {
                let code: String = text[at..]
                    .chars()
                    .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '-')
                    .collect();
                let number = code.rsplit('-').next().unwrap_or_default();
                if number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit()) {
                    used.insert(code);
                }
            }
        }
        let pages: BTreeSet<String> = all("docs/errors", "md")
            .iter()
            .filter_map(|page| page.file_stem()?.to_str().map(str::to_owned))
            .filter(|name| name.starts_with("GAR-"))
            .collect();
        let without_page: Vec<_> = used.difference(&pages).collect();
        assert!(
            without_page.is_empty(),
            "codes without a page under docs/errors: {without_page:?}"
        );
        assert!(
            used.len() > 50,
            "only {} codes were found: is the search right?",
            used.len()
        );
    }
}
