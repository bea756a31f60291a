//! What goes over the wire about sites.

use afterimage_journal::Seq;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a group's journal stands at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteState {
    /// It is being reached, or has not said yet what it holds.
    Connecting,
    /// What lies before the log's end is copied: nothing can be restored there until that ends.
    Copying,
    /// All is there but for the last moments.
    Shipping,
    /// It is reached, and lacks more than the last moments.
    Behind,
    /// It can't be reached, or broke off.
    Away,
    /// It won't take what it is sent: a person has to see to it.
    Refused,
    /// It has no room.
    Full,
}

impl fmt::Display for SiteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Copying => "copying",
            Self::Shipping => "shipping",
            Self::Behind => "behind",
            Self::Away => "away",
            Self::Refused => "refused",
            Self::Full => "full",
        })
    }
}

/// A site of a guest's group. What it says to be there is what the site acknowledged as durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// The site, without secrets.
    pub site: String,
    /// Where the journal stands there.
    pub state: SiteState,
    /// Every record up to this one is durable there; `None`: not known since the agent started.
    pub watermark: Option<Seq>,
    /// Time between the newest record that is durable there and the newest that was captured, in
    /// milliseconds; 0: level.
    pub lag_ms: Option<u64>,
    /// What a loss of this machine would cost now: the age of the oldest write that is not durable
    /// there, in milliseconds, and at least the guest's own; `None`: nothing can be restored there.
    pub rpo_ms: Option<u64>,
    /// What of the log's end is still to be sent, in bytes.
    pub backlog_bytes: u64,
    /// What of older files is still to be sent, in bytes.
    pub background_bytes: u64,
    /// How long that takes at the present speed, in seconds; `None`: can't be told.
    pub catch_up_s: Option<u64>,
    /// What was sent since the agent started, in bytes.
    pub sent_bytes: u64,
    /// The last error since the agent started.
    pub error: Option<String>,
    /// Since when it came.
    pub error_since: Option<Timestamp>,
    /// Whether that error stands.
    pub failing: bool,
    /// What somebody should see to.
    pub alarm: Option<String>,
}

impl SiteStatus {
    /// A site that can't be shipped to at all.
    pub(crate) fn refused(site: &str, error: Option<String>) -> Self {
        let why = error.clone().unwrap_or_else(|| "nothing is shipped there".into());
        Self {
            site: site.to_owned(),
            state: SiteState::Refused,
            watermark: None,
            lag_ms: None,
            rpo_ms: None,
            backlog_bytes: 0,
            background_bytes: 0,
            catch_up_s: None,
            sent_bytes: 0,
            error,
            error_since: None,
            failing: true,
            alarm: Some(format!("site {site}: {why}")),
        }
    }
}
