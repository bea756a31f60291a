//! `afterimage demo`: the whole story on a real guest, told step by step.
//!
//! It boots a guest that commits rows into an SQLite database, protects the running guest, picks a
//! moment, takes the guest's memory, lets the guest destroy its database, restores the disk to that
//! moment and has the restored copy judged by a guest that boots from it; then it restores disks and
//! memory, and the guest that went down goes on without a boot. Everything is done as a user would:
//! by this program's own commands, each shown as it runs.
//!
//! What always holds: the demo works in one directory that it made itself, and every process that
//! it started has ended when [`run`] returns, whichever way.

mod agent;
mod commands;
mod guest;
mod rows;
mod warm;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::show::tell;
use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use agent::Daemon;
use commands::Commands;
use guest::{Accel, Guest, GuestFiles};
use rows::{Checked, Moment, in_flight, judge};
use warm::Taken;

/// The name under which the demo protects its guest.
const NAME: &str = "demo";
/// Size of the disk with the guest's database.
const DISK_BYTES: u64 = 256 << 20;
/// Size of the disk on which the guest counts.
const COUNTER_BYTES: u64 = 1 << 20;
/// What tells a directory of ours from any other.
const MARKER: &str = "made-by-afterimage-demo";
/// How long rows are committed before the guest is protected, for the figures to compare with.
const BARE_TIME: Duration = Duration::from_secs(3);
/// How long rows are committed between protection and the moment that will be restored.
const BEFORE_MOMENT: Duration = Duration::from_secs(6);
/// How long rows are still committed after that moment. They must not be in the restored copy.
const AFTER_MOMENT: Duration = Duration::from_secs(3);
/// How long the first full copy may take.
const PROTECT_LIMIT: Duration = Duration::from_secs(90);

/// See what Afterimage does: boot a guest, protect it, destroy its database, bring it back.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Where the demo keeps its disk, journal and restored copy. Made anew by each demo.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,
    /// Where the test guest lies (vmlinuz and initrd, as tests/guest/build.sh leaves them).
    #[arg(long, value_name = "DIR", default_value = "target/guest", env = "AFTERIMAGE_GUEST")]
    guest: PathBuf,
}

/// Runs the demo from its beginning to its end.
///
/// # Errors
///
/// Where something is missing, a step fails, or the restored copy is not what it must be. The
/// message says which step and where its logs lie.
pub fn run(args: &DemoArgs) -> Result<()> {
    let begin = Instant::now();
    let files = GuestFiles::find(&args.guest)?;
    let dir = fresh_directory(&args.dir)?;
    let commands = Commands::new(&dir.join("journal"))?;
    let story = Story { begin, files, dir: dir.clone(), commands };
    story.tell().with_context(|| format!("the demo failed; its logs are in {}", dir.display()))
}

struct Story {
    begin: Instant,
    files: GuestFiles,
    dir: PathBuf,
    commands: Commands,
}

/// What the first half of the story leaves for the second.
struct Destroyed {
    moment: Moment,
    last_acked: u64,
    bare_worst_us: u64,
    protected_worst_us: u64,
    rows_per_second: u64,
    memory: Taken,
}

/// What `restore` made.
struct Restored {
    disk: PathBuf,
    /// How long before the wanted moment the restored point lies, in words.
    before_ms: Option<String>,
    seconds: f64,
}

impl Story {
    fn tell(&self) -> Result<()> {
        let accel = self.choose_accel()?;
        let [disk, counter] = ["disk.raw", "counter.raw"].map(|name| self.dir.join(name));
        guest::make_disk(&disk, DISK_BYTES)?;
        guest::make_blank(&counter, COUNTER_BYTES)?;

        let (destroyed, status, restored) = {
            let agent = self.start_agent()?;
            let mut guest = self.boot(accel, &[&disk, &counter], "original")?;
            let destroyed = self.protect_and_destroy(&mut guest)?;
            let status = self.status("What the agent says now:")?;
            let restored = self.restore(&destroyed.moment)?;
            self.step("The original guest and the agent are not needed any more: both end");
            guest.power_off()?;
            agent.stop()?;
            (destroyed, status, restored)
        };
        let checked = self.check_copy(accel, &restored.disk)?;
        judge(&checked, &destroyed.moment)?;
        let warm = self.resume(&destroyed.memory)?;
        self.sum_up(&destroyed, &checked, &status, &restored);
        self.sum_up_warm(&destroyed.memory, &warm);
        self.what_next(&destroyed.moment);
        Ok(())
    }

