//! Who may ask what. Signatures are verified by the `s3s` crate; what it leaves open is verified here:
//! that every `x-amz-` header is signed, the region, the session token, and the permission.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    s3_error,
};

use super::store::Store;

/// Credentials that the double knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Access key id.
    pub access: String,
    /// Secret access key.
    pub secret: String,
    /// Session token, which must then come with every request.
    pub token: Option<String>,
    /// Whether they have expired.
    pub expired: bool,
    /// What they allow.
    pub role: Role,
}

/// What credentials allow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The box: PutObject, AbortMultipartUpload, ListMultipartUploadParts,
    /// ListBucketMultipartUploads (DESIGN §8).
    Writer,
    /// Verify, restore, engines: GetObject, ListBucket.
    Reader,
    /// Everything.
    Admin,
}

impl Key {
    /// Lasting credentials.
    pub fn new(access: &str, secret: &str, role: Role) -> Self {
        Self { access: access.into(), secret: secret.into(), token: None, expired: false, role }
    }
}

/// The keys and what they are checked against.
#[derive(Clone, Debug)]
pub(super) struct Gatekeeper {
    pub(super) keys: Arc<RwLock<Vec<Key>>>,
    pub(super) region: String,
    pub(super) store: Arc<Store>,
}

impl Gatekeeper {
    fn key(&self, access: &str) -> S3Result<Key> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let found = keys.iter().find(|key| key.access == access).cloned();
        found.ok_or_else(|| {
            s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist")
        })
    }
}

#[async_trait]
impl S3Auth for Gatekeeper {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        Ok(self.key(access_key)?.secret.into())
    }
}

#[async_trait]
impl S3Access for Gatekeeper {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else {
            return Err(s3_error!(AccessDenied, "anonymous"));
        };
        let key = self.key(&credentials.access_key)?;
        let header = |name: &str| cx.headers().get(name).and_then(|value| value.to_str().ok());
        if header("x-amz-security-token") != key.token.as_deref() {
            return Err(s3_error!(InvalidToken, "the session token is not that of the key"));
        }
        if key.expired {
            return Err(s3_error!(ExpiredToken, "the token has expired"));
        }
        signed(header("authorization"), cx, &self.region)?;
        let operation = cx.s3_op().name();
        if let Some(bucket) = cx.s3_path().get_bucket_name()
            && operation != "CreateBucket"
        {
            self.store.bucket(bucket)?;
        }
        if allows(key.role, operation) {
            Ok(())
        } else {
            let why = format!("{:?} {} may not {operation}", key.role, key.access);
            Err(S3Error::with_message(S3ErrorCode::AccessDenied, why))
        }
    }
}

/// Checks the scope of the signature: its region, and that it covers host and all `x-amz-` headers.
fn signed(authorization: Option<&str>, cx: &S3AccessContext<'_>, region: &str) -> S3Result<()> {
    let parts = authorization.and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256 "));
    let Some(parts) = parts else {
        // Presigned: its signature covers the query, which holds all of it.
        let presigned = cx.uri().query().is_some_and(|query| query.contains("X-Amz-Signature="));
        return if presigned {
            Ok(())
        } else {
            Err(s3_error!(AccessDenied, "only Signature Version 4 is accepted"))
        };
    };
    let field = |name: &str| {
        parts.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let scope: Vec<&str> = field("Credential").unwrap_or("").split('/').collect();
    if scope.get(2) != Some(&region) {
        let mut error =
            s3_error!(AuthorizationHeaderMalformed, "the region is wrong; expecting it otherwise");
        error.set_message(format!("the region is wrong; expecting '{region}'"));
        return Err(error);
    }
    let signed: Vec<&str> = field("SignedHeaders").unwrap_or("").split(';').collect();
    let must = |name: &&str| *name == "host" || name.starts_with("x-amz-");
    let names = cx.headers().keys().map(|name| name.as_str());
    match names.filter(must).find(|name| !signed.contains(name)) {
        None => Ok(()),
        Some(name) => Err(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            format!("there were headers present in the request which were not signed: {name}"),
        )),
    }
}

fn allows(role: Role, operation: &str) -> bool {
    match role {
        Role::Admin => true,
        Role::Writer => matches!(
            operation,
            "PutObject"
                | "CreateMultipartUpload"
                | "UploadPart"
                | "CompleteMultipartUpload"
                | "AbortMultipartUpload"
                | "ListParts"
                | "ListMultipartUploads"
        ),
        Role::Reader => matches!(
            operation,
            "GetObject" | "HeadObject" | "ListObjectsV2" | "HeadBucket" | "GetBucketLocation"
        ),
    }
}
