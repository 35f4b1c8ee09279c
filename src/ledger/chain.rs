//! The next entry of a chain, made of shipped groups. Pure.
//!
//! **Invariant (I23):** entries are numbered from 1 without gaps, each carries the hash of the one
//! before; those of kind `changes` tile the source's log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Encryption, Entry, EntryKind, EntryObject, Group, GroupKind, LedgerError, Object,
    SourceIdentity, entry::NO_PREVIOUS,
};
use crate::units::{Point, Position, Timestamp};

/// Where a chain stands. Fact: `ledger/head`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Number of the last entry; 0 before the first.
    pub entry: u64,
    /// Its hash.
    pub hash: String,
    /// What the chain has reached. `None` before its first entry.
    pub point: Option<Point>,
    /// The last journal batch it covers.
    pub batch: u64,
    /// The last group in it.
    pub group: u64,
}

/// What an entry says besides its groups.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// Whose log.
    pub source: SourceIdentity,
    /// Where the source's log begins for us: the slot's consistent point.
    pub start: Position,
    /// The release rule in force.
    pub release: String,
    /// The appliance's name.
    pub appliance: String,
    /// Now.
    pub at: Timestamp,
}

impl Default for Head {
    fn default() -> Self {
        Self { entry: 0, hash: NO_PREVIOUS.into(), point: None, batch: 0, group: 0 }
    }
}

/// Whether `next` can stand in one entry with `groups`.
pub fn joins(groups: &[Group], next: &Group) -> bool {
    let objects: usize = groups.iter().map(|group| group.objects.len()).sum();
    let same = matches!(
        (groups.first().map(|group| &group.kind), &next.kind),
        (Some(GroupKind::Snapshot { .. }), GroupKind::Snapshot { .. })
            | (Some(GroupKind::Schema), GroupKind::Schema)
    );
    same && objects + next.objects.len() <= OBJECTS_MAX
}

/// The entry that follows `head` and covers `groups`, and the head without its hash.
///
/// # Errors
///
/// [`LedgerError::NotTiling`]: an epoch does not begin where the last one ended.
pub fn next(head: &Head, groups: &[Group], stamp: &Stamp) -> Result<(Entry, Head), LedgerError> {
    let reached = head.point.unwrap_or(Point { position: stamp.start, ..Point::default() });
    let mut after = Head {
        entry: head.entry + 1,
        hash: String::new(),
        point: Some(reached),
        batch: head.batch,
        group: groups.last().map_or(head.group, |group| group.id),
    };
    let mut committed = None;
    let mut completes = BTreeMap::new();
    let mut kind = EntryKind::Schema;
    for group in groups {
        match &group.kind {
            GroupKind::Schema => {}
            GroupKind::Snapshot { table, position, completes: complete, .. } => {
                kind = EntryKind::Snapshot;
                if *complete {
                    completes.insert(table.clone(), *position);
                }
            }
            GroupKind::Changes { from, to, batch, committed_at } => {
                if *from != reached || to.sequence < from.sequence || to.position < from.position {
                    return Err(not_tiling(reached, *from));
                }
                kind = EntryKind::Changes;
                committed = Some(committed_at.rfc3339());
                after.point = Some(*to);
                after.batch = *batch;
            }
        }
    }
    let mut objects: Vec<_> = groups.iter().flat_map(|group| &group.objects).collect();
    objects.sort_by(|one, other| one.key.cmp(&other.key));
    let entry = Entry {
        previous: head.hash.clone(),
        entry: after.entry,
        source: stamp.source.clone(),
        kind,
        from: reached,
        to: after.point.unwrap_or(reached),
        tables: objects.iter().map(|object| (object.table.clone(), object.version)).collect(),
        objects: objects.into_iter().map(proven).collect(),
        completes,
        adopts: None,
        release: stamp.release.clone(),
        committed_at: committed,
        appliance: stamp.appliance.clone(),
        at: stamp.at.rfc3339(),
    };
    Ok((entry, after))
}

fn not_tiling(stands: Point, begins: Point) -> LedgerError {
    let text = |point: Point| format!("{} (sequence {})", point.position, point.sequence.0);
    LedgerError::NotTiling { stands: text(stands), begins: text(begins) }
}

