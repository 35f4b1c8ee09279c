//! The shipper: lost answers, power cuts, orphaned uploads.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use lakehead::{
    clock::SystemClock,
    config,
    facts::{Facts, MemoryFacts},
    ship::{
        Encryption, Fates, Group, GroupKind, Object, ObjectReader, ObjectStore, ReadSpool, Request,
        ShipError, checksum, drive::Shipper,
    },
    telemetry::board::SourceBoard,
    units::Timestamp,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    losing::{Losing, Loss},
    requests::{head, key, part},
    store::Ground,
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        a_lost_answer_is_an_ordinary_case,
        a_power_cut_sends_only_what_was_in_flight_again,
        a_power_cut_after_complete_sends_nothing_again,
        an_upload_aborted_by_others_starts_again,
        orphans_of_ours_are_swept_and_no_others,
    }
}

async fn a_lost_answer_is_an_ordinary_case(ground: &Ground) {
    for (request, bytes) in [
        (Request::Put, 1000),
        (Request::Create, PARTS_BYTES),
        (Request::Part, PARTS_BYTES),
        (Request::Complete, PARTS_BYTES),
    ] {
        for loss in [Loss::Request, Loss::Answer] {
            let source = format!("lost-{}-{loss:?}", request.name());
            let house = House::new(ground, &source, &[bytes]);
            let door = Arc::new(house.door(Some((request, loss))));
            house.ship(door.clone()).await;
            assert!(door.struck(), "{source}: nothing was lost");
            house.assert_in_the_lake().await;
        }
    }
}

async fn a_power_cut_sends_only_what_was_in_flight_again(ground: &Ground) {
    let house = House::new(ground, "power", &[32 << 20]);
    let parts = house.fail(Request::Part).await;
    let door = Arc::new(house.door(None));
    house.ship(door.clone()).await;
    house.assert_in_the_lake().await;
    assert_eq!(door.count(Request::Create), 0, "another upload was begun");
    // Seven parts; those in flight when the power failed came twice.
    let parts = parts + door.count(Request::Part);
    assert!((7..=7 + REQUESTS).contains(&parts), "{parts} parts sent");
}

async fn a_power_cut_after_complete_sends_nothing_again(ground: &Ground) {
    let house = House::new(ground, "power-late", &[PARTS_BYTES]);
    house.fail(Request::Complete).await;
    let door = Arc::new(house.door(None));
    house.ship(door.clone()).await;
    house.assert_in_the_lake().await;
    let sent = door.count(Request::Create) + door.count(Request::Part);
    assert_eq!(sent, 0, "the object was sent again");
}

/// As a bucket's lifecycle rule does when the box was away for long.
async fn an_upload_aborted_by_others_starts_again(ground: &Ground) {
    for (when, loss) in [(Request::Part, Loss::Power), (Request::Complete, Loss::Dark)] {
        let source = format!("aborted-{}", when.name());
        let house = House::new(ground, &source, &[PARTS_BYTES]);
        house.fail_by(when, loss).await;
        let writer = ground.s3(&ground.people.writer);
        let open = writer.uploads(&key(&source)).await.unwrap();
        assert_eq!(open.len(), 1, "{source}: {open:?}");
        writer.abort(&open[0].key, &open[0].upload).await.unwrap();
        let door = Arc::new(house.door(None));
        house.ship(door.clone()).await;
        house.assert_in_the_lake().await;
        assert_eq!(door.count(Request::Create), 1, "{source}");
    }
}

async fn orphans_of_ours_are_swept_and_no_others(ground: &Ground) {
    let writer = ground.s3(&ground.people.writer);
    let (ours, others) = (key("swept/public.t/x"), key("swept2/public.t/x"));
    for key in [&ours, &ours, &others] {
        let upload = writer.create(head(key, &Encryption::None)).await.unwrap();
        part(&writer, key, &upload, 1, Bytes::from_static(b"p")).await;
    }
    let house = House::new(ground, "swept", &[]);
    let (_send, receive) = mpsc::channel(1);
    let (shipped, _handed) = mpsc::channel(1);
    let token = CancellationToken::new();
    let door = Arc::new(house.door(None));
    let run = house.shipper(door).run(receive, shipped, token.clone());
    let look = async {
        while !writer.uploads(&key("swept/")).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        token.cancel();
    };
    let ended = tokio::time::timeout(PATIENCE, async { tokio::join!(run, look).0 }).await;
    ended.expect("they are swept").unwrap();
    let left = writer.uploads(&key("swept2/")).await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    writer.abort(&others, &left[0].upload).await.unwrap();
}