    fn choose_accel(&self) -> Result<Accel> {
        self.step("Look whether guests can run on KVM here");
        let accel = guest::probe_kvm(&self.files, &self.dir)?;
        self.say(match accel {
            Accel::Kvm => "yes: a guest booted with it",
            Accel::Tcg => {
                "no: no guest boots with it, so QEMU emulates the CPU (slower, works everywhere)"
            }
        });
        Ok(accel)
    }

    fn start_agent(&self) -> Result<Daemon> {
        self.step("Start the agent beside the virtual machines");
        Daemon::start(&self.commands, &self.dir.join("agent.log"))
    }

    fn boot(&self, accel: Accel, disks: &[&Path], name: &str) -> Result<Guest> {
        let shown: Vec<_> = disks.iter().map(|disk| disk.display().to_string()).collect();
        self.step(&format!("Boot a guest on {}", shown.join(" and ")));
        let guest = Guest::boot(&self.files, accel, disks, &self.dir.join(format!("{name}.log")))?;
        self.say(&format!("up after {:.1} s", guest.boot_time().as_secs_f64()));
        Ok(guest)
    }

    fn protect_and_destroy(&self, guest: &mut Guest) -> Result<Destroyed> {
        self.step(
            "In the guest: rows into an SQLite database (ext4, WAL, FULL sync), a commit each",
        );
        guest.start_rows()?;
        guest.start_counter()?;
        self.say(
            "beside it: a number that goes up on a second disk and in memory, a file in tmpfs",
        );
        std::thread::sleep(BARE_TIME);
        let bare = guest.take_figures()?;
        self.say(&format!("{} rows so far, worst commit {}", bare.last, ms(bare.worst_us)));

        self.step("Protect the guest while it runs: no restart, nothing in it is changed");
        let qmp = guest.qmp_socket().display().to_string();
        let protect =
            ["protect", NAME, "--qmp", &qmp, "--window", "1h", "--checkpoint-every", "1s"];
        self.commands.run(&protect)?;
        self.wait_protected()?;

        self.step("It is protected. Rows go on; then a moment is picked in the middle of them");
        std::thread::sleep(BEFORE_MOMENT);
        let moment = guest.moment();
        self.say(&format!(
            "the moment is {}: row {} was acknowledged before it, row {} was under way",
            moment.time, moment.acked, moment.granted
        ));
        std::thread::sleep(AFTER_MOMENT);
        let figures = guest.take_figures()?;

        let memory = self.take_memory(guest)?;
        let last = guest.take_figures()?.last;
        self.say(&format!("{last} rows by now; the database is destroyed next"));

        self.step(
            "In the guest: overwrite, rename and delete the database and all files beside it",
        );
        let done = guest.destroy()?;
        self.say(&done);
        let after = guest.check()?;
        self.say(&format!("the guest looks for its database: integrity={}", after.integrity));
        ensure!(after.integrity != "ok", "the database is still there: nothing was destroyed");
        Ok(Destroyed {
            moment,
            last_acked: last,
            bare_worst_us: bare.worst_us,
            protected_worst_us: figures.worst_us,
            rows_per_second: figures.per_second,
            memory,
        })
    }

