//! Whom TLS trusts where nobody says otherwise.

use rustls::RootCertStore;

/// Both the built-in and the machine's roots, so that it works in a container without CA files and behind
/// a proxy whose CA the machine (or SSL_CERT_FILE) knows.
pub(crate) fn usual_roots() -> RootCertStore {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    // What the machine holds that cannot be read or used is none of our business.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
