//! A recovery site: its daemon as a process, and commands over its state directory.

use super::{Cli, REPLY_LIMIT, poll, tail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The daemon; killed when it is dropped.
pub struct Site {
    cli: Cli,
    child: Child,
    log: PathBuf,
    /// Where agents come to: `HOST:PORT`.
    pub addr: String,
}

impl Deref for Site {
    type Target = Cli;

    fn deref(&self) -> &Cli {
        &self.cli
    }
}

impl Site {
    /// Starts `afterimage site serve` at a port of its own, or at `addr`, and waits until it is ready.
    #[track_caller]
    pub fn start(program: &str, state: impl Into<PathBuf>, addr: Option<&str>) -> Self {
        Self::run(Command::new(program), Cli::new(program, state), addr)
    }

    /// The same on a host of another boot that has been up for so many seconds. It can only be killed.
    #[track_caller]
    pub fn start_elsewhere(program: &str, state: impl Into<PathBuf>, up_s: u64) -> Self {
        let cli = Cli::new(program, state);
        let boot = cli.state().with_extension("boot");
        std::fs::write(&boot, "c0ffee00-0000-4000-8000-000000000001\n").unwrap();
        let mut command = Command::new("unshare");
        let up = up_s.to_string();
        command.args(["--time", "--monotonic", &up, "--boottime", &up, "--mount", "--fork"]);
        command.args(["--kill-child=KILL", "sh", "-c"]);
        command.arg(r#"mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@""#);
        command.arg("sh").arg(&boot).arg(program);
        Self::run(command, cli, None)
    }

    fn run(mut command: Command, cli: Cli, addr: Option<&str>) -> Self {
        let log = cli.state().with_extension("site.log");
        let file = File::create(&log).unwrap();
        let mut child = command
            .args(["site", "serve", "--listen", addr.unwrap_or("127.0.0.1:0"), "--state"])
            .arg(cli.state())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let addr = poll(REPLY_LIMIT, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "the site ended at once: {text}");
            let ready = text.lines().find(|l| l.contains("the site is ready"))?;
            let addr = ready.split("addr=").nth(1)?.split_whitespace().next()?;
            Some(addr.to_owned())
        });
        let addr = addr.unwrap_or_else(|| panic!("no site: {}", tail(&log, 20)));
        Self { cli, child, log, addr }
    }

    /// `site enroll`: the invitation.
    #[track_caller]
    pub fn invite(&self, group: &str) -> String {
        self.ok(&["site", "enroll", "--group", group]).trim().to_owned()
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it as a service manager does.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let ended = poll(REPLY_LIMIT, || self.child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("no end on SIGTERM: {}", self.last_words()))
    }

    /// SIGKILL, and its end.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        tail(&self.log, 30)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the site's last words:\n{}", self.last_words());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
