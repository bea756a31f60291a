//! A real guest's journal whose state was put back from a copy and run on: every site refuses it, for good.

use super::evidence::{SOME_WRITES, prefix_of};
use super::window::scene;
use super::{PROGRAM, STATE_LIMIT, Scene, restore};
use crate::kit::s3::Server;
use crate::kit::{Agent, Cli, Site, poll};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn site<'s>(status: &'s Value, name: &str) -> &'s Value {
    let sites = status["sites"].as_array().unwrap();
    sites.iter().find(|s| s["site"] == name).unwrap_or_else(|| panic!("{name}: {status}"))
}

fn head(cli: &Cli) -> u64 {
    cli.json(&["status", "vm"])["head_seq"].as_u64().unwrap()
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// The lowest number of a unit that was not merged.
fn first_unit(journal: &Path) -> u64 {
    let names = std::fs::read_dir(journal).unwrap().flatten();
    let number = |name: String| name.strip_prefix("unit-")?.parse().ok();
    names.filter_map(|e| number(e.file_name().into_string().unwrap())).min().unwrap()
}

#[track_caller]
fn all_refuse(agent: &Agent, names: &[String]) {
    for name in names {
        let refuses = |status: &Value| site(status, name)["state"] == "refused";
        let status = agent.wait_status("vm", STATE_LIMIT, refuses);
        let why = site(&status, name)["error"].as_str().unwrap().to_owned();
        assert!(why.contains("another branch") && why.contains("aside"), "{name}: {why}");
    }
}

#[test]
#[ignore = "long: about a minute; tests/conform has the same without a guest"]
fn a_state_put_back_and_run_on_is_refused_by_every_site_for_good() {
    let server = Server::start();
    // Sets the credentials in the environment of all that is started here.
    drop(server.bucket());
    let mut scene = scene("1MiB");
    let far = Site::start(PROGRAM, scene.dir.path().join("far"), None);
    let near = scene.dir.path().join("near").display().to_string();
    let invited = far.invite("vm");
    let invited = format!("tls://{}#{}", far.addr, invited.rsplit('#').next().unwrap());
    let names = [format!("tls://{}", far.addr), server.place(), near.clone()];
    scene.vm.ask("writer start rate=1500", "writer started");
    let sites = ["--site", &invited, "--site", &names[1], "--site", &near, "--window", "5s"];
    scene.protect(&sites);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let (state, old) = (scene.agent.state().to_owned(), scene.dir.path().join("old"));
    scene.agent.stop();
    copy(&state, &old);

    // The one branch, which the sites get.
    scene.agent = Agent::start_with(&["--unit-size", "1MiB"], PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    std::thread::sleep(SOME_WRITES);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let upto = head(&scene.agent);
    for name in &names {
        scene.agent.wait_status("vm", STATE_LIMIT, |status| {
            let site = site(status, name);
            site["state"] == "shipping" && site["watermark"].as_u64() >= Some(upto)
        });
    }
    scene.agent.stop();
    let forked = first_unit(&old.join("pool/vm")) + 20;

    // The other one.
    std::fs::remove_dir_all(&state).unwrap();
    copy(&old, &state);
    scene.agent = Agent::start_with(&["--unit-size", "1MiB"], PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    all_refuse(&scene.agent, &names);
    scene.vm.ask("writer start rate=1500", "writer started");
    let merged = poll(STATE_LIMIT, || {
        let is_past = head(&scene.agent) > upto && first_unit(&state.join("pool/vm")) > forked;
        is_past.then_some(())
    });
    merged.expect("the units that differ were never merged");
    all_refuse(&scene.agent, &names);
    scene.agent.stop();
    scene.agent = Agent::start_with(&["--unit-size", "1MiB"], PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    all_refuse(&scene.agent, &names);

    let Scene { dir: all, vm, agent, .. } = scene;
    agent.stop();
    vm.quit();
    let bucket = server.place();
    for place in [far.state(), Path::new(&bucket), Path::new(&near)] {
        let there = Cli::new(PROGRAM, place);
        there.ok(&["verify", "vm"]);
        let latest = prefix_of(&restore(&there, "latest", all.path()));
        assert_eq!(latest, last, "{}", place.display());
    }
}
