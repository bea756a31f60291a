//! Commands of root in a directory of another user, who puts links, FIFOs and other directories in their way.

use super::shop::Shop;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const USER: u32 = 65_534;

/// Runs a Perl program as the other user until it is dropped.
struct Hostile(Child);

impl Hostile {
    fn start(program: &str, words: &[&Path]) -> Self {
        let id = USER.to_string();
        let child = Command::new("setpriv")
            .args([
                "--reuid",
                &id,
                "--regid",
                &id,
                "--clear-groups",
                "perl",
                "-MPOSIX",
                "-e",
                program,
            ])
            .args(words)
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv and perl");
        Self(child)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A journal, a directory of the other user, and files of root's that nobody is to touch.
struct Scene {
    shop: Shop,
    theirs: PathBuf,
    victims: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let shop = Shop::new();
        std::fs::set_permissions(shop.path(""), Permissions::from_mode(0o755)).unwrap();
        let (theirs, victims) = (shop.path("theirs"), shop.path("victims"));
        for dir in [&theirs, &victims] {
            std::fs::create_dir(dir).unwrap();
            std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::chown(&theirs, Some(USER), Some(USER)).unwrap();
        std::fs::write(victims.join("victim"), "precious").unwrap();
        Self { shop, theirs, victims }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let names: Vec<_> =
            std::fs::read_dir(&self.victims).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["victim"], "files were made outside of the directory");
        let found = std::fs::symlink_metadata(self.victims.join("victim")).unwrap();
        assert_eq!((found.is_file(), found.uid()), (true, 0));
        assert_eq!(std::fs::read_to_string(self.victims.join("victim")).unwrap(), "precious");
    }
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("not run: only root can be a user and another one");
    }
    is_root
}

#[test]
fn restore_into_another_users_directory_makes_nothing_outside_of_it() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let out = scene.theirs.join("out");
    let _hostile = Hostile::start(
        r#"my ($victims, $out) = @ARGV; my $i = 0;
           while (1) {
               $i++;
               mkdir $out;
               mkfifo("$out/web-system.raw.partial", 0600) if $i % 3 == 0;
               symlink "$victims/victim", "$out/web-data.raw.partial" if $i % 5 == 0;
               rename $out, "$out.$i";
               symlink $victims, $out;
               unlink $out;
           }"#,
        &[&scene.victims, &out],
    );
    let to = out.display().to_string();
    let mut refused = 0;
    for _ in 0..24 {
        // It may succeed, in a directory that is elsewhere by now, or be refused; it ends.
        let outcome = scene.shop.cli.run(&["restore", "web", "--at", "latest", "--to", &to]);
        assert!([0, 1, 2].contains(&outcome.code), "{outcome:?}");
        refused += u32::from(outcome.stderr.contains("symbolic link of user 65534"));
        scene.assert_untouched();
    }
    eprintln!("{refused} of 24 were refused for a link");
}

#[test]
fn export_to_a_socket_in_another_users_directory_touches_nothing_else() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let socket = scene.theirs.join("s");
    let _hostile = Hostile::start(
        r#"my ($victim, $s) = @ARGV;
           while (1) {
               unlink $s; symlink $victim, $s; unlink $s; mkfifo($s, 0600); unlink $s;
           }"#,
        &[&scene.victims.join("victim"), &socket],
    );
    for _ in 0..12 {
        let mut command = scene.shop.cli.command();
        let mut export = command
            .args(["export", "web", "--at", "latest", "--writable", "--socket"])
            .arg(&socket)
            .arg("--state")
            .arg(scene.shop.cli.state())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // Ready, or it has ended with an error.
        BufReader::new(export.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.is_empty() {
            let pid = Pid::from_raw(i32::try_from(export.id()).unwrap()).unwrap();
            kill_process(pid, Signal::TERM).unwrap();
        }
        export.wait().unwrap();
        scene.assert_untouched();
    }
}
