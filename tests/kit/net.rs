//! Hosts of a test: network namespaces, one for the source and one for each site, joined by a cable each.
//!
//! What always holds: names carry this process's id and a number, so that tests beside each other don't
//! meet; everything is gone with its owner; nothing of the machine's own network is touched.

use super::Cli;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static NETS: AtomicU32 = AtomicU32::new(0);

/// The source's host.
pub const SOURCE: &str = "source";

/// A source and its sites.
pub struct Net {
    /// What the names of its namespaces begin with.
    prefix: String,
    sites: Vec<String>,
}

impl Net {
    /// Makes the namespaces: from the source a cable leads to each site.
    #[track_caller]
    pub fn new(sites: &[&str]) -> Self {
        let number = NETS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ai{}-{number}", std::process::id());
        let net = Self { prefix, sites: sites.iter().map(|s| (*s).to_owned()).collect() };
        for host in std::iter::once(SOURCE).chain(sites.iter().copied()) {
            net.ip(&["netns", "add", &net.namespace(host)]);
            net.inside(host, &["link", "set", "lo", "up"]);
        }
        for (i, site) in sites.iter().enumerate() {
            let (source, there) = (net.namespace(SOURCE), net.namespace(site));
            let cable = format!("to{i}");
            net.ip(&[
                "link", "add", &cable, "netns", &source, "type", "veth", "peer", "name", "up0",
                "netns", &there,
            ]);
            net.inside(SOURCE, &["addr", "add", &format!("10.77.{i}.1/24"), "dev", &cable]);
            net.inside(site, &["addr", "add", &format!("10.77.{i}.2/24"), "dev", "up0"]);
            net.inside(SOURCE, &["link", "set", &cable, "up"]);
            net.inside(site, &["link", "set", "up0", "up"]);
        }
        net
    }

    /// A site's address, as the source reaches it.
    #[track_caller]
    pub fn address(&self, site: &str) -> String {
        format!("10.77.{}.2", self.index(site))
    }

    /// The command line of a host over a state directory.
    pub fn cli(&self, host: &str, program: &str, state: &Path) -> Cli {
        Cli::new(program, state).through(&["ip", "netns", "exec", &self.namespace(host)])
    }

    /// Pulls a site's cable, at the source's end: both ends learn of it.
    pub fn cut(&self, site: &str) {
        self.inside(SOURCE, &["link", "set", &self.cable(site), "down"]);
    }

    /// Has what is sent to a site vanish, and what it sends back: nobody learns of it.
    pub fn blackhole(&self, site: &str) {
        let address = format!("{}/32", self.address(site));
        self.inside(SOURCE, &["route", "replace", "blackhole", &address]);
        let source = format!("10.77.{}.1/32", self.index(site));
        self.inside(site, &["route", "replace", "blackhole", &source]);
    }

    /// Undoes either.
    pub fn mend(&self, site: &str) {
        let address = format!("{}/32", self.address(site));
        let source = format!("10.77.{}.1/32", self.index(site));
        for (host, route) in [(SOURCE, address), (site, source)] {
            // There may be none.
            let _ = self.try_inside(host, &["route", "del", "blackhole", &route]);
        }
        self.inside(SOURCE, &["link", "set", &self.cable(site), "up"]);
    }

    fn index(&self, site: &str) -> usize {
        let at = self.sites.iter().position(|s| s == site);
        at.unwrap_or_else(|| panic!("no site {site}"))
    }

    fn cable(&self, site: &str) -> String {
        format!("to{}", self.index(site))
    }

    /// The name of a host's namespace.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    #[track_caller]
    fn inside(&self, host: &str, arguments: &[&str]) {
        let said = self.try_inside(host, arguments);
        assert!(said.status.success(), "on {host}: ip {arguments:?}: {said:?}");
    }

    #[track_caller]
    fn try_inside(&self, host: &str, arguments: &[&str]) -> Output {
        run(&[&["-n", &self.namespace(host)], arguments].concat())
    }

    #[track_caller]
    fn ip(&self, arguments: &[&str]) {
        let said = run(arguments);
        assert!(said.status.success(), "ip {arguments:?}: {said:?} (root is needed)");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in std::iter::once(SOURCE).chain(self.sites.iter().map(String::as_str)) {
            let _ = run(&["netns", "del", &self.namespace(host)]);
        }
    }
}

#[track_caller]
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::null());
    command
        .output()
        .unwrap_or_else(|e| panic!("run ip: {e} (tests/guest/install.sh installs iproute2)"))
}
