//! What one session of the workload does next: whole transactions as SQL, from a seed. Pure.
//!
//! Sessions never wait for each other's rows: session `k` of `of` changes only keys `n` with
//! `n % of = k`. So the same seed gives the same statements, whatever the timing.

use std::fmt::Write;

use super::{Rows, schema::WIDE_COLUMNS};

/// What a statement did to rows, by which it is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Rows inserted.
    Insert,
    /// Rows updated.
    Update,
    /// Rows deleted.
    Delete,
    /// A table emptied.
    Truncate,
    /// Nothing that lasts: rolled back, or in a table that is not copied.
    Nothing,
}

/// One transaction: its statements, and what each does.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Statements, separated by semicolons.
    pub sql: String,
    /// One for each statement.
    pub effects: Vec<Effect>,
}

/// One session's random choices and the keys that it has made.
#[derive(Debug)]
pub struct Session {
    rng: fastrand::Rng,
    of: u64,
    slot: u64,
    rows: Rows,
    orders: u64,
    documents: u64,
    steps: u64,
}

impl Script {
    fn add(&mut self, effect: Effect, sql: &str) {
        self.sql.push_str(sql);
        self.sql.push_str(";\n");
        self.effects.push(effect);
    }

    fn transaction(steps: &[(Effect, String)]) -> Self {
        let mut script = Self::default();
        script.add(Effect::Nothing, "BEGIN");
        steps.iter().for_each(|(effect, sql)| script.add(*effect, sql));
        script.add(Effect::Nothing, "COMMIT");
        script
    }
}

