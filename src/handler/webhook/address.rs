//! Which addresses a webhook may connect to: public ones, and others where the configuration names them.
//!
//! A name is looked up for each connection, and what it then leads to is what is looked at: a name that
//! led to a public address yesterday may lead into the network that this process runs in today.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A stretch of addresses. Those of IPv4 stand at their place in IPv6 (`::ffff:0:0/96`), so that an address
/// counts the same in both forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    first: u128,
    /// Leading bits that all of its addresses share.
    bits: u32,
}

/// Where IPv4 stands within IPv6.
const MAPPED: u128 = 0xffff << 32;

impl Network {
    const fn v4(a: u8, b: u8, c: u8, bits: u32) -> Self {
        let first = MAPPED | u32::from_be_bytes([a, b, c, 0]) as u128;
        Self {
            first,
            bits: 96 + bits,
        }
    }

    const fn v6(a: u16, b: u16, bits: u32) -> Self {
        let first = (a as u128) << 112 | (b as u128) << 96;
        Self { first, bits }
    }

    fn contains(&self, address: u128) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
        (address ^ self.first) & mask == 0
    }

    /// Reads an address, or a network as in `10.0.0.0/8`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let (offset, longest) = match address {
            IpAddr::V4(_) => (96, 32),
            IpAddr::V6(_) => (0, 128),
        };
        let bits = bits.unwrap_or(longest);
        (bits <= longest).then(|| Self {
            first: written(address),
            bits: offset + bits,
        })
    }
}

fn written(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => MAPPED | u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address as the one it leads to: NAT64 (RFC 6052), 6to4 (RFC 3056) and the old `::a.b.c.d` carry an
/// address of IPv4.
fn meant(address: IpAddr) -> u128 {
    const NAT64: Network = Network::v6(0x64, 0xff9b, 96);
    const SIX_TO_FOUR: Network = Network::v6(0x2002, 0, 16);
    const COMPATIBLE: Network = Network::v6(0, 0, 96);
    let address = written(address);
    let carried = if NAT64.contains(address) {
        address
    } else if SIX_TO_FOUR.contains(address) {
        address >> 80
    } else if COMPATIBLE.contains(address) && address > 1 {
        address
    } else {
        return address;
    };
    MAPPED | carried & u128::from(u32::MAX)
}

/// What is not the public internet, by the registries of special addresses (RFC 6890 and its successors).
const NOT_PUBLIC: [(Network, &str); 22] = [
    (Network::v4(127, 0, 0, 8), "a loopback address"),
    (Network::v4(10, 0, 0, 8), "a private address"),
    (Network::v4(172, 16, 0, 12), "a private address"),
    (Network::v4(192, 168, 0, 16), "a private address"),
    (
        Network::v4(169, 254, 0, 16), // 169.254.169.254 tells a machine's credentials in many clouds
        "a link-local address",
    ),
    (
        Network::v4(100, 64, 0, 10),
        "an address shared behind a carrier's NAT",
    ),
    (Network::v4(0, 0, 0, 8), "an unspecified address"),
    (Network::v4(192, 0, 0, 24), "a reserved address"),
    (Network::v4(192, 0, 2, 24), "a reserved address"),
    (Network::v4(198, 18, 0, 15), "a reserved address"),
    (Network::v4(198, 51, 100, 24), "a reserved address"),
    (Network::v4(203, 0, 113, 24), "a reserved address"),
    (Network::v4(224, 0, 0, 4), "a multicast address"),
    (Network::v4(240, 0, 0, 4), "a reserved address"),
    (LOOPBACK_V6, "a loopback address"),
    (Network::v6(0xfc00, 0, 7), "a private address"),
    (Network::v6(0xfe80, 0, 10), "a link-local address"),
    (Network::v6(0xff00, 0, 8), "a multicast address"),
    // Of what is public, 2000::/3: protocols, Teredo among them, and documentation.
    (Network::v6(0x2001, 0, 23), "a reserved address"),
    (Network::v6(0x2001, 0xdb8, 32), "a reserved address"),
    (Network::v6(0x3fff, 0, 20), "a reserved address"),
    (Network::v6(0, 0, 128), "an unspecified address"),
];

const LOOPBACK_V6: Network = Network {
    first: 1,
    bits: 128,
};

/// What an address is that is not a public one.
fn why_not_public(address: IpAddr) -> Option<&'static str> {
    const V4: Network = Network::v4(0, 0, 0, 0);
    const PUBLIC_V6: Network = Network::v6(0x2000, 0, 3);
    let address = meant(address);
    let listed = NOT_PUBLIC
        .iter()
        .find(|(network, _)| network.contains(address));
    match listed {
        Some((_, kind)) => Some(kind),
        None if V4.contains(address) || PUBLIC_V6.contains(address) => None,
        None => Some("a reserved address"),
    }
}

