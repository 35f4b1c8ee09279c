//! Rows of a COPY OUT, or of a binary cursor, from a connection.
//!
//! **Invariant:** the rows that were walked past, or copied, are given before anything that came behind them is taken.

use std::{io, time::Duration};

use bytes::{Buf, Bytes};
use postgres_protocol::{IsNull, message::frontend};
use tokio::time::timeout;

use super::{
    super::{
        error::SourceError,
        gulp::{BATCH_BYTES, Gulp, Rows},
        message::{Head, unknown},
    },
    READ_BYTES, SMALL_READ_BYTES, Wire,
};

impl Wire {
    /// Begins `COPY … TO STDOUT (FORMAT binary)`; read it with [`Wire::rows`].
    pub(crate) async fn copy_out(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Gulp, SourceError> {
        self.begin(doing, sql).await?;
        match self.next(COPY_LIMIT, doing).await? {
            (b'H', _) => Ok(Gulp::default()),
            (b'E', body) => Err(self.refused(doing, &body).await),
            (tag, _) => Err(unknown(doing, &char::from(tag).to_string())),
        }
    }

    /// Opens a cursor in the transaction, which gives rows in binary form; read it with [`Wire::rows`]. The server makes
    /// as many as it is asked for ([`Gulp::sip`]), and sends each as it makes it: of a COPY it makes what its buffers take,
    /// megabytes, as fast as it can. A cursor of SQL would put all that are asked for aside first
    /// (`FillPortalStore` in <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/tcop/pquery.c>).
    pub(crate) async fn open_cursor(
        &mut self,
        doing: &'static str,
        select: &str,
    ) -> Result<Gulp, SourceError> {
        self.enter(doing)?;
        self.send(|out| {
            frontend::parse("", select, [], out)?;
            let bound =
                frontend::bind(CURSOR, "", [], [(); 0], |(), _| Ok(IsNull::Yes), [BINARY], out);
            bound.map_err(|_| io::Error::other("no parameter is bound"))?;
            frontend::sync(out);
            Ok(())
        })
        .await?;
        self.settle(doing).await?;
        self.of_table = true;
        Ok(Gulp::of_cursor())
    }

    /// Length of the row that comes next, if its beginning has come and its end has not.
    pub(crate) fn row_ahead(&self) -> Result<usize, SourceError> {
        let come = self.input.len() - self.walked.0;
        let head = self.peek()?.filter(|head| head.length > come);
        Ok(head.map_or(0, |head| head.length))
    }

    /// The next rows of a COPY OUT or of the cursor, or `None` after the last. No rows: a row of more than `alone` bytes
    /// comes next, and is read when this is called again.
    pub(crate) async fn rows(
        &mut self,
        doing: &'static str,
        gulp: &mut Gulp,
        alone: usize,
    ) -> Result<Option<Rows>, SourceError> {
        if gulp.is_of_cursor() && !self.busy && !self.ask(doing, gulp).await? {
            return Ok(None);
        }
        if self.walked.1 > 0 {
            return Ok(self.held(gulp));
        }
        let asked = self.row_ahead()? > alone;
        loop {
            while let Some(head) = self.head()? {
                match head.tag {
                    b'd' | b'D' if gulp.is_row(head.tag) && gulp.passes(head.length - 5) => {
                        if let Some(rows) = self.held(gulp) {
                            return Ok(Some(rows));
                        }
                        let row = self.take(head);
                        return Ok(Some(gulp.pass(row)));
                    }
                    b'd' | b'D' if gulp.is_row(head.tag) && self.is_full(gulp) => {
                        return Ok(self.held(gulp));
                    }
                    b'd' if gulp.is_framed() && self.walk(gulp)? => {}
                    _ if self.walked.1 > 0 => return Ok(self.held(gulp)),
                    b'd' | b'D' if gulp.is_row(head.tag) => self.gulp(gulp)?,
                    b'C' | b's' if gulp.is_of_cursor() => {
                        gulp.answered(head.tag == b's');
                        self.consume(head);
                        self.settle(doing).await?;
                        return Ok(gulp.take().or_else(|| gulp.is_open().then(Rows::default)));
                    }
                    b'c' => {
                        gulp.finish()?;
                        if let Some(rows) = gulp.take() {
                            return Ok(Some(rows));
                        }
                        self.settle(doing).await?;
                        return Ok(None);
                    }
                    b'E' => {
                        let body = Bytes::copy_from_slice(self.body(head));
                        self.consume(head);
                        return Err(self.refused(doing, &body).await);
                    }
                    b'S' | b'N' | b'A' => self.consume(head),
                    tag => return Err(unknown(doing, &char::from(tag).to_string())),
                }
            }
            if self.is_full(gulp) {
                return Ok(self.held(gulp));
            }
            if !asked && self.row_ahead()? > alone {
                return Ok(Some(self.held(gulp).unwrap_or_default()));
            }
            let read = match gulp.is_plenty() {
                true => timeout(COPY_LIMIT, self.gather()).await,
                false => timeout(COPY_LIMIT, self.fill()).await,
            };
            match read {
                Ok(read) => read?,
                Err(_) => return Err(self.broken(doing, "no rows in time")),
            };
        }
    }

    /// Asks the cursor for rows. False: it has given all.
    async fn ask(&mut self, doing: &'static str, gulp: &mut Gulp) -> Result<bool, SourceError> {
        let Some(rows) = gulp.ask() else {
            self.of_table = false;
            return Ok(false);
        };
        self.enter(doing)?;
        let ask = self.send(|out| {
            frontend::execute(CURSOR, rows, out)?;
            frontend::sync(out);
            Ok(())
        });
        ask.await.map(|()| true)
    }

    /// Whether a batch is worth handing on; of rows that are given as they lie here also where there is no room for more:
    /// they would be copied.
    fn is_full(&self, gulp: &Gulp) -> bool {
        gulp.is_full()
            || self.walked.0 >= BATCH_BYTES
            || (self.walked.1 > 0 && self.room() < SMALL_READ_BYTES)
    }

    /// The rows that are held, if any.
    fn held(&mut self, gulp: &mut Gulp) -> Option<Rows> {
        let (length, rows) = self.walked;
        if rows == 0 {
            return gulp.take();
        }
        // Those before have been copied, as the first one is.
        if let Some(before) = gulp.take() {
            return Some(before);
        }
        self.walked = (0, 0);
        let bytes = self.input.split_to(length).freeze();
        self.let_go();
        Some(gulp.give(bytes, rows))
    }

    /// Goes past the rows that are there one after the other, until something else comes: those that would be left of a batch
    /// would be copied. Whether there was one.
    fn walk(&mut self, gulp: &Gulp) -> Result<bool, SourceError> {
        let (mut at, mut rows) = self.walked;
        while at < WALK_BYTES_MAX {
            let rest = &self.input[at..];
            let Some(Head { tag: b'd', length }) = self.head_of(rest)? else { break };
            if length > rest.len() || gulp.passes(length - 5) || Gulp::is_trailer(&rest[5..length])
            {
                break;
            }
            if length < 7 {
                return Err(unknown("a row", "cut short"));
            }
            at += length;
            rows += 1;
        }
        let came = rows > self.walked.1;
        self.walked = (at, rows);
        Ok(came)
    }

    /// Takes the rows that are there one after the other, until the batch is full or something else comes.
    fn gulp(&mut self, gulp: &mut Gulp) -> Result<(), SourceError> {
        let mut taken = 0;
        while !gulp.is_full() {
            let rest = &self.input[taken..];
            let Some(Head { tag: b'd' | b'D', length }) = self.head_of(rest)? else { break };
            if length > rest.len() || gulp.passes(length - 5) {
                break;
            }
            gulp.push(&rest[5..length])?;
            taken += length;
            if gulp.is_framed() {
                break;
            }
        }
        self.input.advance(taken);
        self.let_go();
        Ok(())
    }
}

/// The cursor's name, in its transaction.
const CURSOR: &str = "lakehead";
/// How its columns are sent.
const BINARY: i16 = 1;
/// What the buffer takes as a rule: a large value leaves a larger one.
const WALK_BYTES_MAX: usize = READ_BYTES + SMALL_READ_BYTES;
/// Between two rows; a scan may pass over much that is dead.
const COPY_LIMIT: Duration = Duration::from_secs(300);
