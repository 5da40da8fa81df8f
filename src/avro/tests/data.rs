//! Real schemas, payloads and bitmaps, from the data that lies beside the project.

use std::path::{Path, PathBuf};

use crate::avro::Schema;

/// The folder of real data. `None`, with a word why, where it is not there; it has to be there where
/// ORGSTREAM_REQUIRE_SHARED_DATA is set.
fn data() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("ORGSTREAM_REQUIRE_SHARED_DATA").is_none(),
        "ORGSTREAM_REQUIRE_SHARED_DATA is set, but ../shared/data is not there"
    );
    eprintln!("skipped: ../shared/data is not there");
    None
}

/// The schema files of the three folders.
fn schema_files(data: &Path) -> Vec<PathBuf> {
    let folders = ["schemas", "schemas-recovered", "schemas-documented"];
    let files = folders.iter().flat_map(|folder| {
        let entries = std::fs::read_dir(data.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path())
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() > 20);
    files
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// The schema ID in `Name.2023-05.<22 characters>.avsc`.
fn id_in_name(name: &str) -> Option<&str> {
    let id = name.strip_suffix(".avsc")?.rsplit('.').next()?;
    (id.len() == 22).then_some(id)
}

#[test]
fn every_real_schema_parses_and_has_its_published_id() {
    let Some(data) = data() else { return };
    let mut confirmed = 0;
    for path in schema_files(&data) {
        let name = file_name(&path);
        let json = std::fs::read_to_string(&path).unwrap();
        let schema = Schema::parse(&json);
        if name.ends_with(".json") {
            println!("{name}: {}", schema.unwrap_err());
            continue;
        }
        let schema = schema.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with(&**schema.record_name()), "{name}");
        if let Some(id) = id_in_name(&name) {
            assert_eq!(schema.fingerprint().as_str(), id, "{name}");
            confirmed += 1;
        }
    }
    assert!(
        confirmed >= 14,
        "only {confirmed} fingerprints were compared"
    );
}
