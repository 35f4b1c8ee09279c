//! Where a store is known to differ from S3: the one list. A check that fails otherwise, or that holds
//! although it is listed, fails the run.

use crate::store::Store;

/// A check that does not hold at a store, and need not.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) store: Store,
    /// The check's name.
    pub(crate) check: &'static str,
    /// What its failure says: another failure is none of this.
    pub(crate) shows: &'static str,
    /// What the store does instead of S3.
    pub(crate) reason: &'static str,
    /// Where S3's behaviour, or the store's, is written.
    pub(crate) source: &'static str,
}

pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference {
        store: Store::Ceph,
        check: "a_wrong_length_is_refused",
        shows: "`Result::unwrap_err()` on an `Ok` value",
        reason: "does not look at x-amz-mp-object-size; the parts' own lengths and sums are verified",
        source: COMPLETE,
    },
    Difference {
        store: Store::Ceph,
        check: "a_wrong_sum_is_refused",
        shows: "`Result::unwrap_err()` on an `Ok` value",
        reason: "does not verify the CRC64NVME of the whole object at Complete; each part's it does",
        source: COMPLETE,
    },
    Difference {
        store: Store::Ceph,
        check: "a_kms_key_that_cannot_be_used_is_said",
        shows: "LakeKms was due, not Err(Failed { request: \"PutObject\", key: \"raw/kms/none\", status: 400, \
                code: \"InvalidArgument\", message: \"Failed to retrieve the actual key, kms-keyid: no-such-key\"",
        reason: "has no codes for KMS: InvalidArgument, whose message names the key",
        source: "https://docs.ceph.com/en/latest/radosgw/encryption/",
    },
    Difference {
        store: Store::LocalStack,
        check: "a_wrong_secret_is_said",
        shows: "LakeCredentials was due, not Ok(())",
        reason: UNSIGNED,
        source: CREDENTIALS,
    },
    Difference {
        store: Store::LocalStack,
        check: "an_unknown_key_is_said",
        shows: "LakeCredentials was due, not Ok(())",
        reason: UNSIGNED,
        source: CREDENTIALS,
    },
    Difference {
        store: Store::LocalStack,
        check: "a_wrong_token_is_said",
        shows: "LakeCredentials was due, not Ok(())",
        reason: UNSIGNED,
        source: CREDENTIALS,
    },
    Difference {
        store: Store::LocalStack,
        check: "a_clock_that_is_off_is_said",
        shows: "ClockSkew was due, not Ok(())",
        reason: UNSIGNED,
        source: CREDENTIALS,
    },
    Difference {
        store: Store::LocalStack,
        check: "a_bucket_of_another_owner_is_refused",
        shows: "LakeForbidden was due, not Ok(())",
        reason: "does not look at x-amz-expected-bucket-owner",
        source: "https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html",
    },
    Difference {
        store: Store::LocalStack,
        check: "a_power_cut_after_complete_sends_nothing_again",
        shows: "the object was sent again",
        reason: "forgets an upload once it is completed and says NoSuchUpload, as S3 may too: the object \
                 goes again, and the key that exists proves it",
        source: COMPLETE,
    },
    Difference {
        store: Store::LocalStack,
        check: "the_preflight_names_the_permission_that_is_missing",
        shows: "without PutObject",
        reason: UNRESTRICTED,
        source: POLICIES,
    },
    Difference {
        store: Store::LocalStack,
        check: "the_box_can_neither_read_nor_list_nor_delete",
        shows: "get: LakeForbidden was due, not Ok(",
        reason: UNRESTRICTED,
        source: POLICIES,
    },
    Difference {
        store: Store::LocalStack,
        check: "an_auditor_cannot_write",
        shows: "put: LakeForbidden was due, not Ok(())",
        reason: UNRESTRICTED,
        source: POLICIES,
    },
];

const UNSIGNED: &str = "verifies neither signatures nor their time";
const UNRESTRICTED: &str = "the community edition keeps policies and does not enforce them";
const COMPLETE: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html";
const CREDENTIALS: &str = "https://docs.localstack.cloud/aws/capabilities/config/credentials/";
const POLICIES: &str =
    "https://docs.localstack.cloud/aws/capabilities/security-testing/iam-policy-enforcement/";
