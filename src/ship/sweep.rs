//! Which open uploads nobody will ever finish. Pure.
//!
//! An upload is begun before its id can be recorded: a crash, or an answer lost, leaves one that is billed
//! and seen by no listing of objects. At start, and daily, all uploads under our own source's keys are
//! looked through.
//!
//! **Invariant (I21):** an upload is an orphan only if its id is in no fact and its object is not under
//! way in this process; no clock decides (I29). Keys of other sources are never touched.

use std::collections::BTreeSet;

use super::OpenUpload;

/// The orphans among `open`. `known`: keys and ids in the facts; `active`: keys under way.
/// Look at both only after S3 has answered: an upload begun since is in neither list then.
pub fn orphans(
    open: Vec<OpenUpload>,
    own: &str,
    known: &BTreeSet<(String, String)>,
    active: &BTreeSet<String>,
) -> Vec<OpenUpload> {
    let orphan = |found: &OpenUpload| {
        found.key.starts_with(own)
            && !active.contains(&found.key)
            && !known.contains(&(found.key.clone(), found.upload.clone()))
    };
    open.into_iter().filter(orphan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_forgotten_uploads_are_orphans() {
        let open = |key: &str, upload: &str| OpenUpload {
            key: key.into(),
            upload: upload.into(),
            begun: None,
        };
        let all = vec![
            open("raw/erp/t/a", "u1"),
            open("raw/erp/t/a", "u2"),
            open("raw/erp/t/b", "u3"),
            open("raw/erp2/t/a", "u4"),
            open("raw/crm/t/a", "u5"),
        ];
        let known = [("raw/erp/t/a".to_owned(), "u1".to_owned())].into();
        let active = ["raw/erp/t/b".to_owned()].into();
        assert_eq!(orphans(all, "raw/erp/", &known, &active), [open("raw/erp/t/a", "u2")]);
    }
}
