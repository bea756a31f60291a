//! `afterimage doctor`: what on this machine stands in the way, and what to do about it.
//!
//! Each check looks and says; none changes anything. (`--rebuild` does, and checks nothing.) What it
//! asks of other processes has a time limit.

mod guests;
mod host;
mod kvm;
mod rebuild;
mod storage;

use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;
use serde::Serialize;
use std::process::ExitCode;

/// Check this machine, the state directory, the agent and the guests; say what to do
///
/// Exit code 1 when something fails; warnings alone leave it at 0.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print a list of {check, level, what, todo}
    #[arg(long)]
    json: bool,
    /// Remove what is derived from the units of this group's journal (catalogue, map runs), and
    /// make it anew from the units alone. The agent must not run
    #[arg(long, value_name = "GROUP", conflicts_with = "json")]
    rebuild: Option<String>,
    #[command(flatten)]
    state: StateArgs,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warn,
    /// Does not work.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    check: String,
    level: Level,
    /// What was found.
    what: String,
    /// What to do.
    todo: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, what: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, what: what.into(), todo: None }
    }

    fn warn(check: impl Into<String>, what: impl Into<String>, todo: impl Into<String>) -> Self {
        let todo = Some(todo.into());
        Self { check: check.into(), level: Level::Warn, what: what.into(), todo }
    }

    fn fail(check: impl Into<String>, what: impl Into<String>, todo: impl Into<String>) -> Self {
        let todo = Some(todo.into());
        Self { check: check.into(), level: Level::Fail, what: what.into(), todo }
    }
}

/// Runs it.
pub fn run(args: &DoctorArgs) -> Outcome<ExitCode> {
    let state = &args.state.state;
    if let Some(group) = &args.rebuild {
        return rebuild::run(state, group);
    }
    let mut findings = host::check();
    findings.push(kvm::check());
    findings.extend(storage::check(state));
    findings.extend(guests::check(state));
    if args.json {
        show::print_json(&findings)?;
    } else {
        show::print(&text(&findings))?;
    }
    let failed = findings.iter().any(|f| f.level == Level::Fail);
    Ok(ExitCode::from(u8::from(failed)))
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let (check, what) = (show::escaped(&finding.check), show::escaped(&finding.what));
        text += &format!("{level}  {check:width$}  {what}\n");
        if let Some(todo) = &finding.todo {
            text += &format!("      {:width$}  -> {}\n", "", show::escaped(todo));
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (warned, failed) = (count(Level::Warn), count(Level::Fail));
    text + &format!("{} checks: {warned} warnings, {failed} failures\n", findings.len())
}
