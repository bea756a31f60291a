//! Where a bucket is: `s3://BUCKET/PREFIX?endpoint=URL&region=R&lock=DAYS&grace=SECONDS`. Bytes only; says
//! nothing of credentials, which come from where every AWS program looks for them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest prefix, in bytes: keys have at most 1024, and ours need the rest.
pub const PREFIX_BYTES_MAX: usize = 512;
/// Longest retention that can be asked for, in days.
pub const LOCK_DAYS_MAX: u32 = 36_500;
/// How long what a manifest calls dead stays, unless the URL says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(3600);
/// Longest such time, in seconds.
const GRACE_S_MAX: u64 = 400 * 86_400;

/// A bucket, a prefix in it, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Url {
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with; without slashes at its ends, may be empty.
    pub prefix: String,
    /// The server; `None`: Amazon's of the region. With one, the bucket is part of the path.
    pub endpoint: Option<String>,
    /// The region; `None`: what the environment says.
    pub region: Option<String>,
    /// Days for which the server is to refuse deletion of each new object (object lock).
    pub lock_days: Option<u32>,
    /// How long what a committed manifest calls dead is left for its readers.
    pub grace: Duration,
}

/// Why a text is no URL of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} names no bucket: {why}; write s3://BUCKET/PREFIX?endpoint=URL&region=REGION")]
pub struct UrlError {
    given: String,
    why: String,
}

impl S3Url {
    /// Whether a text means a bucket and no directory.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("s3://")
    }

    /// The key of something below the prefix.
    #[must_use]
    pub fn key(&self, below: &str) -> String {
        if self.prefix.is_empty() { below.to_owned() } else { format!("{}/{below}", self.prefix) }
    }
}

impl FromStr for S3Url {
    type Err = UrlError;

    fn from_str(given: &str) -> Result<Self, UrlError> {
        parse(given).map_err(|why| UrlError { given: given.to_owned(), why })
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

fn parse(given: &str) -> Result<S3Url, String> {
    let rest = given.strip_prefix("s3://").ok_or("it doesn't begin with s3://")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let prefix = prefix.trim_end_matches('/');
    check_bucket(bucket)?;
    check_prefix(prefix)?;
    let mut url = S3Url {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: None,
        region: None,
        lock_days: None,
        grace: GRACE_DEFAULT,
    };
    for option in query.split('&').filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').ok_or(format!("{option:?} has no value"))?;
        set(&mut url, name, &unescape(value)?)?;
    }
    Ok(url)
}

fn set(url: &mut S3Url, name: &str, value: &str) -> Result<(), String> {
    match name {
        "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
            url.endpoint = Some(value.trim_end_matches('/').to_owned());
        }
        "endpoint" => return Err("the endpoint doesn't begin with http:// or https://".into()),
        "region" if value.is_empty() => return Err("the region is empty".into()),
        "region" => url.region = Some(value.to_owned()),
        "lock" => {
            let days = value.parse().ok().filter(|d| (1..=LOCK_DAYS_MAX).contains(d));
            url.lock_days = Some(days.ok_or(format!("lock is 1 to {LOCK_DAYS_MAX} days"))?);
        }
        "grace" => {
            let seconds = value.parse().ok().filter(|s| *s <= GRACE_S_MAX);
            let seconds = seconds.ok_or(format!("grace is 0 to {GRACE_S_MAX} seconds"))?;
            url.grace = Duration::from_secs(seconds);
        }
        _ => return Err(format!("there is no option {name:?}: endpoint, region, lock, grace")),
    }
    Ok(())
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let fits = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        && !bucket.starts_with(['-', '.'])
        && !bucket.ends_with(['-', '.']);
    if fits { Ok(()) } else { Err(format!("{bucket:?} can't be a bucket's name")) }
}

fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.is_empty() {
        return Ok(());
    }
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err(format!("the prefix has more than {PREFIX_BYTES_MAX} bytes"));
    }
    let part_fits = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-=+@".contains(&b))
    };
    if prefix.split('/').all(part_fits) {
        return Ok(());
    }
    Err(format!(
        "the prefix {prefix:?} has an empty part, or other characters than a-z A-Z 0-9 ._-=+@"
    ))
}

/// Takes `%XX` for what it means.
fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(byte.ok_or(format!("{text:?} has a % without two hex digits"))?);
        rest = &rest[2..];
    }
    let fits = |b: &u8| *b > b' ' && *b != 0x7f;
    if !bytes.iter().all(fits) {
        return Err(format!("{text:?} has a space or a control character"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} isn't UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_bucket_prefix_and_how_to_get_there() {
        let url: S3Url =
            "s3://vault/a/b/?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-1&lock=30&grace=60"
                .parse()
                .unwrap();
        assert_eq!((url.bucket.as_str(), url.prefix.as_str()), ("vault", "a/b"));
        assert_eq!(url.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((url.region.as_deref(), url.lock_days), (Some("eu-1"), Some(30)));
        assert_eq!(url.grace, Duration::from_secs(60));
        assert_eq!((url.to_string(), url.key("x")), ("s3://vault/a/b".into(), "a/b/x".into()));
        let bare: S3Url = "s3://vault".parse().unwrap();
        assert_eq!((bare.to_string(), bare.key("x")), ("s3://vault".into(), "x".into()));
    }

    #[test]
    fn what_is_no_url_is_refused_with_the_reason() {
        for (text, why) in [
            ("/var/lib", "s3://"),
            ("s3://", "bucket"),
            ("s3://Vault/x", "bucket"),
            ("s3://vault/a//b", "empty part"),
            ("s3://vault/a/../b", "prefix"),
            ("s3://vault?endpoint=ftp://x", "endpoint"),
            ("s3://vault?endpoint=%zz", "hex"),
            ("s3://vault?region=", "region"),
            ("s3://vault?lock=0", "lock"),
            ("s3://vault?grace=-1", "grace"),
            ("s3://vault?colour=red", "colour"),
            ("s3://vault?region", "no value"),
        ] {
            let said = text.parse::<S3Url>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
