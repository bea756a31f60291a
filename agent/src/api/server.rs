//! The API's server: one route a [`Control`] call, errors as JSON.

use super::control::{Control, Reply};
use super::types::{
    ApiError, ErrorKind, MarkRequest, PoolAddRequest, PoolRemoveRequest, ProtectRequest, SetRequest,
};
use super::{BODY_BYTES_MAX, client};
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path as Segment, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;

/// How long requests that run at the end may take to finish.
const LAST_REQUESTS_LIMIT: Duration = Duration::from_secs(2);

type Engine = State<Arc<dyn Control>>;
type Body<T> = Result<axum::Json<T>, JsonRejection>;

/// Binds the API's socket (0600); a socket that an agent left behind is replaced.
///
/// # Errors
/// Another agent answers on it, the path is too long for a socket, or a system call failed.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if client::connect(path, Duration::from_millis(200)).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("an agent already answers on {}: stop that one first", path.display()),
        ));
    }
    // Bound under another name and renamed: nobody finds it before its mode is set.
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&draft, path)?;
    Ok(listener)
}

/// Serves until `shutdown` completes; requests that run then get a short time to finish.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        shutdown.await;
        // The receiver lives as long as the server.
        let _ = ended.send(());
    };
    let server = axum::serve(listener, router(control)).with_graceful_shutdown(shutdown);
    let limit = async {
        match end.await {
            Ok(()) => tokio::time::sleep(LAST_REQUESTS_LIMIT).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server.into_future() => result,
        () = limit => Ok(()),
    }
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/guests", get(status_all).post(protect))
        .route("/v1/guests/{name}", get(status).patch(set).delete(unprotect))
        .route("/v1/guests/{name}/detach", post(detach))
        .route("/v1/guests/{name}/attach", post(attach))
        .route("/v1/guests/{name}/mark", post(mark))
        .route("/v1/pool", get(pool))
        .route("/v1/pool/add", post(pool_add))
        .route("/v1/pool/remove", post(pool_remove))
        .fallback(async || {
            answer_error(&ApiError::usage(
                "this agent knows no such request: are command and agent of the same version?",
            ))
        })
        .method_not_allowed_fallback(async || {
            answer_error(&ApiError::usage(
                "this agent knows no such method: are command and agent of the same version?",
            ))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

async fn info(State(control): Engine) -> Response {
    answer(control.info()).await
}

async fn status_all(State(control): Engine) -> Response {
    answer(control.status(None)).await
}

async fn status(State(control): Engine, Segment(name): Segment<String>) -> Response {
    answer(control.status(Some(name))).await
}

async fn protect(State(control): Engine, body: Body<ProtectRequest>) -> Response {
    match body {
        Ok(axum::Json(request)) => answer(control.protect(request)).await,
        Err(e) => refuse(&e),
    }
}

async fn set(
    State(control): Engine,
    Segment(name): Segment<String>,
    body: Body<SetRequest>,
) -> Response {
    match body {
        Ok(axum::Json(request)) => answer(control.set(name, request)).await,
        Err(e) => refuse(&e),
    }
}

#[derive(Deserialize)]
struct Unprotect {
    #[serde(default)]
    purge: bool,
}

async fn unprotect(
    State(control): Engine,
    Segment(name): Segment<String>,
    Query(query): Query<Unprotect>,
) -> Response {
    answer(control.unprotect(name, query.purge)).await
}

async fn detach(State(control): Engine, Segment(name): Segment<String>) -> Response {
    answer(control.detach(name)).await
}

async fn attach(State(control): Engine, Segment(name): Segment<String>) -> Response {
    answer(control.attach(name)).await
}

async fn mark(
    State(control): Engine,
    Segment(name): Segment<String>,
    body: Body<MarkRequest>,
) -> Response {
    match body {
        Ok(axum::Json(request)) => answer(control.mark(name, request)).await,
        Err(e) => refuse(&e),
    }
}

async fn pool(State(control): Engine) -> Response {
    answer(control.pool()).await
}

async fn pool_add(State(control): Engine, body: Body<PoolAddRequest>) -> Response {
    match body {
        Ok(axum::Json(request)) => answer(control.pool_add(request)).await,
        Err(e) => refuse(&e),
    }
}

async fn pool_remove(State(control): Engine, body: Body<PoolRemoveRequest>) -> Response {
    match body {
        Ok(axum::Json(request)) => answer(control.pool_remove(request)).await,
        Err(e) => refuse(&e),
    }
}

async fn answer<T: Serialize>(reply: Reply<'_, T>) -> Response {
    match reply.await {
        Ok(body) => axum::Json(body).into_response(),
        Err(e) => answer_error(&e),
    }
}

fn answer_error(error: &ApiError) -> Response {
    let status = match error.kind {
        ErrorKind::Usage => StatusCode::BAD_REQUEST,
        ErrorKind::NotRestorable => StatusCode::CONFLICT,
        ErrorKind::NotReachable => StatusCode::BAD_GATEWAY,
        ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, axum::Json(error)).into_response()
}

fn refuse(rejection: &JsonRejection) -> Response {
    answer_error(&ApiError::usage(format!("the agent can't read the request: {rejection}")))
}
