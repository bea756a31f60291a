//! A client without manners: TLS as it should be, and then any bytes.

use super::bed::{Bed, GROUP, hello};
use afterimage_link::frame::{Kind, convert, encode};
use afterimage_link::identity::{Credentials, group_name, verify};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub struct Raw {
    runtime: Runtime,
    stream: TlsStream<TcpStream>,
}

impl Raw {
    /// Shakes hands with an enrolled agent's credentials.
    pub fn connect(bed: &Bed, name: &str) -> Self {
        let credentials = Credentials::load(&bed.credentials_dir(name)).unwrap().unwrap();
        Self::with(bed.addr, &credentials).unwrap()
    }

    /// Shakes hands with these.
    pub fn with(addr: SocketAddr, credentials: &Credentials) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fingerprint = credentials.fingerprint();
        let config = verify::client_config(&fingerprint, Some(credentials)).unwrap();
        let name = ServerName::try_from(group_name(&fingerprint, &credentials.group)).unwrap();
        let stream = runtime.block_on(async {
            let tcp = TcpStream::connect(addr).await?;
            TlsConnector::from(config).connect(name, tcp).await
        })?;
        Ok(Self { runtime, stream })
    }

    /// Says hello as it should be.
    pub fn hello(&mut self) {
        let message = convert::hello_of(&hello(GROUP, 1));
        self.send(&encode(Kind::Hello, &message).unwrap()).unwrap();
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Self { runtime, stream } = self;
        runtime.block_on(async {
            timeout(Duration::from_secs(20), async {
                stream.write_all(bytes).await?;
                stream.flush().await
            })
            .await?
        })
    }

    /// All that comes until the site closes.
    pub fn rest(&mut self, limit: Duration) -> Vec<u8> {
        let Self { runtime, stream } = self;
        let mut rest = Vec::new();
        let read = runtime.block_on(async { timeout(limit, stream.read_to_end(&mut rest)).await });
        assert!(read.is_ok(), "the site did not close within {limit:?}");
        rest
    }
}

/// A frame of any kind and bytes.
pub fn frame(kind: u16, message: &[u8]) -> Vec<u8> {
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend(kind.to_le_bytes());
    frame.extend(message);
    frame
}
