//! Deciding a warm restore: which disks at P and which memory at C, under which names, by which
//! command lines, and what doesn't fit. No file is written.

use super::fit::{Accel, Fit, Needs, fit, unlive};
use super::host::Host;
use super::{DeviceState, WarmPoint};
use crate::error::{Error, Result};
use crate::names::sanitised;
use crate::open::Recovery;
use crate::plan::{Plan, Selection, VolumePlan, plan, shown};
use crate::restore::RestoreOptions;
use crate::start::{self, CommandLine, Place, Thaw};
use afterimage_journal::History;
use afterimage_journal::history::Point;
use afterimage_journal::meta::{Config, GuestMemory, Volume};
use afterimage_migration::{Block, Head};
use afterimage_planted as planted;
use std::path::{Path, PathBuf};

/// A warm restore, decided.
#[derive(Debug)]
pub struct WarmPlan {
    /// The checkpoint.
    pub point: WarmPoint,
    /// What may go wrong, or will be another way than it was: for people.
    pub warnings: Vec<String>,
    pub(crate) options: RestoreOptions,
    /// The target directory, absolute.
    pub(crate) dir: PathBuf,
    /// The disks.
    pub(crate) disks: Plan,
    /// The guests that resume.
    pub(crate) guests: Vec<GuestPlan>,
}

/// One guest of it.
#[derive(Debug, Clone)]
pub(crate) struct GuestPlan {
    pub memory: GuestMemory,
    /// Its RAM volumes, read at C, in the order of its stream.
    pub ram: Plan,
    /// The blocks of its stream.
    pub blocks: Vec<Block>,
    /// Name of its stream's file.
    pub file_name: String,
    /// How it is started; `None`: nobody knows how it was.
    pub line: Option<CommandLine>,
    /// Why a copy can't run here before its memory is there; `None`: it can.
    pub unlive: Option<String>,
    /// What thaws a copy, if its file systems are frozen in its memory.
    pub thaw: Option<Thaw>,
    /// What is to be said of it.
    pub warnings: Vec<String>,
}

/// Plans a warm restore: everything that can be known to keep a guest from being resumed on this
/// host is found here.
///
/// # Errors
/// A disk isn't restorable at the instant; memory is damaged ([`Error::MemoryDamaged`]); a guest
/// can't be resumed here ([`Error::Unfit`]).
pub fn plan_warm(
    recovery: &Recovery,
    point: &WarmPoint,
    options: &RestoreOptions,
    host: &dyn Host,
) -> Result<WarmPlan> {
    let history = &recovery.history;
    let selection = Selection { guest: recovery.guest.as_deref(), disks: &options.disks };
    let disks = plan(history, point.point, selection, options.format)?;
    let to = &options.to;
    let dir = std::path::absolute(to).map_err(|e| Error::target("find directory", to, e))?;
    let config = history.config_at(point.point.seq);
    let mut guests = Vec::new();
    let mut warnings = Vec::new();
    for memory in &point.guests {
        let made = Making { recovery, point, options, dir: &dir, disks: &disks };
        let guest = made.guest(memory, config, host)?;
        warnings.extend(guest.warnings.iter().map(|w| format!("{}: {w}", memory.guest)));
        guests.push(guest);
    }
    for volume in &disks.volumes {
        let guest = &volume.volume.guest;
        let has_memory = guests.iter().any(|g| g.memory.guest == *guest);
        let text = format!("{guest}: this checkpoint has no memory of it: it starts cold");
        if !has_memory && !warnings.contains(&text) {
            warnings.push(text);
        }
    }
    let options = options.clone();
    Ok(WarmPlan { point: point.clone(), warnings, options, dir, disks, guests })
}

/// What the plan of each guest is made from.
struct Making<'a> {
    recovery: &'a Recovery,
    point: &'a WarmPoint,
    options: &'a RestoreOptions,
    dir: &'a Path,
    disks: &'a Plan,
}

