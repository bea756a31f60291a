//! A site's identity on disk: `STATE/tls/`, used by the daemon and by commands beside it.
//!
//! What always holds: each change is made under the directory's lock, on what the file has then, and is
//! durable before anything that follows from it goes out. The daemon looks at the files again before
//! each use, so commands take effect without a restart.

use super::authority::{Authority, CLIENT_DAYS, Keyed, SERVER_DAYS, Validity, serial};

use super::invitation::Invitation;
use super::keys::{PublicKey, random};
use super::ledger::{Certificate, Ledger};
use super::{Fingerprint, now_s, text};
use crate::error::{Error, Result};
use crate::files::{self, Stamp};
use afterimage_journal::layout;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

const SERVER: &str = "server.json";
const LEDGER: &str = "ledger.json";

/// Longest that an invitation can be good, in seconds.
pub const INVITATION_S_MAX: u64 = 30 * super::DAY_S;

#[derive(Default)]
struct Cached {
    ledger: Option<(Stamp, Arc<Ledger>)>,
    server: Option<(Stamp, Arc<CertifiedKey>)>,
}

/// See the module.
pub struct Site {
    dir: PathBuf,
    authority: Authority,
    cached: Mutex<Cached>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What a client gets for its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The group that it may append to.
    pub group: String,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// When it is valid.
    pub validity: Validity,
}

impl Site {
    /// Where it lies below a state directory.
    #[must_use]
    pub fn dir(state: &Path) -> PathBuf {
        state.join("tls")
    }

    /// Opens the identity of the site with this state directory; makes it when there is none.
    ///
    /// # Errors
    /// A file can't be read or written, or can be read by others.
    pub fn open_or_make(state: &Path) -> Result<Self> {
        let dir = Self::dir(state);
        files::make_dir(&dir)?;
        let _lock = files::lock(&dir)?;
        let authority = Authority::open_or_make(&dir)?;
        if files::read::<Keyed>(&dir.join(SERVER))?.is_none() {
            let made = authority.make_server(Validity::days(SERVER_DAYS))?;
            files::write(&dir.join(SERVER), &made)?;
        }
        Ok(Self { dir, authority, cached: Mutex::default() })
    }

    /// Whether a state directory has one.
    #[must_use]
    pub fn is_in(state: &Path) -> bool {
        Self::dir(state).join("authority.json").exists()
    }

    /// What clients pin.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        self.authority.fingerprint()
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    /// Gives out an invitation for a group; `valid_s` is at most [`INVITATION_S_MAX`].
    ///
    /// # Errors
    /// The name can't be a group's, it would be good for too long, or it can't be written.
    pub fn enroll(&self, group: &str, valid_s: u64) -> Result<Invitation> {
        layout::check_name(group).map_err(|e| Error::Invalid(e.to_string()))?;
        if valid_s == 0 || valid_s > INVITATION_S_MAX {
            return Err(Error::Invalid("an invitation is good for 1 s to 30 days".into()));
        }
        let invitation = Invitation {
            fingerprint: *self.fingerprint(),
            id: random()?,
            secret: Zeroizing::new(random()?),
        };
        let now = now_s();
        let validity = Validity { from_s: now, until_s: now + valid_s };
        self.change(|ledger| ledger.invite(&invitation, group, validity))?;
        Ok(invitation)
    }

    /// Gives a client a certificate for an invitation. That it was used is durable when this returns.
    ///
    /// # Errors
    /// See [`Ledger::redeem`]; it can't be written.
    pub fn redeem(&self, id: &[u8], secret: &[u8], key: &PublicKey) -> Result<Issued> {
        self.change(|ledger| {
            let group = ledger.redeem(id, secret, key.bytes(), now_s())?;
            self.issue(ledger, &group, key, (None, Some(text::to_hex(id))))
        })
    }

    /// Gives a client whose certificate is valid a new one, for another key.
    ///
    /// # Errors
    /// The old one is not good any more, or the new one can't be written.
    pub fn renew(&self, old: &[u8], group: &str, key: &PublicKey) -> Result<Issued> {
        self.change(|ledger| {
            ledger.check(old, group, now_s()).map_err(|e| Error::Refused(e.to_string()))?;
            ledger.check_renewal(group, now_s())?;
            self.issue(ledger, group, key, (Some(text::to_hex(old)), None))
        })
    }

