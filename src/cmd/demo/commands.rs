//! This program's own commands, run as a user would and shown as they run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::show::tell;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A unix socket's path must fit into `sockaddr_un`, with its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The program and the state directory of all its commands.
pub struct Commands {
    program: PathBuf,
    state: PathBuf,
}

impl Commands {
    /// Commands over the state directory `state`, which the agent will make.
    pub fn new(state: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("find this program's own file")?;
        let commands = Self { program, state: state.to_owned() };
        ensure!(
            commands.api_socket().as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
            "{} is too long for a socket's path; give a shorter directory with --dir",
            commands.api_socket().display()
        );
        Ok(commands)
    }

    /// The agent's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.state.join("api.sock")
    }

    /// The command as one would type it here.
    pub fn line(&self, arguments: &[&str]) -> String {
        let mut words = vec![self.near(&self.program)];
        words.extend(arguments.iter().map(|&argument| quoted(argument)));
        words.extend(["--state".into(), self.near(&self.state)]);
        words.join(" ")
    }

    /// The command, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--state").arg(&self.state).stdin(Stdio::null());
        command
    }

    /// Shows a command before it is run.
    pub fn show(&self, arguments: &[&str]) {
        // A reader that went away is no reason to leave a guest half shown.
        tell!("    $ {}", self.line(arguments));
    }

    /// Shows a program that is run as it is.
    pub fn show_line(&self, program: &Path) {
        tell!("    $ {}", self.near(program));
    }

    /// Shows a command, runs it, shows what it printed and gives that.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.show(arguments);
        let output = self.output(arguments)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in printed.lines() {
            tell!("      {line}");
        }
        Ok(printed)
    }

    /// Runs a command that prints JSON and shows nothing.
    pub fn quiet_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.output(arguments)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} printed no JSON", self.line(arguments)))
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        let output = self
            .command(arguments)
            .output()
            .with_context(|| format!("run {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "{} ended with {}: {}",
            self.line(arguments),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output)
    }

    /// `path`, relative to the working directory where it lies below it.
    fn near(&self, path: &Path) -> String {
        let here = std::env::current_dir().unwrap_or_default();
        quoted(&path.strip_prefix(here).unwrap_or(path).display().to_string())
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("2026-01-02T03:04:05.5Z"), "2026-01-02T03:04:05.5Z");
        assert_eq!(quoted("5m ago"), "'5m ago'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
