//! The doors of tests/fuzz to what S3 answers, and to the files and URLs that lead to it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Ready, ready};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::runtime::{Builder, Runtime};
use tower_service::Service;

use super::{
    Complete, Encryption, Head, ObjectReader, ObjectStore, Part, Put, ShipError, StoredPart,
    checksum,
    credentials::{self, Credentials, Keys},
    endpoint,
    s3::{S3, S3Options},
};
use crate::{clock::SystemClock, config::Secret};

/// `request u8 | all that comes over each connection`: the answer is read, or said to be none.
pub fn answers(bytes: &[u8]) {
    let Some((request, answer)) = bytes.split_first() else { return };
    STORE.with_borrow(|store| {
        *store.dial.0.lock().unwrap_or_else(PoisonError::into_inner) = answer.to_vec().into();
        let asked = store.runtime.block_on(Box::pin(ask(&store.s3, *request, answer.len())));
        if let Err(why) = asked {
            assert!(!why.to_string().is_empty());
        }
    });
}

async fn ask(s3: &S3, request: u8, length: usize) -> Result<(), ShipError> {
    let (key, upload, crc64nvme) = ("raw/erp/k", "u", "AAAAAAAAAAA=");
    let (metadata, encryption) = (BTreeMap::new(), Encryption::Client);
    let head = Head { key, metadata: &metadata, encryption: &encryption, content_type: "x/y" };
    let (body, etag) = (Bytes::from_static(b"rows").into(), String::from("e"));
    let part = StoredPart { number: 1, bytes: 4, etag, crc64nvme: crc64nvme.into() };
    match request.wrapping_sub(b'0') % 9 {
        0 => s3.put(Put { head, body, crc64nvme }).await?,
        1 => assert!(s3.create(head).await?.len() <= length),
        2 => drop(s3.part(Part { key, upload, number: 1, body, crc64nvme }).await?),
        3 => {
            let parts = &[part];
            s3.complete(Complete { key, upload, parts, bytes: 4, crc64nvme }).await?;
        }
        4 => s3.abort(key, upload).await?,
        5 => {
            if let Some(parts) = s3.parts(key, upload).await? {
                assert!(parts.len() <= length);
                checksum::whole(&parts);
            }
        }
        6 => assert!(s3.uploads("raw/").await?.len() <= length),
        7 => {
            let listed = s3.list("raw/", Some("raw/a")).await?;
            assert!(listed.len() <= length);
            assert!(listed.last().is_none_or(|last| last.key.as_str() > "raw/a"));
        }
        _ => {
            if let Some(fetched) = s3.get(key).await? {
                assert!(fetched.bytes.len() <= length);
            }
        }
    }
    Ok(())
}

/// A credentials file: what is wrong with it is said without its words.
pub fn credentials(bytes: &[u8]) {
    match credentials::parse(bytes) {
        Ok(keys) => {
            let text =
                keys.access_key_id + &String::from_utf8_lossy(keys.secret_access_key.expose());
            assert!(!text.is_empty() && !text.contains('\n'));
        }
        Err(why) => {
            let known = ["not UTF-8", "under [default]", "is no `name = value`"];
            assert!(known.iter().any(|end| why.ends_with(end)) && why.len() < 64, "{why}");
        }
    }
}

/// An endpoint: what is taken is https, or goes no further than this machine.
pub fn endpoints(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if endpoint::confidential(text).is_ok() {
        let url = url::Url::parse(text).expect("an endpoint is a URL");
        let host = url.host_str().unwrap_or_default();
        let near = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        assert!(url.scheme() == "https" || near, "{text}");
    }
}

/// A store whose connections all give the same answer, once something was sent.
struct Store {
    s3: S3,
    dial: Dial,
    runtime: Runtime,
}

impl Store {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let keys = Keys {
            access_key_id: "AK".into(),
            secret_access_key: Secret::new(b"SK".to_vec()),
            session_token: None,
        };
        let options = S3Options {
            bucket: "lake".into(),
            region: "eu-central-1".into(),
            endpoint: Some("http://127.0.0.1:9".into()),
            path_style: true,
            ca_file: None,
            owner: None,
            encryption: Encryption::Client,
            appliance: "fuzz".into(),
            clock: Arc::new(SystemClock),
            patience: Duration::from_secs(5),
        };
        let dial = Dial::default();
        let s3 = S3::new(options, Credentials::Keys(keys), dial.clone()).expect("a store");
        Self { s3, dial, runtime }
    }
}

#[derive(Clone, Default)]
struct Dial(Arc<Mutex<Bytes>>);

impl Service<Uri> for Dial {
    type Response = Answering;
    type Error = io::Error;
    type Future = Ready<io::Result<Answering>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ready(Ok(Answering { answer, asked: false, reader: None }))
    }
}

/// The answer, and then the end.
struct Answering {
    answer: Bytes,
    asked: bool,
    reader: Option<Waker>,
}

impl Read for Answering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = self.answer.len().min(into.remaining());
        into.put_slice(&self.answer.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl Write for Answering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Connection for Answering {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

thread_local! {
    static STORE: RefCell<Store> = RefCell::new(Store::new());
}
