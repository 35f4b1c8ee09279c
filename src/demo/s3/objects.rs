//! Objects: put, get, head, list, delete.

use std::{collections::BTreeSet, io, path::PathBuf};

use base64::{Engine, prelude::BASE64_URL_SAFE};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{
    S3Request, S3Result,
    dto::{
        ChecksumType, CommonPrefix, DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition,
        EncodingType, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
        ListObjectsV2Input, ListObjectsV2Output, Object as Listed, PutObjectInput, PutObjectOutput,
        ServerSideEncryption, StreamingBlob, Timestamp,
    },
    s3_error,
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    store::{Bucket, Change, Head, Object, Segment, Store},
    verify::{Algorithm, Claim, Sums, receive},
};

/// The five checksums of an input or output, which are five fields.
macro_rules! sums_of {
    ($from:expr) => {{
        let fields = [
            (Algorithm::Crc32, &$from.checksum_crc32),
            (Algorithm::Crc32c, &$from.checksum_crc32c),
            (Algorithm::Crc64Nvme, &$from.checksum_crc64nvme),
            (Algorithm::Sha1, &$from.checksum_sha1),
            (Algorithm::Sha256, &$from.checksum_sha256),
        ];
        let given = fields.into_iter().filter_map(|(of, sum)| Some((of, sum.clone()?)));
        given.collect::<Sums>()
    }};
}
macro_rules! give_sums {
    ($to:expr, $sums:expr) => {{
        let sums: &Sums = $sums;
        $to.checksum_crc32 = sums.get(&Algorithm::Crc32).cloned();
        $to.checksum_crc32c = sums.get(&Algorithm::Crc32c).cloned();
        $to.checksum_crc64nvme = sums.get(&Algorithm::Crc64Nvme).cloned();
        $to.checksum_sha1 = sums.get(&Algorithm::Sha1).cloned();
        $to.checksum_sha256 = sums.get(&Algorithm::Sha256).cloned();
    }};
}
macro_rules! head_of {
    ($from:expr) => {
        Head {
            metadata: $from.metadata.clone().unwrap_or_default().into_iter().collect(),
            content_type: $from.content_type.clone(),
            content_encoding: encoding($from.content_encoding.as_deref()),
            sse: $from.server_side_encryption.as_ref().map(|sse| sse.as_str().to_owned()),
            kms_key_id: $from.ssekms_key_id.clone(),
            bucket_key: $from.bucket_key_enabled,
        }
    };
}
macro_rules! give_head {
    ($to:expr, $head:expr) => {{
        let head: &Head = $head;
        $to.server_side_encryption = head.sse.clone().map(ServerSideEncryption::from);
        $to.ssekms_key_id = head.kms_key_id.clone();
        $to.bucket_key_enabled = head.bucket_key;
    }};
}
pub(super) use {give_head, give_sums, head_of, sums_of};

/// `aws-chunked` is of the request, not of the object.
pub(super) fn encoding(given: Option<&str>) -> Option<String> {
    let real = given?.split(',').map(str::trim).filter(|name| *name != "aws-chunked");
    Some(real.collect::<Vec<_>>().join(",")).filter(|left| !left.is_empty())
}

