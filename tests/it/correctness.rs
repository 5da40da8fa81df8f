//! What `docs/CORRECTNESS.md` says of the tests is true.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::daemon::project;

/// Every Rust file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_is_named_here_exists() {
    let text = fs::read_to_string(project().join("docs/CORRECTNESS.md")).unwrap();
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        files(&project().join(folder), &mut found);
    }
    let sources: Vec<(String, String)> = found
        .iter()
        .map(|path| {
            let module = path.with_extension("").display().to_string();
            (module.replace('/', "::"), fs::read_to_string(path).unwrap())
        })
        .collect();
    let named = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| quoted.contains("::"));
    let mut seen = 0;
    for test in named {
        let (module, name) = test.rsplit_once("::").unwrap();
        let exists = sources.iter().any(|(file, source)| {
            file.contains(&format!("::{module}")) && source.contains(&format!("fn {name}("))
        });
        assert!(
            exists,
            "docs/CORRECTNESS.md names {test}, and there is none"
        );
        seen += 1;
    }
    assert!(seen > 80, "{seen}");
    for rule in 1..=15 {
        assert!(text.contains(&format!("\n## {rule}. ")), "rule {rule}");
    }
}
