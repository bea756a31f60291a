//! `afterimage-fuzz TARGET|all SECONDS [SEED]`: see the crate.

use afterimage_fuzz::{corpus, targets, tries};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = arguments.first().map_or("all", String::as_str);
    let seconds = arguments.get(1).and_then(|s| s.parse().ok()).unwrap_or(10);
    let seed = arguments.get(2).and_then(|s| s.parse().ok()).unwrap_or(1);
    let chosen: Vec<_> =
        targets::all().into_iter().filter(|t| wanted == "all" || t.name == wanted).collect();
    if chosen.is_empty() {
        eprintln!("no target of this name; there are:");
        targets::all().iter().for_each(|t| eprintln!("  {}", t.name));
        return ExitCode::from(2);
    }
    // What a target says when it breaks is printed once, below.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for target in chosen {
        match tries::fuzz(&target, Duration::from_secs(seconds), seed) {
            Ok(outcome) => {
                println!(
                    "{:<16} {:>9} inputs tried, {:>4} kept, {:>6} edges",
                    target.name, outcome.runs, outcome.inputs, outcome.edges
                );
                if let Some((input, why)) = outcome.failure {
                    failed = true;
                    let path = corpus::failure_path(target.name);
                    let _ = corpus::write(&path, &[input]);
                    eprintln!("{}: {why}\n  the input is in {}", target.name, path.display());
                }
            }
            Err(e) => {
                failed = true;
                eprintln!("{}: its corpus: {e}", target.name);
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