/// What is allowed besides public addresses: `allow_private_addresses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Private {
    /// All.
    Any,
    /// These; none where the list is empty.
    Only(Vec<Network>),
}

/// A host that leads to where it may not lead. The text says the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    host: String,
    address: IpAddr,
    kind: &'static str,
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            address,
            kind,
        } = self;
        match host.parse::<IpAddr>() {
            Ok(_) => write!(f, "{address} is {kind}")?,
            Err(_) => write!(f, "{host} leads to {address}, {kind}")?,
        }
        f.write_str(": if that is meant, list it in `allow_private_addresses`")
    }
}

/// Looks at the addresses of one host, that of `url`.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    host: String,
    private: Private,
    /// The host is loopback by its own text. A person wrote that, and nobody else can make it lead
    /// elsewhere: it needs no further permission. A public name that leads here does.
    names_loopback: bool,
}

impl Guard {
    /// `host` is as an address has it: a name, or an IP address with brackets where it is one of IPv6.
    pub(super) fn new(host: &str, private: Private) -> Self {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = bare.trim_end_matches('.').to_ascii_lowercase();
        Self {
            host: bare.to_owned(),
            private,
            names_loopback: match bare.parse::<IpAddr>() {
                Ok(address) => is_loopback(address),
                // RFC 6761, section 6.3.
                Err(_) => name == "localhost" || name.ends_with(".localhost"),
            },
        }
    }

    /// Whether the host is this machine, by its own text.
    pub(super) fn names_loopback(&self) -> bool {
        self.names_loopback
    }

    /// Looks at a host that is an address and no name: no look-up comes by for it.
    pub(super) fn literal(&self) -> Result<(), Refused> {
        match self.host.parse() {
            Ok(address) => self.admit(address),
            Err(_) => Ok(()),
        }
    }

    fn admit(&self, address: IpAddr) -> Result<(), Refused> {
        let Some(kind) = why_not_public(address) else {
            return Ok(());
        };
        let allowed = match &self.private {
            Private::Any => true,
            Private::Only(networks) => networks
                .iter()
                .any(|network| network.contains(meant(address))),
        };
        if allowed || (self.names_loopback && is_loopback(address)) {
            return Ok(());
        }
        Err(Refused {
            host: self.host.clone(),
            address,
            kind,
        })
    }

    /// Those of the addresses found to which it may lead; the reason against the first, where there are none.
    fn sift(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let mut refused = None;
        let mut left = found;
        left.retain(|address| match self.admit(address.ip()) {
            Ok(()) => true,
            Err(error) => {
                refused.get_or_insert(error);
                false
            }
        });
        match refused {
            Some(refused) if left.is_empty() => Err(refused),
            _ => Ok(left),
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    let address = meant(address);
    Network::v4(127, 0, 0, 8).contains(address) || LOOPBACK_V6.contains(address)
}

/// Asks for the addresses of a name.
pub(super) type LookUp =
    fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The machine's own look-up.
pub(super) fn system(
    name: String,
) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
    Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
}

/// A look-up that gives only addresses to which the host may lead.
#[derive(Clone)]
pub(super) struct Guarded {
    pub(super) guard: Arc<Guard>,
    pub(super) look_up: LookUp,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { guard, look_up } = self.clone();
        Box::pin(async move {
            let found = look_up(name.as_str().to_owned()).await?;
            // Redirects are not followed, so any other name is that of a proxy, which the environment has
            // chosen, and which then looks up the host by itself.
            let found = if name.as_str().eq_ignore_ascii_case(&guard.host) {
                guard.sift(found)?
            } else {
                found
            };
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
