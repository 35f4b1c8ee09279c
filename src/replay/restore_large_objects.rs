//! The large objects of a restore: made with their numbers, filled, given to their owners.
//!
//! Each file of the lake is one transaction, with the record that it is in and of what it made. So a restore that was
//! cut goes on where it was, and only what a restore made is written to or removed. A number that the target has given to an object of its
//! own stays what it is, and is said. Files behind the restore's end are read too: objects whose rows lie before the
//! end may have been found only later. Of these nothing is removed.

use std::collections::{BTreeMap, HashMap};

use super::{
    ReplayError,
    plan::Plan,
    plan_large_objects::LargeObjectsPlan,
    read::{BATCH_BYTES, Field, Rows},
    restore_rows::Restore,
    restore_target::{Target, refused},
    schema::identifier,
};
use crate::{
    journal::{Op, Value, large_object::PIECE_BYTES},
    ledger::EntryObject,
    units::Position,
};

/// What a run finds.
#[derive(Debug, Default)]
struct Found {
    /// Whether an object may be given to a role.
    owners: HashMap<String, bool>,
    /// Objects that could not be given to their owners.
    orphans: BTreeMap<String, u64>,
    /// Numbers that the target has given to others.
    taken: u64,
    first_taken: Option<u32>,
    /// The object that rows came of last, and whether it is ours.
    last: Option<(u32, bool)>,
}

/// A row of the lake's table.
struct Piece<'a> {
    id: u32,
    piece: u32,
    owner: &'a str,
    size: i64,
    data: &'a [u8],
}

impl Restore<'_> {
    /// Makes the large objects that the lake has at the plan's end.
    pub(super) async fn make_large_objects(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        let wanted = &plan.large_objects;
        if *wanted == LargeObjectsPlan::default() {
            return Ok(());
        }
        let there = self.target.objects().await?;
        let mut found = Found::default();
        for rows in &wanted.objects {
            let ahead = rows.position > plan.end.position;
            let mut object = rows.object.clone();
            if ahead {
                object.key.push_str(AHEAD);
            }
            if there.get(&object.key) != Some(&object.sha256) {
                self.load_large_objects(&rows.object, &object, ahead, &mut found).await?;
            }
        }
        self.report.large_objects = self.target.large_objects().await?;
        self.tell_large_objects(wanted, plan.end.position, found);
        Ok(())
    }

    async fn load_large_objects(
        &mut self,
        object: &EntryObject,
        record: &EntryObject,
        ahead: bool,
        found: &mut Found,
    ) -> Result<(), ReplayError> {
        let mut file = self.fetcher.rows(object, BATCH_BYTES).await?;
        let damaged = |why: String| ReplayError::object(&object.key, why);
        let mut count = 0;
        self.target.begin().await?;
        while let Some(batch) = file.next_rows()? {
            let columns = columns(&batch).map_err(damaged)?;
            for row in 0..batch.len() {
                count += 1;
                if batch.meta(row).op != Op::Delete {
                    let piece = piece(&batch, row, &columns).map_err(damaged)?;
                    self.target.take_piece(&piece, found).await?;
                } else if !ahead {
                    let (id, piece) = key(&batch, row, &columns).map_err(damaged)?;
                    if piece == 0 {
                        self.target.unlink(id).await?;
                        found.last = None;
                    }
                }
            }
        }
        self.target.record_object(record, count).await?;
        self.target.commit().await
    }

    fn tell_large_objects(&mut self, plan: &LargeObjectsPlan, end: Position, found: Found) {
        let notes = &mut self.target.notes;
        if let Some(first) = found.first_taken {
            notes.push(format!(
                "large objects: {} stay as they are in the target, which has given their numbers to others, {first} the first",
                found.taken
            ));
        }
        for (owner, count) in found.orphans {
            notes.push(format!(
                "large objects: {count} are not their owner's, as the target has no role `{owner}`, or refuses to give them to it"
            ));
        }
        match (plan.covers, plan.before) {
            (Some(_), _) => {}
            (None, Some(at)) => notes.push(format!(
                "large objects were looked for last at {at}, before the end at {end}: those made since may be missing"
            )),
            (None, None) => {
                notes.push("large objects: not all of them were in the lake yet".to_owned());
            }
        }
    }
}

