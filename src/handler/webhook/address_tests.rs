//! Which addresses are public, and which hosts may lead where.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (Ipv6Addr::from_bits(self.first).to_ipv4_mapped(), self.bits) {
            (Some(address), bits @ 96..) => write!(f, "{address}/{}", bits - 96),
            (_, bits) => write!(f, "{}/{bits}", Ipv6Addr::from_bits(self.first)),
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn only(networks: &[&str]) -> Private {
    let parsed = networks.iter().map(|text| Network::parse(text).unwrap());
    Private::Only(parsed.collect())
}

#[test]
fn what_is_not_the_public_internet_is_known_in_every_disguise() {
    for (kind, addresses) in [
        (
            "loopback",
            &["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"][..],
        ),
        (
            "private",
            &[
                "10.0.0.1",
                "172.16.0.1",
                "172.31.255.255",
                "192.168.1.1",
                "fc00::1",
                "fdff::1",
                "::ffff:10.0.0.1",
                "64:ff9b::10.0.0.1", // NAT64
                "2002:a00:1::",      // 6to4
                "::10.0.0.1",        // as IPv6 once carried IPv4
            ],
        ),
        (
            "link-local",
            &[
                "169.254.169.254",
                "fe80::1",
                "febf::1",
                "64:ff9b::a9fe:a9fe",
            ],
        ),
        ("carrier", &["100.64.0.1", "100.127.255.255"]),
        ("unspecified", &["0.0.0.0", "0.1.2.3", "::"]),
        ("multicast", &["224.0.0.1", "239.255.255.255", "ff02::1"]),
        (
            "reserved",
            &[
                "192.0.0.8",
                "198.19.0.1",
                "203.0.113.9",
                "255.255.255.255",
                "240.0.0.1",
                "2001::1", // Teredo
                "2001:db8::1",
                "fec0::1",
                "100::1",
                "64:ff9b:1::1",
                "4000::1",
            ],
        ),
    ] {
        for text in addresses {
            let found = why_not_public(address(text));
            assert!(
                found.is_some_and(|found| found.contains(kind)),
                "{text}: {found:?}"
            );
        }
    }
}

#[test]
fn the_public_internet_is_public() {
    for text in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "169.253.0.1",
        "223.255.255.255",
        "2600:1f18::1",
        "2a00:1450::1",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
        "2002:101:101::",
    ] {
        assert_eq!(why_not_public(address(text)), None, "{text}");
    }
}

#[test]
fn networks_are_read_and_nothing_else_is() {
    for (text, shown) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::/8", "fd00::/8"),
        ("::1", "::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(Network::parse(text).unwrap().to_string(), shown);
    }
    for text in [
        "",
        "10",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "/8",
        "a.example",
        "1.2.3.4/-1",
    ] {
        assert_eq!(Network::parse(text), None, "{text}");
    }
}

#[test]
fn a_host_leads_where_it_may_and_says_what_else_it_would_need() {
    let nothing = only(&[]);
    for (host, private, leads_to, allowed) in [
        ("example.com", &nothing, "1.1.1.1", true),
        ("example.com", &nothing, "10.0.0.1", false),
        ("example.com", &nothing, "127.0.0.1", false),
        ("example.com", &only(&["10.0.0.0/8"]), "10.0.0.1", true),
        (
            "example.com",
            &only(&["10.0.0.0/8"]),
            "::ffff:10.0.0.1",
            true,
        ),
        ("example.com", &only(&["10.0.0.0/8"]), "11.0.0.1", true),
        (
            "example.com",
            &only(&["10.0.0.0/8"]),
            "169.254.169.254",
            false,
        ),
        ("example.com", &Private::Any, "169.254.169.254", true),
        ("localhost", &nothing, "127.0.0.1", true),
        ("LOCALHOST.", &nothing, "::1", true),
        ("app.localhost", &nothing, "127.0.0.1", true),
        ("localhost", &nothing, "10.0.0.1", false),
        ("localhost.example.com", &nothing, "127.0.0.1", false),
        ("127.0.0.1", &nothing, "127.0.0.1", true),
        ("[::1]", &nothing, "::1", true),
    ] {
        let guard = Guard::new(host, private.clone());
        let answer = guard.admit(address(leads_to));
        assert_eq!(answer.is_ok(), allowed, "{host} {leads_to}: {answer:?}");
    }
    let refused = Guard::new("example.com", nothing).sift(vec![
        SocketAddr::new(address("10.0.0.1"), 0),
        SocketAddr::new(address("fd00::1"), 0),
    ]);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "example.com leads to 10.0.0.1, a private address: if that is meant, list it in \
         `allow_private_addresses`"
    );
}

#[test]
fn of_several_addresses_those_remain_that_are_allowed() {
    let guard = Guard::new("example.com", only(&[]));
    let public = SocketAddr::new(address("1.1.1.1"), 0);
    let private = SocketAddr::new(address("10.0.0.1"), 0);
    assert_eq!(guard.sift(vec![private, public]), Ok(vec![public]));
    assert_eq!(guard.sift(vec![]), Ok(vec![]));
}

#[tokio::test]
async fn a_proxys_name_may_lead_anywhere_and_the_hosts_may_not() {
    let guarded = Guarded {
        guard: Arc::new(Guard::new("Example.com", only(&[]))),
        look_up: |_| Box::pin(async { Ok(vec![SocketAddr::from(([10, 0, 0, 1], 0))]) }),
    };
    let proxy = guarded.resolve("proxy.internal".parse().unwrap()).await;
    assert_eq!(proxy.unwrap().count(), 1);
    let host = guarded.resolve("example.com".parse().unwrap()).await;
    assert!(host.err().unwrap().downcast_ref::<Refused>().is_some());
}

proptest! {
    #[test]
    fn an_address_counts_the_same_in_both_forms(bits: u32) {
        let v4 = std::net::Ipv4Addr::from_bits(bits);
        prop_assert_eq!(why_not_public(v4.into()), why_not_public(v4.to_ipv6_mapped().into()));
        // The standard library knows some of these by itself.
        if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
            || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified()
        {
            prop_assert!(why_not_public(v4.into()).is_some());
        }
    }

    #[test]
    fn a_network_holds_what_begins_with_its_bits(first: u32, other: u32, bits in 0u32..=32) {
        let network = format!("{}/{bits}", std::net::Ipv4Addr::from_bits(first));
        let network = Network::parse(&network).unwrap();
        let same = bits == 0 || first >> (32 - bits) == other >> (32 - bits);
        prop_assert_eq!(network.contains(written(std::net::Ipv4Addr::from_bits(other).into())), same);
    }
}
