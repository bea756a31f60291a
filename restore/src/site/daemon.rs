//! The daemon: its start, its ticks, and its end.

use super::control::{self, Host};
use super::groups::Groups;
use super::{notify, socket_path};
use afterimage_journal::pool::{Pool, PoolThread};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::{ErrorKind, layout};
use afterimage_link::identity::Site;
use afterimage_link::server::Server;
use afterimage_link::{Error, Result};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

/// Time between two looks at the settings.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the certificate.
const CERTIFICATE_TICKS: u64 = 600;
/// How long what hangs is waited for at the end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How a site is run.
#[derive(Debug, Clone)]
pub struct SiteArgs {
    /// The state directory.
    pub state: PathBuf,
    /// Where agents come to.
    pub listen: String,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error::Invalid`]: the state directory or the address can't be used; [`Error::Away`]: another process
/// has them; [`Error::Local`]: a file or a system call failed.
pub fn serve(args: &SiteArgs) -> Result<()> {
    layout::check_state(&args.state, true).map_err(|e| local(&e))?;
    let _lock = layout::take_lock(&args.state).map_err(|e| local(&e))?;
    let site = Arc::new(Site::open_or_make(&args.state)?);
    site.rotate_when_due()?;
    let storage = RealStorage::shared();
    let home = layout::pool_dir(&args.state);
    layout::make_dir(&home).map_err(|e| local(&e))?;
    let pool = Pool::open(&storage, &home).map_err(|e| local(&e))?;
    let groups = Groups::open(&args.state, &storage, &pool)?;
    let thread = PoolThread::start(&pool, Arc::<Groups>::clone(&groups)).map_err(|e| local(&e))?;
    let host = Arc::new(Host { groups: Arc::clone(&groups), pool, thread });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("site")
        .enable_all()
        .build()
        .map_err(|e| Error::Local(format!("start the runtime: {e}")))?;
    let served = runtime.block_on(run(args, &site, &host));
    // What hangs in a system call must not hold the end up.
    runtime.shutdown_timeout(END_LIMIT);
    drop(host);
    groups.stop();
    let _ = std::fs::remove_file(socket_path(&args.state));
    served
}

fn local(error: &afterimage_journal::Error) -> Error {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::FixInput => Error::Invalid(text),
        ErrorKind::Retry => Error::Away(text),
        _ => Error::Local(text),
    }
}

async fn run(args: &SiteArgs, site: &Arc<Site>, host: &Arc<Host>) -> Result<()> {
    let ends = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = ends else {
        return Err(Error::Local("can't catch signals".into()));
    };
    let listener = listen(&args.listen).await?;
    let addr = listener.local_addr().map_err(|e| Error::Local(e.to_string()))?;
    let asked = bind_control(&socket_path(&args.state))?;
    tokio::spawn(control::serve(asked, Arc::clone(host)));
    tokio::spawn(tick(Arc::clone(site), Arc::clone(&host.groups)));
    let server = Server::new(Arc::clone(site), Arc::<Groups>::clone(&host.groups));
    tracing::info!(%addr, state = %args.state.display(), "the site is ready");
    notify::ready();
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the site ends");
    };
    server.serve(listener, end).await;
    Ok(())
}

/// Listens at `ADDR:PORT`, a name's first address, too.
async fn listen(addr: &str) -> Result<TcpListener> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(addr)
        .await
        .map_err(|e| {
            let form = "give ADDR:PORT, as in 0.0.0.0:7600 or [::]:7600";
            Error::Invalid(format!("{addr} is no address to listen at ({e}): {form}"))
        })?
        .collect();
    TcpListener::bind(found.as_slice()).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            Error::Away(format!("another process listens at {addr}: stop it, or take another port"))
        }
        _ => Error::Invalid(format!("listen at {addr}: {e}")),
    })
}

/// The socket (0600) at which the daemon is asked. The state's lock is held: one that is there is
/// left over.
fn bind_control(path: &Path) -> Result<UnixListener> {
    let failed = |e: std::io::Error| Error::Local(format!("listen at {}: {e}", path.display()));
    // Bound under another name and renamed: nobody finds it before its mode is set.
    let draft = path.with_extension("new");
    let _ = std::fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).map_err(failed)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&draft, path).map_err(failed)?;
    Ok(listener)
}

/// Follows what commands change.
async fn tick(site: Arc<Site>, groups: Arc<Groups>) {
    for count in 0u64.. {
        tokio::time::sleep(TICK).await;
        let (site, groups) = (Arc::clone(&site), Arc::clone(&groups));
        let ticked = tokio::task::spawn_blocking(move || {
            groups.follow_settings();
            if count.is_multiple_of(CERTIFICATE_TICKS)
                && let Err(error) = site.rotate_when_due()
            {
                tracing::error!(%error, "renew the site's certificate");
            }
        });
        if let Err(error) = ticked.await {
            tracing::error!(%error, "a tick ended");
        }
    }
}
