//! What was measured: a table for people, `report.json` for programs.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One figure beside its peer.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What it is, and the aim for the ratio or for our figure.
    pub name: String,
    /// Our figure.
    pub ours: f64,
    /// The peer's.
    pub peer: f64,
    /// Who the peer is.
    pub peer_name: String,
    /// Ours by the peer's; none where the peer's is 0.
    pub ratio: Option<f64>,
    /// The unit of both figures.
    pub unit: &'static str,
}

impl Row {
    /// The name without the aim that it ends with, and the aim.
    fn name_and_aim(&self) -> (&str, &str) {
        let parts = self.name.rsplit_once(" (aim").and_then(|(name, aim)| {
            let aim = aim.strip_suffix(')')?;
            Some((name, aim.trim_start_matches([':', ' '])))
        });
        parts.unwrap_or((&self.name, "-"))
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        (ours, peer): (f64, f64),
        peer_name: &str,
        unit: &'static str,
    ) {
        let ratio = (peer != 0.0).then(|| ours / peer);
        let (name, peer_name) = (name.into(), peer_name.to_owned());
        self.rows.push(Row { name, ours, peer, peer_name, ratio, unit });
    }

    /// Prints the table.
    pub fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["figure", "aim", "ours", "peer", "unit", "ratio", "peer is"]);
        for row in &self.rows {
            let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let (name, aim) = row.name_and_aim();
            table.add_row([
                name.to_owned(),
                aim.to_owned(),
                plain(row.ours),
                plain(row.peer),
                row.unit.to_owned(),
                ratio,
                row.peer_name.clone(),
            ]);
        }
        for index in [2, 3, 5] {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{table}");
    }

    /// Writes `report.json` into `dir` and gives its path.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join("report.json");
        let mut text = serde_json::to_string_pretty(&self.rows)?;
        text.push('\n');
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn plain(figure: f64) -> String {
    if figure >= 100.0 || figure == 0.0 { format!("{figure:.0}") } else { format!("{figure:.1}") }
}

/// The median; 0 of nothing.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// How many processors this machine has, and how busy it is with other things.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    format!("{cores} processors, load average {}", load.join(" "))
}
