//! The one door to the AWS SDK.
//!
//! **Invariant (I19):** every request that makes an object carries `If-None-Match: *` and the CRC64NVME
//! of the whole object, which S3 verifies before it answers. TLS always verifies the certificate;
//! plain HTTP goes to loopback only.
//!
//! The SDK neither retries, nor corrects clocks, nor breaks off what it thinks is stalled: the first is
//! `retry.rs`'s business, the second a person's, the third `body.rs`'s. Bodies are not hashed for the
//! signature: the checksum is in a signed header.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    future::Future,
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    config::{
        AppName, BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, SharedCredentialsProvider, StalledStreamProtectionConfig,
        http::HttpResponse, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectOutput,
    primitives::{ByteStream, DateTime, SdkBody},
    types::{
        ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart,
        ServerSideEncryption,
    },
};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;

use super::{
    Complete, Encryption, Fetched, GET_BYTES_MAX, Head, Listed, ObjectReader, ObjectStore,
    OpenUpload, Part, Put, Request, ShipError, StoredPart,
    ahead::Ahead,
    answer::{unavailable, without},
    body::{Sliced, Taken, patiently},
    credentials::{Credentials, Provider},
    endpoint::{confidential, setup, tls},
    failure::{chain, failure, unanswered},
    http::{Dial, http_client},
    within,
};
use crate::{clock::Clock, disk::work::WorkFile, error::Cause};

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
    /// How long a request may stand still: [`super::patience`].
    pub patience: Duration,
}

/// A bucket in S3.
#[derive(Clone, Debug)]
pub struct S3 {
    client: Client,
    /// Where it answers, for people.
    at: String,
    bucket: String,
    owner: Option<String>,
    encryption: Encryption,
    appliance: String,
    patience: Duration,
    ahead: Ahead,
}

impl S3 {
    /// Prepares the way, over connections that `dial` makes; sends nothing.
    ///
    /// # Errors
    ///
    /// [`ShipError::Setup`]: an endpoint, authority or credentials file that cannot be used.
    pub fn new(
        options: S3Options,
        credentials: Credentials,
        dial: impl Dial,
    ) -> Result<Self, ShipError> {
        if let Some(endpoint) = &options.endpoint {
            confidential(endpoint).map_err(setup(Cause::Config))?;
        }
        let aws = || format!("S3 in {}", options.region);
        let at = options.endpoint.clone().unwrap_or_else(aws);
        let provider = Provider::new(credentials);
        provider.load()?;
        let ahead = Ahead::new(options.clock.clone());
        let name: String =
            options.appliance.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let app = AppName::new(format!("lakehead-{name}"))
            .map_err(|error| setup(Cause::Config)(error.to_string()))?;
        let tls = tls(options.endpoint.as_deref(), options.ca_file.as_deref())?;
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(options.region))
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .identity_cache(IdentityCache::no_cache())
            .http_client(http_client(dial, tls))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
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
            at,
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
        self.ahead.seconds()
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

