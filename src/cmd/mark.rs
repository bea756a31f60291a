//! `afterimage mark`: a checkpoint with a label.

use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::StateArgs;
use afterimage_agent::api::MarkRequest;

/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 256;

/// Make a checkpoint with a tag, to be restored as `--at tag:TEXT`
#[derive(Debug, clap::Args)]
pub struct MarkArgs {
    /// Guest or group
    name: String,
    /// The label
    #[arg(long, value_name = "TEXT")]
    tag: String,
    /// Freeze the guest's file systems by its guest agent first: application-consistent, or an
    /// error
    #[arg(long)]
    quiesce: bool,
    /// With the memory of all guests of the group at the same instant; returns when it is stored
    #[arg(long)]
    memory: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &MarkArgs) -> Outcome {
    let tag = args.tag.trim();
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX || tag.contains(char::is_control) {
        return Err(Failure::usage(format!(
            "{tag:?} can't be a tag: use 1 to {TAG_BYTES_MAX} bytes of plain text"
        )));
    }
    let request = MarkRequest { tag: tag.to_owned(), quiesce: args.quiesce, memory: args.memory };
    let mark = args.state.client().mark(&args.name, &request)?;
    show::print(&format!(
        "{}: checkpoint #{} ({}-consistent{}) at {}, seq:{}; restore it with --at 'tag:{tag}'\n",
        args.name,
        mark.id,
        mark.kind,
        if mark.memory { ", with memory" } else { "" },
        show::clock(mark.time),
        mark.seq
    ))
}
