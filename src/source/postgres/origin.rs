//! Whether what the server has continues what this box has. Pure.
//!
//! **Invariant (DESIGN §4):** a slot that is lost, was made anew, was moved by others, or whose system,
//! database, timeline or log does not continue ours, is a gap: said in a whole sentence, never passed over.
//! Behind it positions only grow: where the server's log went back, it is waited for.

use super::error::SourceError;
use crate::{source::Origin, units::Position};

/// The server, as IDENTIFY_SYSTEM says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Server {
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    pub(crate) database: String,
    /// The end of its log.
    pub(crate) log_end: Position,
    /// Where earlier timelines ended: timeline and its last position, oldest first. Empty on the first.
    pub(crate) history: Vec<(u32, Position)>,
}

impl Server {
    /// Whether `now` is the same server, on the same timeline, and its log has not gone back since.
    ///
    /// # Errors
    ///
    /// It is not: all is to be judged anew.
    pub(crate) fn is_still(&self, now: &Self) -> Result<(), SourceError> {
        let place = |server: &Self| (server.system_identifier.clone(), server.timeline);
        match place(self) == place(now) && self.log_end <= now.log_end {
            true => Ok(()),
            false => Err(SourceError::broken("make the slot", "another server answers now")),
        }
    }
}

/// The slot, as `pg_replication_slots` says it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Slot {
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) active: bool,
    /// What the server keeps.
    pub(crate) restart: Option<Position>,
    /// What it may forget.
    pub(crate) confirmed: Option<Position>,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty before version 13.
    pub(crate) wal_status: String,
    /// Whether standbys copy it; never before version 17.
    pub(crate) failover: bool,
}

/// How the server continues what is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Continues {
    /// As it was.
    Same,
    /// On a timeline that branched off behind all that is held: a standby was promoted.
    NewTimeline {
        /// Its number.
        timeline: u32,
        /// Where it left the one before.
        branched: Position,
    },
}

/// Why the server does not continue what is held, and how to go on all the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Break {
    /// In a whole sentence.
    pub(crate) what: String,
    pub(crate) way: Way,
}

/// How to go on behind a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Not at all: it may be no gap, but a mistake.
    Stop,
    /// When the server's log has grown past what is held. Its timeline shows that it went back.
    Later,
    /// As [`Way::Later`], to be remembered until then: on the same timeline, and on one that branches off it
    /// later, nothing shows it afterwards.
    Back,
    /// With a slot made anew.
    New,
    /// With the slot as it stands, from there on.
    At(Position),
}

/// Compares. `held`: the end of the last transaction, or the last mark, that is durable here; `read`: how far
/// ahead of that rows were read (`reach`). `regress`: what was seen of a log that went back, while it was so.
///
/// # Errors
///
/// It is a gap.
pub(crate) fn check(
    origin: &Origin,
    server: &Server,
    slot: Option<&Slot>,
    (held, read): (Position, Position),
    regress: Option<&str>,
) -> Result<Continues, Break> {
    let gap = |way, what: String| Err(Break { what, way });
    if server.system_identifier != origin.system_identifier {
        return gap(
            Way::Stop,
            format!(
                "the server is another one: its system identifier is {}, this box follows {}",
                server.system_identifier, origin.system_identifier
            ),
        );
    }
    if server.database != origin.database {
        return gap(
            Way::Stop,
            format!(
                "the database is `{}`, this box follows `{}`",
                server.database, origin.database
            ),
        );
    }
    if let Some(Slot { plugin, database, .. }) = slot
        && (plugin != "pgoutput" || *database != origin.database)
    {
        let name = &origin.slot;
        let what = format!(
            "the replication slot `{name}` was made anew: for the plugin `{plugin}` in the database `{database}`"
        );
        return gap(Way::Stop, what);
    }
    // What was read where the slot begins, or ahead of the stream, is held too, though no change is.
    let ours = held.max(origin.consistent_point).max(read);
    let grown = if server.log_end > ours { Way::New } else { Way::Later };
    let continues = timeline(origin, server, ours).or_else(|(comes_from_ours, what)| {
        gap(if comes_from_ours { grown } else { Way::Stop }, what)
    })?;
    if server.log_end < ours {
        let ends = server.log_end;
        let what = format!(
            "the server's log ends at {ends}, this box holds changes up to {ours}: the database was restored to an earlier state"
        );
        return gap(Way::Back, what);
    }
    if let Some(what) = regress {
        // A timeline that has branched off since may come from that log.
        return gap(grown, what.into());
    }
    stands(origin, slot, held, grown)?;
    Ok(continues)
}

