//! The one door to the AWS SDK.
//!
//! **Invariant (I19):** every request that makes an object carries `If-None-Match: *` and the CRC64NVME
//! of the whole object, which S3 verifies before it answers. TLS always verifies the certificate;
//! plain HTTP goes to loopback only.
//!
//! The SDK neither retries, nor corrects clocks, nor breaks off what it thinks is stalled: the first is
//! `retry.rs`'s, the second a person's, the third the `body.rs`'s business. Bodies are not hashed for the signature: the
//! checksum is in a signed header.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fs,
    future::Future,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_sdk_s3::{
    Client,
    config::{
        AppName, BehaviorVersion, ConfigBag, IdentityCache, Intercept, Region,
        RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
        SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
        http::HttpResponse, interceptors::BeforeDeserializationInterceptorContextRef,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{BoxError, ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectOutput,
    primitives::{ByteStream, SdkBody},
    types::{
        ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart,
        ServerSideEncryption,
    },
};
use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::{Builder, tls};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::io::AsyncWriteExt;

use super::{
    Complete, Encryption, Fetched, Head, Listed, ObjectReader, ObjectStore, OpenUpload, Part, Put,
    Request, ShipError, StoredPart, answer,
    body::{Sliced, Taken, patiently},
    credentials::{Credentials, NoCredentials, Provider},
};
use crate::{clock::Clock, error::Cause, units::Timestamp};

/// Where the lake is and how it is spoken to.
#[derive(Clone)]
pub struct S3Options {
    /// Bucket.
    pub bucket: String,
    /// AWS region.
    pub region: String,
    /// Endpoint URL, if not AWS's own; `http://` only to loopback.
    pub endpoint: Option<String>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// PEM file of the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The account that must own the bucket, 12 digits.
    pub owner: Option<String>,
    /// How objects are encrypted: decides what `check` tries.
    pub encryption: Encryption,
    /// The appliance's name, for the user agent and `check`.
    pub appliance: String,
    /// Signs the requests.
    pub clock: Arc<dyn Clock>,
    /// How long a request may stand still. [`PATIENCE`].
    pub patience: Duration,
}

/// A bucket in S3.
#[derive(Clone, Debug)]
pub struct S3 {
    client: Client,
    bucket: String,
    owner: Option<String>,
    encryption: Encryption,
    appliance: String,
    patience: Duration,
    ahead: Ahead,
}

/// By how many seconds the server's clock is ahead of ours, as of its last answer.
#[derive(Clone)]
struct Ahead {
    seconds: Arc<AtomicI64>,
    clock: Arc<dyn Clock>,
}

impl S3 {
    /// Prepares the way; sends nothing.
    ///
    /// # Errors
    ///
    /// [`ShipError::Setup`]: an endpoint, authority or credentials file that cannot be used.
    pub fn new(options: S3Options, credentials: Credentials) -> Result<Self, ShipError> {
        if let Some(endpoint) = &options.endpoint {
            confidential(endpoint).map_err(setup(Cause::Config))?;
        }
        let provider = Provider::new(credentials);
        provider.load()?;
        let ahead =
            Ahead { seconds: Arc::new(AtomicI64::new(UNKNOWN)), clock: options.clock.clone() };
        let name: String =
            options.appliance.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let app = AppName::new(format!("lakehead-{name}"))
            .map_err(|error| setup(Cause::Config)(error.to_string()))?;
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(options.region))
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .identity_cache(IdentityCache::no_cache())
            .http_client(http_client(options.ca_file.as_deref())?)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .disable_clock_skew_correction(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(options.path_style)
            .time_source(ahead.clone())
            .interceptor(ahead.clone())
            .app_name(app);
        config.set_endpoint_url(options.endpoint);
        Ok(Self {
            client: Client::from_conf(config.build()),
            bucket: options.bucket,
            owner: options.owner,
            encryption: options.encryption,
            appliance: options.appliance,
            patience: options.patience,
            ahead,
        })
    }

    /// By how many seconds the server's clock is ahead of ours, once it has answered.
    pub fn clock_ahead_s(&self) -> Option<i64> {
        Some(self.ahead.seconds.load(Ordering::Relaxed)).filter(|seconds| *seconds != UNKNOWN)
    }

    /// How objects are encrypted.
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// The appliance's name.
    pub fn appliance(&self) -> &str {
        &self.appliance
    }

    async fn get_object(&self, key: &str) -> Result<Option<GetObjectOutput>, ShipError> {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let call = get.set_expected_bucket_owner(self.owner.clone()).send();
        match self.ask(Request::Get, key, 1, call).await {
            Err(ShipError::Failed { code, .. }) if code == "NoSuchKey" => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Awaits the answer to a request without a body that needs watching.
    async fn ask<T, E>(
        &self,
        request: Request,
        key: &str,
        patience: u32,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T, ShipError>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        self.send(request, key, &Taken::default(), patience, call).await
    }

    async fn send<T, E>(
        &self,
        request: Request,
        key: &str,
        taken: &Taken,
        patience: u32,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T, ShipError>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let patience = self.patience * patience;
        match patiently(taken, patience, Box::pin(call)).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(failure(request, key, &error)),
            None => Err(unanswered(request, key, format!("nothing moved for {patience:?}"))),
        }
    }

    /// The next piece of an object, or `None` at its end.
    async fn piece(&self, key: &str, body: &mut ByteStream) -> Result<Option<Bytes>, ShipError> {
        let lost = |why: String| unanswered(Request::Get, key, why);
        match tokio::time::timeout(self.patience, body.next()).await {
            Err(_) => Err(lost(format!("nothing moved for {:?}", self.patience))),
            Ok(piece) => piece.transpose().map_err(|error| lost(chain(&error))),
        }
    }
}

macro_rules! with_head {
    ($request:expr, $s3:expr, $head:expr) => {{
        let head: &Head<'_> = $head;
        let request = $request
            .bucket(&$s3.bucket)
            .key(head.key)
            .content_type(head.content_type)
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .set_metadata(metadata(head.metadata))
            .set_expected_bucket_owner($s3.owner.clone());
        match head.encryption {
            Encryption::SseKms { key_id } => request
                .server_side_encryption(ServerSideEncryption::AwsKms)
                .ssekms_key_id(key_id)
                .bucket_key_enabled(true),
            Encryption::None | Encryption::Client => request,
        }
    }};
}

impl ObjectStore for S3 {
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let (body, taken) = Sliced::new(put.body);
            let request = with_head!(self.client.put_object(), self, &put.head)
                .if_none_match("*")
                .checksum_crc64_nvme(put.crc64nvme)
                .body(ByteStream::new(SdkBody::from_body_1_x(body)));
            let call = request.customize().disable_payload_signing().send();
            self.send(Request::Put, put.head.key, &taken, 1, call).await.map(drop)
        })
    }

    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        Box::pin(async move {
            let request = with_head!(self.client.create_multipart_upload(), self, &head)
                .checksum_type(ChecksumType::FullObject);
            let answer = self.ask(Request::Create, head.key, 1, request.send()).await?;
            answer.upload_id.ok_or_else(|| without(Request::Create, head.key, "UploadId"))
        })
    }

    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        Box::pin(async move {
            let (body, taken) = Sliced::new(part.body);
            let request = self
                .client
                .upload_part()
                .bucket(&self.bucket)
                .key(part.key)
                .upload_id(part.upload)
                .part_number(number(part.number))
                .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
                .checksum_crc64_nvme(part.crc64nvme)
                .set_expected_bucket_owner(self.owner.clone())
                .body(ByteStream::new(SdkBody::from_body_1_x(body)));
            let call = request.customize().disable_payload_signing().send();
            let answer = self.send(Request::Part, part.key, &taken, 1, call).await?;
            answer.e_tag.ok_or_else(|| without(Request::Part, part.key, "ETag"))
        })
    }

    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let parts = complete.parts.iter().map(|part| {
                CompletedPart::builder()
                    .part_number(number(part.number))
                    .e_tag(&part.etag)
                    .checksum_crc64_nvme(&part.crc64nvme)
                    .build()
            });
            let parts =
                CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
            let request = self
                .client
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(complete.key)
                .upload_id(complete.upload)
                .if_none_match("*")
                .checksum_type(ChecksumType::FullObject)
                .checksum_crc64_nvme(complete.crc64nvme)
                .mpu_object_size(i64::try_from(complete.bytes).unwrap_or(i64::MAX))
                .multipart_upload(parts)
                .set_expected_bucket_owner(self.owner.clone());
            self.ask(Request::Complete, complete.key, COMPLETE_PATIENCE, request.send())
                .await
                .map(drop)
        })
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(async move {
            let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key);
            let owned = request.upload_id(upload).set_expected_bucket_owner(self.owner.clone());
            match self.ask(Request::Abort, key, 1, owned.send()).await {
                Ok(_) | Err(ShipError::NoSuchUpload { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>> {
        Box::pin(async move {
            let (mut found, mut marker) = (vec![], None);
            loop {
                let request = self.client.list_parts().bucket(&self.bucket).key(key);
                let owned = request.upload_id(upload).set_part_number_marker(marker);
                let call = owned.set_expected_bucket_owner(self.owner.clone()).send();
                let page = match self.ask(Request::Parts, key, 1, call).await {
                    Ok(page) => page,
                    Err(ShipError::NoSuchUpload { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                found.extend(page.parts.unwrap_or_default().into_iter().filter_map(stored));
                marker = page.next_part_number_marker;
                if !page.is_truncated.unwrap_or(false) || marker.is_none() {
                    return Ok(Some(found));
                }
            }
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        Box::pin(async move {
            let (mut found, mut key, mut id) = (vec![], None, None);
            loop {
                let request = self.client.list_multipart_uploads().bucket(&self.bucket);
                let from = request.prefix(prefix).set_key_marker(key).set_upload_id_marker(id);
                let call = from.set_expected_bucket_owner(self.owner.clone()).send();
                let page = self.ask(Request::Uploads, prefix, 1, call).await?;
                for open in page.uploads.unwrap_or_default() {
                    let begun = open
                        .initiated
                        .and_then(|at| Some(Timestamp(i64::try_from(at.as_nanos() / 1000).ok()?)));
                    if let (Some(key), Some(upload)) = (open.key, open.upload_id) {
                        found.push(OpenUpload { key, upload, begun });
                    }
                }
                (key, id) = (page.next_key_marker, page.next_upload_id_marker);
                if !page.is_truncated.unwrap_or(false) || key.is_none() {
                    return Ok(found);
                }
            }
        })
    }
}

impl ObjectReader for S3 {
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
        Box::pin(async move {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let from = request.set_start_after(after.map(str::to_owned));
            let call = from.set_expected_bucket_owner(self.owner.clone()).send();
            let page = self.ask(Request::List, prefix, 1, call).await?;
            let listed = page.contents.unwrap_or_default().into_iter().filter_map(|object| {
                let bytes = u64::try_from(object.size?).ok()?;
                Some(Listed { key: object.key?, bytes })
            });
            Ok(listed.collect())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        Box::pin(async move {
            let Some(mut object) = self.get_object(key).await? else { return Ok(None) };
            let mut bytes = BytesMut::new();
            while let Some(piece) = self.piece(key, &mut object.body).await? {
                if bytes.len() + piece.len() > GET_BYTES_MAX {
                    let message = format!("longer than {GET_BYTES_MAX} B");
                    let (request, key) = (Request::Get.name(), key.to_owned());
                    let (code, cause) = ("TooLong".to_owned(), Cause::LakeAltered);
                    return Err(ShipError::Failed {
                        request,
                        key,
                        status: 200,
                        code,
                        message,
                        cause,
                    });
                }
                bytes.extend_from_slice(&piece);
            }
            let metadata = object.metadata.unwrap_or_default().into_iter().collect();
            Ok(Some(Fetched { bytes: bytes.freeze(), metadata }))
        })
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        Box::pin(async move {
            let Some(mut object) = self.get_object(key).await? else { return Ok(None) };
            let failed = |error: io::Error| ShipError::Spool {
                path: into.display().to_string(),
                why: error.to_string(),
            };
            let mut options = tokio::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(into).await.map_err(failed)?;
            while let Some(piece) = self.piece(key, &mut object.body).await? {
                file.write_all(&piece).await.map_err(failed)?;
            }
            file.flush().await.map_err(failed)?;
            Ok(Some(object.metadata.unwrap_or_default().into_iter().collect()))
        })
    }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ahead").field(&self.seconds).finish()
    }
}

impl TimeSource for Ahead {
    fn now(&self) -> SystemTime {
        let micros = u64::try_from(self.clock.wall().0).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
    }
}

impl Intercept for Ahead {
    fn name(&self) -> &'static str {
        "Ahead"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(at) = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()) {
            let ours = self.clock.wall().0 / 1_000_000;
            self.seconds.store(at.timestamp().as_second() - ours, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Refuses endpoints to which bytes would go in the clear.
fn confidential(endpoint: &str) -> Result<(), String> {
    let url = url::Url::parse(endpoint).map_err(|why| format!("endpoint `{endpoint}`: {why}"))?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        "http" => Err(format!("endpoint `{endpoint}`: http:// only to loopback; use https://")),
        other => Err(format!("endpoint `{endpoint}`: `{other}` is neither https nor http")),
    }
}

fn http_client(ca_file: Option<&Path>) -> Result<SharedHttpClient, ShipError> {
    let mut trust = tls::TrustStore::empty();
    match ca_file {
        None => trust = trust.with_native_roots(true),
        Some(path) => {
            let what =
                |why: String| setup(Cause::Config)(format!("ca_file {}: {why}", path.display()));
            let pem = fs::read(path).map_err(|error| what(error.to_string()))?;
            // The SDK panics on what is none, so it is looked at here first.
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|error| what(format!("{error:?}")))?;
            let mut roots = rustls::RootCertStore::empty();
            let (good, bad) = roots.add_parsable_certificates(found);
            if good == 0 || bad > 0 {
                return Err(what("holds no certificate, or one that cannot be read".into()));
            }
            trust = trust.with_pem_certificate(pem);
        }
    }
    let context = tls::TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| setup(Cause::Config)(chain(&error)))?;
    Ok(Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(context)
        .build_https())
}

fn setup(cause: Cause) -> impl Fn(String) -> ShipError {
    move |what| ShipError::Setup { what, cause }
}

fn unanswered(request: Request, key: &str, why: String) -> ShipError {
    ShipError::Unanswered { request: request.name(), key: key.into(), why }
}

fn without(request: Request, key: &str, what: &str) -> ShipError {
    answer::refused(request, key, 200, "", &format!("an answer without {what}"))
}

/// Sorts the SDK's errors.
fn failure<E>(request: Request, key: &str, error: &SdkError<E, HttpResponse>) -> ShipError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(none) = find::<NoCredentials>(error) {
        return none.clone().into();
    }
    if let SdkError::ServiceError(refusal) = error {
        let (status, meta) = (refusal.raw().status().as_u16(), refusal.err().meta());
        let (code, message) = (meta.code().unwrap_or(""), meta.message().unwrap_or(""));
        return answer::refused(request, key, status, code, message);
    }
    if let Some(response) = error.raw_response() {
        return answer::refused(request, key, response.status().as_u16(), "", &chain(error));
    }
    if let Some(rustls::Error::InvalidCertificate(why)) = find::<rustls::Error>(error) {
        let (what, cause) =
            (format!("the endpoint's certificate: {why:?}"), Cause::LakeCertificate);
        return ShipError::Setup { what, cause };
    }
    match error {
        SdkError::ConstructionFailure(_) => {
            ShipError::Setup { what: chain(error), cause: Cause::LakeRefused }
        }
        _ => unanswered(request, key, chain(error)),
    }
}

/// The first error of a type in the chain of sources, looking into `io::Error`s too.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` gives as its source not what it holds, but the source of that.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// An error and its sources in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

fn metadata(ours: &BTreeMap<String, String>) -> Option<HashMap<String, String>> {
    (!ours.is_empty()).then(|| ours.clone().into_iter().collect())
}

fn number(part: u32) -> i32 {
    i32::try_from(part).expect("a plan has at most 10,000 parts")
}

fn stored(part: aws_sdk_s3::types::Part) -> Option<StoredPart> {
    Some(StoredPart {
        number: u32::try_from(part.part_number?).ok()?,
        bytes: u64::try_from(part.size?).ok()?,
        etag: part.e_tag?,
        crc64nvme: part.checksum_crc64_nvme.unwrap_or_default(),
    })
}

/// How long a request may stand still.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// S3 may take minutes over a Complete: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>.
const COMPLETE_PATIENCE: u32 = 10;
const CONNECT: Duration = Duration::from_secs(10);
/// S3 closes idle connections itself after about 20 s; one that it has closed costs a retry.
const IDLE: Duration = Duration::from_secs(15);
/// Ledger entries and schemas are far below this.
const GET_BYTES_MAX: usize = 64 << 20;
const UNKNOWN: i64 = i64::MIN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_the_clear_to_loopback_only() {
        for good in [
            "https://s3.eu-central-1.amazonaws.com",
            "http://127.0.0.1:9000",
            "http://[::1]:1",
            "http://localhost:1",
        ] {
            assert_eq!(confidential(good), Ok(()), "{good}");
        }
        for bad in [
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "http://127.0.0.1.nip.io",
            "ftp://127.0.0.1",
            "s3",
            "http://0.0.0.0",
        ] {
            assert!(confidential(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let at = jiff::fmt::rfc2822::parse("Sat, 21 Nov 2026 08:30:00 GMT").unwrap();
        assert_eq!(at.timestamp().to_string(), "2026-11-21T08:30:00Z");
    }
}
