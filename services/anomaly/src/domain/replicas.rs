//! Who judges which tenant: what a replica should do, told from who is there and who holds what. Every replica reckons for
//! itself and moves one tenant at a time nearer to even shares, so that no one has to be in command.

use std::collections::BTreeMap;

use garrison_proto::TenantId;
use uuid::Uuid;

/// What is agreed on of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Which.
    pub tenant: TenantId,
    /// The replica that judges it.
    pub owner: Option<Uuid>,
    /// The replica that it is to be handed to.
    pub wanted: Option<Uuid>,
    /// Grows whenever the owner changes.
    pub epoch: i64,
}

/// What a replica should do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tenants that nobody holds, or that were handed to it: to be taken.
    pub take: Vec<TenantId>,
    /// Tenants of those who have more, to be asked for.
    pub want: Vec<TenantId>,
    /// Own tenants, and whom they are to be handed to.
    pub give: Vec<(TenantId, Uuid)>,
}

/// What `me` should do, where `live` are all that are there and `held` says whether a tenant is in its memory already.
///
/// What nobody holds is taken up to an even share, rounded up, which over all replicas is enough for everything. Beyond that
/// a tenant is asked of whoever has most, as long as that one would still have at least as many: shares end up as even as
/// they can be and then nothing moves.
pub fn plan(me: Uuid, live: &[Uuid], holdings: &[Holding], held: impl Fn(&TenantId) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut shares: BTreeMap<Uuid, usize> = live.iter().map(|id| (*id, 0)).collect();
    shares.entry(me).or_default();
    let is_there = |shares: &BTreeMap<Uuid, usize>, id: &Uuid| shares.contains_key(id);
    let most = holdings.len().div_ceil(shares.len());
    let mut free = Vec::new();
    for holding in holdings {
        let Some(owner) = holding.owner.filter(|owner| is_there(&shares, owner)) else {
            free.push(holding);
            continue;
        };
        // What was asked for counts as moved already, or it would be asked for again.
        let next = holding.wanted.filter(|wanted| is_there(&shares, wanted));
        *shares.entry(next.unwrap_or(owner)).or_default() += 1;
        if owner != me {
            continue;
        }
        match next.filter(|next| *next != me) {
            Some(next) => plan.give.push((holding.tenant.clone(), next)),
            None if !held(&holding.tenant) => plan.take.push(holding.tenant.clone()),
            None => {}
        }
    }
    let mine = |shares: &BTreeMap<Uuid, usize>| shares.get(&me).copied().unwrap_or_default();
    for holding in free {
        if mine(&shares) >= most {
            break;
        }
        plan.take.push(holding.tenant.clone());
        *shares.entry(me).or_default() += 1;
    }
    // While something is free, others may be about to take it.
    if holdings
        .iter()
        .any(|h| !h.owner.is_some_and(|owner| is_there(&shares, &owner)))
    {
        return plan;
    }
    while let Some((richest, share)) = shares.iter().map(|(id, n)| (*id, *n)).max_by_key(|(_, n)| *n)
        && share >= mine(&shares) + 2
    {
        let of_richest =
            |h: &&Holding| h.owner == Some(richest) && h.wanted.is_none() && !plan.want.contains(&h.tenant);
        let Some(holding) = holdings.iter().find(of_richest) else {
            break;
        };
        plan.want.push(holding.tenant.clone());
        *shares.entry(richest).or_default() -= 1;
        *shares.entry(me).or_default() += 1;
    }
    plan
}

/// Tells whether the deliveries of a consumer that several replicas share come here without a gap. While they do, what comes
/// is all there is; after a gap something may have been handed to another replica, and has to be read from the stream.
#[derive(Debug, Default)]
pub struct Runs {
    last: Option<(u64, u64)>,
    run: Run,
}

/// A stretch of deliveries without a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Which.
    pub number: u64,
    /// Which of the consumers that had the name one after the other it comes from: positions of one mean nothing to the next.
    pub era: u64,
}

impl Runs {
    /// Notes a delivery by its number at the consumer and that of the connection, and says what run it belongs to. One that
    /// is tried again has the same number.
    pub fn follow(&mut self, sequence: u64, connection: u64) -> Run {
        match self.last {
            Some((last, same)) if (sequence == last || sequence == last + 1) && connection == same => {}
            Some((last, _)) => {
                self.run.number += 1;
                self.run.era += u64::from(sequence < last);
            }
            None => self.run.number += 1,
        }
        self.last = Some((sequence, connection));
        self.run
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replica(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 + 1)
    }

