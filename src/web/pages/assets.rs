//! Style, script and sign, in the program.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};

/// A file that is served.
pub(in crate::web) struct Asset {
    /// Its name below `/static/`.
    name: &'static str,
    /// Its media type.
    pub(in crate::web) kind: &'static str,
    /// All of it.
    pub(in crate::web) text: &'static str,
}

const STYLE: Asset = Asset {
    name: "style.css",
    kind: "text/css; charset=utf-8",
    text: include_str!("../assets/style.css"),
};

const SCRIPT: Asset = Asset {
    name: "live.js",
    kind: "text/javascript; charset=utf-8",
    text: include_str!("../assets/live.js"),
};

const SIGN: Asset = Asset {
    name: "favicon.svg",
    kind: "image/svg+xml",
    text: include_str!("../assets/favicon.svg"),
};

/// The file of this name.
pub(in crate::web) fn find(name: &str) -> Option<&'static Asset> {
    const ALL: [&Asset; 3] = [&STYLE, &SCRIPT, &SIGN];
    ALL.into_iter().find(|asset| asset.name == name)
}

/// Address of the style.
pub(super) fn style() -> &'static str {
    static ADDRESS: LazyLock<String> = LazyLock::new(|| address(&STYLE));
    &ADDRESS
}

/// Address of the script.
pub(super) fn script() -> &'static str {
    static ADDRESS: LazyLock<String> = LazyLock::new(|| address(&SCRIPT));
    &ADDRESS
}

/// Address of the sign.
pub(super) fn sign() -> &'static str {
    static ADDRESS: LazyLock<String> = LazyLock::new(|| address(&SIGN));
    &ADDRESS
}

/// An address that is another one for another text, so that a browser may keep what it has.
fn address(asset: &Asset) -> String {
    format!("/static/{}?v={}", asset.name, asset.version())
}

impl Asset {
    /// Which text this is.
    pub(in crate::web) fn version(&self) -> String {
        let digest = digest(&SHA256, self.text.as_bytes());
        digest
            .as_ref()
            .iter()
            .take(6)
            .fold(String::new(), |mut version, byte| {
                // Writing to a string does not fail.
                let _ = write!(version, "{byte:02x}");
                version
            })
    }
}
