//! One connection to a PostgreSQL server: simple queries, rows of COPY OUT ([`rows`]), and COPY BOTH for replication.
//!
//! **Invariants:** every read has a limit in time; one byte ends each wait, but for the first milliseconds of
//! [`Wire::gather`]; filling the buffer can be cancelled without losing a byte (cancel-safe:
//! [`Wire::fill`]); a connection on which an exchange was abandoned half-way refuses the next one.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    error::SourceError,
    lull::{LULL_BYTES, NAP, ONE},
    message::{self, Head, TextRow, unknown},
    tls::{self, Channel},
};

mod rows;

/// A connection, logged in.
#[derive(Debug)]
pub(crate) struct Wire {
    channel: Channel,
    host: String,
    input: BytesMut,
    /// At the beginning of the input: bytes of whole messages, each of a row, which are given together; and how many.
    /// What is called the first message is the one behind them.
    walked: (usize, u64),
    output: BytesMut,
    /// What the server reported of itself: `server_version`, `TimeZone`, ….
    pub(crate) parameters: BTreeMap<String, String>,
    /// How many bytes must have come for us to be woken.
    wakes_at: i32,
    /// An exchange is under way.
    busy: bool,
    /// The input buffer holds, or held, a message of unusual length.
    grown: bool,
    /// Rows are a table's, and not the catalog's.
    of_table: bool,
}

impl Wire {
    /// A connection before its log-in.
    pub(crate) fn new(channel: Channel, host: String) -> Self {
        let input = BytesMut::with_capacity(READ_BYTES);
        let (output, parameters) = (BytesMut::new(), BTreeMap::new());
        Self {
            channel,
            host,
            input,
            walked: (0, 0),
            output,
            parameters,
            wakes_at: ONE,
            busy: false,
            grown: false,
            of_table: false,
        }
    }

    /// The server's name and port, for people.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The channel below.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The server's version as `server_version_num` has it: 150018.
    pub(crate) fn version(&self) -> u32 {
        let text = self.parameters.get("server_version").map_or("", String::as_str);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
        let mut next = || numbers.next().flatten().filter(|number| *number < 10_000).unwrap_or(0);
        let (major, minor): (u32, u32) = (next(), next());
        major * 10_000 + minor
    }

    /// Sends a message that `build` appends, now.
    pub(crate) async fn send(
        &mut self,
        build: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), SourceError> {
        self.output.clear();
        build(&mut self.output).map_err(|why| self.broken("write", why))?;
        let write = async {
            self.channel.write_all(&self.output).await?;
            self.channel.flush().await
        };
        match timeout(WRITE_LIMIT, write).await {
            Ok(written) => written.map_err(|why| self.broken("write", why)),
            Err(_) => Err(self.broken("write", "the server takes nothing")),
        }
    }

    /// Waits for bytes and takes what is there. How many. Cancel-safe: nothing is taken and lost.
    pub(crate) async fn fill(&mut self) -> Result<usize, SourceError> {
        self.wake_at(ONE);
        self.read(SMALL_READ_BYTES).await
    }

    /// As [`Wire::fill`], of what nobody waits for: many bytes, or after [`GATHER_LIMIT`] what is there. Cancel-safe.
    async fn gather(&mut self) -> Result<usize, SourceError> {
        self.wake_at(LULL_BYTES);
        // Behind rows that are held there is less room: they would be copied.
        let room = if self.walked.1 > 0 { SMALL_READ_BYTES } else { READ_BYTES };
        match timeout(GATHER_LIMIT, self.read(room)).await {
            Ok(read) => read,
            Err(_) => self.fill().await,
        }
    }

    fn wake_at(&mut self, bytes: i32) {
        if std::mem::replace(&mut self.wakes_at, bytes) != bytes {
            self.channel.wake_at(bytes);
        }
    }

    /// Reads what is there, into `room` at least.
    async fn read(&mut self, room: usize) -> Result<usize, SourceError> {
        self.make_room(room)?;
        match self.channel.read_buf(&mut self.input).await {
            Ok(0) => Err(self.broken("read", "the server closed the connection")),
            Ok(read) => Ok(read),
            // With TLS 1.3 a server judges us behind the handshake.
            Err(why) if tls::refuses_us(&why) => Err(tls::refused_us(self.host.clone(), &why)),
            Err(why) => Err(self.broken("read", why)),
        }
    }

