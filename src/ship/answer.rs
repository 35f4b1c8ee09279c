//! What an answer of S3 that is no success means. Pure.
//!
//! Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.

use super::{Request, ShipError};
use crate::error::Cause;

/// The error for an answer with `status`, S3's `code` (empty if it gave none) and `message`.
pub(super) fn refused(
    request: Request,
    key: &str,
    status: u16,
    code: &str,
    message: &str,
) -> ShipError {
    let key = key.to_owned();
    match (status, code) {
        (412, _) => return ShipError::Exists { key },
        (_, "NoSuchUpload") => return ShipError::NoSuchUpload { key },
        // The part is not there as we know it: the upload cannot be completed as it stands.
        (_, "InvalidPart" | "InvalidPartOrder") => return ShipError::Conflict { key },
        (409, _) => return ShipError::Conflict { key },
        _ => {}
    }
    let request = request.name();
    let cause = cause(status, code);
    let (code, message) = (code.to_owned(), message.to_owned());
    ShipError::Failed { request, key, status, code, message, cause }
}

/// Whether S3 has answered that it cannot at present.
pub(super) fn unavailable(answer: &Result<(), ShipError>) -> bool {
    matches!(answer, Err(ShipError::Failed { cause: Cause::LakeUnavailable, .. }))
}

/// The error for an answer that lacks what it must have.
pub(super) fn without(request: Request, key: &str, what: &str) -> ShipError {
    refused(request, key, 200, "", &format!("an answer without {what}"))
}

fn cause(status: u16, code: &str) -> Cause {
    match (status, code) {
        (
            _,
            "SlowDown"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "BandwidthLimitExceeded",
        )
        | (429, _) => Cause::LakeSlowDown,
        (
            _,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidSecurity"
            | "NotSignedUp"
            | "AccountProblem",
        )
        | (401, _) => Cause::LakeCredentials,
        (_, "RequestTimeTooSkewed" | "RequestExpired") => Cause::ClockSkew,
        (
            _,
            "NoSuchBucket"
            | "InvalidBucketName"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException",
        )
        | (301 | 307 | 404, _) => Cause::LakeBucket,
        (
            _,
            "BadDigest"
            | "InvalidDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch",
        ) => Cause::LakeChecksum,
        (_, "RequestTimeout" | "IncompleteBody") => Cause::LakeUnavailable,
        (_, code) if code.starts_with("KMS.") || code.starts_with("Kms") => Cause::LakeKms,
        (403, _) => Cause::LakeForbidden,
        // 200 with an error body of no known code is InternalError in all cases seen.
        (500.. | 200, _) => Cause::LakeUnavailable,
        _ => Cause::LakeRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Classified;

    #[test]
    fn every_answer_falls_in_its_line_of_the_table() {
        let cases = [
            (403, "InvalidAccessKeyId", Cause::LakeCredentials),
            (403, "SignatureDoesNotMatch", Cause::LakeCredentials),
            (400, "ExpiredToken", Cause::LakeCredentials),
            (403, "AccessDenied", Cause::LakeForbidden),
            (403, "RequestTimeTooSkewed", Cause::ClockSkew),
            (404, "NoSuchBucket", Cause::LakeBucket),
            (301, "PermanentRedirect", Cause::LakeBucket),
            (503, "SlowDown", Cause::LakeSlowDown),
            (200, "SlowDown", Cause::LakeSlowDown),
            (400, "BadDigest", Cause::LakeChecksum),
            (400, "RequestTimeout", Cause::LakeUnavailable),
            (500, "InternalError", Cause::LakeUnavailable),
            (200, "InternalError", Cause::LakeUnavailable),
            (502, "", Cause::LakeUnavailable),
            (400, "KMS.DisabledException", Cause::LakeKms),
            (400, "InvalidArgument", Cause::LakeRefused),
            (405, "MethodNotAllowed", Cause::LakeRefused),
        ];
        for (status, code, cause) in cases {
            let error = refused(Request::Put, "k", status, code, "");
            assert_eq!(error.cause(), cause, "{status} {code}");
        }
    }

    #[test]
    fn what_the_state_machine_asks_for_has_variants_of_its_own() {
        let of = |status, code| refused(Request::Complete, "k", status, code, "");
        assert!(matches!(of(412, "PreconditionFailed"), ShipError::Exists { .. }));
        assert!(matches!(of(409, "ConditionalRequestConflict"), ShipError::Conflict { .. }));
        assert!(matches!(of(404, "NoSuchUpload"), ShipError::NoSuchUpload { .. }));
        assert!(matches!(of(400, "InvalidPart"), ShipError::Conflict { .. }));
        assert!(matches!(of(200, "InvalidPart"), ShipError::Conflict { .. }));
    }
}
