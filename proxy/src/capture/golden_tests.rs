//! What would be set, for flags that people use, as files beside this one; `OSIER_UPDATE=1` writes them.

use super::apply::dry_run;
use super::flags::Backend;
use super::plan::tests::plan;

const INJECTED: &str = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020";

/// Name, flags, variables, and whether the pod has IPv6.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], bool);

#[test]
fn rules_are_what_the_files_say() {
    let dns = ("ISTIO_META_DNS_CAPTURE", "true");
    let lists = "-i 10.96.0.0/12,fd00::/8 -x 10.96.5.0/24 -b 80,8080 -q 443 -o 25 -k net1 -c net2 -u 1337,1338 -g 1339";
    let groups = ("ISTIO_OUTBOUND_OWNER_GROUPS", "1000,1001");
    let loopback = "-i 127.1.2.3/32";
    let cases: [Case<'_>; 7] = [
        ("injected", INJECTED, &[], false),
        ("injected-dual-stack", INJECTED, &[], true),
        ("lists", lists, &[groups], true),
        ("nothing-inbound", "-b ''", &[("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "1000")], false),
        ("loopback", loopback, &[("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/16")], false),
        ("dns", INJECTED, &[dns, ("INVALID_DROP", "true")], true),
        ("tproxy", "-m TPROXY -d 15090 --capture-all-dns", &[], true),
    ];
    for (name, words, variables, ipv6) in cases {
        let capture = plan(words, variables, ipv6).expect(name);
        for (kind, backend) in [("nft", Backend::Nft), ("iptables", Backend::IptablesNft)] {
            let file = format!("{}/src/capture/golden/{name}.{kind}", env!("CARGO_MANIFEST_DIR"));
            let made = dry_run(&capture, backend);
            if std::env::var_os("OSIER_UPDATE").is_some() {
                std::fs::write(&file, &made).expect("golden files can be written");
            }
            let kept = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(made, kept, "{file} is another; OSIER_UPDATE=1 writes it");
        }
    }
}