/// Whether the slot has what comes after `held`. `grown`: how to go on with another slot.
fn stands(origin: &Origin, slot: Option<&Slot>, held: Position, grown: Way) -> Result<(), Break> {
    let gap = |way, what: String| Err(Break { what, way });
    let name = &origin.slot;
    // Nothing after this was ever confirmed by us; the slot begins at its consistent point.
    let ours = held.max(origin.consistent_point);
    let Some(slot) = slot else {
        let what =
            format!("the replication slot `{name}` is gone: changes after {ours} may be lost");
        return gap(grown, what);
    };
    let (Some(restart), Some(confirmed), false) =
        (slot.restart, slot.confirmed, slot.wal_status == "lost")
    else {
        return gap(
            grown,
            format!(
                "the server gave up the replication slot `{name}` and removed the log that it needs: changes after {held} are lost"
            ),
        );
    };
    if confirmed > ours {
        return gap(
            Way::At(confirmed),
            format!(
                "the replication slot `{name}` stands at {confirmed}, this box holds changes up to {ours}: the slot was made anew, another reader moved it, or the journal of this box has lost its end",
            ),
        );
    }
    let made = origin.consistent_point;
    if origin.made && confirmed < made {
        // A slot is on the server's disk from where it was made on.
        return gap(
            grown,
            format!(
                "the replication slot `{name}` stands at {confirmed}, this box made it at {made}: the database was restored to an earlier state, with its slots",
            ),
        );
    }
    if restart > confirmed {
        return gap(
            Way::Stop,
            format!(
                "the replication slot `{name}` keeps the log from {restart} only, and is confirmed at {confirmed}",
            ),
        );
    }
    Ok(())
}

/// Whether the server's timeline has what is held; if not, whether it comes from ours at all: a primary of old
/// that is back beside the new one does not.
fn timeline(origin: &Origin, server: &Server, held: Position) -> Result<Continues, (bool, String)> {
    if server.timeline == origin.timeline {
        return Ok(Continues::Same);
    }
    let (now, before) = (server.timeline, origin.timeline);
    let left = server.history.iter().find(|(timeline, _)| *timeline == before);
    match left {
        Some((_, end)) if held <= *end => {
            Ok(Continues::NewTimeline { timeline: now, branched: *end })
        }
        Some((_, end)) => Err((
            true,
            format!(
                "the server is on timeline {now}, which left timeline {before} at {end}; this box holds changes of timeline {before} up to {held}, which the server has lost"
            ),
        )),
        None => Err((
            false,
            format!(
                "the server is on timeline {now}, which does not come from timeline {before}, the one that this box follows"
            ),
        )),
    }
}

