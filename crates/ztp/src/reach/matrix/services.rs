//! Rows, and service sets that are kept once.

use std::collections::HashMap;

use crate::sets::ServiceSet;

/// The number of a [`ServiceSet`] that is kept once.
pub(super) type Service = u32;

/// What one side of one class lets pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// With everyone who is not in `others`.
    pub(super) rest: Service,
    /// With these classes, in ascending order; never the same as `rest`.
    pub(super) others: Vec<(u32, Service)>,
}

impl Row {
    pub(super) fn at(&self, class: u32) -> Service {
        match self.others.binary_search_by_key(&class, |(c, _)| *c) {
            Ok(i) => self.others[i].1,
            Err(_) => self.rest,
        }
    }
}

/// Service sets, each kept once.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) all: Vec<ServiceSet>,
    known: HashMap<ServiceSet, Service>,
    both: HashMap<(Service, Service), Service>,
    /// Whether two have something in common: 0 for not looked at, 1 for no, 2 for yes.
    meets: Vec<u8>,
    width: usize,
    /// What the rules of a plane come to that match a peer, by what they do in their order.
    pub(super) decided: HashMap<Vec<u64>, Service>,
}

impl Services {
    pub(super) fn number(&mut self, set: &ServiceSet) -> Service {
        if let Some(number) = self.known.get(set) {
            return *number;
        }
        let number = self.all.len() as Service;
        self.all.push(set.clone());
        self.known.insert(set.clone(), number);
        number
    }

    /// What is in both.
    pub(super) fn both(&mut self, a: Service, b: Service) -> Service {
        if a == b {
            return a;
        }
        let key = (a.min(b), a.max(b));
        if let Some(known) = self.both.get(&key) {
            return *known;
        }
        let set = self.all[a as usize].intersect(&self.all[b as usize]);
        let number = self.number(&set);
        self.both.insert(key, number);
        number
    }

    /// Whether something is in both.
    pub(super) fn meet(&mut self, a: Service, b: Service) -> bool {
        // A table for all pairs while there are few, which is nearly always.
        const TABLE: usize = 4_096;
        let compute = |all: &[ServiceSet]| !all[a as usize].intersect(&all[b as usize]).is_empty();
        if self.all.len() > TABLE {
            return compute(&self.all);
        }
        if self.width < self.all.len() {
            self.width = self.all.len().next_power_of_two();
            self.meets = vec![0; self.width * self.width];
        }
        let place = a as usize * self.width + b as usize;
        if self.meets[place] == 0 {
            self.meets[place] = 1 + u8::from(compute(&self.all));
        }
        self.meets[place] == 2
    }
}
