use super::authority::Validity;
use super::ledger::{CERTIFICATES_MAX, Certificate, INVITATIONS_MAX, Ledger, Refusal};
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
        invited: None,
    }
}

/// A certificate of a day, given out at a time.
fn issued(number: u64, group: &str, from_s: u64) -> Certificate {
    let mut serial = vec![0x40; 16];
    serial[8..].copy_from_slice(&number.to_be_bytes());
    let validity = Validity { from_s, until_s: from_s + 90 * super::DAY_S };
    Certificate { serial, validity, ..certificate(0, group, None) }
}

/// The holder of one certificate renews as often as it is let, coming with each.
#[test]
fn renewals_of_one_group_never_shut_out_another() {
    let mut ledger = Ledger::default();
    let mut now = 1000;
    ledger.add(issued(1, "shop", now), now).unwrap();
    let (mut last, mut refused) = (ledger.certificates[0].serial.clone(), 0);
    for number in 2..2000 {
        now += 3600;
        if ledger.check_renewal("shop", now).is_err() {
            refused += 1;
            continue;
        }
        let renews = Some(super::text::to_hex(&last));
        let next = Certificate { renews, ..issued(number, "shop", now) };
        last = next.serial.clone();
        ledger.add(next, now).unwrap();
        if !number.is_multiple_of(3) {
            ledger.retire_before(&last, now);
        }
    }
    assert!(refused > 1000, "{refused} of 2000 in 83 days");
    let count = ledger.certificates.len();
    assert!(count < 600, "{count} certificates are kept of one group");
    assert!(ledger.check_renewal("other", now).is_ok());
    ledger.add(issued(1, "other", now), now).unwrap();
    assert_eq!(ledger.check(&last, "shop", now), Ok(()));
}

#[test]
fn certificates_over_one_and_the_same_are_few_and_an_invitation_is_worth_one() {
    let mut ledger = Ledger::default();
    ledger.add(issued(1, "shop", 0), 0).unwrap();
    let renews = Some(super::text::to_hex(&ledger.certificates[0].serial));
    for number in 2..9 {
        let next = Certificate { renews: renews.clone(), ..issued(number, "shop", 0) };
        ledger.add(next, 0).unwrap();
    }
    assert_eq!(ledger.certificates.len(), 4);
    assert_eq!(ledger.check(&issued(8, "", 0).serial, "shop", 1), Ok(()));
    for number in 20..40 {
        let invited = Some("abcd".to_owned());
        ledger.add(Certificate { invited, ..issued(number, "till", 0) }, 0).unwrap();
    }
    let of_till = ledger.certificates.iter().filter(|c| c.group == "till").count();
    assert_eq!(of_till, 1);
}

#[test]
fn only_certificates_that_let_somebody_in_count() {
    let mut ledger = Ledger::default();
    for number in 0..CERTIFICATES_MAX as u64 {
        ledger.certificates.push(issued(number, &format!("g{number}"), 0));
    }
    assert!(ledger.add(issued(1, "new", 0), 0).is_err());
    for revoked in &mut ledger.certificates[..10] {
        revoked.revoked_s = Some(1);
    }
    ledger.add(issued(1, "new", 0), 5).unwrap();
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
