//! The S3 double's contract, in memory of nothing yet: replaced by the double itself.

use std::{io, path::PathBuf};

#[derive(Debug, Clone)]
/// How.
pub struct Options {
    /// .
    pub root: PathBuf,
    /// .
    pub keys: Vec<(String, String)>,
    /// .
    pub tls: bool,
    /// .
    pub port: u16,
}
/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `PutObject`
    pub operation: String,
    /// .
    pub key: String,
    /// .
    pub part: Option<u32>,
    /// .
    pub status: u16,
}
/// Double.
#[derive(Debug)]
pub struct S3Double;
impl S3Double {
    /// .
    ///
    /// # Errors
    /// .
    pub async fn start(_options: Options) -> io::Result<Self> {
        Ok(Self)
    }
    /// .
    pub fn endpoint(&self) -> String {
        String::new()
    }
    /// .
    pub fn ca_pem(&self) -> Option<String> {
        None
    }
    /// .
    pub fn requests(&self) -> Vec<Request> {
        vec![]
    }
    /// Refuses every connection or request.
    pub fn away(&self, _away: bool) {}
    /// Moves the double's clock.
    pub fn skew(&self, _seconds: i64) {}
    /// .
    pub async fn stop(self) {}
}