    fn wait_protected(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.commands.quiet_json(&["status", NAME, "--json"])?;
            match status["state"].as_str() {
                Some("protected") => break,
                Some("initial-sync" | "resync") if begin.elapsed() < PROTECT_LIMIT => {}
                _ => bail!("the guest is not protected after {:?}: {status}", begin.elapsed()),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.say(&format!("protected after {:.1} s", begin.elapsed().as_secs_f64()));
        Ok(())
    }

    fn status(&self, title: &str) -> Result<Value> {
        self.step(title);
        self.commands.run(&["status", NAME])?;
        self.commands.quiet_json(&["status", NAME, "--json"])
    }

    fn restore(&self, moment: &Moment) -> Result<Restored> {
        self.step("Restore the disks to the moment");
        let to = self.dir.join("restored").display().to_string();
        let begin = Instant::now();
        let printed =
            self.commands.run(&["restore", NAME, "--at", &moment.time, "--to", &to, "--json"])?;
        let seconds = begin.elapsed().as_secs_f64();
        let result: Value = serde_json::from_str(&printed)
            .with_context(|| format!("restore --json printed no JSON: {printed}"))?;
        let mut disks = result["disks"].as_array().into_iter().flatten();
        let disk = disks
            .find(|disk| disk["node"] == guest::DATABASE_NODE)
            .and_then(|disk| disk["path"].as_str())
            .with_context(|| format!("restore --json does not name the disk: {result}"))?
            .into();
        let before_ms = before_ms(result["time"].as_str(), &moment.time);
        Ok(Restored { disk, before_ms, seconds })
    }

    fn check_copy(&self, accel: Accel, disk: &Path) -> Result<Checked> {
        let mut guest = self.boot(accel, &[disk], "restored")?;
        self.step("In the restored copy: what does SQLite say, and which rows are there?");
        let checked = guest.check()?;
        self.say(&format!(
            "integrity_check: {}; rows {} to {}, {} of them; {} wrong checksums, {} holes",
            checked.integrity, checked.min, checked.max, checked.rows, checked.bad, checked.holes
        ));
        guest.power_off()?;
        Ok(checked)
    }

    fn sum_up(&self, told: &Destroyed, checked: &Checked, status: &Value, restored: &Restored) {
        let moment = &told.moment;
        let number = |key: &str| status[key].as_f64().map_or("?".into(), |n| format!("{n:.0}"));
        tell!("\nWhat happened");
        tell!(
            "  The guest committed {} rows ({} a second) and destroyed its database.",
            told.last_acked,
            told.rows_per_second
        );
        tell!(
            "  Its disk was brought back as it was at {}. Every row that had been acknowledged",
            moment.time
        );
        tell!(
            "  before that moment, 1 to {}, is there. {}",
            moment.acked,
            in_flight(checked, moment)
        );
        tell!(
            "  None of the rows {} to {}, committed after the moment, is there.",
            moment.granted + 1,
            told.last_acked
        );
        tell!(
            "  RPO: {} ms when last asked; the point that was restored is the last write before the",
            number("rpo_ms")
        );
        tell!("  moment, {} earlier.", restored.before_ms.as_deref().unwrap_or("? ms"));
        tell!(
            "  Worst guest stall: {} for one commit while protected ({} before); {} ms in the",
            ms(told.protected_worst_us),
            ms(told.bare_worst_us),
            number("stall_ms_max")
        );
        tell!("  agent's own measure of its slowest answer.");
        tell!(
            "  Restore: {:.1} s. The whole demo: {:.0} s.",
            restored.seconds,
            self.begin.elapsed().as_secs_f64()
        );
    }

    fn what_next(&self, moment: &Moment) {
        tell!("\nThe journal is kept in {}. No agent runs; try on it:", self.dir.display());
        let to = self.dir.join("again").display().to_string();
        for next in [
            vec!["checkpoints", NAME],
            vec!["verify", NAME],
            vec!["verify", NAME, "--at", &moment.time],
            vec!["restore", NAME, "--at", &earlier(&moment.time), "--to", &to],
        ] {
            tell!("  {}", self.commands.line(&next));
        }
    }

    fn step(&self, what: &str) {
        tell!("\n[{:5.1} s] {what}", self.begin.elapsed().as_secs_f64());
    }

    fn say(&self, what: &str) {
        tell!("    {what}");
    }
}

/// Makes an empty directory at `path`, in place of that of an earlier demo. The path is made
/// absolute: it is handed to processes and shown for pasting.
fn fresh_directory(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
    if path.join(MARKER).exists() {
        std::fs::remove_dir_all(&path)
            .with_context(|| format!("remove the earlier demo in {}", path.display()))?;
    }
    std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    let mut entries =
        std::fs::read_dir(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        entries.next().is_none(),
        "{} holds something that no demo made; give another directory with --dir",
        path.display()
    );
    std::fs::write(path.join(MARKER), "")
        .with_context(|| format!("write to {}", path.display()))?;
    Ok(path)
}

/// From `point` to `moment`, both RFC 3339.
fn before_ms(point: Option<&str>, moment: &str) -> Option<String> {
    let (point, moment): (Timestamp, Timestamp) = (point?.parse().ok()?, moment.parse().ok()?);
    Some(format!("{:.1} ms", moment.duration_since(point).as_secs_f64() * 1000.0))
}

/// Another moment to try: two seconds before `moment`.
fn earlier(moment: &str) -> String {
    let Ok(time) = moment.parse::<Timestamp>() else { return "latest".into() };
    format!("{:.3}", time - Duration::from_secs(2))
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}
