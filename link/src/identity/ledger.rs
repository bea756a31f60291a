//! What a site gave out: invitations and certificates. Pure; [`super::site`] keeps it in a file.
//!
//! Only what is in here gets in: a certificate that the authority signed and that the ledger doesn't
//! know (an older copy of the state was put back) is refused.

use super::authority::Validity;
use super::invitation::Invitation;
use super::{DAY_S, sha256, text};
use crate::error::{Error, Result};
use afterimage_planted as planted;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

/// Most invitations that are open at a time.
pub const INVITATIONS_MAX: usize = 1000;
/// Most certificates that let somebody in at a time: those that expired, were revoked or superseded don't
/// count.
pub const CERTIFICATES_MAX: usize = 20_000;
/// Most certificates that a group gets over others within a day. An agent needs one in 60 days.
pub const RENEWALS_PER_DAY_MAX: usize = 8;
/// Certificates over one and the same that nobody came with yet: the newest. (An answer may be lost.)
const SUCCESSORS_MAX: usize = 3;
/// Ended certificates of a group that are still listed: the newest.
const ENDED_LISTED_MAX: usize = 16;
/// How long what has expired is still listed.
const LISTED_S: u64 = 30 * DAY_S;

/// See the module; `ledger.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Oldest first.
    pub invitations: Vec<Invited>,
    /// Oldest first.
    pub certificates: Vec<Certificate>,
}

/// An invitation that was given out. Its secret is not in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invited {
    /// Its id.
    #[serde(with = "text::hex")]
    pub id: Vec<u8>,
    /// The group that it is for.
    pub group: String,
    /// SHA-256 of the secret.
    #[serde(with = "text::hex")]
    pub secret_sha256: Vec<u8>,
    /// When it was made and expires, seconds since the Unix epoch.
    #[serde(flatten)]
    pub validity: Validity,
    /// The public key that it was redeemed for, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
}

/// A client's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// Its serial.
    #[serde(with = "text::hex")]
    pub serial: Vec<u8>,
    /// The group that it may append to.
    pub group: String,
    /// When it is valid, seconds since the Unix epoch.
    #[serde(flatten)]
    pub validity: Validity,
    /// When it was revoked, seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<u64>,
    /// The certificate over which it was renewed, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<String>,
    /// The id of the invitation that it was given for, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invited: Option<String>,
}

impl Certificate {
    fn lets_in(&self, now_s: u64) -> bool {
        self.revoked_s.is_none() && now_s < self.validity.until_s
    }
}

/// Why a certificate is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The ledger doesn't have it.
    #[error("this site did not give it out")]
    Unknown,
    /// It was revoked.
    #[error("it is revoked")]
    Revoked,
    /// It is for another group.
    #[error("it is for another group")]
    OtherGroup,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
}

impl Ledger {
    /// Notes an invitation that is given out.
    ///
    /// # Errors
    /// Too many are open.
    pub fn invite(&mut self, given: &Invitation, group: &str, validity: Validity) -> Result<()> {
        self.invitations.retain(|i| validity.from_s < i.validity.until_s);
        if self.invitations.len() >= INVITATIONS_MAX {
            return Err(Error::Local(format!(
                "{INVITATIONS_MAX} invitations are open: wait until some expire"
            )));
        }
        self.invitations.push(Invited {
            id: given.id.to_vec(),
            group: group.to_owned(),
            secret_sha256: sha256(given.secret.as_slice()).to_vec(),
            validity,
            used_by: None,
        });
        Ok(())
    }

    /// Whether an invitation could be redeemed now.
    #[must_use]
    pub fn has_open_invitations(&self, now_s: u64) -> bool {
        self.invitations.iter().any(|i| now_s < i.validity.until_s)
    }

    /// Redeems an invitation for a public key: the group. Again for the same key is the same: its answer
    /// was lost.
    ///
    /// # Errors
    /// There is none of this id and secret, it was used for another key, or it has expired: which one is
    /// not told to who doesn't know the secret.
    pub fn redeem(&mut self, id: &[u8], secret: &[u8], key: &[u8], now_s: u64) -> Result<String> {
        let digest = Zeroizing::new(sha256(secret));
        let unknown = || {
            Error::Refused(
                "the site knows no such invitation: it has expired, was used, or is another \
                 site's. `afterimage site enroll` makes a new one"
                    .into(),
            )
        };
        let found = self.invitations.iter_mut().find(|i| i.id == id).ok_or_else(unknown)?;
        verify_slices_are_equal(digest.as_slice(), &found.secret_sha256).map_err(|_| unknown())?;
        if found.validity.until_s <= now_s {
            return Err(unknown());
        }
        let key = text::to_hex(key);
        if found.used_by.as_ref().is_some_and(|used| *used != key) {
            return Err(Error::Refused(
                "the invitation was used before, with another key. If that was not you, somebody \
                 else has it: `afterimage site list` and `site revoke` at the site"
                    .into(),
            ));
        }
        found.used_by = Some(key);
        Ok(found.group.clone())
    }

