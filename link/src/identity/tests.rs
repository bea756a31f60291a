use super::authority::Validity;
use super::ledger::{Certificate, INVITATIONS_MAX, Ledger, Refusal};
use super::{Invitation, group_name, group_of_uri, group_uri};
use zeroize::Zeroizing;

fn invitation(id: u8) -> Invitation {
    Invitation { fingerprint: [0; 32], id: [id; 8], secret: Zeroizing::new([id; 32]) }
}

fn certificate(serial: u8, group: &str, renews: Option<&str>) -> Certificate {
    Certificate {
        serial: vec![serial; 16],
        group: group.into(),
        validity: Validity { from_s: 100, until_s: 200 },
        revoked_s: None,
        renews: renews.map(Into::into),
    }
}

#[test]
fn a_certificate_is_let_in_for_its_group_in_its_time_until_it_is_revoked() {
    let mut ledger = Ledger::default();
    ledger.add(certificate(0x41, "shop", None), 100).unwrap();
    let check = |l: &Ledger, group, now| l.check(&[0x41; 16], group, now);
    assert_eq!(check(&ledger, "shop", 150), Ok(()));
    assert_eq!(check(&ledger, "other", 150), Err(Refusal::OtherGroup));
    assert_eq!(check(&ledger, "shop", 99), Err(Refusal::Expired));
    assert_eq!(check(&ledger, "shop", 200), Err(Refusal::Expired));
    assert_eq!(ledger.check(&[0x42; 16], "shop", 150), Err(Refusal::Unknown));
    // Too little to say which one is meant.
    assert_eq!(ledger.revoke("4141414", 150), 0);
    assert_eq!(ledger.revoke("41414141", 150), 1);
    assert_eq!(check(&ledger, "shop", 150), Err(Refusal::Revoked));
}

#[test]
fn revoking_a_group_takes_its_open_invitations_too() {
    let mut ledger = Ledger::default();
    let validity = Validity { from_s: 100, until_s: 200 };
    ledger.invite(&invitation(1), "shop", validity).unwrap();
    ledger.invite(&invitation(2), "other", validity).unwrap();
    ledger.add(certificate(0x41, "shop", None), 100).unwrap();
    assert_eq!(ledger.revoke("shop", 150), 2);
    assert!(ledger.redeem(&[1; 8], &[1; 32], &[9], 150).is_err());
    assert_eq!(ledger.redeem(&[2; 8], &[2; 32], &[9], 150).unwrap(), "other");
}

#[test]
fn an_invitation_is_for_one_key_and_a_time() {
    let mut ledger = Ledger::default();
    let validity = Validity { from_s: 100, until_s: 200 };
    ledger.invite(&invitation(1), "shop", validity).unwrap();
    assert!(ledger.redeem(&[1; 8], &[2; 32], &[9], 150).is_err());
    assert!(ledger.redeem(&[1; 8], &[1; 32], &[9], 200).is_err());
    assert_eq!(ledger.redeem(&[1; 8], &[1; 32], &[9], 150).unwrap(), "shop");
    assert_eq!(ledger.redeem(&[1; 8], &[1; 32], &[9], 150).unwrap(), "shop");
    assert!(ledger.redeem(&[1; 8], &[1; 32], &[8], 150).is_err());
    assert!(ledger.has_open_invitations(150));
    assert!(!ledger.has_open_invitations(200));
    for i in 0..INVITATIONS_MAX - 1 {
        let mut more = invitation(3);
        more.id = (i as u64).to_le_bytes();
        ledger.invite(&more, "shop", validity).unwrap();
    }
    assert!(ledger.invite(&invitation(4), "shop", validity).is_err());
    // Those that expired make room.
    let later = Validity { from_s: 250, until_s: 300 };
    ledger.invite(&invitation(4), "shop", later).unwrap();
}

#[test]
fn a_successor_that_is_used_ends_the_one_before_it() {
    let mut ledger = Ledger::default();
    ledger.add(certificate(0x41, "shop", None), 100).unwrap();
    ledger.add(certificate(0x42, "shop", Some(&"41".repeat(16))), 100).unwrap();
    assert!(!ledger.retires(&[0x41; 16]) && ledger.retires(&[0x42; 16]));
    ledger.retire_before(&[0x42; 16], 150);
    assert_eq!(ledger.check(&[0x41; 16], "shop", 150), Err(Refusal::Revoked));
    assert_eq!(ledger.check(&[0x42; 16], "shop", 150), Ok(()));
    assert!(!ledger.retires(&[0x42; 16]));
}

#[test]
fn names_tell_groups_apart_and_are_names_of_hosts() {
    assert_eq!(group_of_uri(&group_uri("shop")), Some("shop"));
    assert_eq!(group_of_uri("afterimage:group:../shop"), None);
    assert_eq!(group_of_uri("other:shop"), None);
    let name = group_name(&[1; 32], "A_very.long-NAME");
    assert_ne!(name, group_name(&[1; 32], "shop"));
    assert_ne!(name, group_name(&[2; 32], "A_very.long-NAME"));
    assert!(rustls::pki_types::ServerName::try_from(name).is_ok());
}
