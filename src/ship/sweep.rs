//! Which open uploads nobody will ever finish. Pure.
//!
//! An upload is begun before its id can be recorded: a crash, or an answer lost, leaves one that is billed
//! and seen by no listing of objects. At start, twice soon after it, and daily, all uploads under our own
//! source's keys are looked through.
//!
//! **Invariant (I21):** an upload is an orphan only if its id is in no fact and its object is not under
//! way in this process; no clock decides (I29). Keys of other sources are never touched. What is spared
//! because its object is under way is looked at again: it may be one that an earlier process began.

use std::collections::BTreeSet;

use super::OpenUpload;

/// What one look through the uploads did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Swept {
    /// Orphans that were aborted.
    pub(super) aborted: usize,
    /// Uploads that may be orphans, of objects that are under way.
    pub(super) spared: usize,
}

/// The orphans among `open`, and how many others may be some once their objects are done. `known`: keys
/// and ids in the facts; `active`: keys under way.
/// Look at both only after S3 has answered: an upload begun since is in neither list then.
pub fn orphans(
    open: Vec<OpenUpload>,
    own: &str,
    known: &BTreeSet<(String, String)>,
    active: &BTreeSet<String>,
) -> (Vec<OpenUpload>, usize) {
    let unknown = |found: &OpenUpload| {
        found.key.starts_with(own) && !known.contains(&(found.key.clone(), found.upload.clone()))
    };
    let (spared, orphans): (Vec<_>, _) =
        open.into_iter().filter(unknown).partition(|found| active.contains(&found.key));
    (orphans, spared.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_forgotten_uploads_are_orphans() {
        let open = |key: &str, upload: &str| OpenUpload {
            key: key.into(),
            upload: upload.into(),
            age: None,
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
        let (orphans, spared) = orphans(all, "raw/erp/", &known, &active);
        assert_eq!((orphans, spared), (vec![open("raw/erp/t/a", "u2")], 1));
    }
}