    /// Whether a group may get another certificate over one that it has.
    ///
    /// # Errors
    /// It got as many today as it may.
    pub fn check_renewal(&self, group: &str, now_s: u64) -> Result<()> {
        let is_new = |c: &&Certificate| {
            c.group == group && c.renews.is_some() && now_s < c.validity.from_s + DAY_S
        };
        if self.certificates.iter().filter(is_new).count() < RENEWALS_PER_DAY_MAX
            || planted::is("renewals-without-end")
        {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "group {group} renewed its certificate {RENEWALS_PER_DAY_MAX} times within a day: try again \
             tomorrow. If that was not you, somebody else has its key: `afterimage site revoke {group}` at \
             the site"
        )))
    }

    /// Notes a certificate that is given out. An earlier one for the same invitation, whose answer was lost,
    /// is none any more.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&mut self, certificate: Certificate, now_s: u64) -> Result<()> {
        if !planted::is("renewals-without-end") {
            self.drop_superseded(&certificate);
            self.drop_ended(now_s);
        }
        if self.certificates.len() >= CERTIFICATES_MAX && self.live(now_s) >= CERTIFICATES_MAX {
            return Err(Error::Refused(format!(
                "the site has {CERTIFICATES_MAX} certificates: wait until some expire, or revoke groups that \
                 are not needed"
            )));
        }
        self.certificates.push(certificate);
        Ok(())
    }

    /// How many let somebody in, and were not renewed.
    fn live(&self, now_s: u64) -> usize {
        let superseded: BTreeSet<&str> =
            self.certificates.iter().filter_map(|c| c.renews.as_deref()).collect();
        let is_live = |c: &&Certificate| {
            c.lets_in(now_s) && !superseded.contains(text::to_hex(&c.serial).as_str())
        };
        self.certificates.iter().filter(is_live).count()
    }

    /// Removes what a new certificate takes the place of.
    fn drop_superseded(&mut self, new: &Certificate) {
        if new.invited.is_some() {
            self.certificates.retain(|c| c.invited != new.invited);
        }
        if new.renews.is_some() {
            let mut same = self.certificates.iter().filter(|c| c.renews == new.renews).count();
            self.certificates.retain(|c| {
                let is_surplus = c.renews == new.renews && same >= SUCCESSORS_MAX;
                same -= usize::from(is_surplus);
                !is_surplus
            });
        }
    }

    /// Removes those that let nobody in, but for the newest of each group: without them they are refused,
    /// too.
    fn drop_ended(&mut self, now_s: u64) {
        let mut listed: BTreeMap<String, usize> = BTreeMap::new();
        let mut kept: Vec<Certificate> = Vec::with_capacity(self.certificates.len());
        for certificate in self.certificates.drain(..).rev() {
            let stays = certificate.lets_in(now_s) || {
                let count = listed.entry(certificate.group.clone()).or_default();
                *count += 1;
                *count <= ENDED_LISTED_MAX && now_s < certificate.validity.until_s + LISTED_S
            };
            kept.extend(stays.then_some(certificate));
        }
        kept.reverse();
        self.certificates = kept;
    }

    /// Whether a certificate is let in for its group.
    ///
    /// # Errors
    /// It isn't.
    pub fn check(
        &self,
        serial: &[u8],
        group: &str,
        now_s: u64,
    ) -> std::result::Result<(), Refusal> {
        let known = self.certificates.iter().find(|c| c.serial == serial);
        let known = known.ok_or(Refusal::Unknown)?;
        if known.revoked_s.is_some() {
            return Err(Refusal::Revoked);
        }
        if known.group != group {
            return Err(Refusal::OtherGroup);
        }
        let valid = (known.validity.from_s..known.validity.until_s).contains(&now_s);
        if valid { Ok(()) } else { Err(Refusal::Expired) }
    }

    /// Revokes what matches: all certificates and open invitations of a group, or the one whose serial or
    /// id begins with these eight or more hex digits. How many.
    pub fn revoke(&mut self, which: &str, now_s: u64) -> usize {
        let begins = |id: &[u8]| which.len() >= 8 && text::to_hex(id).starts_with(which);
        let mut count = 0;
        for c in &mut self.certificates {
            let matches = c.group == which || begins(&c.serial);
            if matches && c.revoked_s.is_none() && now_s < c.validity.until_s {
                c.revoked_s = Some(now_s);
                count += 1;
            }
        }
        let before = self.invitations.len();
        self.invitations.retain(|i| i.group != which && !begins(&i.id));
        count + before - self.invitations.len()
    }

    /// A certificate that was renewed is good for nothing once its successor was used: revokes it.
    pub fn retire_before(&mut self, serial: &[u8], now_s: u64) {
        if let Some(at) = self.before(serial) {
            self.certificates[at].revoked_s = Some(now_s);
        }
    }

    /// Whether [`Ledger::retire_before`] would change anything.
    #[must_use]
    pub fn retires(&self, serial: &[u8]) -> bool {
        self.before(serial).is_some()
    }

    fn before(&self, serial: &[u8]) -> Option<usize> {
        let of = |c: &&Certificate| c.serial == serial;
        let old = self.certificates.iter().find(of)?.renews.as_ref()?;
        let is_old = |c: &Certificate| c.revoked_s.is_none() && text::to_hex(&c.serial) == *old;
        self.certificates.iter().position(is_old)
    }
}
