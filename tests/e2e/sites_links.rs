//! A source, two sites and a bucket on hosts of their own (network namespaces): links are cut, swallow what
//! is sent and flap, daemons die. In the end each has what the source has, and the guest noticed nothing.

use super::{PROGRAM, STATE_LIMIT};
use crate::kit::s3::{Host, Server};
use crate::kit::{Agent, Cli, Disk, Net, SOURCE, Vm, VmBuilder, image, poll, prefix};
use afterimage_journal::Seq;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DISK_BYTES: u64 = 64 << 20;
const PORT: u16 = 7600;
/// The host of the bucket's server.
const BUCKET: &str = "bucket";
/// How long the sites may take to be level once all is well again.
const LEVEL_LIMIT: Duration = Duration::from_secs(120);
/// The longest write that is the link's fault.
const STALL_US_MAX: u64 = 5_000_000;

/// A site's daemon.
struct Site {
    name: &'static str,
    cli: Cli,
    daemon: Option<Child>,
}

impl Site {
    fn new(net: &Net, name: &'static str, dir: &Path) -> Self {
        let cli = net.cli(name, PROGRAM, &dir.join(name));
        let mut site = Self { name, cli, daemon: None };
        site.serve();
        site
    }

    fn serve(&mut self) {
        let log = self.cli.state().with_extension("site.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.cli.command();
        command.args(["site", "serve", "--listen", &format!("0.0.0.0:{PORT}"), "--state"]);
        command.arg(self.cli.state()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Ends it as a power cut would, but for the page cache.
    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = Pid::from_raw(daemon.id() as i32).unwrap();
            let _ = kill_process(pid, Signal::KILL);
            let _ = daemon.wait();
        }
    }

    fn invitation(&self, net: &Net) -> String {
        let invited = poll(STATE_LIMIT, || {
            let said = self.cli.run(&["site", "enroll", "--group", "vm"]);
            (said.code == 0).then_some(said.stdout)
        });
        let invited = invited.expect("an invitation");
        format!("tls://{}:{PORT}#{}", net.address(self.name), invited.trim())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Scene {
    vm: Vm,
    agent: Agent,
    sites: Vec<Site>,
    bucket: Server,
    net: Net,
    images: Vec<PathBuf>,
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = TempDir::with_prefix("ai-").unwrap();
        let images: Vec<_> = (0..2).map(|i| dir.path().join(format!("d{i}"))).collect();
        let mut builder = VmBuilder::new("writer");
        for path in &images {
            image::raw(path, DISK_BYTES);
            builder = builder.disk(Disk::raw(path));
        }
        let vm = builder.boot();
        let net = Net::new(&["near", "far", BUCKET]);
        let host = Host { address: net.address(BUCKET), namespace: Some(net.namespace(BUCKET)) };
        let bucket = Server::start_at(&host);
        let sites = vec![Site::new(&net, "near", dir.path()), Site::new(&net, "far", dir.path())];
        let cli = net.cli(SOURCE, PROGRAM, &dir.path().join("state"));
        let agent = Agent::start_by(cli);
        let qmp = vm.agent_qmp().display().to_string();
        let invitations: Vec<String> = sites.iter().map(|s| s.invitation(&net)).collect();
        let mut words = vec!["protect", "vm", "--qmp", &qmp, "--window", "1h"];
        let place = bucket.place();
        for site in invitations.iter().chain([&place]) {
            words.extend(["--site", site]);
        }
        agent.ok(&words);
        agent.wait_state("vm", "protected", STATE_LIMIT);
        Self { vm, agent, sites, bucket, net, images, dir }
    }

    fn status(&self) -> Value {
        self.agent.json(&["status", "vm"])
    }

    /// Waits until each site has acknowledged what the source has.
    fn wait_level(&self) {
        let head = self.status()["head_seq"].as_u64().unwrap();
        let level = poll(LEVEL_LIMIT, || {
            let status = self.agent.run(&["status", "vm", "--json"]);
            let status: Value = serde_json::from_str(&status.stdout).ok()?;
            let sites = status["sites"].as_array()?;
            let is_level = |s: &Value| {
                s["watermark"].as_u64() >= Some(head) && s["background_bytes"].as_u64() == Some(0)
            };
            (sites.len() == 3 && sites.iter().all(is_level)).then_some(())
        });
        assert!(level.is_some(), "not level: {}\n{}", self.status(), self.agent.last_words());
    }

    /// The command line at each site, and over the bucket.
    fn there(&self) -> Vec<(&'static str, Cli)> {
        let bucket = self.net.cli(SOURCE, PROGRAM, Path::new(&self.bucket.place()));
        let sites = self.sites.iter().map(|s| (s.name, s.cli.clone()));
        sites.chain([(BUCKET, bucket)]).collect()
    }
}

/// A row of numbers that is the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// One blow; most are undone by the next of their site, all in the end.
fn strike(scene: &mut Scene, dice: &mut Dice) {
    let at = dice.below(3) as usize;
    let name = scene.sites.get(at).map_or(BUCKET, |s| s.name);
    let what = dice.below(7);
    eprintln!("{name}: blow {what}");
    match what {
        // The bucket's server is not ours to kill.
        3 | 4 if name == BUCKET => scene.net.cut(name),
        0 => scene.net.cut(name),
        1 => scene.net.blackhole(name),
        2 => {
            for _ in 0..5 {
                scene.net.cut(name);
                std::thread::sleep(Duration::from_millis(150));
                scene.net.mend(name);
                std::thread::sleep(Duration::from_millis(150));
            }
        }
        3 => {
            scene.sites[at].kill();
            scene.sites[at].serve();
        }
        4 => scene.sites[at].kill(),
        5 => drop(scene.agent.kill_worker()),
        _ => {
            scene.net.mend(name);
            if let Some(site) = scene.sites.get_mut(at).filter(|s| s.daemon.is_none()) {
                site.serve();
            }
        }
    }
}

fn restored(cli: &Cli, seq: Seq, to: &Path) -> Vec<PathBuf> {
    let (at, text) = (format!("seq:{seq}"), to.display().to_string());
    let said = cli.run(&["restore", "vm", "--at", &at, "--to", &text, "--json"]);
    assert_eq!(said.code, 0, "{}: {said:?}", cli.state().display());
    let disks = said.json()["disks"].clone();
    let path = |d: &Value| PathBuf::from(d["path"].as_str().unwrap());
    disks.as_array().unwrap().iter().map(path).collect()
}

fn links(duration: Duration, pause: Duration, points: usize) {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.wait_level();
    let mut dice = Dice(0x5eed);
    let begun = Instant::now();
    while begun.elapsed() < duration {
        strike(&mut scene, &mut dice);
        std::thread::sleep(pause);
    }
    scene.net.mend(BUCKET);
    for site in &mut scene.sites {
        scene.net.mend(site.name);
        if site.daemon.is_none() {
            site.serve();
        }
    }
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    std::thread::sleep(Duration::from_secs(2));
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    let stats = scene.vm.stats("writer");
    assert_eq!(stats.errors, 0, "{stats:?}");
    assert!(stats.worst_us < STALL_US_MAX, "{stats:?}");
    scene.wait_level();

    let sources = Cli::new(PROGRAM, scene.agent.state());
    let recovery = afterimage_restore::open(scene.agent.state(), "vm").unwrap();
    let (ranges, head) = (recovery.ranges(), recovery.history.head);
    let restorable = |seq: &Seq| ranges.iter().any(|r| r.from <= *seq && *seq <= r.to);
    let mut wanted = vec![ranges.last().unwrap().to];
    for _ in 0..100_000 {
        let seq = 1 + dice.below(head);
        if restorable(&seq) && wanted.len() < points {
            wanted.push(seq);
        }
    }
    assert_eq!(wanted.len(), points);
    for (i, seq) in wanted.iter().enumerate() {
        let dir = scene.dir.path().join(format!("r{i}"));
        let here = restored(&sources, *seq, &dir.join("source"));
        let paths: Vec<&Path> = here.iter().map(PathBuf::as_path).collect();
        let last = prefix::last(&paths).unwrap();
        assert!(i > 0 || last == acknowledged, "{last} of {acknowledged}");
        for (name, cli) in scene.there() {
            let there = restored(&cli, *seq, &dir.join(name));
            for (here, there) in here.iter().zip(&there) {
                image::compare((here, "raw"), (there, "raw")).unwrap();
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
    drop(recovery);

    // The source's host is gone, with all that it had.
    let there = scene.there();
    let state = scene.agent.state().to_owned();
    drop(scene.agent);
    scene.vm.quit();
    std::fs::remove_dir_all(state).unwrap();
    scene.sites.iter_mut().for_each(Site::kill);
    for (name, cli) in there {
        let copy = restored(&cli, wanted[0], &scene.dir.path().join(format!("last-{name}")));
        for (source, copy) in scene.images.iter().zip(&copy) {
            image::compare((source, "raw"), (copy, "raw")).unwrap();
        }
    }
}

#[test]
fn links_break_daemons_die_and_every_site_ends_with_what_the_source_has() {
    links(Duration::from_secs(20), Duration::from_millis(700), 6);
}

#[test]
#[ignore = "long"]
fn ten_minutes_of_broken_links_and_every_site_ends_with_what_the_source_has() {
    links(Duration::from_secs(600), Duration::from_secs(2), 50);
}