impl Session {
    /// Session `slot` of `of`, on tables that began with `rows`.
    pub fn new(seed: u64, slot: u64, of: u64, rows: Rows) -> Self {
        let rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9).wrapping_add(slot));
        Self { rng, of, slot, rows, orders: 0, documents: 0, steps: 0 }
    }

    /// The next transaction.
    pub fn transaction(&mut self) -> Script {
        self.steps += 1;
        if self.slot == 0 && self.steps.is_multiple_of(TRUNCATE_EVERY) {
            return self.empty_carts();
        }
        match self.rng.u32(0..100) {
            0..28 => self.place_order(),
            28..46 => self.change_order(),
            46..52 => self.delete_order(),
            52..64 => self.edit_title(),
            64..67 => self.rewrite_document(),
            67..70 => self.add_document(),
            70..72 => self.delete_document(),
            72..77 => self.move_stock(),
            77..83 => self.change_its_mind(),
            83..86 => self.give_up(),
            86..90 => self.audit(),
            90..94 => self.quote(),
            94..97 => self.widen(),
            _ => self.fill_cart(),
        }
    }

    /// One transaction that is larger than any queue: `rows` events, every tenth order, a savepoint.
    pub fn large(&mut self, rows: u64) -> Script {
        let events = format!(
            "INSERT INTO events SELECT now(), 'import', n, n / 7.0, jsonb_build_object('import', n, 'text', prose(n, 80)), NULL \
             FROM generate_series(1, {rows}) AS n"
        );
        Script::transaction(&[
            (Effect::Insert, events),
            (Effect::Nothing, "SAVEPOINT half".into()),
            (Effect::Nothing, "DELETE FROM events WHERE kind = 'import' AND value > 100".into()),
            (Effect::Nothing, "ROLLBACK TO SAVEPOINT half".into()),
            (Effect::Update, "UPDATE stock SET note = 'counted', amount = amount + 1".into()),
        ])
    }

    fn place_order(&mut self) -> Script {
        let number = self.new_order();
        let customer = self.customer();
        let lines = self.rng.u32(1..6);
        let total = self.rng.u32(100..5_000_000);
        let mut steps = vec![(
            Effect::Insert,
            format!(
                "INSERT INTO orders SELECT md5('order {number}')::uuid, {customer}, 'placed', {total} / 100.0, {lines} / 3.0::real, {total} / 7.0::float8, \
                 jsonb_agg(jsonb_build_object('sku', 'SKU-' || n, 'text', prose({number} + n, 100))), now(), tstzrange(now(), NULL), \
                 interval '{lines} days', '10.0.0.{lines}', NULL FROM generate_series(1, {lines}) AS n"
            ),
        )];
        for event in 0..self.rng.u32(1..4) {
            steps.push((Effect::Insert, format!(
                "INSERT INTO events VALUES (clock_timestamp(), 'order {event}', {total}, {total} / 3.0, '{{\"order\": {number}}}', NULL)"
            )));
        }
        steps.push((
            Effect::Update,
            format!("UPDATE customers SET balance = balance - 1 WHERE id = {customer}"),
        ));
        Script::transaction(&steps)
    }

    fn change_order(&mut self) -> Script {
        let order = self.order();
        let status = self.rng.u32(1..6);
        let sql = format!(
            "UPDATE orders SET status = (enum_range(NULL::order_status))[{status}], paid = NOT coalesce(paid, false), \
             promised = tstzrange(placed, now() + interval '1 day') WHERE id = {order}"
        );
        self.alone(Effect::Update, &sql)
    }

    fn delete_order(&mut self) -> Script {
        let order = self.order();
        self.alone(Effect::Delete, &format!("DELETE FROM orders WHERE id = {order}"))
    }

    fn edit_title(&mut self) -> Script {
        let (document, n) = (self.document(), self.rng.u32(..));
        let sql = format!(
            "UPDATE documents SET title = 'Revision {n}', revised = now() WHERE id = {document}"
        );
        self.alone(Effect::Update, &sql)
    }

    fn rewrite_document(&mut self) -> Script {
        let (document, seed, bytes) =
            (self.document(), self.rng.u32(..), self.rng.u32(10_000..200_000));
        let sql =
            format!("UPDATE documents SET body = prose({seed}, {bytes}) WHERE id = {document}");
        self.alone(Effect::Update, &sql)
    }

    fn add_document(&mut self) -> Script {
        self.documents += 1;
        let id = self.own(self.rows.documents, self.documents);
        let (seed, bytes) = (self.rng.u32(..), self.rng.u32(10_000..120_000));
        let sql = format!(
            "INSERT INTO documents VALUES ({id}, 'Document {id}', prose({seed}, {bytes}), noise({seed}, {bytes} / 4), now())"
        );
        self.alone(Effect::Insert, &sql)
    }

    fn delete_document(&mut self) -> Script {
        let document = self.document();
        self.alone(Effect::Delete, &format!("DELETE FROM documents WHERE id = {document}"))
    }

    /// The key itself changes, and changes back.
    fn move_stock(&mut self) -> Script {
        let n = self.old(self.rows.others);
        let sql = format!(
            "UPDATE stock SET sku = CASE WHEN sku LIKE 'SKU-%' THEN 'moved-' ELSE 'SKU-' END || {n}, amount = amount + 1 \
             WHERE sku IN ('SKU-{n}', 'moved-{n}')"
        );
        self.alone(Effect::Update, &sql)
    }

    /// A part of the transaction is rolled back, twice, and the rest is kept.
    fn change_its_mind(&mut self) -> Script {
        let (order, customer, n) = (self.order(), self.customer(), self.rng.u32(..));
        let kept = format!(
            "INSERT INTO events VALUES (clock_timestamp(), 'kept', {n}, NULL, NULL, '{{1,NULL}}')"
        );
        Script::transaction(&[
            (Effect::Insert, kept.clone()),
            (Effect::Nothing, "SAVEPOINT one".into()),
            (Effect::Nothing, format!("DELETE FROM orders WHERE id = {order}")),
            (Effect::Nothing, "SAVEPOINT two".into()),
            (Effect::Nothing, format!("UPDATE customers SET name = '' WHERE id = {customer}")),
            (Effect::Nothing, "ROLLBACK TO SAVEPOINT one".into()),
            (
                Effect::Update,
                format!("UPDATE customers SET discount = {} WHERE id = {customer}", n % 101),
            ),
            (Effect::Insert, kept),
        ])
    }

    fn give_up(&mut self) -> Script {
        let order = self.order();
        let mut script = Script::default();
        script.add(Effect::Nothing, "BEGIN");
        script.add(Effect::Nothing, "INSERT INTO events VALUES (now(), 'never', 0, 0, NULL, NULL)");
        script.add(Effect::Nothing, &format!("DELETE FROM orders WHERE id = {order}"));
        script.add(Effect::Nothing, "ROLLBACK");
        script
    }

    /// Rows without a key that look alike, of which one changes or goes.
    fn audit(&mut self) -> Script {
        let who = format!("user s{}", self.slot);
        let insert = format!("INSERT INTO audit VALUES ('{who}', 'edit', 1), ('{who}', 'edit', 1)");
        let one = format!("ctid = (SELECT min(ctid) FROM audit WHERE who = '{who}' AND times = 1)");
        Script::transaction(&[
            (Effect::Insert, insert),
            (Effect::Update, format!("UPDATE audit SET times = 2, did = NULL WHERE {one}")),
            (Effect::Delete, format!("DELETE FROM audit WHERE {one}")),
        ])
    }

    fn quote(&mut self) -> Script {
        let n = self.old(self.rows.others);
        let sql = format!(
            r#"UPDATE "Büro"."Müller & Söhne, ""Qualität""" SET "Größe (cm)" = "Größe (cm)" + 0.125, "a.b/c%d" = E'it''s \\ {n}\n' WHERE "select" = {n}"#
        );
        self.alone(Effect::Update, &sql)
    }

    fn widen(&mut self) -> Script {
        let n = self.old(self.rows.others);
        let mut sets = String::new();
        for _ in 0..4 {
            let column = self.rng.u32(0..WIDE_COLUMNS / 6) * 6;
            let separator = if sets.is_empty() { "" } else { ", " };
            if !sets.contains(&format!("c{column:03}")) {
                write!(sets, "{separator}c{column:03} = {}", self.rng.i32(..))
                    .expect("strings take all");
            }
        }
        self.alone(Effect::Update, &format!("UPDATE wide SET {sets} WHERE id = {n}"))
    }

    fn fill_cart(&mut self) -> Script {
        let n = self.old(self.rows.others);
        let mut script = self.alone(Effect::Insert, &format!(
            "INSERT INTO cart VALUES ({n}, ARRAY[{n}, NULL]) ON CONFLICT (id) DO UPDATE SET items = cart.items || 1"
        ));
        script.add(
            Effect::Nothing,
            "INSERT INTO scratch_queue SELECT 1 + coalesce(max(id), 0), 'more' FROM scratch_queue ON CONFLICT DO NOTHING",
        );
        script
    }

    fn empty_carts(&mut self) -> Script {
        Script::transaction(&[
            (Effect::Truncate, "TRUNCATE cart".into()),
            (Effect::Insert, "INSERT INTO cart VALUES (0, '{}')".into()),
        ])
    }

    fn alone(&self, effect: Effect, sql: &str) -> Script {
        let mut script = Script::default();
        script.add(effect, sql);
        script
    }

    /// The `nth` key of this session beyond the `first` ones.
    fn own(&self, first: u64, nth: u64) -> u64 {
        (first / self.of + 1 + self.rows.made + nth) * self.of + self.slot
    }

    /// A key of this session among the `first` ones, of which there must be twice `of`.
    fn old(&mut self, first: u64) -> u64 {
        let turns = (first / self.of).max(2);
        self.rng.u64(1..turns) * self.of + self.slot
    }

    fn new_order(&mut self) -> u64 {
        self.orders += 1;
        self.own(self.rows.orders, self.orders)
    }

    fn order(&mut self) -> String {
        let fresh = self.orders > 0 && self.rng.bool();
        let number = if fresh {
            let nth = self.rng.u64(1..=self.orders);
            self.own(self.rows.orders, nth)
        } else {
            self.old(self.rows.orders)
        };
        format!("md5('order {number}')::uuid")
    }

    fn document(&mut self) -> u64 {
        if self.documents > 0 && self.rng.bool() {
            let nth = self.rng.u64(1..=self.documents);
            return self.own(self.rows.documents, nth);
        }
        self.old(self.rows.documents)
    }

    fn customer(&mut self) -> u64 {
        self.old(self.rows.customers)
    }
}

