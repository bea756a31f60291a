//! A bucket on a server that speaks S3, by Amazon's client. One request a call; what an answer means is
//! judged here, and in no other place.

use super::{Listed, Store, StoreError};
use crate::url::S3Url;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ProvideCredentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode};
use std::future::Future;
use std::ops::Range;
use std::time::{Duration, SystemTime};
use tokio::runtime::{Builder, Handle, Runtime};

/// Longest time to connect.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest time of one request, its body included: 16 MiB at 600 KB/s.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// Longest body that is taken in, in bytes.
const BODY_BYTES_MAX: u64 = 512 << 20;
/// Keys of one page of a listing.
const PAGE_KEYS: i32 = 1000;
/// Threads that move bytes for the requests under way.
const NETWORK_THREADS: usize = 2;
/// What a server of one's own is told when no region was named: it has one, whatever it is called.
const REGION_OF_ONES_OWN: &str = "us-east-1";

/// A bucket.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    client: Client,
    handle: Handle,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Not waited for: this may be another runtime's thread.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bucket {
    /// The bucket of a URL. Credentials are looked for where every AWS program does: environment, then
    /// profile. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// There are no credentials, or no region.
    pub fn connect(url: &S3Url) -> Result<Self, StoreError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|e| StoreError::Refused(format!("start threads for {url}: {e}")))?;
        let handle = runtime.handle().clone();
        let client = wait(&handle, client(url.clone()))??;
        Ok(Self { name: url.bucket.clone(), client, handle, runtime: Some(runtime) })
    }

    /// Makes the bucket; one that is there and ours is as good.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn make(&self) -> Result<(), StoreError> {
        let request = self.client.create_bucket().bucket(&self.name);
        match self.ask("make", "", request.send()) {
            Err(StoreError::Unclear(why)) if why.contains("BucketAlreadyOwnedByYou") => Ok(()),
            told => told.map(drop),
        }
    }

    fn ask<T, E>(
        &self,
        what: &str,
        key: &str,
        request: impl Future<Output = Result<T, SdkError<E>>> + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let place = format!("{what} {key} in bucket {}", self.name);
        wait(&self.handle, request)?.map_err(|e| judge(&place, key, &e))
    }

    fn put_request(
        &self,
        key: &str,
        bytes: &[u8],
        until: Option<SystemTime>,
    ) -> PutObjectFluentBuilder {
        let mut request = self
            .client
            .put_object()
            .bucket(&self.name)
            .key(key)
            .body(ByteStream::from(bytes.to_vec()));
        if let Some(until) = until {
            // A server takes a retention only together with a checksum.
            request = request
                .object_lock_mode(ObjectLockMode::Compliance)
                .object_lock_retain_until_date(DateTime::from(until))
                .checksum_algorithm(ChecksumAlgorithm::Crc32C);
        }
        request
    }
}

/// Waits for a future without being one: callers may be on any thread, another runtime's too.
fn wait<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, StoreError> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        // Nobody listens only where the caller is gone.
        let _ = tell.send(future.await);
    });
    told.recv().map_err(|_| StoreError::Unclear("the request was broken off".into()))
}

async fn client(url: S3Url) -> Result<Client, StoreError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &url.region {
        loader = loader.region(Region::new(region.clone()));
    }
    let shared = loader.load().await;
    let region = match (shared.region(), &url.endpoint) {
        (Some(region), _) => region.clone(),
        (None, Some(_)) => Region::new(REGION_OF_ONES_OWN),
        (None, None) => {
            return Err(StoreError::Refused(format!(
                "no region is known for {url}: write ?region=REGION, or set AWS_REGION"
            )));
        }
    };
    let missing = |why: String| {
        StoreError::Refused(format!(
            "no credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE{why}"
        ))
    };
    let provider = shared.credentials_provider().ok_or_else(|| missing(String::new()))?;
    let found = provider.provide_credentials().await;
    found.map_err(|e| missing(format!(" ({})", DisplayErrorContext(&e))))?;
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .region(region)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_MAX)
                .operation_timeout(REQUEST_MAX)
                .build(),
        )
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &url.endpoint {
        config = config.endpoint_url(endpoint).force_path_style(true);
    }
    Ok(Client::from_conf(config.build()))
}

/// What a failed request means.
fn judge<E>(place: &str, key: &str, error: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let SdkError::ServiceError(answer) = error else {
        let text = format!("{place}: {}", DisplayErrorContext(error));
        return match error {
            SdkError::ConstructionFailure(_) => StoreError::Refused(text),
            _ => StoreError::Unclear(text),
        };
    };
    let status = answer.raw().status().as_u16();
    let code = answer.err().code().unwrap_or_default();
    let said = answer.err().message().unwrap_or_default();
    judge_answer(place, key, status, code, said)
}

