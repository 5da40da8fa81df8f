//! Trust for TLS: the usual roots, and one more CA where the configuration names it.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::tls::usual_roots;

/// The usual roots and those of one more file. The error names the file and its fault.
pub(crate) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = usual_roots();
    if let Some(path) = ca_file {
        for certificate in read_ca_file(path)? {
            roots
                .add(certificate)
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(roots)
}

/// A client's TLS settings with these roots.
pub(crate) fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The certificates of a PEM file; at least one.
fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let name = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{name} is not a PEM file: {error}"))?;
    if certificates.is_empty() {
        return Err(format!(
            "{name} holds no certificate: expected PEM text with `-----BEGIN CERTIFICATE-----`"
        ));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_ca_file_must_exist_and_hold_a_certificate() {
        let missing = roots(Some(Path::new("no-such-ca.pem"))).unwrap_err();
        assert!(missing.contains("no-such-ca.pem"), "{missing}");

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"not a certificate").unwrap();
        let empty = roots(Some(file.path())).unwrap_err();
        assert!(empty.contains("holds no certificate"), "{empty}");
    }

    #[test]
    fn a_ca_file_is_trusted_beside_the_usual_roots() {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(own.cert.pem().as_bytes()).unwrap();
        let with = roots(Some(file.path())).unwrap();
        let without = roots(None).unwrap();
        assert_eq!(with.len(), without.len() + 1);
        client_config(with).unwrap();
    }
}