    /// Whether the list of open uploads, which is read, lacks this one: for stores whose answers about an
    /// upload that is gone do not say so.
    async fn gone(&self, key: &str, upload: &str) -> bool {
        let open = self.uploads(key).await;
        open.is_ok_and(|open| open.iter().all(|open| open.upload != upload))
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
        let why = match patiently(taken, patience, Box::pin(call)).await {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => {
                match taken.failed().unwrap_or_else(|| failure(request, key, &error)) {
                    ShipError::Unanswered { why, .. } => why,
                    answered => return Err(answered),
                }
            }
            None => format!("nothing moved for {patience:?}"),
        };
        Err(unanswered(request, key, format!("{}: {why}", self.at)))
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
            let key = complete.key;
            let send = async || {
                let call = request.clone().send();
                self.ask(Request::Complete, key, COMPLETE_PATIENCE, call).await.map(drop)
            };
            let answer = send().await;
            if !unavailable(&answer) || !self.gone(key, complete.upload).await {
                return answer;
            }
            // It was completed or aborted; S3 says which when it is asked again, Ceph RGW says 500 for ever.
            let answer = send().await;
            if unavailable(&answer) {
                Err(ShipError::NoSuchUpload { key: key.into() })
            } else {
                answer
            }
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
                let owned = request.upload_id(upload).set_part_number_marker(marker.clone());
                let call = owned.set_expected_bucket_owner(self.owner.clone()).send();
                let page = match self.ask(Request::Parts, key, 1, call).await {
                    Ok(page) => page,
                    Err(ShipError::NoSuchUpload { .. }) => return Ok(None),
                    // Ceph RGW says so to who may not list objects.
                    Err(ShipError::Failed { cause: Cause::LakeForbidden, .. })
                        if self.gone(key, upload).await =>
                    {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                };
                found.extend(page.parts.unwrap_or_default().into_iter().filter_map(stored));
                let next = page.next_part_number_marker;
                if !page.is_truncated.unwrap_or(false) || next.is_none() {
                    return Ok(Some(found));
                }
                if next == marker {
                    return Err(without(Request::Parts, key, "a page after the one before"));
                }
                marker = next;
            }
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        Box::pin(async move {
            let (mut found, mut marker) = (vec![], (None, None));
            loop {
                let (key, id) = marker.clone();
                let request = self.client.list_multipart_uploads().bucket(&self.bucket);
                let from = request.prefix(prefix).set_key_marker(key).set_upload_id_marker(id);
                let call = from.set_expected_bucket_owner(self.owner.clone()).send();
                let page = self.ask(Request::Uploads, prefix, 1, call).await?;
                for open in page.uploads.unwrap_or_default() {
                    let since = |begun: DateTime| Some(self.ahead.server_now()? - begun.secs());
                    let age = open.initiated.and_then(since).map(|age| age.max(0).unsigned_abs());
                    let age = age.map(Duration::from_secs);
                    if let (Some(key), Some(upload)) = (open.key, open.upload_id) {
                        found.push(OpenUpload { key, upload, age });
                    }
                }
                let next = (page.next_key_marker, page.next_upload_id_marker);
                if !page.is_truncated.unwrap_or(false) || next.0.is_none() {
                    return Ok(found);
                }
                if next == marker {
                    return Err(without(Request::Uploads, prefix, "a page after the one before"));
                }
                marker = next;
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
            let listed: Vec<_> = listed.collect();
            let last = listed.last().map(|listed| listed.key.as_str());
            if last.is_some() && last <= after {
                return Err(without(Request::List, prefix, "keys behind the one that was named"));
            }
            Ok(listed)
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        Box::pin(async move {
            let Some(mut object) = self.get_object(key).await? else { return Ok(None) };
            let mut bytes = BytesMut::new();
            while let Some(piece) = self.piece(key, &mut object.body).await? {
                within(key, (bytes.len() + piece.len()) as u64, GET_BYTES_MAX)?;
                bytes.extend_from_slice(&piece);
            }
            let metadata = object.metadata.unwrap_or_default().into_iter().collect();
            Ok(Some(Fetched { bytes: bytes.freeze(), metadata }))
        })
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a WorkFile,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        Box::pin(async move {
            let Some(mut object) = self.get_object(key).await? else { return Ok(None) };
            let failed = |error: io::Error| ShipError::Spool {
                path: into.path().display().to_string(),
                why: error.to_string(),
            };
            let own = into.cleared().and_then(std::fs::File::try_clone).map_err(failed)?;
            let mut file = tokio::fs::File::from_std(own);
            let copy = async {
                let mut bytes = 0_u64;
                while let Some(piece) = self.piece(key, &mut object.body).await? {
                    bytes += piece.len() as u64;
                    within(key, bytes, bytes_max)?;
                    file.write_all(&piece).await.map_err(failed)?;
                }
                Ok::<_, ShipError>(())
            };
            let copied = copy.await;
            // What is on its way to the file must not come there behind another try.
            let flushed = file.flush().await.map_err(failed);
            copied.and(flushed)?;
            Ok(Some(object.metadata.unwrap_or_default().into_iter().collect()))
        })
    }
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

/// S3 may take minutes over a Complete: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>.
const COMPLETE_PATIENCE: u32 = 10;