/// The sums, and what is said of them in trailers.
pub(super) fn claim<T>(request: &mut S3Request<T>, sums: Sums) -> Claim {
    let header = |name: &str| {
        let value = request.headers.get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let announced = header("x-amz-trailer").unwrap_or_default();
    let announced = announced.split(',').map(|name| name.trim().to_ascii_lowercase());
    // Of a body in chunks (trailers), this is what it is without them.
    let decoded = header("x-amz-decoded-content-length").and_then(|text| text.parse().ok());
    Claim {
        length: decoded,
        md5: header("content-md5"),
        sums,
        announced: announced.filter(|name| !name.is_empty()).collect(),
        trailers: request.trailing_headers.take(),
    }
}

/// Not an MD5, and longer than one, so that no client takes it for one.
pub(super) fn etag(sums: &Sums, bytes: u64) -> String {
    let crc = sums.get(&Algorithm::Crc64Nvme).map_or("", String::as_str);
    let crc = base64::prelude::BASE64_STANDARD.decode(crc).unwrap_or_default();
    format!("{}{bytes:024x}", hex::encode(crc))
}

pub(super) fn strong(etag: &str) -> Option<ETag> {
    Some(ETag::Strong(etag.to_owned()))
}

pub(super) fn time(micros: i64) -> Timestamp {
    let since = std::time::Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    (std::time::SystemTime::UNIX_EPOCH + since).into()
}

/// Refuses to overwrite, if that was asked for. What else can be asked for is not built.
pub(super) fn condition(
    bucket: &Bucket,
    key: &str,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    match if_none_match {
        None => Ok(()),
        Some(ETagCondition::Any) if bucket.objects.contains_key(key) => Err(s3_error!(
            PreconditionFailed,
            "At least one of the pre-conditions you specified did not hold"
        )),
        Some(ETagCondition::Any) => Ok(()),
        Some(ETagCondition::ETag(_)) => {
            Err(s3_error!(NotImplemented, "If-None-Match with an ETag"))
        }
    }
}

pub(super) async fn put(
    store: &Store,
    now: i64,
    mut request: S3Request<PutObjectInput>,
) -> S3Result<PutObjectOutput> {
    let sums = sums_of!(request.input);
    let mut claim = claim(&mut request, sums);
    let input = request.input;
    claim.length = claim.length.or(input.content_length);
    if input.if_match.is_some() {
        return Err(s3_error!(NotImplemented, "If-Match"));
    }
    let head = head_of!(input);
    let body = store.new_body();
    let received = receive(input.body, claim, &body.path).await?;
    let object = Object {
        key: input.key.clone(),
        etag: etag(&received.sums, received.bytes),
        segments: vec![Segment { body: body.number, bytes: received.bytes }],
        sums: received.sums,
        composite: false,
        head,
        at: now,
    };
    store.change(&input.bucket, |bucket| {
        condition(bucket, &input.key, input.if_none_match.as_ref())?;
        Ok(Change::Put { bucket: input.bucket.clone(), object: object.clone() })
    })?;
    body.keep();
    let mut output = PutObjectOutput { e_tag: strong(&object.etag), ..Default::default() };
    output.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
    give_sums!(output, &object.sums);
    give_head!(output, &object.head);
    Ok(output)
}

fn find(store: &Store, bucket: &str, key: &str) -> S3Result<Object> {
    let missing = || s3_error!(NoSuchKey, "The specified key does not exist.");
    store.look(bucket, |bucket| bucket.objects.get(key).cloned().ok_or_else(missing))
}

pub(super) fn head(store: &Store, input: &HeadObjectInput) -> S3Result<HeadObjectOutput> {
    let object = find(store, &input.bucket, &input.key)?;
    let mut output = HeadObjectOutput {
        accept_ranges: Some("bytes".into()),
        content_length: i64::try_from(object.bytes()).ok(),
        content_type: object.head.content_type.clone(),
        content_encoding: object.head.content_encoding.clone(),
        e_tag: strong(&object.etag),
        last_modified: Some(time(object.at)),
        metadata: Some(object.head.metadata.clone().into_iter().collect()),
        ..Default::default()
    };
    if input.checksum_mode.is_some() {
        give_sums!(output, &object.sums);
    }
    give_head!(output, &object.head);
    Ok(output)
}

pub(super) fn get(store: &Store, input: &GetObjectInput) -> S3Result<GetObjectOutput> {
    let object = find(store, &input.bucket, &input.key)?;
    let all = object.bytes();
    let range = input.range.map(|range| range.check(all)).transpose()?;
    let content_range =
        range.as_ref().map(|range| format!("bytes {}-{}/{all}", range.start, range.end - 1));
    let whole = range.is_none();
    let range = range.unwrap_or(0..all);
    let mut pieces = vec![];
    let mut at = 0;
    for segment in &object.segments {
        let (from, to) = (range.start.max(at), range.end.min(at + segment.bytes));
        if from < to {
            pieces.push((store.body(segment.body), from - at, to - from));
        }
        at += segment.bytes;
    }
    let mut output = GetObjectOutput {
        accept_ranges: Some("bytes".into()),
        body: Some(StreamingBlob::wrap(read(pieces))),
        content_length: i64::try_from(range.end - range.start).ok(),
        content_range,
        content_type: object.head.content_type.clone(),
        content_encoding: object.head.content_encoding.clone(),
        e_tag: strong(&object.etag),
        last_modified: Some(time(object.at)),
        metadata: Some(object.head.metadata.clone().into_iter().collect()),
        ..Default::default()
    };
    if input.checksum_mode.is_some() && whole {
        let kind =
            if object.composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
        output.checksum_type = Some(ChecksumType::from_static(kind));
        give_sums!(output, &object.sums);
    }
    give_head!(output, &object.head);
    Ok(output)
}

/// Reads runs of files, one after the other.
fn read(
    pieces: Vec<(PathBuf, u64, u64)>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    let start = (pieces.into_iter(), None::<(tokio::fs::File, u64)>);
    stream::try_unfold(start, async |(mut pieces, mut open)| {
        loop {
            let Some((file, left)) = &mut open else {
                let Some((path, from, bytes)) = pieces.next() else { return Ok(None) };
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(io::SeekFrom::Start(from)).await?;
                open = Some((file, bytes));
                continue;
            };
            if *left == 0 {
                open = None;
                continue;
            }
            let length = usize::try_from((*left).min(READ_BYTES)).map_err(io::Error::other)?;
            let mut buffer = vec![0; length];
            file.read_exact(&mut buffer).await?;
            *left -= u64::try_from(length).map_err(io::Error::other)?;
            return Ok(Some((Bytes::from(buffer), (pieces, open))));
        }
    })
}

pub(super) fn delete(store: &Store, input: DeleteObjectInput) -> S3Result<DeleteObjectOutput> {
    let (bucket, key) = (input.bucket, input.key);
    store.change(&bucket, |_| Ok(Change::Delete { bucket: bucket.clone(), key }))?;
    Ok(DeleteObjectOutput::default())
}

pub(super) fn list(store: &Store, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
    let token = input.continuation_token.as_ref().map(|token| {
        let after = BASE64_URL_SAFE.decode(token).ok().and_then(|t| String::from_utf8(t).ok());
        after.ok_or_else(|| s3_error!(InvalidArgument, "The continuation token is incorrect"))
    });
    let after = token.transpose()?.or(input.start_after.clone()).unwrap_or_default();
    let most = usize::try_from(input.max_keys.unwrap_or(1000).clamp(0, 1000)).unwrap_or(1000);
    let url = input.encoding_type.as_ref().is_some_and(|kind| kind.as_str() == "url");
    let spell = |text: &str| {
        if url { utf8_percent_encode(text, KEY).to_string() } else { text.to_owned() }
    };
    let (mut contents, mut common) = (vec![], BTreeSet::new());
    let (mut last, mut truncated) = (String::new(), false);
    store.look(&input.bucket, |bucket| {
        for (key, object) in bucket.objects.range(prefix.clone()..) {
            if !key.starts_with(&prefix) {
                break;
            }
            let rest = &key[prefix.len()..];
            let cut = delimiter.as_ref().and_then(|by| Some(rest.find(by.as_str())? + by.len()));
            let entry = cut.map_or(key.as_str(), |cut| &key[..prefix.len() + cut]);
            // A folder whose name was given out before the marker is not given again.
            if key <= &after
                || (cut.is_some() && after.starts_with(entry))
                || common.contains(entry)
            {
                continue;
            }
            if contents.len() + common.len() == most {
                truncated = true;
                break;
            }
            entry.clone_into(&mut last);
            if cut.is_some() {
                common.insert(entry.to_owned());
            } else {
                contents.push(Listed {
                    key: Some(spell(key)),
                    e_tag: strong(&object.etag),
                    last_modified: Some(time(object.at)),
                    size: i64::try_from(object.bytes()).ok(),
                    ..Default::default()
                });
            }
        }
        Ok(())
    })?;
    let folder = |prefix: String| CommonPrefix { prefix: Some(spell(&prefix)) };
    Ok(ListObjectsV2Output {
        key_count: i32::try_from(contents.len() + common.len()).ok(),
        max_keys: i32::try_from(most).ok(),
        is_truncated: Some(truncated),
        next_continuation_token: truncated.then(|| BASE64_URL_SAFE.encode(last)),
        continuation_token: input.continuation_token,
        contents: Some(contents),
        common_prefixes: Some(common.into_iter().map(folder).collect()),
        delimiter: input.delimiter,
        encoding_type: url.then(|| EncodingType::from_static(EncodingType::URL)),
        name: Some(input.bucket),
        prefix: Some(spell(&prefix)),
        start_after: input.start_after,
        ..Default::default()
    })
}

const READ_BYTES: u64 = 256 << 10;
const KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
