//! Takes a body in, and believes nothing about it: length, Content-MD5 and every checksum, in headers and
//! in trailers, is computed and compared before a byte of it counts.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use http::StatusCode;
use s3s::{
    S3Error, S3ErrorCode, S3Result, TrailingHeaders,
    crypto::{Checksum, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256},
    dto::StreamingBlob,
    s3_error,
};
use serde::{Deserialize, Serialize};
use tokio::{fs::File, io::AsyncWriteExt};

/// S3's checksum algorithms.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum Algorithm {
    #[serde(rename = "CRC32")]
    Crc32,
    #[serde(rename = "CRC32C")]
    Crc32c,
    #[serde(rename = "CRC64NVME")]
    Crc64Nvme,
    #[serde(rename = "SHA1")]
    Sha1,
    #[serde(rename = "SHA256")]
    Sha256,
}

/// Checksums by algorithm, base64.
pub(super) type Sums = BTreeMap<Algorithm, String>;

/// What the sender says of a body.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub(super) length: Option<i64>,
    pub(super) md5: Option<String>,
    pub(super) sums: Sums,
    /// The names in `x-amz-trailer`.
    pub(super) announced: Vec<String>,
    pub(super) trailers: Option<TrailingHeaders>,
}

/// What a body was found to be.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) sums: Sums,
}

