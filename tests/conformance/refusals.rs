//! What is refused, and that it is known why: the operator's remedy hangs on it.

use std::sync::Arc;

use bytes::Bytes;
use lakehead::{
    clock::{Clock, SystemClock},
    error::Cause,
    ship::{Encryption, ObjectReader, ObjectStore},
    units::Timestamp,
};

use crate::{
    requests::{head, key, put, put_as, says},
    store::{Ground, PREFIX, Person, Store},
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        a_kms_key_that_cannot_be_used_is_said,
        a_wrong_secret_is_said,
        an_unknown_key_is_said,
        a_wrong_token_is_said,
        a_clock_that_is_off_is_said,
        a_bucket_that_is_missing_is_said,
        a_bucket_of_another_owner_is_refused,
    }
}

async fn a_kms_key_that_cannot_be_used_is_said(ground: &Ground) {
    let writer = ground.s3(&ground.people.writer);
    let none = match ground.store {
        Store::Ceph => "no-such-key".to_owned(),
        Store::LocalStack => ground.kms.replace(&ground.kms[ground.kms.len() - 8..], "00000000"),
    };
    for key_id in [none, ground.kms_off.clone()] {
        let encryption = Encryption::SseKms { key_id: key_id.clone() };
        let end = put_as(&writer, &key("kms/none"), &Bytes::from_static(b"x"), &encryption).await;
        says(end, Cause::LakeKms, &key_id);
    }
}

async fn a_wrong_secret_is_said(ground: &Ground) {
    let mut who = ground.people.writer.clone();
    who.secret = "x".repeat(who.secret.len());
    assert_credentials(ground, &who, "secret").await;
}

async fn an_unknown_key_is_said(ground: &Ground) {
    let mut who = ground.people.writer.clone();
    who.id = "AKIAUNKNOWNUNKNOWN00".into();
    assert_credentials(ground, &who, "id").await;
}

async fn a_wrong_token_is_said(ground: &Ground) {
    let mut who = ground.people.role.clone();
    who.token = who.token.map(|right| format!("{}AAAA", &right[..right.len() - 4]));
    assert_credentials(ground, &who, "token").await;
}

async fn assert_credentials(ground: &Ground, who: &Person, what: &'static str) {
    let s3 = ground.s3(who);
    let key = key(&format!("never-{what}"));
    says(put(&s3, &key, b"x").await, Cause::LakeCredentials, what);
    says(s3.uploads(PREFIX).await, Cause::LakeCredentials, what);
    says(s3.list(PREFIX, None).await, Cause::LakeCredentials, what);
}

async fn a_clock_that_is_off_is_said(ground: &Ground) {
    struct Off(i64);
    impl Clock for Off {
        fn now(&self) -> std::time::Instant {
            SystemClock.now()
        }
        fn wall(&self) -> Timestamp {
            Timestamp(SystemClock.wall().0 + self.0 * 1_000_000)
        }
    }
    for off in [-7200, 7200] {
        let s3 =
            ground.s3_with(&ground.people.writer, |options| options.clock = Arc::new(Off(off)));
        let key = key(&format!("never-{off}"));
        let ends = [put(&s3, &key, b"x").await, s3.uploads(PREFIX).await.map(drop)];
        let ahead = s3.clock_ahead_s().expect("it has answered");
        assert!((ahead + off).abs() < 60, "{ahead}");
        for end in ends {
            says(end, Cause::ClockSkew, &off.to_string());
        }
    }
}

async fn a_bucket_that_is_missing_is_said(ground: &Ground) {
    let elsewhere = |who| ground.s3_with(who, |options| options.bucket = "not-there".into());
    let (key, none) = (key("x"), Encryption::None);
    let s3 = elsewhere(&ground.owner);
    says(put(&s3, &key, b"x").await, Cause::LakeBucket, "put");
    says(s3.create(head(&key, &none)).await, Cause::LakeBucket, "create");
    says(s3.uploads(PREFIX).await, Cause::LakeBucket, "uploads");
    says(s3.list(PREFIX, None).await, Cause::LakeBucket, "list");
    says(s3.get(&key).await, Cause::LakeBucket, "get");
}

async fn a_bucket_of_another_owner_is_refused(ground: &Ground) {
    let owner = Some("999999999999".to_owned());
    let s3 = ground.s3_with(&ground.people.writer, |options| options.owner = owner);
    says(put(&s3, &key("never-owner"), b"x").await, Cause::LakeForbidden, "put");
    says(s3.uploads(PREFIX).await, Cause::LakeForbidden, "uploads");
}
