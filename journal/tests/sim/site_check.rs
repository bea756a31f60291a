//! What a site lists and reads, judged by the model of its source.

use crate::model::Model;
use crate::run::{DIR, unlocked};
use crate::site::Pair;
use afterimage_journal::{History, Seq};
use std::path::Path;

impl Pair {
    pub fn history(&self) -> Option<History> {
        let storage = self.storage();
        let is_there = storage.exists(&Path::new(DIR).join("journal.json"));
        is_there.then(|| unlocked(History::load_in(&storage, Path::new(DIR)).unwrap()))
    }

    /// The model of what the site can know.
    pub fn model(&self, head: Seq) -> Model {
        let mut model = self.run.model.clone();
        model.truncate(head);
        (model.tags_stay, model.is_site) = (false, true);
        model
    }

    pub fn check(&mut self) {
        let Some(history) = self.history() else { return };
        if self.run.is_told {
            eprintln!("      damage {:?} of {} units", history.damage, history.units.len());
        }
        if !history.damage.is_empty() {
            // The first copy is not there yet, or what an outage left out: nothing that needs it is listed.
            let from = history.damage.iter().map(|d| d.from).min().unwrap();
            // Its edge may lie where the source's next watermark is not here yet.
            let is_near =
                history.damage.iter().all(|d| d.what.contains("not all at this site yet"));
            assert!(
                is_near || from > self.acked,
                "{} was acknowledged: {:?}",
                self.acked,
                history.damage
            );
            let listed = (from..=history.head).filter(|seq| history.is_restorable(*seq));
            assert_eq!(listed.count(), 0, "listed behind what is missing: {:?}", history.damage);
            return;
        }
        if self.run.is_told {
            for u in &history.units {
                let m =
                    u.merged.as_ref().map(|m| (m.edge, m.floor, &m.kept, m.first_seq, m.last_seq));
                eprintln!(
                    "      at the site: {} {}..{} {:?} {m:?}",
                    u.name, u.first_seq, u.last_seq, u.end
                );
            }
            eprintln!(
                "      edge {} floor {} epochs {:?}",
                history.edge, history.floor, history.epochs
            );
            for u in &self.run.history().units {
                let m =
                    u.merged.as_ref().map(|m| (m.edge, m.floor, &m.kept, m.first_seq, m.last_seq));
                eprintln!(
                    "      source: {} {}..{} {:?} {m:?}",
                    u.name, u.first_seq, u.last_seq, u.end
                );
            }
        }
        let head = history.head;
        assert!(head >= self.acked, "{} was acknowledged, the site has {head}", self.acked);
        let at: Vec<Seq> = (0..3).map(|_| 1 + self.rng.below(head.max(1))).chain([head]).collect();
        self.model(head).check(&history, &at);
    }
}