const TRUNCATE_EVERY: u64 = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_and_sessions_keep_apart() {
        let rows = Rows::of(10_000_000);
        let said = |slot| {
            let mut session = Session::new(5, slot, 3, rows);
            (0..2000).map(|_| session.transaction().sql).collect::<Vec<_>>()
        };
        assert_eq!(said(1), said(1));
        let orders = |slot| {
            let mut session = Session::new(5, slot, 3, rows);
            (0..500).map(|_| session.order()).collect::<std::collections::BTreeSet<_>>()
        };
        assert!(orders(0).is_disjoint(&orders(1)));
    }

    #[test]
    fn a_later_run_makes_no_key_of_an_earlier_one() {
        let keys = |made| {
            let rows = Rows { made, ..Rows::of(1_000_000) };
            let mut session = Session::new(9, 0, 2, rows);
            (0..100).map(|_| session.new_order()).collect::<std::collections::BTreeSet<_>>()
        };
        assert!(keys(0).is_disjoint(&keys(100)));
    }

    #[test]
    fn every_statement_has_its_effect() {
        let mut session = Session::new(1, 0, 2, Rows::of(1_000_000));
        for _ in 0..1000 {
            let script = session.transaction();
            assert_eq!(script.sql.matches(";\n").count(), script.effects.len(), "{}", script.sql);
        }
    }
}
