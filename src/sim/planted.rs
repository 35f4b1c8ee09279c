//! Bugs on purpose: each distorts one decision of the road on its way into the world, and must be found.
//!
//! The road's code is not touched: what is planted sits in the models around it, where the outcome of the
//! decision passes. A simulation that finds none of these would prove nothing when it finds nothing.

/// A planted bug.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planted {
    /// The source is confirmed all that it has sent, durable or not (I1).
    ConfirmEarly,
    /// A keepalive's position is confirmed while a transaction is open (I5).
    ConfirmOpen,
    /// A keepalive's position is confirmed while what came before it is still in the journal's queue (I5).
    ConfirmQueued,
    /// Under `release = "lake"` the source is released by the journal (I1).
    ReleaseByJournal,
    /// The journal is trimmed up to what is durable, not to what the ledger covers (I8).
    TrimEarly,
    /// After a restart, transactions that the journal holds are taken again (I17).
    NoDedupe,
    /// "The key exists" counts as success for whatever stands there (I18, I19).
    AcceptForeign,
    /// A failed sync counts as a good one (I6).
    SyncIgnored,
    /// Spool files, and their names, are not synced before the facts that name them (I7).
    SpoolUnsynced,
    /// A store that answers before it has the object: the entry is written before what it proves (I2).
    EntryFirst,
    /// Uploads that were begun and not ended are not looked for (I21).
    UploadForgotten,
    /// The id of an upload and its parts are recorded with whatever is recorded next, not before the next
    /// request (I20, I21).
    PartLate,
    /// Facts count as recorded before they are durable.
    FactsEarly,
    /// Epochs are cut wherever a batch ends, inside of transactions too (I4, I11).
    CutOpen,
    /// Where the changes were cut last is not recorded: they are sealed again after a restart (I17).
    CutForgotten,
    /// A gap is not noted: the changes behind it come as if they followed (DESIGN §4).
    GapUnsaid,
    /// Behind a gap the tables are not read anew (DESIGN §6).
    RepairForgotten,
}

impl Planted {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::ConfirmEarly,
        Self::ConfirmOpen,
        Self::ConfirmQueued,
        Self::ReleaseByJournal,
        Self::TrimEarly,
        Self::NoDedupe,
        Self::AcceptForeign,
        Self::SyncIgnored,
        Self::SpoolUnsynced,
        Self::EntryFirst,
        Self::UploadForgotten,
        Self::PartLate,
        Self::FactsEarly,
        Self::CutOpen,
        Self::CutForgotten,
        Self::GapUnsaid,
        Self::RepairForgotten,
    ];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|planted| planted.name() == name)
    }

    /// Its name.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}