fn judge_answer(place: &str, key: &str, status: u16, code: &str, said: &str) -> StoreError {
    let shown = if code.is_empty() { String::new() } else { format!(" {code}") };
    let text = format!("{place}: the server answers {status}{shown}: {said}");
    match (status, code) {
        (_, "NoSuchBucket") => StoreError::Refused(text),
        (_, "QuotaExceeded" | "ServiceQuotaExceededException") | (507, _) => StoreError::Full(text),
        (_, "RequestTimeout" | "SlowDown" | "Throttling") => StoreError::Unclear(text),
        (404, _) => StoreError::NotFound(key.to_owned()),
        (412, _) => StoreError::Exists(key.to_owned()),
        (405 | 501, _) | (_, "NotImplemented") => StoreError::Unsupported(text),
        // Two conditional writes at once: neither was judged.
        (408 | 409 | 425 | 429, _) => StoreError::Unclear(text),
        (400..=499, _) => StoreError::Refused(text),
        _ => StoreError::Unclear(text),
    }
}

impl Store for Bucket {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let mut request = self.client.get_object().bucket(&self.name).key(key);
        let mut limit = BODY_BYTES_MAX;
        if let Some(range) = range {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            limit = range.end - range.start;
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        let answer = self.ask("read", key, request.send())?;
        let place = format!("read {key} in bucket {}", self.name);
        let length = answer.content_length.and_then(|l| u64::try_from(l).ok());
        if length.is_none_or(|l| l > limit) {
            return Err(StoreError::Unclear(format!(
                "{place}: the server sends {length:?} bytes where at most {limit} were asked for"
            )));
        }
        let length = length.unwrap_or_default() as usize;
        let mut body = answer.body;
        let whole = async move {
            let mut bytes = Vec::with_capacity(length);
            let all = async {
                while let Some(piece) = body.try_next().await? {
                    bytes.extend_from_slice(&piece);
                }
                Ok(bytes)
            };
            tokio::time::timeout(REQUEST_MAX, all).await
        };
        let read: Result<Result<_, aws_sdk_s3::primitives::ByteStreamError>, _> =
            wait(&self.handle, whole)?;
        match read {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(e)) => Err(StoreError::Unclear(format!("{place}: {}", DisplayErrorContext(&e)))),
            Err(_) => Err(StoreError::Unclear(format!("{place}: not there after {REQUEST_MAX:?}"))),
        }
    }

    fn has(&self, key: &str) -> Result<bool, StoreError> {
        let request = self.client.head_object().bucket(&self.name).key(key);
        match self.ask("look for", key, request.send()) {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn put(&self, key: &str, bytes: &[u8], until: Option<SystemTime>) -> Result<(), StoreError> {
        let request = self.put_request(key, bytes, until);
        self.ask("write", key, request.send()).map(drop)
    }

    fn create(&self, key: &str, bytes: &[u8], until: Option<SystemTime>) -> Result<(), StoreError> {
        let request = self.put_request(key, bytes, until).if_none_match("*");
        self.ask("create", key, request.send()).map(drop)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let request = self.client.delete_object().bucket(&self.name).key(key);
        match self.ask("delete", key, request.send()) {
            Err(StoreError::NotFound(_)) => Ok(()),
            told => told.map(drop),
        }
    }

    fn list(&self, prefix: &str, after: &str, delimiter: bool) -> Result<Listed, StoreError> {
        let mut request =
            self.client.list_objects_v2().bucket(&self.name).prefix(prefix).max_keys(PAGE_KEYS);
        if !after.is_empty() {
            request = request.start_after(after);
        }
        if delimiter {
            request = request.delimiter("/");
        }
        let answer = self.ask("list", prefix, request.send())?;
        let common = answer.common_prefixes().iter().filter_map(|p| p.prefix());
        let mut keys: Vec<String> = answer
            .contents()
            .iter()
            .filter_map(|o| o.key())
            .chain(common)
            .map(Into::into)
            .collect();
        keys.sort();
        Ok(Listed { keys, more: answer.is_truncated().unwrap_or(false) })
    }

    fn can_lock(&self) -> Result<bool, StoreError> {
        let request = self.client.get_object_lock_configuration().bucket(&self.name);
        match self.ask("ask for object lock", "", request.send()) {
            Ok(answer) => Ok(answer
                .object_lock_configuration()
                .and_then(|c| c.object_lock_enabled())
                .is_some_and(|e| e.as_str() == "Enabled")),
            Err(StoreError::NotFound(_) | StoreError::Unsupported(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
