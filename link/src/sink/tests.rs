use super::SiteUrl;
use crate::identity::Invitation;
use zeroize::Zeroizing;

#[test]
fn a_site_is_written_as_host_port_and_invitation() {
    let invitation =
        Invitation { fingerprint: [1; 32], id: [2; 8], secret: Zeroizing::new([3; 32]) };
    let line = invitation.line();
    for addr in ["dr.example.org:7600", "10.0.0.1:1", "[2001:db8::1]:7600"] {
        let plain: SiteUrl = format!("tls://{addr}").parse().unwrap();
        assert_eq!((plain.addr.as_str(), plain.invitation), (addr, None));
        let invited: SiteUrl = format!("tls://{addr}#{}", *line).parse().unwrap();
        assert_eq!((invited.addr.as_str(), invited.invitation.as_ref()), (addr, Some(&invitation)));
    }
    for wrong in [
        "dr:7600",
        "tls://dr",
        "tls://:7600",
        "tls://dr:0",
        "tls://dr:99999",
        "tls://dr:7600/x",
        "tls://u@dr:7600",
        "tls://2001:db8::1:7600",
        "tls://dr:7600#nonsense",
        "tls://dr:7600#",
    ] {
        assert!(wrong.parse::<SiteUrl>().is_err(), "{wrong}");
    }
}
