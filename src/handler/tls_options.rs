//! The option `ca_file` of handlers whose far side may have a certificate of its own.

use std::path::PathBuf;

use super::Options;

/// Certificates to trust.
pub(super) struct Ca {
    /// Where they are.
    pub(super) path: PathBuf,
    /// What is there: text with PEM.
    pub(super) pem: Vec<u8>,
}

/// Reads `ca_file`: the path of a PEM file with the certificates to trust.
pub(super) fn ca_file(options: &mut Options<'_>) -> Option<Ca> {
    let path = PathBuf::from(options.text("ca_file")?);
    match std::fs::read(&path) {
        Ok(pem) if pem.windows(11).any(|part| part == b"CERTIFICATE") => {
            return Some(Ca { path, pem });
        }
        Ok(_) => options.invalid("ca_file", "is a file without a certificate in PEM"),
        Err(error) => options.invalid("ca_file", format!("cannot be read: {error}")),
    }
    None
}
