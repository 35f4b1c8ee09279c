//! Who may do what: the box's four permissions are enough for it, and let it do nothing else.

use lakehead::{
    config,
    error::Cause,
    ship::{ObjectReader, ObjectStore, check::check},
};

use crate::{
    requests::{key, put, says},
    store::{BUCKET, Ground, PREFIX, Person, REGION},
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        the_four_permissions_pass_the_preflight,
        lent_keys_pass_the_preflight,
        the_preflight_names_the_permission_that_is_missing,
        the_box_can_neither_read_nor_list_nor_delete,
        an_auditor_cannot_write,
    }
}

async fn the_four_permissions_pass_the_preflight(ground: &Ground) {
    assert_eq!(problems(ground, &ground.people.writer).await, []);
}

async fn lent_keys_pass_the_preflight(ground: &Ground) {
    assert_eq!(problems(ground, &ground.people.role).await, []);
}

async fn the_preflight_names_the_permission_that_is_missing(ground: &Ground) {
    for (permission, looks) in [
        ("PutObject", &["lake: write", "lake: begin an upload"][..]),
        ("AbortMultipartUpload", &["lake: abort an upload"]),
        ("ListMultipartUploadParts", &["lake: list parts"]),
        ("ListBucketMultipartUploads", &["lake: list uploads"]),
    ] {
        let found = problems(ground, &ground.people.without[permission]).await;
        let due: Vec<_> =
            looks.iter().map(|look| ((*look).to_owned(), Cause::LakeForbidden)).collect();
        assert_eq!(found, due, "without {permission}");
    }
}

async fn the_box_can_neither_read_nor_list_nor_delete(ground: &Ground) {
    let key = key("people/kept");
    put(&ground.s3(&ground.people.writer), &key, b"kept").await.unwrap();
    for who in [&ground.people.writer, &ground.people.role] {
        let s3 = ground.s3(who);
        says(s3.get(&key).await, Cause::LakeForbidden, "get");
        says(s3.get(&format!("{key}-not")).await, Cause::LakeForbidden, "get what is not there");
        says(s3.list(PREFIX, None).await, Cause::LakeForbidden, "list");
        let said = ground.client(who, &["may", &key]).await;
        for what in ["delete", "get", "list", "elsewhere"] {
            assert_eq!(said[what], "AccessDenied", "{what}: {said}");
        }
    }
}

async fn an_auditor_cannot_write(ground: &Ground) {
    let s3 = ground.s3(&ground.people.reader);
    says(put(&s3, &key("people/never"), b"x").await, Cause::LakeForbidden, "put");
    says(s3.uploads(PREFIX).await, Cause::LakeForbidden, "list uploads");
    let said = ground.client(&ground.people.reader, &["may", &key("people/never")]).await;
    assert_eq!((&said["delete"], &said["list"]), (&"AccessDenied".into(), &"allowed".into()));
}

/// What the preflight finds wrong, and why.
async fn problems(ground: &Ground, who: &Person) -> Vec<(String, Cause)> {
    let lake = config::Lake {
        bucket: BUCKET.into(),
        prefix: PREFIX.into(),
        region: REGION.into(),
        endpoint: Some(ground.endpoint.clone()),
        path_style: true,
        owner: None,
        credentials_file: None,
        ca_file: None,
    };
    let findings = check(&lake, &ground.s3(who)).await;
    assert!(findings.len() > 3, "{findings:?}");
    let wrong = |finding: lakehead::error::Finding| Some((finding.check, finding.problem?.0));
    findings.into_iter().filter_map(wrong).collect()
}