    /// Naps, so that the server's messages come many at a time. Whether something came. Cancel-safe.
    pub(crate) async fn nap(&mut self) -> bool {
        // As it is behind a nap.
        self.wake_at(ONE);
        self.channel.nap(NAP).await
    }

    /// Room for the rest of the first message, or so much.
    fn make_room(&mut self, room: usize) -> Result<(), SourceError> {
        let whole = self.peek()?.map_or(0, |head| head.length);
        if whole > READ_BYTES {
            self.grown = true;
            self.input.reserve((self.walked.0 + whole).saturating_sub(self.input.len()));
        } else if self.room() < room {
            // Of rows that are given as they lie here, a batch and a read.
            self.input.reserve(READ_BYTES + SMALL_READ_BYTES);
        }
        Ok(())
    }

    /// Bytes that can be read into the buffer as it is.
    fn room(&self) -> usize {
        self.input.capacity() - self.input.len()
    }

    /// The head of the first message, even if its body is not there yet.
    fn peek(&self) -> Result<Option<Head>, SourceError> {
        self.head_of(&self.input[self.walked.0..])
    }

    fn head_of(&self, buffer: &[u8]) -> Result<Option<Head>, SourceError> {
        match self.of_table {
            true => message::head_of_rows(buffer),
            false => message::head(buffer),
        }
    }

    /// The head of the first message, once it is there as a whole.
    pub(crate) fn head(&self) -> Result<Option<Head>, SourceError> {
        Ok(self.peek()?.filter(|head| head.length <= self.input.len() - self.walked.0))
    }

    /// The body of the first message.
    pub(crate) fn body(&self, head: Head) -> &[u8] {
        &self.input[5..head.length]
    }

    /// Goes on to the message after the first.
    pub(crate) fn consume(&mut self, head: Head) {
        self.input.advance(head.length);
        self.let_go();
    }

    /// The body of the first message; goes on to the one after it.
    fn take(&mut self, head: Head) -> Bytes {
        let mut message = self.input.split_to(head.length).freeze();
        message.advance(5);
        self.let_go();
        message
    }

    /// Gives the memory of a large value back, or lets go of it, at once: the next bytes may be read only when whoever has
    /// the value, or his copy, is done with it.
    fn let_go(&mut self) {
        if self.grown && self.input.len() <= READ_BYTES {
            let mut fresh = BytesMut::with_capacity(2 * READ_BYTES);
            fresh.extend_from_slice(&self.input);
            (self.input, self.grown) = (fresh, false);
        }
    }

    /// The next message that says something, within `limit`. Cancel-safe.
    pub(crate) async fn next(
        &mut self,
        limit: Duration,
        doing: &'static str,
    ) -> Result<(u8, Bytes), SourceError> {
        loop {
            while let Some(head) = self.head()? {
                let body = self.take(head);
                match head.tag {
                    b'S' => {
                        let (name, value) = message::parameter(&body)?;
                        self.keep(name, value);
                    }
                    // Notices and notifications concern nobody here.
                    b'N' | b'A' => {}
                    tag => return Ok((tag, body)),
                }
            }
            match timeout(limit, self.fill()).await {
                Ok(read) => read?,
                Err(_) => return Err(self.broken(doing, "no answer in time")),
            };
        }
    }

    /// Keeps what the server says of a setting; of a server that says more than any would, not all.
    fn keep(&mut self, name: String, value: String) {
        let is_new = !self.parameters.contains_key(&name);
        let fits = name.len() + value.len() <= PARAMETER_BYTES_MAX;
        if fits && !(is_new && self.parameters.len() >= PARAMETERS_MAX) {
            self.parameters.insert(name, value);
        }
    }

