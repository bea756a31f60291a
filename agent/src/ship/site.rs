//! A SITE as it is written: where a journal is to be sent to.
//!
//! ```text
//! /srv/site                                           a directory: the state directory of the site
//! tls://HOST:PORT#INVITATION                          a site's server
//! s3://BUCKET/PREFIX?endpoint=URL&region=REGION       a bucket; credentials from AWS's environment
//!                    &lock=DAYS&grace=SECONDS
//! ```
//!
//! What always holds: a site's [`name`](Site::name) has no secret in it, and two texts that mean the same
//! place have the same name.

use afterimage_s3::S3Url;
use afterimage_s3::url::GRACE_DEFAULT;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Longest text of a site, in bytes.
pub const SITE_BYTES_MAX: usize = 4096;

/// Where a journal is sent to.
#[derive(Clone, PartialEq, Eq)]
pub enum Site {
    /// A directory of this machine: a state directory, journals under its `pool`.
    Directory(PathBuf),
    /// A site's server.
    Server {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What it takes to be let in for the first time.
        invitation: Option<String>,
    },
    /// A bucket.
    Bucket(S3Url),
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Site {
    /// Reads a SITE.
    ///
    /// # Errors
    /// It is none: why, and how one is written. No secret is in the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > SITE_BYTES_MAX {
            return Err(format!("a site of {} bytes: at most {SITE_BYTES_MAX}", text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err("a site has no control characters in it".into());
        }
        match text.split_once("://") {
            Some(("tls", rest)) => server(rest),
            Some(("s3", rest)) => bucket(rest),
            Some((scheme, _)) => Err(format!("there are no sites of the kind {scheme}://; {HOW}")),
            None => directory(text),
        }
    }

    /// What it is called, without secrets: [`Site::parse`] reads it again.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Server { host, port, .. } if host.contains(':') => {
                format!("tls://[{host}]:{port}")
            }
            Self::Server { host, port, .. } => format!("tls://{host}:{port}"),
            Self::Bucket(url) => {
                let slash = if url.prefix.is_empty() { "" } else { "/" };
                let lock = url.lock_days.map(|days| days.to_string());
                let grace = Some(url.grace.as_secs()).filter(|_| url.grace != GRACE_DEFAULT);
                let mut name = format!("s3://{}{slash}{}", url.bucket, url.prefix);
                let mut mark = '?';
                for (key, value) in [
                    ("endpoint", url.endpoint.clone()),
                    ("region", url.region.clone()),
                    ("lock", lock),
                    ("grace", grace.map(|s| s.to_string())),
                ] {
                    if let Some(value) = value {
                        name += &format!("{mark}{key}={value}");
                        mark = '&';
                    }
                }
                name
            }
        }
    }
}

const HOW: &str = "write a site as /DIRECTORY, tls://HOST:PORT#INVITATION or \
                   s3://BUCKET/PREFIX?endpoint=URL&region=REGION";

fn directory(text: &str) -> Result<Site, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is no absolute path; {HOW}"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("{text} has `..` in it: give the directory itself"));
    }
    // Doubled and trailing slashes go.
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") {
        return Err("/ can't be a site: give a directory for it alone".into());
    }
    Ok(Site::Directory(path))
}

fn server(rest: &str) -> Result<Site, String> {
    let (address, invitation) = match rest.split_once('#') {
        Some((address, invitation)) => (address, Some(invitation)),
        None => (rest, None),
    };
    let bad = |why: &str| format!("tls://{address} {why}; {HOW}");
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("names no port"))?;
    let port = port.parse().ok().filter(|p| *p > 0);
    let port = port.ok_or_else(|| bad("has no port from 1 to 65535"))?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match inner {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
        Some(_) => return Err(bad("has no IPv6 address in its brackets")),
        None => host,
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if inner.is_none() && (host.is_empty() || !host.bytes().all(fits)) {
        return Err(bad("names no host"));
    }
    let is_word = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if invitation.is_some_and(|text| !is_word(&text)) {
        return Err(bad("has an invitation that is empty or not of printable ASCII"));
    }
    let invitation = invitation.map(str::to_owned);
    Ok(Site::Server { host: host.to_ascii_lowercase(), port, invitation })
}

