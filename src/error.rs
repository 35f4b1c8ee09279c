//! What to do about an error, decided in one table. Pure.
//!
//! A room's error names its [`Cause`]; this file alone turns a cause into a [`Disposition`] and the
//! sentence that tells a person what to do (P7).

/// What the road does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// Transient: try again after the backoff. The text says what is being waited for.
    Retry(&'static str),
    /// A person must act; the text says how. `run` goes on looking, at a slow pace, until it is mended.
    Halt(&'static str),
    /// Trust in local state is lost: the process ends, and the next start recovers.
    Fatal(&'static str),
    /// Another appliance owns the source: the process ends with exit code 3 and stays down.
    Fenced(&'static str),
}

/// An error of the road that this table knows.
pub trait Classified: std::error::Error + Send + Sync + 'static {
    /// The line of the table.
    fn cause(&self) -> Cause;

    /// What a person can do: the table's sentence, or a more exact one where the error knows more.
    fn remedy(&self) -> String {
        Classified::cause(self).disposition().remedy().into()
    }
}

/// One line of `lakehead check`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at: `source erp: wal_level`.
    pub check: String,
    /// What was seen when it is well: `logical`.
    pub seen: String,
    /// What is wrong: the cause, and what happened.
    pub problem: Option<(Cause, String)>,
    /// What to do about it, where more is known than the cause says.
    pub remedy: Option<String>,
}

impl Finding {
    /// A line that is well.
    pub fn ok(check: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { check: check.into(), seen: seen.into(), problem: None, remedy: None }
    }

    /// A line that is not.
    pub fn problem(check: impl Into<String>, cause: Cause, what: impl Into<String>) -> Self {
        let problem = Some((cause, what.into()));
        Self { check: check.into(), seen: String::new(), problem, remedy: None }
    }

    /// A line that is not, with what the error says.
    pub fn failed(check: impl Into<String>, error: &impl Classified) -> Self {
        let remedy = Some(error.remedy());
        Self { remedy, ..Self::problem(check, Classified::cause(error), error.to_string()) }
    }
}

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident => $disposition:ident($text:literal),)+) => {
        /// Why something failed, as far as what to do about it depends on it.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Cause { $($(#[doc = $doc])+ $name,)+ }

        impl Cause {
            /// Every cause, for the README's table and its test.
            pub const ALL: &[Cause] = &[$(Cause::$name,)+];

            /// The line of the table.
            pub fn disposition(self) -> Disposition {
                match self { $(Cause::$name => Disposition::$disposition($text),)+ }
            }

            /// The name that logs, metrics and `--json` use.
            pub fn name(self) -> &'static str {
                match self { $(Cause::$name => stringify!($name),)+ }
            }
        }
    };
}

