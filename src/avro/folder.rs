//! A folder of schema files, `schemas/` beside the configuration.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tracing::{debug, warn};

use super::Schema;
use crate::event::SchemaId;

/// Reads all `*.avsc` files of a folder, each under its computed fingerprint and, where its name ends
/// with an ID, as in `AccountChangeEvent.S3-K_S0GYegWTRZnKLjeag.avsc`, under that too. What cannot be
/// read is logged and left out.
pub(super) fn read(dir: &Path) -> HashMap<SchemaId, Arc<Schema>> {
    let files = match files(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            debug!(dir = %dir.display(), "there is no folder of schemas");
            return HashMap::new();
        }
        Err(error) => {
            warn!(dir = %dir.display(), %error, "the folder of schemas cannot be read");
            return HashMap::new();
        }
    };
    let mut by_name = HashMap::new();
    let mut by_fingerprint = HashMap::new();
    for path in files {
        let Some(schema) = read_file(&path) else {
            continue;
        };
        let fingerprint = schema.fingerprint();
        if let Some(named) = id_in_name(&path).filter(|named| *named != fingerprint) {
            warn!(file = %path.display(), %fingerprint, "a schema's fingerprint is not the ID in its file's name; both find it");
            by_name.insert(named, Arc::clone(&schema));
        }
        by_fingerprint.insert(fingerprint, schema);
    }
    // What a schema is counts for more than what a file is called.
    by_name.extend(by_fingerprint);
    by_name
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "avsc")
        {
            files.push(path);
        }
    }
    // The same outcome whatever order the file system has.
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Option<Arc<Schema>> {
    let json = fs::read_to_string(path);
    let json = json.map_err(|error| {
        warn!(file = %path.display(), %error, "a schema file cannot be read; it is left out");
    });
    let schema = Schema::parse(&json.ok()?).map_err(|error| {
        warn!(file = %path.display(), %error, "a schema file cannot be used; it is left out");
    });
    schema.ok().map(Arc::new)
}

/// The last part of the name, where it looks like an ID: 16 bytes in base64url without padding.
fn id_in_name(path: &Path) -> Option<SchemaId> {
    let last = path.file_stem()?.to_str()?.rsplit('.').next()?;
    let is_id = last.len() == 22
        && last
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    is_id.then(|| SchemaId::new(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"{"type":"record","name":"Order__e","fields":[]}"#;

    #[test]
    fn schemas_are_found_by_fingerprint_and_by_the_id_in_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let own = Schema::parse(ORDER).unwrap().fingerprint();
        write("anything.avsc", ORDER);
        write("Order__e.2026-01.AAAAAAAAAAAAAAAAAAAAAA.avsc", ORDER);
        write("BBBBBBBBBBBBBBBBBBBBBB.avsc", ORDER);
        write("broken.CCCCCCCCCCCCCCCCCCCCCC.avsc", "{");
        write("Order__e.DDDDDDDDDDDDDDDDDDDDDD.json", ORDER);
        let schemas = read(dir.path());
        let mut found: Vec<_> = schemas.keys().map(SchemaId::as_str).collect();
        found.sort_unstable();
        let mut wanted = [
            "AAAAAAAAAAAAAAAAAAAAAA",
            "BBBBBBBBBBBBBBBBBBBBBB",
            own.as_str(),
        ];
        wanted.sort_unstable();
        assert_eq!(found, wanted);
        assert!(read(&dir.path().join("none")).is_empty());
    }
}
