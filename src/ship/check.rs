//! Preflight: whether this box may do in the bucket what it will have to, and nothing is in its way.
//!
//! The box can delete nothing, so trying must leave next to nothing: one object of constant content under
//! `<prefix>/_check/`, made by the first check ever, whose second writing must be refused; and a
//! multipart upload that is aborted.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Head, ObjectStore, Put, ShipError, checksum, s3::S3};
use crate::{
    config,
    error::{Cause, Classified, Finding},
};

/// Tries everything that shipping needs, in the order in which it would fail.
pub async fn check(config: &config::Lake, s3: &S3) -> Vec<Finding> {
    let place = match &config.endpoint {
        Some(endpoint) => format!("bucket {} at {endpoint}", config.bucket),
        None => format!("bucket {} in {}", config.bucket, config.region),
    };
    let prefix =
        if config.prefix.is_empty() { String::new() } else { format!("{}/", config.prefix) };
    let prefix = format!("{prefix}_check/");
    let mut found = vec![];
    // Reaches the endpoint, and needs the permission that is most often forgotten.
    let first = s3.uploads(&prefix).await;
    match &first {
        Err(error) if stops(error.cause()) => {
            found.push(problem("lake: reach", error));
            found.extend(clock(s3));
            return found;
        }
        _ => found.push(Finding::ok("lake: reach", place)),
    }
    found.extend(clock(s3));
    found.push(finding("lake: list uploads", "allowed", first.map(drop)));
    found.extend(write(s3, &prefix).await);
    found.extend(multipart(s3, &prefix).await);
    found
}

/// Whether all that follows would fail for the same reason.
fn stops(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::LakeUnavailable
            | Cause::LakeCredentials
            | Cause::LakeBucket
            | Cause::LakeCertificate
            | Cause::ClockSkew
            | Cause::SecretFile
            | Cause::Config
    )
}

fn clock(s3: &S3) -> Option<Finding> {
    let (check, ahead) = ("lake: clock", s3.clock_ahead_s()?);
    if ahead.abs() > AHEAD_S_MAX {
        let what = format!("S3's clock is {ahead} s ahead of this box's");
        return Some(Finding::problem(check, Cause::ClockSkew, what));
    }
    Some(Finding::ok(check, format!("{ahead:+} s")))
}

/// PutObject, and that it never overwrites.
async fn write(s3: &S3, prefix: &str) -> Vec<Finding> {
    let (may, never) = ("lake: write", "lake: never overwrite");
    let key = format!("{prefix}writable");
    match put(s3, &key).await {
        Ok(()) => {}
        Err(ShipError::Exists { .. }) => {
            let refused =
                Finding::ok(never, "a write to the object of an earlier check was refused");
            return vec![Finding::ok(may, "allowed"), refused];
        }
        Err(error) => return vec![problem(may, &error)],
    }
    let again = match put(s3, &key).await {
        Err(ShipError::Exists { .. }) => Finding::ok(never, "a second write was refused"),
        Err(error) => problem(never, &error),
        Ok(()) => {
            let what = "a second write with If-None-Match took effect";
            Finding::problem(never, Cause::LakeUnconditional, what)
        }
    };
    vec![Finding::ok(may, "allowed"), again]
}

async fn put(s3: &S3, key: &str) -> Result<(), ShipError> {
    let crc64nvme = &checksum::of(CONTENT);
    s3.put(Put { head: head(s3, key), body: Bytes::from_static(CONTENT).into(), crc64nvme }).await
}

/// CreateMultipartUpload, ListParts and AbortMultipartUpload; what an earlier check left open too.
async fn multipart(s3: &S3, prefix: &str) -> Vec<Finding> {
    let key = format!("{prefix}upload-{}", s3.appliance());
    let upload = match s3.create(head(s3, &key)).await {
        Ok(upload) => upload,
        Err(error) => return vec![problem("lake: begin an upload", &error)],
    };
    let mut found = vec![Finding::ok("lake: begin an upload", "allowed")];
    let parts = s3.parts(&key, &upload).await;
    found.push(finding("lake: list parts", "allowed", parts.map(drop)));
    let mut abort = s3.abort(&key, &upload).await;
    for open in s3.uploads(&key).await.unwrap_or_default() {
        if open.key == key {
            abort = abort.and(s3.abort(&key, &open.upload).await);
        }
    }
    found.push(finding("lake: abort an upload", "allowed", abort));
    found
}

fn head<'a>(s3: &'a S3, key: &'a str) -> Head<'a> {
    const NONE: &BTreeMap<String, String> = &BTreeMap::new();
    Head { key, metadata: NONE, encryption: s3.encryption(), content_type: "text/plain" }
}

fn finding(check: &str, seen: &str, end: Result<(), ShipError>) -> Finding {
    match end {
        Ok(()) => Finding::ok(check, seen),
        Err(error) => problem(check, &error),
    }
}

fn problem(check: &str, error: &ShipError) -> Finding {
    Finding::failed(check, error)
}

/// Never changes, so that one object is enough for all boxes and times.
const CONTENT: &[u8] = b"lakehead check: this object shows that a box may write here.\n";
/// S3 refuses requests signed 15 minutes from its own time.
const AHEAD_S_MAX: i64 = 5 * 60;