causes! {
    /// The database does not answer, or hung up.
    SourceUnreachable => Retry("waiting for the database: check that the host and port in `url` answer from this box"),
    /// Wrong user, password or pg_hba.conf line.
    SourceAuthentication => Halt("the database refused the login: check the user in `url`, `password_file`, `client_certificate_file`, and the line for this box in pg_hba.conf"),
    /// The certificate is not signed by a trusted authority, or names another host.
    SourceCertificate => Halt("the database's certificate was refused: renew it if it has expired, give its authority with `sslrootcert` in `url`, or correct the host name"),
    /// The server offers no TLS where the configuration demands it.
    SourceWithoutTls => Halt("the database offers no TLS: set `ssl = on` there, or change `sslmode` in `url`"),
    /// wal_level is not logical.
    WalLevel => Halt("set `wal_level = logical` on the database and restart it"),
    /// No free replication slot or walsender.
    SlotLimit => Halt("raise `max_replication_slots` and `max_wal_senders` on the database and restart it"),
    /// The role lacks a privilege.
    SourcePrivilege => Halt("grant the missing privilege: `lakehead check` prints the statement"),
    /// The slot that we had is gone, was made anew, or belongs to another history.
    SourceGap => Halt("the database does not continue what this box holds, and nothing is skipped: see the README's \"Gap\""),
    /// The log was lost in between; tables are read anew behind it, or repaired by keys.
    SourceRepair => Retry("changes were lost at the source, as the ledger says: tables are being read anew, or the rows of them that differ"),
    /// The log was lost in between; tables wait to be compared with the lake.
    SourceCompare => Halt("changes were lost at the source, as the ledger says, and tables wait to be compared: run `lakehead verify --against-source --repair`, or set `after_gap = \"reread\"`"),
    /// Another process uses our slot.
    SlotBusy => Retry("waiting for the replication slot: another connection uses it"),
    /// Transactions that are open on the database, and must end before a snapshot can begin.
    SourceTransactions => Retry("waiting for transactions that are open on the database: a snapshot begins when they have ended; end those that nobody needs"),
    /// The database is going to remove log that the slot needs.
    SlotShort => Halt("the database is going to remove log that this box still needs: raise `max_slot_wal_keep_size` there, or see why the box is behind"),
    /// No table matches.
    NoTables => Halt("no table matches `tables`: correct the patterns, or create the tables"),
    /// A message, type or version that this firmware does not know.
    SourceUnknown => Halt("the database sent something this firmware does not know: nothing was skipped; send the log to support"),
    /// A table that cannot be copied exactly.
    TableRefused => Halt("a table cannot be copied exactly: give it a primary key or REPLICA IDENTITY FULL, or exclude it in `tables`"),
    /// The keys of a table change faster than its rows, of which some lack values, can be read again.
    TableRestless => Halt("rows of a table lack values, and its keys change faster than they can be read again: let the keys rest, or set REPLICA IDENTITY FULL on the table until the alarm is gone"),
    /// The journal reached its quota: reading pauses until S3 takes objects again.
    JournalFull => Retry("the journal is full: reading from the database pauses until objects are shipped; raise `[journal] max_bytes` or mend the link"),
    /// The file system refuses writes.
    DiskFull => Retry("the disk is full: free space in `data_dir`"),
    /// The disk failed, or an fsync did.
    DiskFailed => Fatal("the disk failed: nothing unsynced counts; look at the kernel's log and replace the disk"),
    /// A file of the spool is gone or does not open.
    SpoolDamaged => Fatal("what waited for S3 is damaged: the next start makes it anew; look at the kernel's log, and replace the disk if it comes again"),
    /// A checksum in the journal does not match, outside a torn tail.
    JournalDamaged => Halt("the journal is damaged: run `lakehead journal check`, which names the range"),
    /// The journal key does not open the journal.
    JournalKey => Halt("the journal key does not fit the journal in `data_dir`: give the key that it was written with"),
    /// The link's interface is down, or not there.
    LinkDown => Retry("waiting for the link, with changes kept in the journal: check its cable, and that the interface named in `[[link]]` is there, up, and has an address"),
    /// S3 does not answer, or answers 5xx.
    LakeUnavailable => Retry("waiting for S3, with changes kept in the journal: check that the bucket's endpoint answers from this box"),
    /// S3 asks for fewer requests.
    LakeSlowDown => Retry("S3 asks to slow down: fewer requests at once"),
    /// Wrong or expired credentials.
    LakeCredentials => Halt("there are no credentials that S3 accepts: check `credentials_file`"),
    /// The credentials do not allow the request.
    LakeForbidden => Halt("S3 denied the request: allow PutObject, AbortMultipartUpload and ListMultipartUploadParts on the prefix, ListBucketMultipartUploads on the bucket"),
    /// No such bucket.
    LakeBucket => Halt("the bucket does not exist: correct `bucket`, `region` or `endpoint`"),
    /// This box's clock and S3's differ by more than S3 allows.
    ClockSkew => Halt("the clock differs from S3's by more than 5 minutes: set the time, or its server"),
    /// S3 computed another checksum than we did.
    LakeChecksum => Retry("the checksum did not match on arrival: sending again"),
    /// S3 refused a request for a reason that trying again does not mend.
    LakeRefused => Halt("S3 refused the request: the log has its code and message"),
    /// S3 could not use the customer's key.
    LakeKms => Halt("S3 could not use the KMS key: check `kms_key_id`, the key's state, and that the credentials may use kms:GenerateDataKey and kms:Decrypt with it"),
    /// The store overwrote a key although `If-None-Match: *` was sent.
    LakeUnconditional => Halt("the store ignores If-None-Match, so nothing protects an object from being overwritten: use S3, or a store that honours conditional writes"),
    /// The certificate of the endpoint is not trusted.
    LakeCertificate => Halt("the certificate of the S3 endpoint was refused: check `endpoint` and this box's trust store"),
    /// An object in the lake does not match the ledger.
    LakeAltered => Halt("the lake does not match its ledger: run `lakehead verify`"),
    /// Another appliance wrote the next entry of the ledger.
    Fenced => Fenced("another appliance owns this source: stop one of them, or give this one another name and prefix"),
    /// The lake holds a ledger for this source that this box does not continue.
    ChainForeign => Fenced("the lake already holds a ledger for this source: continue it with `lakehead adopt`, or choose another prefix"),
    /// The identity key is not the one that signed the chain so far.
    IdentityKey => Halt("the identity key is not the one that signed the ledger so far: put `identity.key` back from its copy, or continue the chain with `lakehead adopt`"),
    /// The lake key does not open an object.
    LakeKey => Halt("the key in `key_file` does not open the object: give the key that it was sealed with"),
    /// The lake holds no consistent point where a restore was asked for.
    RestorePoint => Halt("the lake is not whole at that point: choose another `--until`, wait until the snapshots are in the ledger, or leave a table out with `--except`"),
    /// The database that is being restored refuses a statement.
    RestoreTarget => Halt("the database to restore into refused: give an empty one, of the source's version or later, with its extensions and a role that may create schemas and types"),
    /// The configuration cannot be used.
    Config => Halt("correct the configuration"),
    /// A key or secret file cannot be used.
    SecretFile => Halt("give the file mode 0600 and the owner that runs lakehead"),
    /// A defect of this firmware.
    Defect => Fatal("a defect of this firmware: nothing acknowledged is lost; send the log to support"),
}

/// A failed command's exit code (DESIGN §12).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Checked and found wanting.
    Wanting = 1,
    /// Could not run: usage, configuration, unreachable.
    CouldNotRun = 2,
    /// Another appliance owns the source.
    Fenced = 3,
}

impl Disposition {
    /// The sentence for a person.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Retry(text) | Self::Halt(text) | Self::Fatal(text) | Self::Fenced(text) => text,
        }
    }

    /// The exit code of a process that ends for it.
    pub fn exit(self) -> Exit {
        match self {
            Self::Fenced(_) => Exit::Fenced,
            Self::Retry(_) | Self::Halt(_) | Self::Fatal(_) => Exit::CouldNotRun,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_foreign_owner_ends_with_3() {
        let fenced: Vec<_> =
            Cause::ALL.iter().filter(|cause| cause.disposition().exit() == Exit::Fenced).collect();
        assert_eq!(fenced, [&Cause::Fenced, &Cause::ChainForeign]);
    }

    #[test]
    fn every_cause_says_what_to_do() {
        for cause in Cause::ALL {
            assert!(cause.disposition().remedy().len() > 20, "{}", cause.name());
        }
    }
}
