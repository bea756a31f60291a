//! The processes that the tests watch: this test binary, started again with `--exact` and the
//! name of one of the functions below. Without `GUARD_TEST_DIR` they return at once.

use afterimage_guard::{GuardConfig, Program, SlotGuard, SlotKind, Worker, now_ns, run};
use rustix::process::{PTracer, set_ptracer};
use signal_hook::{consts::SIGTERM, low_level::pipe};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub const DIR: &str = "GUARD_TEST_DIR";
/// Name of the socket that the test listens on; everything that starts says so there.
pub const SOCKET: &str = "test.sock";

/// How this program is started as `role`, quietly but for panics.
pub fn role(role: &str) -> Program {
    let program = std::env::current_exe().unwrap().into();
    let args = ["--exact", role, "--nocapture", "--quiet"].map(Into::into).into();
    Program { program, args }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("GUARD_TEST_{name}")).ok()
}

fn millis(name: &str) -> Option<Duration> {
    setting(name).map(|value| Duration::from_millis(value.parse().unwrap()))
}

fn connect() -> UnixStream {
    UnixStream::connect(PathBuf::from(setting("DIR").unwrap()).join(SOCKET)).unwrap()
}

#[test]
fn guard() {
    if setting("DIR").is_none() {
        return;
    }
    let mut config = GuardConfig::new(role("roles::worker"));
    config.stall_limit = millis("STALL_MS").unwrap_or(config.stall_limit);
    config.hold_limit = millis("HOLD_MS").unwrap_or(config.hold_limit);
    config.stop_limit = millis("STOP_LIMIT_MS").unwrap_or(config.stop_limit);
    config.backoff_max = millis("BACKOFF_MAX_MS").unwrap_or(config.backoff_max);
    config.backoff_min = config.backoff_min.min(config.backoff_max);
    config.on_death = setting("UNDO").map(|_| role("roles::undo"));
    config.on_death_limit = millis("UNDO_LIMIT_MS").unwrap_or(config.on_death_limit);
    let code = run(config).unwrap();
    // The harness ends with its own code, so the guard's is looked up in its printed form.
    let code = (0..=255u8).find(|n| std::process::ExitCode::from(*n) == code).unwrap();
    std::process::exit(code.into());
}

#[test]
fn undo() {
    if setting("DIR").is_none() {
        return;
    }
    writeln!(connect(), "undo {}", std::process::id()).unwrap();
    if setting("UNDO").as_deref() == Some("hang") {
        loop {
            std::thread::park();
        }
    }
    std::process::exit(0);
}

/// Holds a process so that its death cannot be seen by its parent, until this one is gone.
#[test]
fn tracer() {
    let Some(pid) = setting("TRACE") else { return };
    let pid: libc::pid_t = pid.parse().unwrap();
    // SAFETY: takes numbers alone.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
    assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
    writeln!(connect(), "tracer {}", std::process::id()).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn worker() {
    if setting("DIR").is_none() {
        return;
    }
    let worker = Worker::from_env().expect("started by a guard");
    assert!(Worker::from_env().is_none(), "the inheritance is taken once");
    let (mut terminated, end) = UnixStream::pair().unwrap();
    pipe::register(SIGTERM, end).unwrap();
    // Needed where Yama restricts who may trace whom; elsewhere it is an error.
    let _ = set_ptracer(PTracer::Any);
    let counters = worker.counters();
    let hello = format!(
        "worker {} {} {} {} {:?} {}",
        std::process::id(),
        counters.restarts,
        counters.kills_by_stall,
        counters.shutdowns,
        counters.last_kill,
        counters.stall_ms_max
    );
    if let Some(code) = setting("START_EXIT") {
        writeln!(connect(), "{hello}").unwrap();
        std::process::exit(code.parse().unwrap());
    }
    if setting("HEARTBEAT").as_deref() != Some("none") {
        worker.start_heartbeat().unwrap();
    }
    worker.ready();
    for _ in 0..setting("LOOPS").map_or(1, |loops| loops.parse().unwrap()) {
        let mut socket = connect();
        let slot = worker.slot(SlotKind::Nbd, socket.as_fd());
        writeln!(socket, "{hello}").unwrap();
        let worker = worker.clone();
        std::thread::spawn(move || serve(&worker, slot, socket));
    }
    let _ = terminated.read(&mut [0]);
    match setting("STOP_EXIT") {
        Some(code) => std::process::exit(code.parse().unwrap()),
        None => loop {
            std::thread::park();
        },
    }
}

/// One I/O loop: a line is a request, a line the answer.
fn serve(worker: &Worker, slot: SlotGuard, mut socket: UnixStream) {
    let mut frozen = None;
    // One byte: what a guest sent ahead stays in the socket.
    let mut requests = BufReader::with_capacity(1, socket.try_clone().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        slot.waiting();
        if requests.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let ticket = slot.received(now_ns());
        let request = line.trim().to_owned();
        let (verb, value) = request.split_once(' ').unwrap_or((&request, "0"));
        let value: u64 = value.parse().unwrap();
        match verb {
            "echo" => {}
            "bye" => return,
            "sleep" => std::thread::sleep(Duration::from_millis(value)),
            // Never answers, but notices when its socket ends.
            "mute" => continue,
            "hang" => loop {
                std::thread::park();
            },
            // Freezes a guest, answers, and never thaws it.
            "freeze" => {
                let freeze = frozen.insert(worker.slot_without_socket(SlotKind::Freeze));
                let _ = freeze.received(now_ns());
            }
            "hold" => slot.hold(now_ns() + value * 1_000_000),
            "exit" => std::process::exit(value as i32),
            "abort" => std::process::abort(),
            // Another process keeps the connection open when this one is dead.
            "keep" => {
                let copy: OwnedFd = socket.try_clone().unwrap().into();
                let mut keeper = Command::new("sleep").arg("20").stdin(copy).spawn().unwrap();
                line = format!("{}\n", keeper.id());
                std::thread::spawn(move || keeper.wait());
            }
            _ => panic!("unknown request {verb}"),
        }
        if verb == "hold" {
            std::thread::sleep(Duration::from_millis(value * 3 / 4));
            slot.hold(0);
        }
        slot.replied(ticket);
        if socket.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}
