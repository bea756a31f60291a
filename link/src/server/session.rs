//! A link with certificates: its first message, its place as the group's writer, and what ends it.

use super::admission::{Crowded, Place};
use super::lanes::Lanes;
use super::slot::Stop;
use super::{Connection, Counts, FIRST_LIMIT, LINKS_PER_GROUP_MAX, Server};
use super::{crowded, enroll, peer_of, work};
use crate::error::{Error, Result};
use crate::frame::io::{PING_EVERY, Reader, SILENCE_LIMIT, flush, write};
use crate::frame::{Accepts, Kind, convert, decode, encode, message as m};
use crate::identity::{Peer, now_s};
use afterimage_journal::wire::{Hello, SinkError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// Time between two looks at the ledger.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the last words may take to be sent, and read.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(3);

/// Serves a link until it ends.
pub(super) async fn run(
    server: &Arc<Server>,
    mut stream: TlsStream<TcpStream>,
    addr: SocketAddr,
    mut place: Place,
) -> Result<()> {
    let peer = peer_of(&stream)?;
    let evicted = place.evicted();
    let mut first = tokio::select! {
        first = first(server, &mut stream) => first?,
        () = evicted => return Err(crowded()),
    };
    let message = match first.take() {
        Some((Kind::Renew, message)) => {
            return enroll::renew(server, &mut stream, peer, &message).await;
        }
        Some((_, message)) => message,
        None => return Ok(()),
    };
    let (stop, lanes) = (Arc::new(Stop::default()), Arc::new(Lanes::default()));
    let begun = match begin(server, &peer, &message, &mut place, &stop).await {
        Ok(begun) => begun,
        Err(error) => {
            server.slots.leave(&peer.group, &stop);
            let text = error.to_string();
            say_last(&mut stream, &error.into()).await;
            return Err(Error::Refused(text));
        }
    };
    let (hello, version, held) = begun;
    let connection = Connection { addr, serial: peer.serial.clone(), epoch: hello.epoch };
    tracing::info!(group = peer.group, %addr, epoch = hello.epoch, "a link stands");
    server.host.connected(&peer.group, &connection);
    let worker = {
        let (host, lanes, stop) = (Arc::clone(&server.host), Arc::clone(&lanes), Arc::clone(&stop));
        // A thread of its own: it waits for the disk.
        tokio::task::spawn_blocking(move || {
            work::run(&host, held, (&hello, version), (&lanes, &stop));
        })
    };
    let why = talk(server, stream, &peer, &stop, &lanes).await;
    lanes.end();
    let newest = server.slots.leave(&peer.group, &stop);
    if newest {
        server.host.disconnected(&peer.group, &why.to_string());
    }
    // The place is given back when nothing of the link is left.
    let _ = worker.await;
    Err(why)
}

async fn first(
    server: &Server,
    stream: &mut TlsStream<TcpStream>,
) -> Result<Option<(Kind, Vec<u8>)>> {
    let read = async {
        let mut reader = Reader::new(stream, SILENCE_LIMIT);
        loop {
            match reader.next(Accepts::First).await? {
                Some((Kind::Ping, _)) => {}
                Some(first) => return Ok(Some(first)),
                None => return Ok(None),
            }
        }
    };
    let came = timeout(FIRST_LIMIT, read).await;
    let came = came.map_err(|_| Error::Away("the first message took too long".into()))??;
    if came.is_some() {
        Counts::add(&server.counts.messages);
    }
    Ok(came)
}

/// Makes the link the group's writer.
async fn begin(
    server: &Arc<Server>,
    peer: &Peer,
    message: &[u8],
    place: &mut Place,
    stop: &Arc<Stop>,
) -> Result<(Hello, u32, super::slot::Held)> {
    let (hello, version) = convert::read_hello(decode(message)?)?;
    if hello.identity.name != peer.group {
        return Err(Error::Refused(format!(
            "the certificate is for group {}, not {}",
            peer.group, hello.identity.name
        )));
    }
    place.enter(&peer.group).map_err(|crowded| {
        Error::Away(match crowded {
            Crowded::Site => "the site has as many links as it can: try again later".into(),
            Crowded::Group => format!(
                "group {} has {LINKS_PER_GROUP_MAX} links, which are ending: try again",
                peer.group
            ),
        })
    })?;
    let (site, serial) = (Arc::clone(&server.site), peer.serial.clone());
    let came = tokio::task::spawn_blocking(move || site.came_with(&serial)).await;
    if let Ok(Err(error)) = came {
        tracing::warn!(group = peer.group, %error, "revoke a certificate that was renewed");
    }
    let held = tokio::select! {
        taken = server.slots.take(&peer.group, hello.epoch, stop) => taken?,
        // One that waits to take over gives way to the next, too.
        why = stop.told() => return Err(Error::Away(why)),
    };
    Ok((hello, version, held))
}

/// Hears and answers until something ends the link: why.
async fn talk(
    server: &Server,
    stream: TlsStream<TcpStream>,
    peer: &Peer,
    stop: &Stop,
    lanes: &Lanes,
) -> Error {
    let (from, mut to) = tokio::io::split(stream);
    let mut reader = Reader::new(from, SILENCE_LIMIT);
    let ended = tokio::select! {
        heard = hear(server, &mut reader, lanes) => heard,
        answered = answer(&mut to, lanes) => match answered {
            Ok(()) => Error::Local("the site takes no more: the agent was told why".into()),
            Err(error) => error,
        },
        refused = watch(server, peer) => refused,
        why = stop.told() => Error::Away(why),
    };
    lanes.end();
    let told = match &ended {
        Error::Broken(text) => Some(SinkError::Broken(text.clone())),
        Error::Refused(text) => Some(SinkError::Refused(text.clone())),
        Error::Away(text) => Some(SinkError::Away(text.clone())),
        Error::Invalid(_) | Error::Local(_) => None,
    };
    let last = async {
        if let Some(frame) = told.and_then(|t| encode(Kind::Failed, &convert::failed_of(&t)).ok()) {
            write(&mut to, &frame).await?;
        }
        to.shutdown().await.map_err(|e| Error::Away(e.to_string()))?;
        // What comes still is read: closed before that, the system would take our last words back.
        while reader.next(Accepts::Ops).await?.is_some() {}
        Ok::<(), Error>(())
    };
    // Who doesn't listen doesn't hear it.
    let _ = timeout(LAST_WORDS_LIMIT, last).await;
    ended
}

async fn hear<R: AsyncRead + Unpin>(
    server: &Server,
    reader: &mut Reader<R>,
    lanes: &Lanes,
) -> Error {
    loop {
        let taken = match reader.next(Accepts::Ops).await {
            Ok(Some((Kind::Ping, _))) => Ok(()),
            Ok(Some((kind, message))) => {
                Counts::add(&server.counts.messages);
                lanes.put(kind, message)
            }
            Ok(None) => Err(Error::Away("the agent ended the link".into())),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return error;
        }
    }
}

/// Sends what is to be said; ends when the worker has said its last.
async fn answer<W: AsyncWrite + Unpin>(to: &mut W, lanes: &Lanes) -> Result<()> {
    let ping = encode(Kind::Ping, &m::Ping {})?;
    loop {
        // Asked before the queue is: what the worker says last is in it then.
        let finished = lanes.is_finished();
        while let Some(frame) = lanes.next_answer()? {
            write(to, &frame).await?;
        }
        flush(to).await?;
        if finished {
            return Ok(());
        }
        if timeout(PING_EVERY, lanes.answered()).await.is_err() {
            write(to, &ping).await?;
        }
    }
}

/// Comes when the certificate is not good any more.
async fn watch(server: &Server, peer: &Peer) -> Error {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let checked = server.site.ledger().check(&peer.serial, &peer.group, now_s());
        if let Err(refusal) = checked {
            return Error::Refused(format!("the agent's certificate: {refusal}"));
        }
    }
}

async fn say_last(stream: &mut TlsStream<TcpStream>, told: &SinkError) {
    let Ok(frame) = encode(Kind::Failed, &convert::failed_of(told)) else { return };
    let last = async {
        write(stream, &frame).await?;
        stream.shutdown().await.map_err(|e| Error::Away(e.to_string()))?;
        while Reader::new(&mut *stream, SILENCE_LIMIT).next(Accepts::Ops).await?.is_some() {}
        Ok::<(), Error>(())
    };
    let _ = timeout(LAST_WORDS_LIMIT, last).await;
}
