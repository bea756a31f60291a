//! The first and only program of the test guest: it boots the machine and plays the roles that the
//! kernel's command line names, `ai.role=ROLE[,ROLE]`. A role has all disks, or those of
//! `ai.ROLE=vda,vdb`. The host commands it over a virtio-serial port (see `port.rs`).
//!
//! Not a model of a careful program: a guest that cannot go on says so on the console and powers
//! off.

mod boot;
mod counter;
mod demo;
mod disk;
mod latency;
mod load;
mod port;
mod pulse;
mod record;
mod writer;

use std::fs;
use std::io;
use std::sync::Arc;

use port::{Lines, Port, number, value};

#[derive(Default)]
struct Roles {
    writer: Option<writer::Writer>,
    load: Option<load::Load>,
    demo: Option<demo::Demo>,
    pulse: Option<pulse::Pulse>,
    counter: Option<counter::Counter>,
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the init of a test guest; it does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(e) = boot::prepare().and_then(|()| serve()) {
        println!("guest: {e}");
    }
    boot::power_off();
}

fn serve() -> io::Result<()> {
    let options = fs::read_to_string("/proc/cmdline")?;
    let (port, mut lines) = Port::open()?;
    let port = Arc::new(port);
    let agent = boot::start_guest_agent()?;
    let names = value(&options, "ai.role").unwrap_or("none").to_owned();
    let roles = match take_roles(&names, &options, &port) {
        Ok(roles) => roles,
        Err(e) => {
            port.say(&format!("fatal {e}"));
            return Err(e);
        }
    };
    let ready = || {
        let last = roles.writer.as_ref().map_or(0, writer::Writer::last);
        format!("ready roles={names} last={last} guest_agent={}", u8::from(agent))
    };
    port.say(&ready());
    println!("guest: {}", ready());
    obey_all(&mut lines, &roles, &port, ready);
    Ok(())
}

fn take_roles(names: &str, options: &str, port: &Arc<Port>) -> io::Result<Roles> {
    let mut roles = Roles::default();
    for name in names.split(',') {
        let disks = match value(options, &format!("ai.{name}")) {
            Some(list) => list.split(',').map(|disk| format!("/dev/{disk}")).collect(),
            None => boot::disks(),
        };
        match name {
            "writer" => {
                let slots = number(options, "ai.slots").unwrap_or(record::SLOTS);
                roles.writer = Some(writer::Writer::new(&disks, slots, port.clone())?);
            }
            "load" => roles.load = Some(load::Load::new(&disks, port.clone())?),
            "demo" => roles.demo = Some(demo::Demo::new(&disks, port.clone())?),
            "pulse" => roles.pulse = Some(pulse::Pulse::new(port.clone())),
            "counter" => roles.counter = Some(counter::Counter::new(&disks, port.clone())?),
            "none" => {}
            other => return Err(io::Error::other(format!("unknown role {other}"))),
        }
    }
    Ok(roles)
}

/// Until `poweroff`.
fn obey_all(lines: &mut Lines, roles: &Roles, port: &Port, ready: impl Fn() -> String) {
    loop {
        let line = lines.next();
        let (role, command) = line.split_once(' ').unwrap_or((&line, ""));
        if let ("counter", Some(counter)) = (role, &roles.counter) {
            counter.obey(command);
            continue;
        }
        match (role, &roles.writer, &roles.load, &roles.demo) {
            ("", ..) => {}
            ("hello", ..) => port.say(&ready()),
            ("poweroff", ..) => {
                port.say("bye");
                return;
            }
            ("writer", Some(writer), ..) => writer.obey(command),
            ("load", _, Some(load), _) => load.obey(command),
            ("demo", .., Some(demo)) => demo.obey(command),
            ("pulse", ..) if roles.pulse.is_some() => {
                roles.pulse.iter().for_each(|pulse| pulse.obey(command));
            }
            _ => port.say(&format!("unknown line={line}")),
        }
    }
}
