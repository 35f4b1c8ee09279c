//! Every error code of S3, at every call that the box makes. Pure.
//!
//! Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, those that the box's
//! calls can be answered with, and what proxies answer before S3. Not among them is 412: the key names
//! the content, so it says that these very bytes are there, and a store that says so falsely loses them.

use lakehead::demo::s3::{Fault, Rule};

/// How many pairs of a call and a code there are.
pub(super) fn count() -> usize {
    CALLS.len() * CODES.len()
}

/// The `n`th pair, such that calls and codes change from one to the next: it strikes a few requests.
pub(super) fn nth(n: u64, skip: u32, times: u32) -> Rule {
    let n = usize::try_from(n % count() as u64).unwrap();
    let (status, code) = CODES[(n / CALLS.len() + n % CALLS.len() * STRIDE) % CODES.len()];
    Rule { skip, times, ..Rule::once(CALLS[n % CALLS.len()], Fault::Refuse(status, code)) }
}

pub(super) const CALLS: [&str; 7] = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "ListMultipartUploads",
    "ListParts",
    "AbortMultipartUpload",
];

const CODES: [(u16, &str); 46] = [
    (200, "InternalError"),
    (200, "SlowDown"),
    (301, "PermanentRedirect"),
    (307, "TemporaryRedirect"),
    (400, "AuthorizationHeaderMalformed"),
    (400, "BadDigest"),
    (400, "EntityTooLarge"),
    (400, "EntityTooSmall"),
    (400, "ExpiredToken"),
    (400, "IncompleteBody"),
    (400, "InvalidArgument"),
    (400, "InvalidBucketName"),
    (400, "InvalidDigest"),
    (400, "InvalidPart"),
    (400, "InvalidPartOrder"),
    (400, "InvalidRequest"),
    (400, "InvalidToken"),
    (400, "KMS.DisabledException"),
    (400, "KMS.ThrottlingException"),
    (400, "MalformedXML"),
    (400, "MetadataTooLarge"),
    (400, "RequestTimeout"),
    (400, "TokenRefreshRequired"),
    (400, "XAmzContentChecksumMismatch"),
    (401, ""),
    (403, "AccessDenied"),
    (403, "AccountProblem"),
    (403, "AllAccessDisabled"),
    (403, "InvalidAccessKeyId"),
    (403, "InvalidSecurity"),
    (403, "NotSignedUp"),
    (403, "RequestTimeTooSkewed"),
    (403, "SignatureDoesNotMatch"),
    (404, "NoSuchBucket"),
    (404, "NoSuchUpload"),
    (405, "MethodNotAllowed"),
    (409, "ConditionalRequestConflict"),
    (409, "OperationAborted"),
    (411, "MissingContentLength"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (501, "NotImplemented"),
    (502, ""),
    (503, "ServiceUnavailable"),
    (503, "SlowDown"),
    (504, ""),
];
/// How many codes the calls are apart.
const STRIDE: usize = 13;

#[test]
fn every_code_meets_every_call() {
    let pairs = (0..count() as u64).map(|n| {
        let rule = nth(n, 0, 1);
        format!("{} {:?}", rule.operation, rule.fault)
    });
    assert_eq!(pairs.collect::<std::collections::BTreeSet<_>>().len(), count());
}