fn proven(object: &Object) -> EntryObject {
    EntryObject {
        key: object.key.clone(),
        bytes: object.bytes,
        sha256: object.sha256.clone(),
        crc64nvme: object.crc64nvme.clone(),
        rows: object.rows.clone(),
        encryption: match object.encryption {
            Encryption::None => "none",
            Encryption::SseKms { .. } => "sse-kms",
            Encryption::Client => "client",
        }
        .into(),
    }
}

/// Objects in one entry: keeps it below some 200 KiB.
const OBJECTS_MAX: usize = 500;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Sequence;

    pub(crate) fn stamp() -> Stamp {
        Stamp {
            source: SourceIdentity {
                name: "erp".into(),
                system_identifier: "7".into(),
                timeline: 1,
            },
            start: Position(100),
            release: "lake".into(),
            appliance: "plant7-a".into(),
            at: Timestamp(0),
        }
    }

    pub(crate) fn object(key: &str) -> Object {
        Object {
            key: key.into(),
            bytes: 3,
            sha256: hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"abc")),
            crc64nvme: crate::ship::checksum::of(b"abc"),
            rows: BTreeMap::new(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::None,
            metadata: BTreeMap::new(),
            spool: String::new(),
        }
    }

    pub(crate) fn point(sequence: u64, position: u64) -> Point {
        Point { sequence: Sequence(sequence), position: Position(position) }
    }

    pub(crate) fn changes(id: u64, from: Point, to: Point) -> Group {
        Group {
            id,
            kind: GroupKind::Changes { from, to, batch: id, committed_at: Timestamp(0) },
            objects: vec![object(&format!("raw/erp/public.t/dt=1970-01-01/changes-{id}.parquet"))],
            at: Timestamp(0),
        }
    }

    pub(crate) fn chunk(id: u64, completes: bool) -> Group {
        let kind = GroupKind::Snapshot {
            table: "public.t".into(),
            table_id: 9,
            chunk: 0,
            position: Position(100),
            completes,
        };
        let key = format!("raw/erp/public.t/dt=1970-01-01/snapshot-{id}.parquet");
        Group { id, kind, objects: vec![object(&key)], at: Timestamp(0) }
    }

    proptest! {
        #[test]
        fn entries_number_densely_link_and_tile(steps in proptest::collection::vec((0u64..3, 1u64..50), 1..40)) {
            let mut head = Head::default();
            let mut at = point(0, 100);
            for (number, (kind, size)) in (1u64..).zip(steps) {
                let group = if kind == 0 {
                    chunk(number, false)
                } else {
                    let to = point(at.sequence.0 + size, at.position.0 + size);
                    changes(number, at, to)
                };
                let (entry, mut after) = next(&head, std::slice::from_ref(&group), &stamp()).unwrap();
                prop_assert_eq!(entry.entry, number);
                prop_assert_eq!(&entry.previous, &head.hash);
                prop_assert_eq!(entry.from, at);
                if let GroupKind::Changes { to, .. } = group.kind {
                    at = to;
                }
                prop_assert_eq!(entry.to, at);
                after.hash = format!("hash {number}");
                head = after;
            }
        }
    }

    #[test]
    fn an_epoch_that_leaves_a_gap_is_refused() {
        let head = Head { point: Some(point(5, 200)), ..Head::default() };
        for from in [point(4, 200), point(5, 199), point(6, 200), point(5, 201)] {
            let group = changes(1, from, point(9, 300));
            assert!(matches!(next(&head, &[group], &stamp()), Err(LedgerError::NotTiling { .. })));
        }
    }

    #[test]
    fn chunks_join_and_say_what_they_complete() {
        let groups = [chunk(1, false), chunk(2, true)];
        assert!(joins(&groups[..1], &groups[1]));
        assert!(!joins(&groups, &changes(3, point(0, 100), point(1, 101))));
        let (entry, head) = next(&Head::default(), &groups, &stamp()).unwrap();
        assert_eq!(entry.completes, BTreeMap::from([("public.t".into(), Position(100))]));
        assert_eq!((entry.objects.len(), head.group), (2, 2));
    }
}