/// What a URL of a bucket means is the `s3` crate's; here it only is kept free of secrets.
fn bucket(rest: &str) -> Result<Site, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let bad = |why: &str| format!("s3://{place} {why}; {HOW}");
    let mut seen = BTreeSet::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // What an unknown one was set to may be a secret at the wrong place.
        if !["endpoint", "region", "lock", "grace"].contains(&key) {
            return Err(bad(&format!("has an unknown setting {key:?}")));
        }
        if value.is_empty() || !seen.insert(key) {
            return Err(bad(&format!("has a setting {key:?} that is empty or given twice")));
        }
    }
    let text = format!("s3://{rest}");
    let mut url: S3Url = match text.parse() {
        Ok(url) => url,
        // The reason quotes all of it.
        Err(_) if rest.contains('@') => {
            return Err(bad("is no bucket; nothing of it may be secret"));
        }
        Err(error) => return Err(error.to_string()),
    };
    url.prefix = url.prefix.trim_matches('/').to_owned();
    if let Some(endpoint) = &url.endpoint {
        check_endpoint(endpoint).map_err(|why| bad(&why))?;
    }
    let is_region = |text: &String| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !url.region.as_ref().is_none_or(is_region) {
        return Err(bad("has a region with other characters than letters, digits and '-'"));
    }
    Ok(Site::Bucket(url))
}

fn check_endpoint(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(host) = rest.map(|rest| rest.trim_end_matches('/')) else {
        return Err("has an endpoint that begins with neither https:// nor http://".into());
    };
    if host.contains('@') {
        return Err("has credentials in its endpoint: they belong into the environment \
                    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            .into());
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b);
    if host.is_empty() || !host.bytes().all(fits) {
        return Err("has an endpoint that is no URL of a host and port".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_read_and_its_name_means_the_same_without_its_secret() {
        for (text, name) in [
            ("/srv/site", "/srv/site"),
            ("/srv//site/", "/srv/site"),
            ("tls://Site.example:7420#se-cret", "tls://site.example:7420"),
            ("tls://[::1]:7420#secret", "tls://[::1]:7420"),
            ("tls://10.0.0.1:1", "tls://10.0.0.1:1"),
            ("s3://backups", "s3://backups"),
            ("s3://backups/", "s3://backups"),
            ("s3://backups?grace=3600", "s3://backups"),
            ("s3://backups?grace=60&lock=3", "s3://backups?lock=3&grace=60"),
            (
                "s3://backups/vm/one/?region=eu-1&endpoint=http://127.0.0.1:8333/",
                "s3://backups/vm/one?endpoint=http://127.0.0.1:8333&region=eu-1",
            ),
        ] {
            let site = Site::parse(text).unwrap();
            assert_eq!(site.name(), name, "{text}");
            assert_eq!(Site::parse(name).unwrap().name(), name, "{text}");
            assert_eq!(format!("{site:?}"), name);
        }
        let Site::Server { invitation, .. } = Site::parse("tls://h:1#a#b").unwrap() else {
            panic!("a server");
        };
        assert_eq!(invitation.as_deref(), Some("a#b"));
    }

    #[test]
    fn what_is_no_site_is_refused_with_the_reason_and_without_its_secrets() {
        let long = format!("/{}", "x".repeat(SITE_BYTES_MAX));
        for text in [
            "",
            "site",
            "./site",
            "/",
            "/srv/../etc",
            "/srv/a\nb",
            long.as_str(),
            "http://host:1",
            "tls://host",
            "tls://host:0",
            "tls://host:65536",
            "tls://:1",
            "tls://a b:1",
            "tls://[host]:1",
            "tls://host:1#",
            "tls://host:1#s ecret",
            "s3://",
            "s3://ab",
            "s3://Bucket",
            "s3://bucket/a b",
            "s3://bucket/../x",
            "s3://bucket?secret=s-ecret",
            "s3://bucket?region=",
            "s3://bucket?region=a&region=b",
            "s3://bucket?endpoint=ftp://host",
            "s3://bucket?endpoint=https://",
            "s3://bucket?endpoint=https://key:s-ecret@host",
            "s3://bucket?endpoint=https://host/path",
        ] {
            let refused = Site::parse(text);
            let why = refused.expect_err(text);
            assert!(!why.contains("ecret") || text.contains("?secret"), "{text}: {why}");
            assert!(!why.contains("s-ecret"), "{text}: {why}");
        }
    }
}