impl Making<'_> {
    fn guest(
        &self,
        memory: &GuestMemory,
        config: Option<&Config>,
        host: &dyn Host,
    ) -> Result<GuestPlan> {
        let (mut plan, machine) = guest_plan(self.recovery, self.point, memory)?;
        if let Some(config) = config {
            self.line(&mut plan, config, machine.as_deref(), host)?;
        }
        if plan.line.is_none() {
            plan.warnings.push(
                "its command line is not known: start QEMU with its own machine options, the \
                 restored disks, and -incoming file: with the memory's path"
                    .into(),
            );
        }
        Ok(plan)
    }

    /// Its command line, and whether it fits here.
    fn line(
        &self,
        plan: &mut GuestPlan,
        config: &Config,
        machine: Option<&str>,
        host: &dyn Host,
    ) -> Result<()> {
        let name = &plan.memory.guest;
        let Some(guest) = config.guests.iter().find(|g| g.name == *name) else { return Ok(()) };
        if guest.command_line.is_empty() {
            return Ok(());
        }
        let disks = start::disks(config, name, self.disks, self.dir);
        let file_part = sanitised(name);
        let place = Place { dir: self.dir, name: &file_part, machine, is_public: start::is_public };
        let format = self.options.format;
        let mut line = start::rewrite_to_resume(&guest.command_line, &disks, format, &place);
        let wanted = guest.command_line.first().filter(|p| !p.starts_with('-'));
        let wanted = wanted.map_or(start::DEFAULT_PROGRAM, String::as_str);
        let program = host
            .program(wanted)
            .map_err(|why| Error::Unfit { guest: name.clone(), why: vec![why] })?;
        set_program(&mut line, wanted, &program);
        let needs = Needs {
            qemu_version: &guest.qemu_version,
            machine,
            blocks: &plan.memory.blocks,
            line: &line,
        };
        let facts = host.facts(needs.program(), needs.accel() != Accel::Other);
        let Fit { refusals, warnings } = fit(&needs, &facts);
        if !refusals.is_empty() {
            return Err(Error::Unfit { guest: name.clone(), why: refusals });
        }
        plan.warnings.extend(warnings);
        plan.warnings.extend(start::warnings(&line));
        plan.unlive = unlive(&needs, &facts);
        if self.point.quiesced && !planted::is("a-copy-stays-frozen") {
            let program = std::env::current_exe().unwrap_or_else(|_| "afterimage".into());
            let thaw = Thaw { program, socket: start::agent_socket(&line.kept) };
            if thaw.socket.is_none() {
                plan.warnings.push(
                    "its file systems were frozen at the checkpoint, and no guest agent's socket is among its \
                     options: nothing can thaw a copy that resumes; boot it (`cold`)"
                        .into(),
                );
            }
            plan.thaw = Some(thaw);
        }
        plan.line = Some(line);
        Ok(())
    }
}

/// Has a copy run by a program of this host.
fn set_program(line: &mut CommandLine, wanted: &str, program: &Path) {
    let program = program.display().to_string();
    line.changed.retain(|(old, _)| old.first().is_none_or(|o| o != wanted));
    // Whether it is a QEMU at all was decided with the program.
    line.asked.retain(|what| !what.starts_with("the program "));
    if program != wanted {
        line.changed.push((vec![wanted.to_owned()], vec![program.clone()]));
    }
    if let Some(first) = line.kept.first_mut() {
        *first = vec![program];
    }
}

/// What is read for a guest, and the machine type in its stream.
///
/// # Errors
/// [`Error::MemoryDamaged`].
pub(crate) fn guest_plan(
    recovery: &Recovery,
    point: &WarmPoint,
    memory: &GuestMemory,
) -> Result<(GuestPlan, Option<String>)> {
    let history = &recovery.history;
    let damaged = |why: String| recovery.memory_damaged(point, why);
    let ram = ram_plan(history, point, memory).map_err(damaged)?;
    let state = DeviceState::read(history, memory, point.committed);
    let state = state.map_err(|e| damaged(e.to_string()))?;
    let head = Head::parse(&state.head).map_err(|e| damaged(e.to_string()))?;
    let mut plan = GuestPlan {
        memory: memory.clone(),
        ram,
        blocks: blocks(memory),
        file_name: format!("{}.memory", sanitised(&memory.guest)),
        line: None,
        unlive: None,
        thaw: None,
        warnings: Vec::new(),
    };
    if let Some(stays) = state.stays {
        plan.warnings.push(format!(
            "it was {stays:?} when the checkpoint was made, and so will its copy be"
        ));
    }
    Ok((plan, head.machine))
}

fn blocks(memory: &GuestMemory) -> Vec<Block> {
    memory.blocks.iter().map(|b| Block { id: b.id.clone(), bytes: b.bytes }).collect()
}

/// The RAM volumes of a guest at the position that commits them.
fn ram_plan(
    history: &History,
    point: &WarmPoint,
    memory: &GuestMemory,
) -> std::result::Result<Plan, String> {
    let known: &[Volume] = history.config_at(point.committed).map_or(&[], |c| &c.volumes);
    let mut volumes = Vec::new();
    for block in &memory.blocks {
        let volume = known.iter().find(|v| v.id == block.volume);
        let volume = volume.ok_or_else(|| format!("no volume holds its RAM block {}", block.id))?;
        if volume.bytes < block.bytes {
            return Err(format!(
                "{} has {} bytes, and its RAM block {}",
                shown(volume),
                volume.bytes,
                block.bytes
            ));
        }
        // Only as much as is in use is read.
        let volume = Volume { bytes: block.bytes, ..volume.clone() };
        volumes.push(VolumePlan { volume, file_name: String::new() });
    }
    let wall_ns = point.point.wall_ns;
    let at = Point { seq: point.committed, wall_ns };
    Ok(Plan { point: at, volumes, skipped: Vec::new() })
}

impl Recovery {
    /// The error for memory that can't be had.
    pub(crate) fn memory_damaged(&self, point: &WarmPoint, why: String) -> Error {
        let nearest = Box::new(self.nearest_warm(point.point.seq));
        Error::MemoryDamaged { id: point.id, point: point.point.seq, why, nearest }
    }
}
