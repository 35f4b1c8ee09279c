//! A TCP proxy on loopback that does to connections what networks do: breaks, stalls, starves, halves.
//!
//! It knows no protocol. For tests: the gateway reaches its database and its store through one each.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time::{Instant, sleep},
};

use crate::shutdown::Tasks;

/// What happens to what goes through.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Way {
    /// It passes.
    #[default]
    Open,
    /// Connections are broken, new ones closed at once.
    Refuse,
    /// Nothing passes in either direction; connections stay.
    Stall,
    /// What the client sends arrives, answers do not.
    HalfOpen,
    /// So many bytes a second pass, in each direction of each connection.
    Slow(u64),
    /// So many bytes of answers a second pass, over all connections together and those of proxies beside this one, in
    /// the order in which they came.
    Narrow(u64),
    /// They pass at once, and others that are [`Way::Narrow`] wait until they would have passed.
    Ahead(u64),
}

/// A running proxy. Dropped, it ends soon after.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    queue: Arc<Queue>,
    tasks: Tasks,
}

#[derive(Clone, Copy, Debug)]
struct State {
    upstream: SocketAddr,
    way: Way,
    /// Connections made before the last of these are broken.
    breaks: u64,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`, on a free port.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::open(upstream, Arc::default()).await
    }

    /// Starts a proxy that shares what is narrow with this one.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn beside(&self, upstream: SocketAddr) -> io::Result<Self> {
        Self::open(upstream, Arc::clone(&self.queue)).await
    }

    async fn open(upstream: SocketAddr, queue: Arc<Queue>) -> io::Result<Self> {
        let port = super::ground::free_port().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State { upstream, way: Way::Open, breaks: 0 });
        let tasks = Tasks::new();
        let (owner, shared) = (tasks.clone(), Arc::clone(&queue));
        tasks.spawn(async move {
            let token = owner.token();
            while let Some(Ok((client, _))) = token.run_until_cancelled(listener.accept()).await {
                let (seen, queue, token) = (seen.clone(), Arc::clone(&shared), owner.token());
                owner.spawn(async move {
                    // How it ended is seen at both ends.
                    drop(token.run_until_cancelled(carry(client, seen, queue)).await);
                });
            }
        });
        Ok(Self { address, state, queue, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens from now on, to connections that are there too.
    pub fn set(&self, way: Way) {
        self.state.send_modify(|state| {
            state.way = way;
            state.breaks += u64::from(way == Way::Refuse);
        });
    }

    /// Breaks the connections that are there (RST).
    pub fn cut(&self) {
        self.state.send_modify(|state| state.breaks += 1);
    }

    /// Leads elsewhere from now on, as an address does that moves with a failover: connections that are
    /// there are broken.
    pub fn turn(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| {
            state.upstream = upstream;
            state.breaks += 1;
        });
    }

    /// Ends it.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

async fn carry(
    mut client: TcpStream,
    mut state: watch::Receiver<State>,
    queue: Arc<Queue>,
) -> io::Result<()> {
    let State { upstream, way, breaks } = *state.borrow_and_update();
    if way == Way::Refuse {
        return client.set_zero_linger();
    }
    let mut server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, state.clone(), None);
        let down = pump(from_server, to_client, state.clone(), Some(&queue));
        let both = async { tokio::try_join!(up, down) };
        tokio::select! {
            ended = both => return ended.map(drop),
            _ = state.wait_for(|now| now.breaks != breaks) => {}
        }
    }
    client.set_zero_linger()?;
    server.set_zero_linger()
}

/// When all answers that came before have passed a narrow place.
type Queue = Mutex<Option<Instant>>;

/// How long it takes until some bytes more have passed at so many a second. Who is ahead does not have others wait for
/// ever.
fn queue_up(queue: &Queue, bytes: usize, rate: u64) -> Duration {
    let (mut last, now) = (queue.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    let free = last.map_or(now, |last| last.clamp(now, now + QUEUE_MAX));
    let passed = free + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    *last = Some(passed);
    passed - now
}

/// Carries one direction to its end; answers have a queue.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
    answers: Option<&Queue>,
) -> io::Result<()> {
    let mut bytes = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let mut rest = &bytes[..read];
        while !rest.is_empty() {
            let way = state.borrow_and_update().way;
            let most = match way {
                Way::Stall => 0,
                Way::HalfOpen if answers.is_some() => 0,
                Way::Narrow(_) => rest.len().min(QUEUED_BYTES),
                Way::Slow(rate) => {
                    usize::try_from(rate / u64::from(TICKS_PER_S)).unwrap_or(usize::MAX).max(1)
                }
                Way::Open | Way::HalfOpen | Way::Refuse | Way::Ahead(_) => rest.len(),
            };
            if most == 0 {
                state.changed().await.map_err(io::Error::other)?;
                continue;
            }
            let (piece, after) = rest.split_at(most.min(rest.len()));
            match (way, answers) {
                (Way::Narrow(rate), Some(queue)) => sleep(queue_up(queue, piece.len(), rate)).await,
                (Way::Ahead(rate), Some(queue)) => drop(queue_up(queue, piece.len(), rate)),
                _ => {}
            }
            to.write_all(piece).await?;
            rest = after;
            if let Way::Slow(rate) = way {
                sleep(Duration::from_secs_f64(piece.len() as f64 / rate.max(1) as f64)).await;
            }
        }
    }
}

const PIECE_BYTES: usize = 64 << 10;
/// What stands in a queue at once.
const QUEUED_BYTES: usize = 8 << 10;
const QUEUE_MAX: Duration = Duration::from_secs(1);
/// The fewest pieces a second when it is slow.
const TICKS_PER_S: u32 = 50;

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    /// A proxy before a server that sends back what it gets, and a client of it.
    async fn echo() -> (Proxy, TcpStream, Tasks) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let owner = tasks.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                owner.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        let proxy = Proxy::start(upstream).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client, tasks)
    }

    async fn answers(client: &mut TcpStream) -> bool {
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        matches!(timeout(SHORT, client.read(&mut byte)).await, Ok(Ok(1)))
    }

    #[tokio::test]
    async fn what_is_held_back_arrives_when_it_opens_again() {
        let (proxy, mut client, _tasks) = echo().await;
        assert!(answers(&mut client).await);
        for way in [Way::Stall, Way::HalfOpen] {
            proxy.set(way);
            assert!(!answers(&mut client).await, "{way:?}");
            proxy.set(Way::Open);
            let mut byte = [0];
            timeout(SHORT * 5, client.read_exact(&mut byte)).await.unwrap().unwrap();
        }
        proxy.set(Way::Slow(100));
        client.write_all(&[7; 60]).await.unwrap();
        let mut bytes = [0; 60];
        assert!(timeout(SHORT, client.read_exact(&mut bytes)).await.is_err());
    }

    #[tokio::test]
    async fn a_cut_breaks_what_is_there_and_lets_new_ones_in() {
        let (proxy, mut client, _tasks) = echo().await;
        assert!(answers(&mut client).await);
        proxy.cut();
        let mut byte = [0];
        assert!(!matches!(timeout(SHORT * 5, client.read(&mut byte)).await.unwrap(), Ok(1)));
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(answers(&mut client).await);
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        proxy.turn(silent.local_addr().unwrap());
        assert!(!matches!(timeout(SHORT * 5, client.read(&mut byte)).await.unwrap(), Ok(1)));
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(!answers(&mut client).await);
        timeout(SHORT * 5, silent.accept()).await.unwrap().unwrap();
        proxy.set(Way::Refuse);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(!matches!(timeout(SHORT * 5, client.read(&mut byte)).await.unwrap(), Ok(1)));
        proxy.stop().await;
    }
}