    fn issue(
        &self,
        ledger: &mut Ledger,
        group: &str,
        key: &PublicKey,
        (renews, invited): (Option<String>, Option<String>),
    ) -> Result<Issued> {
        let (serial, validity) = (serial()?, Validity::days(CLIENT_DAYS));
        let certificate = self.authority.sign_client(key, group, &serial, validity)?;
        let (serial, group) = (serial.to_vec(), group.to_owned());
        let revoked_s = None;
        let added =
            Certificate { serial, group: group.clone(), validity, revoked_s, renews, invited };
        ledger.add(added, now_s())?;
        Ok(Issued { group, certificate, validity })
    }

    /// Revokes certificates and open invitations: [`Ledger::revoke`]. Links that stand are closed within
    /// a second.
    ///
    /// # Errors
    /// It can't be written.
    pub fn revoke(&self, which: &str) -> Result<usize> {
        self.change(|ledger| Ok(ledger.revoke(which, now_s())))
    }

    /// A client came with this certificate: the one before it is revoked.
    ///
    /// # Errors
    /// It can't be written.
    pub fn came_with(&self, serial: &[u8]) -> Result<()> {
        if self.ledger().retires(serial) {
            self.change(|ledger| {
                ledger.retire_before(serial, now_s());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives the site itself a new certificate and key. Links that stand go on.
    ///
    /// # Errors
    /// It can't be written.
    pub fn rotate(&self) -> Result<Validity> {
        let _lock = files::lock(&self.dir)?;
        let made = self.authority.make_server(Validity::days(SERVER_DAYS))?;
        files::write(&self.dir.join(SERVER), &made)?;
        Ok(made.validity)
    }

    /// Renews the site's own certificate when two thirds of its time are over.
    ///
    /// # Errors
    /// It can't be read or written.
    pub fn rotate_when_due(&self) -> Result<()> {
        let due = self.server_validity()?.is_none_or(|v| v.renew_at_s() <= now_s());
        if due { self.rotate().map(drop) } else { Ok(()) }
    }

    /// How long the site's own certificate is valid.
    ///
    /// # Errors
    /// It can't be read.
    pub fn server_validity(&self) -> Result<Option<Validity>> {
        Ok(files::read::<Keyed>(&self.dir.join(SERVER))?.map(|k| k.validity))
    }

    /// What was given out, as the file has it now. One that can't be read is as it was last: nobody gets
    /// in who didn't before.
    #[must_use]
    pub fn ledger(&self) -> Arc<Ledger> {
        let path = self.dir.join(LEDGER);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&path);
        if let Some((seen, ledger)) = &cached.ledger
            && *seen == stamp
        {
            return Arc::clone(ledger);
        }
        match files::read::<Ledger>(&path) {
            Ok(read) => {
                let ledger = Arc::new(read.unwrap_or_default());
                cached.ledger = Some((stamp, Arc::clone(&ledger)));
                ledger
            }
            Err(error) => {
                tracing::error!(%error, "what the site gave out is not known");
                cached.ledger.as_ref().map_or_else(Arc::default, |(_, l)| Arc::clone(l))
            }
        }
    }

    /// The site's certificate and key as the file has them now, with the authority's certificate behind.
    ///
    /// # Errors
    /// It can't be read.
    pub fn server_key(&self) -> Result<Arc<CertifiedKey>> {
        let path = self.dir.join(SERVER);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&path);
        if let Some((seen, key)) = &cached.server
            && *seen == stamp
        {
            return Ok(Arc::clone(key));
        }
        let keyed: Keyed = files::read(&path)?
            .ok_or_else(|| Error::Local(format!("{} is gone", path.display())))?;
        let chain = vec![keyed.certificate.clone().into(), self.authority().clone()];
        let key = Arc::new(certified(chain, &keyed.key)?);
        cached.server = Some((stamp, Arc::clone(&key)));
        Ok(key)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> Result<T>) -> Result<T> {
        let path = self.dir.join(LEDGER);
        let _lock = files::lock(&self.dir)?;
        let mut ledger: Ledger = files::read(&path)?.unwrap_or_default();
        let changed = change(&mut ledger)?;
        files::write(&path, &ledger)?;
        Ok(changed)
    }
}

/// A certificate with its chain and key, for TLS.
pub(crate) fn certified(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let provider = super::verify::provider();
    CertifiedKey::from_der(chain, key, &provider)
        .map_err(|e| Error::Local(format!("use a certificate and its key: {e}")))
}