/// A shipper's world: one group with objects of some lengths.
struct House<'a> {
    ground: &'a Ground,
    source: String,
    spool: Arc<Spool>,
    facts: Arc<MemoryFacts>,
    group: Group,
}

struct Spool(BTreeMap<String, Bytes>);

impl ReadSpool for Spool {
    fn read(
        &self,
        object: &Object,
        range: Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), ShipError> {
        let place = |at: u64| usize::try_from(at).unwrap();
        each(self.0[&object.key].slice(place(range.start)..place(range.end)));
        Ok(())
    }
}

impl<'a> House<'a> {
    fn new(ground: &'a Ground, source: &str, lengths: &[usize]) -> Self {
        let bodies = lengths.iter().zip(0u8..).map(|(length, seed)| {
            let body: Bytes = (0..=250u8).cycle().skip(seed.into()).take(*length).collect();
            (key(&format!("{source}/public.t/dt=2026-11-21/changes-{seed}.parquet")), body)
        });
        let spool = Spool(bodies.collect());
        let objects = spool.0.iter().map(|(key, body)| Object {
            key: key.clone(),
            bytes: body.len() as u64,
            sha256: String::new(),
            crc64nvme: checksum::of(body),
            sums: Vec::new(),
            rows: BTreeMap::new(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::Client,
            metadata: [("x-amz-matdesc".into(), r#"{"a":"b c"}"#.into())].into(),
            spool: String::new(),
        });
        let objects = objects.collect();
        let fates = Fates::default();
        let group = Group { id: 1, kind: GroupKind::Schema, objects, fates, at: Timestamp(0) };
        let facts = Arc::default();
        Self { ground, source: source.into(), spool: Arc::new(spool), facts, group }
    }

    fn door(&self, next: Option<(Request, Loss)>) -> Losing {
        Losing::new(self.ground.s3(&self.ground.people.writer), next)
    }

    fn shipper(&self, door: Arc<Losing>) -> Shipper {
        let config = config::Ship { part_bytes: 5 << 20, requests: REQUESTS };
        let (spool, facts, own) = (self.spool.clone(), self.facts.clone(), key(&self.source));
        let (board, clock) = (SourceBoard::default(), Arc::new(SystemClock));
        Shipper::new(door, spool, facts, &config, &[format!("{own}/")], board, clock)
    }

    /// Ships until the power fails after this request has taken effect; how many parts were sent.
    async fn fail(&self, request: Request) -> usize {
        self.fail_by(request, Loss::Power).await
    }

    async fn fail_by(&self, request: Request, loss: Loss) -> usize {
        let door = Arc::new(self.door(Some((request, loss))));
        tokio::select! {
            () = self.ship(door.clone()) => panic!("the power was to fail"),
            () = door.dark.cancelled() => {}
        }
        door.count(Request::Part)
    }

    /// Ships the group to the end.
    async fn ship(&self, door: Arc<Losing>) {
        let (send, receive) = mpsc::channel(1);
        send.send(self.group.clone()).await.unwrap();
        drop(send);
        let (shipped, mut handed) = mpsc::channel(1);
        let run = self.shipper(door).run(receive, shipped, CancellationToken::new());
        tokio::time::timeout(PATIENCE, run).await.expect("it ends").unwrap();
        assert_eq!(handed.recv().await.unwrap().group, self.group);
    }

    /// The objects are there, whole, and no upload of ours is open.
    async fn assert_in_the_lake(&self) {
        let reader = self.ground.s3(&self.ground.people.reader);
        for object in &self.group.objects {
            let read = reader.get(&object.key).await.unwrap().unwrap();
            assert!(read.bytes == self.spool.0[&object.key], "{} differs", object.key);
            assert_eq!(read.metadata, object.metadata);
            assert_eq!(self.facts.scan("ship/upload/"), []);
        }
        let writer = self.ground.s3(&self.ground.people.writer);
        let open = writer.uploads(&format!("{}/", key(&self.source))).await.unwrap();
        assert_eq!(open, [], "{}", self.source);
    }
}

const PARTS_BYTES: usize = 12 << 20;
const REQUESTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
