//! Moves bytes both ways between a client and an endpoint, until both have ended.
//!
//! One future, two directions, no task of their own. Half-close is passed on: the end of one direction is a FIN to the
//! other side, and the other direction goes on. A direction holds a buffer only while it moves bytes, so that an idle
//! connection costs two registered wakers. The idle time-out is one timer that is set again at most once per time-out,
//! not per read. What comes in bulk goes by way of [`super::splice`].

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::splice::Pipe;

use crate::error::Side;
use crate::io::Stream;
use crate::worker::Worker;

/// Full buffers in a row after which a direction counts as bulk: 64 KiB that were there at once.
const READS_PER_TURN: u32 = 4;

/// A bulk direction that has had less than this at once goes back to buffers.
const BULK: usize = 16 * 1024;

/// Bytes in a row before other connections of the worker get a turn.
const BULK_PER_TURN: usize = 1024 * 1024;

/// What a connection has moved, readable while it runs.
pub trait Count: Sync {
    /// Bytes that came from the client.
    fn received(&self, bytes: u64);
    /// Bytes that went to the client.
    fn sent(&self, bytes: u64);
}

/// Why the copying ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended in order.
    Complete,
    /// A side broke.
    Broken(Side, io::Error),
    /// Nothing moved for the idle time-out.
    Idle,
    /// The connection reached its longest life.
    TooOld,
    /// The endpoint was removed, and its cluster wants connections closed then.
    Severed,
    /// A policy denies it: what to say of that.
    Denied(String),
}

/// Copies until both directions have ended, one broke, or nothing moved for `idle`.
pub async fn both_ways(
    worker: &Worker,
    downstream: &Stream,
    upstream: &Stream,
    idle: Option<Duration>,
    count: &impl Count,
) -> End {
    let activity = Activity::new();
    let up = Direction { worker, from: downstream, to: upstream, ends: (Side::Downstream, Side::Upstream) };
    let down = Direction { worker, from: upstream, to: downstream, ends: (Side::Upstream, Side::Downstream) };
    let copying = async {
        futures_util::try_join!(
            up.run(&activity, |bytes| count.received(bytes)),
            down.run(&activity, |bytes| count.sent(bytes)),
        )
    };
    let copied = match idle {
        None => copying.await,
        Some(limit) => tokio::select! {
            biased;
            copied = copying => copied,
            () = activity.idle_for(limit) => return End::Idle,
        },
    };
    match copied {
        Ok(_) => End::Complete,
        Err((side, error)) => End::Broken(side, error),
    }
}

/// When bytes last moved, in milliseconds since the start.
struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// Completes when nothing was touched for `limit`.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let due = self.start + Duration::from_millis(self.last.load(Relaxed)) + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

struct Direction<'a> {
    worker: &'a Worker,
    from: &'a Stream,
    to: &'a Stream,
    /// Whose fault a failing read or write is.
    ends: (Side, Side),
}

/// What a turn of a direction came to.
enum Turn {
    /// The socket is empty.
    Empty,
    /// There is, or was until now, more than buffers carry well.
    Bulk,
    /// The end of the stream.
    End,
}

type Failure = (Side, io::Error);

impl Direction<'_> {
    async fn run(&self, activity: &Activity, count: impl Fn(u64)) -> Result<(), Failure> {
        let (reader, writer) = self.ends;
        let mut bulk = false;
        loop {
            // Waits without a buffer or a pipe.
            self.from.readable().await.map_err(|error| (reader, error))?;
            let turn =
                if bulk { self.spliced(activity, &count).await } else { self.copied(activity, &count).await };
            match turn? {
                Turn::Empty => bulk = false,
                Turn::Bulk => bulk = true,
                Turn::End => break,
            }
        }
        self.to.shutdown_write().or_else(ignore_gone).map_err(|error| (writer, error))
    }

    async fn copied(&self, activity: &Activity, count: &impl Fn(u64)) -> Result<Turn, Failure> {
        let mut buffer = self.worker.take_buffer();
        let turn = self.copy(&mut buffer, activity, count).await;
        self.worker.give_buffer(buffer);
        turn
    }

    /// Where splicing isn't possible (TLS on a side, no pipe to be had) bulk data goes through buffers, in turns.
    async fn spliced(&self, activity: &Activity, count: &impl Fn(u64)) -> Result<Turn, Failure> {
        let sockets = self.from.as_tcp().zip(self.to.as_tcp());
        let Some(((from, to), mut pipe)) = sockets.zip(self.worker.take_pipe().ok()) else {
            tokio::task::yield_now().await;
            return self.copied(activity, count).await;
        };
        let turn = self.splice(from, to, &mut pipe, activity, count).await;
        self.worker.give_pipe(pipe);
        turn
    }

    /// Moves what is there by way of a buffer.
    async fn copy(
        &self,
        buffer: &mut BytesMut,
        activity: &Activity,
        count: &impl Fn(u64),
    ) -> Result<Turn, Failure> {
        let (reader, writer) = self.ends;
        for _ in 0..READS_PER_TURN {
            buffer.clear();
            match self.from.try_read_buf(buffer) {
                Ok(0) => return Ok(Turn::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Empty),
                Err(error) => return Err((reader, error)),
            }
            self.to.write_all(buffer).await.map_err(|error| (writer, error))?;
            count(buffer.len() as u64);
            activity.touch();
            if buffer.len() < buffer.capacity() {
                // A read that fills less has emptied the socket; the next one would only say so.
                return Ok(Turn::Empty);
            }
        }
        Ok(Turn::Bulk)
    }

    /// Moves what is there without a copy.
    async fn splice(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        pipe: &mut Pipe,
        activity: &Activity,
        count: &impl Fn(u64),
    ) -> Result<Turn, Failure> {
        let (reader, writer) = self.ends;
        let mut moved = 0;
        loop {
            match pipe.try_fill(from) {
                Ok(0) => return Ok(Turn::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(if moved >= BULK { Turn::Bulk } else { Turn::Empty });
                }
                Err(error) => return Err((reader, error)),
            }
            while !pipe.is_empty() {
                match pipe.try_drain(to) {
                    Ok(bytes) => {
                        count(bytes as u64);
                        moved += bytes;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.to.writable().await.map_err(|error| (writer, error))?;
                    }
                    Err(error) => return Err((writer, error)),
                }
            }
            activity.touch();
            if moved >= BULK_PER_TURN {
                tokio::task::yield_now().await;
                return Ok(Turn::Bulk);
            }
        }
    }
}

/// A peer that has gone already needs no FIN.
fn ignore_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