impl Target<'_> {
    /// Puts a piece into its object, which is made if it is not there.
    async fn take_piece(
        &mut self,
        piece: &Piece<'_>,
        found: &mut Found,
    ) -> Result<(), ReplayError> {
        let id = piece.id;
        let ours = match found.last {
            Some((last, ours)) if last == id => ours,
            _ => self.claim(id).await?,
        };
        if found.last != Some((id, ours)) {
            found.last = Some((id, ours));
            if !ours {
                found.taken += 1;
                found.first_taken.get_or_insert(id);
            }
        }
        if !ours {
            return Ok(());
        }
        if piece.piece == 0 {
            // 393216 is INV_READ and INV_WRITE.
            let sql = "SELECT lo_truncate64(o.fd, 0), lo_truncate64(o.fd, $2), lo_close(o.fd) \
                FROM (SELECT lo_open($1, 393216) AS fd OFFSET 0) o";
            let done = self.client.execute(sql, &[&id, &piece.size]).await;
            done.map_err(|why| refused(FILLING, &why))?;
            self.give(id, piece.owner, found).await?;
        }
        if piece.data.is_empty() {
            return Ok(());
        }
        let at = i64::from(piece.piece) * i64::try_from(PIECE_BYTES).unwrap_or(i64::MAX);
        let done = self.client.execute("SELECT lo_put($1, $2, $3)", &[&id, &at, &piece.data]).await;
        done.map(drop).map_err(|why| refused(FILLING, &why))
    }

    /// Makes an object, if it is not there. Whether it was made by a restore of this source.
    async fn claim(&self, id: u32) -> Result<bool, ReplayError> {
        let sql = "SELECT EXISTS (SELECT FROM lakehead_restore.large_objects WHERE source = $1 AND id = $2), \
            EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = $2)";
        let row = self.client.query_one(sql, &[&self.source, &id]).await;
        let row = row.map_err(|why| refused(FILLING, &why))?;
        let (ours, there): (bool, bool) = (row.get(0), row.get(1));
        if there {
            return Ok(ours);
        }
        let made = self.client.execute("SELECT lo_create($1)", &[&id]).await;
        made.map_err(|why| refused("make a large object", &why))?;
        let sql = "INSERT INTO lakehead_restore.large_objects (source, id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let done = self.client.execute(sql, &[&self.source, &id]).await;
        done.map_err(|why| refused("record a large object", &why))?;
        Ok(true)
    }

    /// Gives an object to its owner, if that can be.
    async fn give(&self, id: u32, owner: &str, found: &mut Found) -> Result<(), ReplayError> {
        let sql = format!("ALTER LARGE OBJECT {id} OWNER TO {}", identifier(owner));
        let given = match found.owners.get(owner) {
            Some(false) => false,
            Some(true) => {
                self.run("give a large object to its owner", &sql).await.map(|()| true)?
            }
            None => {
                let given = self.attempt(&sql).await?.is_none();
                found.owners.insert(owner.into(), given);
                given
            }
        };
        if !given {
            *found.orphans.entry(owner.into()).or_default() += 1;
        }
        Ok(())
    }

    /// Removes an object that a restore made.
    async fn unlink(&self, id: u32) -> Result<(), ReplayError> {
        let sql = "DELETE FROM lakehead_restore.large_objects WHERE source = $1 AND id = $2";
        let done = self.client.execute(sql, &[&self.source, &id]).await;
        if done.map_err(|why| refused("forget a large object", &why))? == 0 {
            return Ok(());
        }
        let sql = "SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid = $1";
        let done = self.client.execute(sql, &[&id]).await;
        done.map(drop).map_err(|why| refused("remove a large object", &why))
    }

    /// How many a restore made.
    async fn large_objects(&self) -> Result<u64, ReplayError> {
        let sql = "SELECT count(*) FROM lakehead_restore.large_objects WHERE source = $1";
        let row = self.client.query_one(sql, &[&self.source]).await;
        let row = row.map_err(|why| refused("count large objects", &why))?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }
}

/// Where the columns stand: id, piece, owner, size, data.
fn columns(rows: &Rows) -> Result<[usize; 5], String> {
    let at = |name: &str| {
        let found = rows.names().position(|own| own == name);
        found.ok_or_else(|| format!("large objects: it has no column `{name}`"))
    };
    Ok([at("loid")?, at("piece")?, at("owner")?, at("size")?, at("data")?])
}

fn key(rows: &Rows, row: usize, columns: &[usize; 5]) -> Result<(u32, u32), String> {
    let number = |column: usize| match rows.field(row, column) {
        Field::Value(Value::Int(number)) => {
            u32::try_from(number).map_err(|_| format!("a large object: {number} is out of range"))
        }
        _ => Err("a large object without a number".into()),
    };
    Ok((number(columns[0])?, number(columns[1])?))
}

fn piece<'a>(rows: &'a Rows, row: usize, columns: &[usize; 5]) -> Result<Piece<'a>, String> {
    let (id, piece) = key(rows, row, columns)?;
    let wrong = |what: &str| Err(format!("large object {id}: {what}"));
    let Field::Value(Value::Text(std::borrow::Cow::Borrowed(owner))) = rows.field(row, columns[2])
    else {
        return wrong("it has no owner");
    };
    let Field::Value(Value::Int(size @ 0..)) = rows.field(row, columns[3]) else {
        return wrong("it has no size");
    };
    let Field::Value(Value::Bytes(std::borrow::Cow::Borrowed(data))) = rows.field(row, columns[4])
    else {
        return wrong("it has no data");
    };
    Ok(Piece { id, piece, owner, size, data })
}

const FILLING: &str = "fill a large object";
/// Behind the key of a file of which nothing was removed, as it stands behind the end.
const AHEAD: &str = "#ahead";