    fn tenant(n: usize) -> TenantId {
        format!("t{n}").parse().unwrap()
    }

    // What the replicas agree on, changed as their plans say, one replica after the other.
    fn step(live: &[Uuid], holdings: &mut [Holding]) -> bool {
        let mut moved = false;
        for me in live {
            let plan = plan(*me, live, holdings, |_| true);
            moved |= plan != Plan::default();
            for holding in holdings.iter_mut() {
                if plan.take.contains(&holding.tenant) {
                    let free = holding.owner.is_none_or(|owner| !live.contains(&owner));
                    assert!(free, "{me} takes what somebody holds");
                    (holding.owner, holding.wanted) = (Some(*me), None);
                }
                if plan.want.contains(&holding.tenant) {
                    assert!(holding.owner != Some(*me) && holding.wanted.is_none());
                    holding.wanted = Some(*me);
                }
                if let Some((_, to)) = plan.give.iter().find(|(tenant, _)| *tenant == holding.tenant) {
                    assert_eq!(holding.owner, Some(*me));
                    (holding.owner, holding.wanted) = (Some(*to), None);
                }
            }
        }
        moved
    }

    fn shares(live: &[Uuid], holdings: &[Holding]) -> Vec<usize> {
        let of = |id: &Uuid| holdings.iter().filter(|h| h.owner == Some(*id)).count();
        live.iter().map(of).collect()
    }

    #[test]
    fn what_was_handed_over_is_taken_by_whom_it_is_for_and_nobody_else() {
        let (me, other) = (replica(0), replica(1));
        let holdings = [Holding {
            tenant: tenant(0),
            owner: Some(me),
            wanted: None,
            epoch: 1,
        }];
        let fresh = plan(me, &[me, other], &holdings, |_| false);
        assert_eq!(fresh.take, [tenant(0)]);
        assert_eq!(plan(me, &[me, other], &holdings, |_| true), Plan::default());
        assert_eq!(plan(other, &[me, other], &holdings, |_| false), Plan::default());
    }

    #[test]
    fn a_wish_of_one_who_is_gone_is_no_wish() {
        let (me, gone) = (replica(0), replica(1));
        let holdings = [Holding {
            tenant: tenant(0),
            owner: Some(me),
            wanted: Some(gone),
            epoch: 1,
        }];
        assert_eq!(plan(me, &[me], &holdings, |_| true), Plan::default());
    }

    #[test]
    fn a_gap_begins_another_run_and_a_repeat_does_not() {
        let mut runs = Runs::default();
        let deliveries = [
            (5, 1),
            (6, 1),
            (6, 1),
            (7, 1),
            (9, 1),
            (10, 1),
            (2, 1),
            (3, 1),
            (4, 3),
            (5, 3),
        ];
        let runs: Vec<(u64, u64)> = deliveries
            .into_iter()
            .map(|(sequence, connection)| runs.follow(sequence, connection))
            .map(|run| (run.number, run.era))
            .collect();
        let same = |run, n| std::iter::repeat_n(run, n);
        let wanted = same((1, 0), 4)
            .chain(same((2, 0), 2))
            .chain(same((3, 1), 2))
            .chain(same((4, 1), 2));
        assert_eq!(runs, wanted.collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn shares_become_even_whoever_comes_and_goes_and_then_nothing_moves(
            tenants in 0_usize..40,
            there in prop::collection::vec(prop::collection::btree_set(0_usize..6, 1..6), 1..5),
        ) {
            let holding = |n| Holding { tenant: tenant(n), owner: None, wanted: None, epoch: 0 };
            let mut holdings: Vec<Holding> = (0..tenants).map(holding).collect();
            for live in there {
                let live: Vec<Uuid> = live.into_iter().map(replica).collect();
                let mut rounds = 0;
                while step(&live, &mut holdings) {
                    rounds += 1;
                    prop_assert!(rounds < 100, "it never comes to rest: {:?}", shares(&live, &holdings));
                }
                let shares = shares(&live, &holdings);
                prop_assert_eq!(shares.iter().sum::<usize>(), tenants);
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{:?}", shares);
            }
        }
    }
}