    /// Runs statements and gives the rows of the last one.
    pub(crate) async fn query(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<TextRow>, SourceError> {
        self.query_within(QUERY_LIMIT, doing, sql).await
    }

    /// [`Wire::query`] for what may take long. Each wait for bytes takes at most `limit`.
    pub(crate) async fn query_within(
        &mut self,
        limit: Duration,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<TextRow>, SourceError> {
        self.begin(doing, sql).await?;
        let (mut rows, mut bytes, mut refused) = (vec![], 0, None);
        loop {
            match self.next(limit, doing).await? {
                (b'T', _) => (rows, bytes) = (vec![], 0),
                (b'D', body) => {
                    let row = TextRow::parse(&body)?;
                    bytes += body.len() + (row.0.len() + 2) * size_of::<Option<String>>();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(self.broken(doing, "the answer is too long to be one"));
                    }
                    rows.push(row);
                }
                (b'C' | b'I', _) => {}
                (b'E', body) => refused = Some(message::server_error(&body)),
                (b'Z', _) => break,
                (tag, _) => return Err(unknown(doing, &char::from(tag).to_string())),
            }
        }
        self.busy = false;
        refused.map_or(Ok(rows), |error| Err(SourceError::Server { doing, error }))
    }

    /// Begins COPY BOTH (START_REPLICATION).
    pub(crate) async fn copy_both(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<(), SourceError> {
        self.begin(doing, sql).await?;
        match self.next(QUERY_LIMIT, doing).await? {
            (b'W', _) => Ok(()),
            (b'E', body) => Err(self.refused(doing, &body).await),
            (tag, _) => Err(unknown(doing, &char::from(tag).to_string())),
        }
    }

    /// Ends COPY BOTH and the connection, without waiting for an answer.
    pub(crate) async fn leave(mut self) {
        let goodbye = self.send(|out| {
            frontend::copy_done(out);
            frontend::terminate(out);
            Ok(())
        });
        // The server ends the session by itself if this does not arrive.
        drop(timeout(GOODBYE_LIMIT, goodbye).await);
    }

    /// Ends the connection, for the server, whatever it is about to send.
    pub(crate) async fn hang_up(&mut self) {
        // It is broken, or the server finds that out by itself.
        drop(timeout(GOODBYE_LIMIT, self.channel.shutdown()).await);
    }

    async fn begin(&mut self, doing: &'static str, sql: &str) -> Result<(), SourceError> {
        self.enter(doing)?;
        self.of_table = false;
        self.send(|out| frontend::query(sql, out)).await
    }

    /// An exchange begins.
    fn enter(&mut self, doing: &'static str) -> Result<(), SourceError> {
        if std::mem::replace(&mut self.busy, true) {
            return Err(self.broken(doing, "an exchange on this connection was abandoned"));
        }
        Ok(())
    }

    /// What the server refused, once it is ready again. The error counts, not what follows it.
    async fn refused(&mut self, doing: &'static str, body: &[u8]) -> SourceError {
        let error = message::server_error(body);
        drop(self.settle(doing).await);
        SourceError::Server { doing, error }
    }

    /// Reads on until the server is ready for the next statement.
    async fn settle(&mut self, doing: &'static str) -> Result<(), SourceError> {
        let mut refused = None;
        loop {
            match self.next(QUERY_LIMIT, doing).await? {
                (b'Z', _) => break,
                (b'E', body) => refused = Some(message::server_error(&body)),
                // Parsed, bound, and what a statement or COPY ends with.
                (b'1' | b'2' | b'c' | b'C', _) => {}
                (tag, _) => return Err(unknown(doing, &char::from(tag).to_string())),
            }
        }
        self.busy = false;
        refused.map_or(Ok(()), |error| Err(SourceError::Server { doing, error }))
    }

    /// The connection failed.
    pub(crate) fn broken(&self, doing: &str, why: impl std::fmt::Display) -> SourceError {
        SourceError::broken(&format!("{} ({doing})", self.host), why)
    }
}

/// A good read: several hundred messages. Also the input buffer's usual size.
const READ_BYTES: usize = 256 << 10;
/// A read below it has taken all there was; in the stream a nap follows. Reads have more room than that.
pub(super) const SMALL_READ_BYTES: usize = READ_BYTES / 4;
/// In a COPY, how long its rows are waited for to be many: those of a server that is slow come as they are.
const GATHER_LIMIT: Duration = Duration::from_millis(2);
/// What a query of the catalog answers is held whole. Of a hundred tables with all the columns that they can have it is
/// three quarters of this.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// A server tells of some twenty settings.
const PARAMETERS_MAX: usize = 100;
/// A setting's name and value.
const PARAMETER_BYTES_MAX: usize = 4 << 10;
/// A query of the catalog. Locks are waited for less long (`lock_timeout`).
const QUERY_LIMIT: Duration = Duration::from_secs(60);
const WRITE_LIMIT: Duration = Duration::from_secs(30);
const GOODBYE_LIMIT: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A connection to a server that we play ourselves.
    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (Wire::new(Channel::Plain(client), "test:1".into()), server)
    }

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    #[tokio::test]
    async fn a_read_that_is_cancelled_loses_nothing() {
        let (mut wire, mut server) = pair().await;
        let message = framed(b'd', &[7; 1000]);
        for piece in message.chunks(100) {
            server.write_all(piece).await.unwrap();
            tokio::select! {
                biased;
                read = wire.fill() => { read.unwrap(); }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            // Cancelled while nothing is there to be read.
            assert!(wire.fill().now_or_never().is_none());
        }
        let head = wire.head().unwrap().unwrap();
        assert_eq!(wire.body(head), [7; 1000]);
    }

    #[tokio::test]
    async fn a_server_that_never_ends_its_answer_is_left() {
        let (mut wire, mut server) = pair().await;
        let row =
            framed(b'D', &[&[0, 1][..], &(1i32 << 20).to_be_bytes(), &[b'x'; 1 << 20]].concat());
        let talk = async move {
            for n in 0..1000u32 {
                let name = format!("{n}\0{}\0", "x".repeat(10));
                server.write_all(&framed(b'S', name.as_bytes())).await.unwrap();
            }
            server
                .write_all(&framed(b'S', &[&b"long\0"[..], &[b'x'; 1 << 19], b"\0"].concat()))
                .await
                .unwrap();
            while server.write_all(&row).await.is_ok() {}
        };
        let ask = async move {
            let error = wire.query("ask", "SELECT").await.unwrap_err();
            assert!(error.to_string().contains("too long"), "{error}");
            assert_eq!(wire.parameters.len(), PARAMETERS_MAX);
        };
        tokio::join!(talk, ask);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_comes_many_at_a_time() {
        let (mut wire, mut server) = pair().await;
        // The runtime takes a socket for readable until it was found empty.
        assert!(wire.gather().now_or_never().is_none());
        let moment = || tokio::time::sleep(Duration::from_millis(20));
        server.write_all(&[7; 1000]).await.unwrap();
        moment().await;
        assert!(wire.gather().now_or_never().is_none(), "nobody is told of a few");
        // As many as find room on the way.
        let mut left = 1000;
        while let Ok(sent) = server.try_write(&[7; 1000]) {
            left += sent;
        }
        assert!(left > SMALL_READ_BYTES, "{left}");
        moment().await;
        assert!(wire.gather().await.unwrap() >= SMALL_READ_BYTES);
        left -= wire.input.len();
        wire.input.clear();
        while left > 0 {
            left -= wire.fill().await.unwrap();
            wire.input.clear();
        }
        // A few come as well, and whoever waits for one byte gets it at once.
        server.write_all(&[7]).await.unwrap();
        assert_eq!(wire.gather().await.unwrap(), 1);
        assert!(wire.gather().now_or_never().is_none());
        assert_eq!(wire.wakes_at, LULL_BYTES);
        server.write_all(&[7]).await.unwrap();
        assert_eq!(timeout(WRITE_LIMIT, wire.fill()).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn an_error_leaves_the_connection_usable_and_an_abandoned_exchange_does_not() {
        let (mut wire, mut server) = pair().await;
        let refusal = [framed(b'E', b"C42501\0Mno\0\0"), framed(b'Z', b"I")].concat();
        server.write_all(&refusal).await.unwrap();
        let refused = wire.query("test", "SELECT 1").await.unwrap_err();
        assert!(refused.to_string().contains("42501"));
        let abandoned = timeout(Duration::from_millis(20), wire.query("test", "SELECT 2")).await;
        assert!(abandoned.is_err());
        let refused = wire.query("test", "SELECT 3").await.unwrap_err();
        assert!(refused.to_string().contains("abandoned"));
    }

    #[tokio::test]
    async fn a_large_value_passes_alone_and_its_memory_is_given_back() {
        let (mut wire, mut server) = pair().await;
        let header = [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8]].concat();
        let large = vec![1; 3 << 20];
        let sent = [
            framed(b'H', &[1, 0, 0]),
            framed(b'd', &[header, vec![0, 0]].concat()),
            framed(b'd', &large),
            framed(b'd', &[255, 255]),
            framed(b'c', &[]),
            framed(b'C', b"COPY 2\0"),
            framed(b'Z', b"I"),
        ]
        .concat();
        let send = async { server.write_all(&sent).await.unwrap() };
        let receive = async {
            let mut gulp = wire.copy_out("test", "COPY").await.unwrap();
            let first = wire.rows("test", &mut gulp, 1 << 20).await.unwrap().unwrap();
            assert_eq!((first.rows, first.bytes.len()), (1, 2));
            assert_eq!(wire.row_ahead().unwrap(), large.len() + 5, "it waits for its turn");
            let second = wire.rows("test", &mut gulp, 1 << 20).await.unwrap().unwrap();
            assert_eq!((second.rows, second.bytes.len()), (1, large.len()));
            assert!(second.bytes.is_unique(), "and the connection does not hold it any longer");
            assert_eq!(wire.rows("test", &mut gulp, 1 << 20).await.unwrap(), None);
        };
        tokio::join!(send, receive);
        assert!(wire.input.capacity() < 1 << 20, "{}", wire.input.capacity());
    }

    /// Answers as a server with a cursor over these rows; what it was asked for at once.
    async fn serve_cursor(mut server: TcpStream, mut rows: VecDeque<Vec<u8>>) -> Vec<usize> {
        let mut asked = vec![];
        while let Ok(tag) = server.read_u8().await {
            let length = usize::try_from(server.read_u32().await.unwrap()).unwrap();
            let mut body = vec![0; length - 4];
            server.read_exact(&mut body).await.unwrap();
            let answer = match tag {
                b'P' => framed(b'1', &[]),
                b'B' => framed(b'2', &[]),
                b'E' => {
                    let count = body.last_chunk::<4>().map(|count| u32::from_be_bytes(*count));
                    let count = usize::try_from(count.unwrap()).unwrap();
                    asked.push(count);
                    let some = rows.drain(..count.min(rows.len())).map(|row| framed(b'D', &row));
                    let mut answer = some.collect::<Vec<_>>();
                    // As the server does, which does not look whether more rows come.
                    answer.push(match answer.len() == count {
                        true => framed(b's', &[]),
                        false => framed(b'C', b"SELECT 1\0"),
                    });
                    answer.concat()
                }
                b'S' => framed(b'Z', b"T"),
                _ => [framed(b'C', b"DONE\0"), framed(b'Z', b"T")].concat(),
            };
            server.write_all(&answer).await.unwrap();
        }
        asked
    }

    #[tokio::test]
    async fn a_cursor_gives_all_rows_a_few_at_a_time() {
        let row = |length: usize| [&[0, 1][..], &vec![7; length - 2]].concat();
        // A large one among small ones; as many as were asked for at last; none.
        let large = (0..100).map(|number| row(if number == 40 { 3 << 20 } else { 1000 }));
        for sent in [large.collect(), vec![row(1000); 16 + 65], vec![]] {
            let (mut wire, server) = pair().await;
            let serve = serve_cursor(server, sent.clone().into());
            let receive = async move {
                let mut gulp = wire.open_cursor("test", "SELECT").await.unwrap();
                gulp.sip(65_000);
                let (mut bytes, mut rows) = (vec![], 0);
                while let Some(some) = wire.rows("test", &mut gulp, 1 << 20).await.unwrap() {
                    bytes.extend(some.bytes);
                    rows += some.rows;
                }
                // And the connection is free for others.
                wire.query("test", "COMMIT").await.unwrap();
                (bytes, rows)
            };
            let (asked, (bytes, rows)) = tokio::join!(serve, receive);
            assert_eq!((rows, bytes), (sent.len() as u64, sent.concat()));
            assert!(asked[0] == 16 && asked.iter().all(|count| *count <= 65), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn rows_are_those_sent_however_they_come() {
        for (seed, is_framed) in (0..16).flat_map(|seed| [(seed, false), (seed, true)]) {
            let mut dice = fastrand::Rng::with_seed(seed);
            let header = [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8]].concat();
            let mut stream = framed(b'H', &[1, 0, 0]);
            let (mut rows, count) = (vec![], dice.u64(0..4000));
            for number in 0..count {
                let length = if dice.u16(..) < 60 {
                    dice.usize(200_000..300_000)
                } else {
                    dice.usize(..300)
                };
                let row = [&[0, 1][..], &vec![dice.u8(..); length]].concat();
                let first = if number == 0 { &header[..] } else { &[] };
                stream.extend(framed(b'd', &[first, &row].concat()));
                rows.extend(row);
                match dice.u8(..) {
                    0 => stream.extend(framed(b'N', b"SNOTICE\0\0")),
                    1 => stream.extend(framed(b'S', b"TimeZone\0UTC\0")),
                    2 => stream.extend(framed(b'A', &[0; 6])),
                    _ => {}
                }
            }
            if count == 0 {
                stream.extend(framed(b'd', &header));
            }
            stream.extend(framed(b'd', &[255, 255]));
            stream.extend(framed(b'c', &[]));
            stream.extend(framed(b'C', b"COPY 0\0"));
            stream.extend(framed(b'Z', b"I"));
            let (mut wire, mut server) = pair().await;
            let send = async {
                let mut rest = &stream[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(dice.usize(1..100_000).min(rest.len()));
                    server.write_all(piece).await.unwrap();
                    rest = after;
                }
            };
            let receive = async {
                let mut gulp = wire.copy_out("test", "COPY").await.unwrap();
                if is_framed {
                    gulp = gulp.framed();
                }
                let (mut found, mut counted) = (vec![], 0);
                while let Some(batch) = wire.rows("test", &mut gulp, 1 << 18).await.unwrap() {
                    let before = found.len();
                    let mut rest = &batch.bytes[..];
                    while batch.framing > 0 && !rest.is_empty() {
                        let length = u32::from_be_bytes(*rest[1..].first_chunk().unwrap());
                        let (message, after) = rest.split_at(1 + length as usize);
                        found.extend_from_slice(&message[5..]);
                        rest = after;
                    }
                    found.extend_from_slice(rest);
                    assert_eq!(batch.payload(), (found.len() - before) as u64);
                    counted += batch.rows;
                }
                assert!(
                    counted == count && found == rows,
                    "seed {seed}, {is_framed}: {counted} of {count} rows"
                );
            };
            tokio::join!(send, receive);
        }
    }

    #[tokio::test]
    async fn rows_before_an_error_are_given_and_the_error_behind_them() {
        for is_framed in [false, true] {
            let (mut wire, mut server) = pair().await;
            let header = [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8]].concat();
            let sent = [
                framed(b'H', &[1, 0, 0]),
                framed(b'd', &[header, vec![0, 0]].concat()),
                framed(b'd', &[0, 0]).repeat(9),
                framed(b'E', b"C57014\0Mcancelled\0\0"),
                framed(b'Z', b"I"),
            ];
            server.write_all(&sent.concat()).await.unwrap();
            let gulp = wire.copy_out("test", "COPY").await.unwrap();
            let mut gulp = if is_framed { gulp.framed() } else { gulp };
            let mut rows = 0;
            let refused = loop {
                match wire.rows("test", &mut gulp, 1 << 20).await {
                    Ok(some) => rows += some.unwrap().rows,
                    Err(error) => break error,
                }
            };
            // Those that were copied go with the error: the part is read again.
            assert_eq!(rows, if is_framed { 10 } else { 0 });
            assert!(refused.to_string().contains("57014"), "{refused}");
            server.write_all(&framed(b'Z', b"I")).await.unwrap();
            wire.query("test", "ROLLBACK").await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_version_is_read_from_what_the_server_reports() {
        let (mut wire, _server) = pair().await;
        for (text, number) in [("15.18 (Debian)", 150_018), ("18beta1", 180_000), ("", 0)] {
            wire.parameters.insert("server_version".into(), text.into());
            assert_eq!(wire.version(), number);
        }
    }
}
