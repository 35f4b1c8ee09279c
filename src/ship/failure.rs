//! Sorts the errors of the SDK: what S3 answered, what the way to it did, what was never sent.

use std::{error::Error, io};

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::{Request, ShipError, answer, credentials::NoCredentials};
use crate::error::Cause;

/// What an error of the SDK means to us.
pub(super) fn failure<E>(
    request: Request,
    key: &str,
    error: &SdkError<E, HttpResponse>,
) -> ShipError
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
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// No answer came.
pub(super) fn unanswered(request: Request, key: &str, why: String) -> ShipError {
    ShipError::Unanswered { request: request.name(), key: key.into(), why }
}
