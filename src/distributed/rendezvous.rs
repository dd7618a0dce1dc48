//! Rendezvous of ranks for NCCL, which needs a shared id before it can communicate: rank 0 creates it and sends it to
//! all.
//!
//! Rank 0 listens at `MASTER_ADDR`:`MASTER_PORT`; each of the others connects, sends its rank, and receives the id.
//! torchrun's own store already uses that port, so under torchrun it is the next one. No other message is sent here.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::RankInfo;

/// The id that rank 0 sends: an `ncclUniqueId`.
pub type Number = [u8; 128];

/// First bytes of a rank's message, before its rank and the world size.
const HELLO: [u8; 8] = *b"vtrain1\n";

/// Polling interval.
const LOOK: Duration = Duration::from_millis(20);

/// Time that a connected peer has to send its message.
const GREETING: Duration = Duration::from_secs(5);

/// Address of the rendezvous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Name or address of rank 0's machine.
    pub host: String,
    /// TCP port that rank 0 listens on.
    pub port: u16,
}

impl Rendezvous {
    /// Reads an environment.
    ///
    /// # Errors
    /// Fails without valid `MASTER_ADDR` and `MASTER_PORT`.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let get = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.with_context(|| {
                format!(
                    "the environment has no {name}, the address where rank 0 waits for the others: vtrain launch and torchrun \
                     set it; in a batch script, export MASTER_ADDR (the first machine) and MASTER_PORT"
                )
            })
        };
        let text = get("MASTER_PORT")?;
        let port: u16 = text
            .trim()
            .parse()
            .with_context(|| format!("the environment's MASTER_PORT is {text:?}, which is not a port"))?;
        let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let port = port.checked_add(u16::from(taken));
        Ok(Self {
            host: get("MASTER_ADDR")?,
            port: port.context("MASTER_PORT is the last possible port, but the next one is needed")?,
        })
    }

    /// Returns the id, which rank 0 creates by `make` once all ranks have arrived.
    ///
    /// # Errors
    /// Names the ranks that did not arrive in time; fails if the port is taken.
    pub fn share(
        &self,
        place: &RankInfo,
        timeout: Duration,
        make: impl FnOnce() -> anyhow::Result<Number>,
    ) -> anyhow::Result<Number> {
        let deadline = Instant::now() + timeout;
        match place.rank {
            0 => self.give(place.world_size, deadline, make()?),
            rank => self.take(rank, place.world_size, deadline),
        }
    }

    /// Sends the id to all ranks that connect, until all have it.
    fn give(&self, world_size: usize, deadline: Instant, number: Number) -> anyhow::Result<Number> {
        let listener = self.listen()?;
        let mut missing: Vec<usize> = (1..world_size).collect();
        while !missing.is_empty() {
            match listener.accept() {
                // A stranger, or a broken connection: the rank retries, or is reported missing.
                Ok((stream, _)) => {
                    if let Ok(rank) = greet(stream, world_size, &number) {
                        missing.retain(|missing| *missing != rank);
                    }
                }
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(_) => bail!(
                    "ranks {missing:?} of {world_size} did not come to rank 0 at {}:{} in time (dist.timeout)",
                    self.host,
                    self.port
                ),
            }
        }
        Ok(number)
    }

    /// Listens on the loopback interface only, if the name is one of this machine alone.
    fn listen(&self) -> anyhow::Result<TcpListener> {
        let own = self
            .addresses()
            .is_ok_and(|all| all.iter().all(|at| at.ip().is_loopback()));
        let at = match own {
            true => SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port)),
        };
        let listener = TcpListener::bind(at);
        let listener = listener.with_context(|| format!("rank 0 cannot listen at port {}", self.port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let found: Vec<_> = found
            .with_context(|| format!("MASTER_ADDR {:?} is not known here", self.host))?
            .filter(SocketAddr::is_ipv4)
            .collect();
        ensure!(!found.is_empty(), "MASTER_ADDR {:?} has no IPv4 address", self.host);
        Ok(found)
    }

    /// Connects to rank 0, which may not have started yet.
    fn take(&self, rank: usize, world_size: usize, deadline: Instant) -> anyhow::Result<Number> {
        loop {
            match self.ask(rank, world_size) {
                Ok(number) => return Ok(number),
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(error) => {
                    let (host, port) = (&self.host, self.port);
                    return Err(error.context(format!(
                        "rank {rank} cannot reach rank 0 at {host}:{port} (dist.timeout)"
                    )));
                }
            }
        }
    }

    fn ask(&self, rank: usize, world_size: usize) -> anyhow::Result<Number> {
        let mut stream = TcpStream::connect(&self.addresses()?[..])?;
        stream.set_read_timeout(Some(GREETING))?;
        stream.write_all(&HELLO)?;
        for number in [rank, world_size] {
            stream.write_all(&u32::try_from(number)?.to_le_bytes())?;
        }
        let mut number = [0; size_of::<Number>()];
        stream.read_exact(&mut number)?;
        Ok(number)
    }
}

/// Reads the peer's rank, and sends it the id.
fn greet(mut stream: TcpStream, world_size: usize, number: &Number) -> anyhow::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(GREETING))?;
    let mut hello = [0; 16];
    stream.read_exact(&mut hello)?;
    let number_at = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]) as usize;
    let (rank, size) = (number_at(8), number_at(12));
    ensure!(
        hello[..8] == HELLO && size == world_size && (1..world_size).contains(&rank),
        "not a rank of this run"
    );
    stream.write_all(number)?;
    Ok(rank)
}