impl Algorithm {
    pub(super) const ALL: [Self; 5] =
        [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// Of `CRC64NVME`, in any case.
    pub(super) fn named(name: &str) -> S3Result<Self> {
        let known = Self::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| s3_error!(InvalidRequest, "no such checksum algorithm"))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// For the CRCs, which can be combined: the crate's name and the width in bytes.
    fn crc(self) -> Option<(crc_fast::CrcAlgorithm, usize)> {
        match self {
            Self::Crc32 => Some((crc_fast::CrcAlgorithm::Crc32IsoHdlc, 4)),
            Self::Crc32c => Some((crc_fast::CrcAlgorithm::Crc32Iscsi, 4)),
            Self::Crc64Nvme => Some((crc_fast::CrcAlgorithm::Crc64Nvme, 8)),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// The checksum of the whole from those of its parts: of the bytes, for a CRC.
pub(super) fn full_object<'a>(
    algorithm: Algorithm,
    parts: impl Iterator<Item = (&'a str, u64)>,
) -> Option<String> {
    let (crc, width) = algorithm.crc()?;
    let mut whole = crc_fast::checksum(crc, &[]);
    for (sum, bytes) in parts {
        let mut wide = [0; 8];
        wide[8 - width..].copy_from_slice(&BASE64_STANDARD.decode(sum).ok()?);
        whole = crc_fast::checksum_combine(crc, whole, u64::from_be_bytes(wide), bytes);
    }
    Some(BASE64_STANDARD.encode(&whole.to_be_bytes()[8 - width..]))
}

/// The checksum of the parts' checksums, with their number.
pub(super) fn composite<'a>(
    algorithm: Algorithm,
    parts: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let mut hasher = Hasher::new(algorithm);
    let mut count = 0;
    for sum in parts {
        hasher.update(&BASE64_STANDARD.decode(sum).ok()?);
        count += 1;
    }
    Some(format!("{}-{count}", BASE64_STANDARD.encode(hasher.finish())))
}

/// Reads a body to its end into `path`, which the caller removes on an error.
pub(super) async fn receive(
    body: Option<StreamingBlob>,
    claim: Claim,
    path: &Path,
) -> S3Result<Received> {
    let mut wanted: Vec<Algorithm> = claim.sums.keys().copied().collect();
    for name in &claim.announced {
        wanted.push(Algorithm::named(name.strip_prefix("x-amz-checksum-").unwrap_or(name))?);
    }
    wanted.push(Algorithm::Crc64Nvme);
    wanted.sort_unstable();
    wanted.dedup();
    let mut hashers: Vec<_> = wanted.iter().map(|of| (*of, Hasher::new(*of))).collect();
    let mut md5 = claim.md5.as_ref().map(|_| Md5::new());
    let mut file = File::create(path).await.map_err(S3Error::internal_error)?;
    let mut bytes = 0u64;
    let mut body = body;
    while let Some(piece) = match body.as_mut() {
        Some(body) => body.next().await,
        None => None,
    } {
        let piece = piece.map_err(|error| broken(&error.to_string()))?;
        hashers.iter_mut().for_each(|(_, hasher)| hasher.update(&piece));
        if let Some(md5) = &mut md5 {
            md5.update(&piece);
        }
        bytes += u64::try_from(piece.len()).unwrap_or_default();
        file.write_all(&piece).await.map_err(S3Error::internal_error)?;
    }
    file.flush().await.map_err(S3Error::internal_error)?;
    let length = claim.length.ok_or_else(|| s3_error!(MissingContentLength))?;
    if u64::try_from(length) != Ok(bytes) {
        return Err(s3_error!(IncompleteBody, "the body is not as long as was said"));
    }
    let finish = |(of, hasher): (Algorithm, Hasher)| (of, BASE64_STANDARD.encode(hasher.finish()));
    let sums: Sums = hashers.into_iter().map(finish).collect();
    if let (Some(said), Some(md5)) = (&claim.md5, md5)
        && *said != BASE64_STANDARD.encode(md5.finalize())
    {
        return Err(s3_error!(BadDigest, "Content-MD5 does not match what we received"));
    }
    for (of, said) in &claim.sums {
        compare(*of, said, &sums)?;
    }
    trailers(&claim, &sums)?;
    Ok(Received { bytes, sums })
}

/// Compares the checksums that came after the body, all of those announced before it.
fn trailers(claim: &Claim, sums: &Sums) -> S3Result<()> {
    let came = claim.trailers.as_ref().and_then(TrailingHeaders::take).unwrap_or_default();
    for name in &claim.announced {
        let of = Algorithm::named(name.strip_prefix("x-amz-checksum-").unwrap_or(name))?;
        let said = came.get(name.as_str()).and_then(|value| value.to_str().ok());
        let said =
            said.ok_or_else(|| s3_error!(InvalidRequest, "an announced trailer is missing"))?;
        compare(of, said, sums)?;
    }
    Ok(())
}

fn compare(of: Algorithm, said: &str, sums: &Sums) -> S3Result<()> {
    if BASE64_STANDARD.decode(said).map(|sum| sum.len()) != Ok(of.bytes()) {
        let why = format!("Value for x-amz-checksum-{} header is invalid.", of.name());
        return Err(S3Error::with_message(S3ErrorCode::InvalidRequest, why.to_lowercase()));
    }
    if sums.get(&of).map(String::as_str) == Some(said) {
        Ok(())
    } else {
        let why = format!("The {} you specified did not match what we received.", of.name());
        Err(S3Error::with_message(S3ErrorCode::BadDigest, why))
    }
}

/// What an error in the middle of a body means; `s3s` tells by its text alone.
fn broken(text: &str) -> S3Error {
    if text.contains("Sha256Mismatch") {
        let code = S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
        let mut error = S3Error::with_message(code, "x-amz-content-sha256 does not match the body");
        error.set_status_code(StatusCode::BAD_REQUEST);
        error
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "the signature of a chunk or trailer does not match")
    } else {
        S3Error::with_message(S3ErrorCode::IncompleteBody, text.to_owned())
    }
}

enum Hasher {
    Crc32(Crc32),
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Crc32 => Self::Crc32(Crc32::new()),
            Algorithm::Crc32c => Self::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Self::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32(hasher) => hasher.update(bytes),
            Self::Crc32c(hasher) => hasher.update(bytes),
            Self::Crc64Nvme(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc32(hasher) => hasher.finalize().to_vec(),
            Self::Crc32c(hasher) => hasher.finalize().to_vec(),
            Self::Crc64Nvme(hasher) => hasher.finalize().to_vec(),
            Self::Sha1(hasher) => hasher.finalize().to_vec(),
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(algorithm: Algorithm, bytes: &[u8]) -> String {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        BASE64_STANDARD.encode(hasher.finish())
    }

    #[test]
    fn a_full_object_checksum_comes_from_its_parts() {
        let (one, two) = (&[1; 100][..], &[2; 33][..]);
        for of in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let sums = [(sum(of, one), 100), (sum(of, two), 33)];
            let whole = full_object(of, sums.iter().map(|(sum, bytes)| (sum.as_str(), *bytes)));
            assert_eq!(whole, Some(sum(of, &[one, two].concat())), "{}", of.name());
        }
        assert_eq!(full_object(Algorithm::Sha256, std::iter::empty()), None);
    }

    #[tokio::test]
    async fn nothing_that_is_said_of_a_body_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("body");
        let take = async |claim| {
            let body = s3s::Body::from(bytes::Bytes::from_static(b"123456789"));
            receive(Some(body.into()), claim, &path).await
        };
        let claim = |length, md5: Option<&str>, sums: &[(Algorithm, &str)]| Claim {
            length: Some(length),
            md5: md5.map(str::to_owned),
            sums: sums.iter().map(|(of, sum)| (*of, (*sum).to_owned())).collect(),
            ..Claim::default()
        };
        let crc32 = (Algorithm::Crc32, "y/Q5Jg==");
        let good = take(claim(9, Some("JfnnlDI7RTiF9RgfG2JNCw=="), &[crc32])).await.unwrap();
        assert_eq!((good.bytes, good.sums[&Algorithm::Crc32].as_str()), (9, "y/Q5Jg=="));
        let code = async |claim| take(claim).await.unwrap_err().code().as_str().to_owned();
        assert_eq!(code(claim(8, None, &[])).await, "IncompleteBody");
        assert_eq!(code(Claim::default()).await, "MissingContentLength");
        assert_eq!(code(claim(9, Some("AAAAAAAAAAAAAAAAAAAAAA=="), &[])).await, "BadDigest");
        assert_eq!(code(claim(9, None, &[(Algorithm::Crc32, "y/Q5Jw==")])).await, "BadDigest");
        assert_eq!(code(claim(9, None, &[(Algorithm::Crc32, "y/Q5J")])).await, "InvalidRequest");
        let announced = vec!["x-amz-checksum-crc32".to_owned()];
        let without = Claim { length: Some(9), announced, ..Claim::default() };
        assert_eq!(code(without).await, "InvalidRequest");
    }
}