/// Reads a timeline history file: `parent timeline <tab> last position <tab> reason` per line.
pub(crate) fn parse_history(text: &str) -> Vec<(u32, Position)> {
    let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(before, _)| before));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            system_identifier: "7".into(),
            timeline: 1,
            database: "erp".into(),
            slot: "s".into(),
            publication: "p".into(),
            append: None,
            consistent_point: Position(100),
            made: false,
        }
    }

    fn server() -> Server {
        Server {
            system_identifier: "7".into(),
            timeline: 1,
            database: "erp".into(),
            log_end: Position(1000),
            history: vec![],
        }
    }

    fn slot() -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "erp".into(),
            active: false,
            restart: Some(Position(90)),
            confirmed: Some(Position(200)),
            wal_status: "reserved".into(),
            failover: false,
        }
    }

    const HELD: Position = Position(500);
    const NOTHING: Position = Position(0);

    fn broken(server: &Server, slot: Option<&Slot>, held: Position) -> Break {
        check(&origin(), server, slot, (held, NOTHING), None).unwrap_err()
    }

    fn sentence(server: &Server, slot: Option<&Slot>, held: Position) -> String {
        broken(server, slot, held).what
    }

    #[test]
    fn a_slot_behind_what_is_held_continues_it() {
        let found = check(&origin(), &server(), Some(&slot()), (HELD, NOTHING), None);
        assert_eq!(found.unwrap(), Continues::Same);
        let fresh = Slot { confirmed: Some(Position(100)), ..slot() };
        let nothing = check(&origin(), &server(), Some(&fresh), (NOTHING, NOTHING), None);
        assert_eq!(nothing.unwrap(), Continues::Same);
    }

    #[test]
    fn a_slot_stands_before_where_it_was_made_only_on_a_database_put_back() {
        let back = Slot { confirmed: Some(Position(99)), ..slot() };
        let found = |made, slot: &Slot| {
            let origin = Origin { made, ..origin() };
            check(&origin, &server(), Some(slot), (NOTHING, NOTHING), None)
        };
        // Of a slot that was only found there, what it had confirmed may not have been on the server's disk.
        assert!(found(false, &back).is_ok());
        assert!(found(true, &Slot { confirmed: Some(Position(100)), ..slot() }).is_ok());
        let broken = found(true, &back).unwrap_err();
        assert!(broken.what.contains("with its slots"), "{}", broken.what);
        assert_eq!(broken.way, Way::New);
    }

    #[test]
    fn a_slot_is_made_only_on_the_server_that_was_judged() {
        let later = Server { log_end: Position(2000), ..server() };
        assert!(server().is_still(&later).is_ok());
        let promoted = Server { timeline: 2, ..server() };
        let restored = Server { log_end: Position(999), ..server() };
        for other in [promoted, restored] {
            let error = server().is_still(&other).unwrap_err();
            assert!(error.heals(), "{error}");
        }
    }

    #[test]
    fn every_discontinuity_is_a_gap_with_its_own_sentence() {
        let other = Server { system_identifier: "8".into(), ..server() };
        assert!(sentence(&other, Some(&slot()), HELD).contains("another one"));
        let moved = Server { database: "crm".into(), ..server() };
        assert!(sentence(&moved, Some(&slot()), HELD).contains("`crm`"));
        let restored = Server { log_end: Position(499), ..server() };
        assert!(sentence(&restored, Some(&slot()), HELD).contains("restored"));
        assert!(sentence(&server(), None, HELD).contains("gone"));
        let lost = Slot { wal_status: "lost".into(), ..slot() };
        assert!(sentence(&server(), Some(&lost), HELD).contains("gave up"));
        let invalid = Slot { restart: None, ..slot() };
        assert!(sentence(&server(), Some(&invalid), HELD).contains("gave up"));
        let anew = Slot { confirmed: Some(Position(501)), ..slot() };
        assert!(sentence(&server(), Some(&anew), HELD).contains("another reader"));
        let plugin = Slot { plugin: "test_decoding".into(), ..slot() };
        assert!(sentence(&server(), Some(&plugin), HELD).contains("test_decoding"));
    }

    #[test]
    fn a_promoted_standby_continues_if_it_has_all_that_is_held() {
        let history = parse_history("1\t0/1F4\tno recovery target specified\n\n# a comment\n");
        assert_eq!(history, [(1, Position(500))]);
        let promoted = Server { timeline: 2, history, ..server() };
        let found = check(&origin(), &promoted, Some(&slot()), (HELD, NOTHING), None).unwrap();
        assert_eq!(found, Continues::NewTimeline { timeline: 2, branched: Position(500) });
        assert!(sentence(&promoted, Some(&slot()), Position(501)).contains("has lost"));
        // Rows were read at 100 before any change came; the branch has none of them.
        let nothing = Position::default();
        let early = Server { history: vec![(1, Position(99))], ..promoted };
        assert!(sentence(&early, Some(&slot()), nothing).contains("has lost"));
        let stranger = Server { timeline: 2, ..server() };
        assert!(sentence(&stranger, Some(&slot()), HELD).contains("does not come from"));
    }

    #[test]
    fn what_is_no_mistake_is_gone_past_where_positions_only_grow() {
        let way = |server: &Server, slot: Option<&Slot>| broken(server, slot, HELD).way;
        let other = Server { system_identifier: "8".into(), ..server() };
        assert_eq!(way(&other, Some(&slot())), Way::Stop);
        assert_eq!(way(&server(), None), Way::New);
        let lost = Slot { wal_status: "lost".into(), ..slot() };
        assert_eq!(way(&server(), Some(&lost)), Way::New);
        let moved = Slot { confirmed: Some(Position(501)), ..slot() };
        assert_eq!(way(&server(), Some(&moved)), Way::At(Position(501)));
        let others = Slot { plugin: "test_decoding".into(), ..slot() };
        assert_eq!(way(&server(), Some(&others)), Way::Stop);
        // It went back, and has not come past what is held again.
        for (ends, expected) in [(499, Way::Later), (500, Way::Later), (501, Way::New)] {
            let history = vec![(1, Position(450))];
            let log_end = Position(ends);
            let back = Server { timeline: 2, history, log_end, ..server() };
            assert_eq!(way(&back, Some(&slot())), expected);
        }
        // A primary of old beside the new one.
        let old = Server { timeline: 1, ..server() };
        let now = Origin { timeline: 2, ..origin() };
        assert_eq!(
            check(&now, &old, Some(&slot()), (HELD, NOTHING), None).unwrap_err().way,
            Way::Stop
        );
        let restored = Server { log_end: Position(499), ..server() };
        let seen = broken(&restored, Some(&slot()), HELD);
        assert_eq!(seen.way, Way::Back);
        // What was seen then counts when the log has grown past it: on the same timeline, and on one that
        // has branched off there since.
        let grown = check(&origin(), &server(), Some(&slot()), (HELD, NOTHING), Some(&seen.what));
        assert_eq!(grown.unwrap_err(), Break { way: Way::New, ..seen.clone() });
        let history = vec![(1, HELD)];
        let other = Server { timeline: 2, history, ..server() };
        let promoted = check(&origin(), &other, Some(&slot()), (HELD, NOTHING), Some(&seen.what));
        assert_eq!(promoted.unwrap_err(), Break { way: Way::New, ..seen });
    }

    #[test]
    fn rows_that_were_read_ahead_of_the_stream_are_held_too() {
        let judged = |server: &Server, slot: Option<&Slot>, read| {
            check(&origin(), server, slot, (HELD, Position(read)), None)
        };
        let promoted = Server { timeline: 2, history: vec![(1, Position(600))], ..server() };
        assert!(judged(&promoted, Some(&slot()), 600).is_ok());
        let lost = judged(&promoted, Some(&slot()), 601).unwrap_err();
        assert_eq!(lost.way, Way::New, "{}", lost.what);
        // Behind the gap all positions are greater than any before it.
        assert_eq!(judged(&promoted, Some(&slot()), 1001).unwrap_err().way, Way::Later);
        assert_eq!(judged(&server(), Some(&slot()), 1001).unwrap_err().way, Way::Back);
        assert_eq!(judged(&server(), None, 999).unwrap_err().way, Way::New);
        // Changes are held up to where they were streamed.
        let moved = Slot { confirmed: Some(Position(501)), ..slot() };
        let moved = judged(&server(), Some(&moved), 900).unwrap_err();
        assert_eq!(moved.way, Way::At(Position(501)));
    }
}
