//! A store in memory that does to requests what networks and servers do.

use afterimage_s3::store::{Listed, Store, StoreError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server fails before it did anything.
    Before,
    /// It did it, and the reply is lost.
    After,
    /// A write takes effect only when somebody says so.
    Late,
    /// A write takes effect now, and once more when somebody says so.
    Twice,
    /// The process ends here: nothing that comes later gets anywhere.
    Dead,
    /// As that, but this request still took effect.
    DeadAfter,
}

/// A write, or a deletion, that is still on its way.
#[derive(Debug, Clone)]
enum Way {
    Put(String, Vec<u8>),
    Create(String, Vec<u8>),
    Delete(String),
}

#[derive(Debug, Default)]
pub struct Bag {
    pub objects: BTreeMap<String, Vec<u8>>,
    late: Vec<Way>,
    /// All keys that were ever written.
    pub written: BTreeMap<String, usize>,
    pub deleted: Vec<String>,
}

impl Bag {
    fn put(&mut self, key: &str, bytes: &[u8]) {
        *self.written.entry(key.into()).or_default() += 1;
        self.objects.insert(key.into(), bytes.into());
    }

    fn take(&mut self, way: &Way, heeds_conditions: bool) -> Result<(), StoreError> {
        match way {
            Way::Create(key, _) if heeds_conditions && self.objects.contains_key(key) => {
                return Err(StoreError::Exists(key.clone()));
            }
            Way::Create(key, bytes) | Way::Put(key, bytes) => self.put(key, bytes),
            Way::Delete(key) => {
                self.deleted.push(key.clone());
                self.objects.remove(key);
            }
        }
        Ok(())
    }
}

pub type Plan = dyn FnMut(usize, &str, &str) -> Option<Fault> + Send;

/// One client's way to a bag that others share.
pub struct Memory {
    pub bag: Arc<Mutex<Bag>>,
    pub plan: Mutex<(usize, bool, Box<Plan>)>,
    pub heeds_conditions: bool,
    /// Else a listing shows nothing.
    pub lists: bool,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::on(&Arc::default())
    }

    /// Another client of the same bag.
    pub fn on(bag: &Arc<Mutex<Bag>>) -> Self {
        Self::failing(bag, |_, _, _| None)
    }

    /// One to whose requests (their number, verb, key) the plan says what happens.
    pub fn failing(
        bag: &Arc<Mutex<Bag>>,
        plan: impl FnMut(usize, &str, &str) -> Option<Fault> + Send + 'static,
    ) -> Self {
        let plan = Mutex::new((0, false, Box::new(plan) as Box<Plan>));
        Self { bag: Arc::clone(bag), plan, heeds_conditions: true, lists: true }
    }

    /// What was on its way arrives.
    pub fn deliver(bag: &Arc<Mutex<Bag>>) {
        let mut bag = bag.lock().unwrap();
        for way in std::mem::take(&mut bag.late) {
            let _ = bag.take(&way, true);
        }
    }

    fn fault(&self, verb: &str, key: &str) -> Result<Option<Fault>, StoreError> {
        let mut plan = self.plan.lock().unwrap();
        if plan.1 {
            return Err(StoreError::Refused("the process ended".into()));
        }
        let number = plan.0;
        plan.0 += 1;
        let fault = (plan.2)(number, verb, key);
        plan.1 = matches!(fault, Some(Fault::Dead | Fault::DeadAfter));
        match fault {
            Some(Fault::Before) => Err(StoreError::Unclear("503".into())),
            Some(Fault::Dead) => Err(StoreError::Refused("the process ended".into())),
            fault => Ok(fault),
        }
    }

    fn change(&self, verb: &str, key: &str, way: Way) -> Result<(), StoreError> {
        let fault = self.fault(verb, key)?;
        let mut bag = self.bag.lock().unwrap();
        if fault == Some(Fault::Late) {
            bag.late.push(way);
            return Err(StoreError::Unclear("no answer".into()));
        }
        let done = bag.take(&way, self.heeds_conditions);
        match fault {
            Some(Fault::Twice) => {
                bag.late.push(way);
                done
            }
            Some(Fault::After) => Err(StoreError::Unclear("the reply was lost".into())),
            Some(Fault::DeadAfter) => Err(StoreError::Refused("the process ended".into())),
            _ => done,
        }
    }

    fn ask<T>(
        &self,
        verb: &str,
        key: &str,
        told: impl FnOnce(&Bag) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.fault(verb, key)? {
            None | Some(Fault::Twice) => told(&self.bag.lock().unwrap()),
            Some(Fault::DeadAfter) => Err(StoreError::Refused("the process ended".into())),
            Some(_) => Err(StoreError::Unclear("the reply was lost".into())),
        }
    }
}

impl Store for Memory {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        self.ask("get", key, |bag| {
            let found = bag.objects.get(key).ok_or_else(|| StoreError::NotFound(key.into()))?;
            let range = range.map_or(0..found.len(), |r| r.start as usize..r.end as usize);
            found.get(range).map(<[u8]>::to_vec).ok_or_else(|| StoreError::Refused("416".into()))
        })
    }

    fn has(&self, key: &str) -> Result<bool, StoreError> {
        self.ask("has", key, |bag| Ok(bag.objects.contains_key(key)))
    }

    fn put(&self, key: &str, bytes: &[u8], _: Option<SystemTime>) -> Result<(), StoreError> {
        self.change("put", key, Way::Put(key.into(), bytes.into()))
    }

    fn create(&self, key: &str, bytes: &[u8], _: Option<SystemTime>) -> Result<(), StoreError> {
        self.change("create", key, Way::Create(key.into(), bytes.into()))
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.change("delete", key, Way::Delete(key.into()))
    }

    fn list(&self, prefix: &str, after: &str, delimiter: bool) -> Result<Listed, StoreError> {
        self.ask("list", prefix, |bag| {
            let mut keys: Vec<String> = bag
                .objects
                .keys()
                .filter(|k| self.lists && k.starts_with(prefix) && k.as_str() > after)
                .map(|k| match k[prefix.len()..].split_once('/') {
                    Some((below, _)) if delimiter => format!("{prefix}{below}/"),
                    _ => k.clone(),
                })
                .collect();
            keys.dedup();
            let more = keys.len() > 1000;
            keys.truncate(1000);
            Ok(Listed { keys, more })
        })
    }

    fn can_lock(&self) -> Result<bool, StoreError> {
        self.ask("lock", "", |_| Ok(false))
    }
}
