//! Two tenants side by side: for every method, one's administrator can neither see nor touch what the other has.

mod detection;
pub mod evidence;
mod flows;
mod people;
mod policies;
mod responses;

use std::{collections::BTreeSet, future::Future, pin::Pin};

use prost_reflect::DescriptorPool;

use crate::{place::run, traces, world::World};

/// Shows for one method that it keeps tenants apart.
pub type Case = (
    &'static str,
    fn(&'static World) -> Pin<Box<dyn Future<Output = ()> + Send>>,
);

/// A table of cases: method, the world's name, what must hold.
macro_rules! cases {
    ($($method:literal => |$world:ident| $body:expr;)*) => {
        pub fn cases() -> Vec<$crate::tenancy::Case> {
            vec![$(($method, |$world| Box::pin(async move { $body; }))),*]
        }
    };
}
use cases;

fn all() -> Vec<Case> {
    [
        flows::cases(),
        detection::cases(),
        policies::cases(),
        responses::cases(),
        evidence::cases(),
        people::cases(),
    ]
    .concat()
}

/// Every method of every contract, as `garrison.flow.v1.FlowService/ListSensors`.
fn methods() -> BTreeSet<String> {
    let pool = DescriptorPool::decode(garrison_proto::FILE_DESCRIPTOR_SET).unwrap();
    let methods = pool.services().flat_map(|service| {
        let name = service.full_name().to_owned();
        let methods: Vec<String> = service
            .methods()
            .map(|method| format!("{name}/{}", method.name()))
            .collect();
        methods
    });
    methods.collect()
}

#[test]
fn every_method_has_a_case() {
    let all = all();
    let covered: BTreeSet<String> = all.iter().map(|(method, _)| format!("garrison.{method}")).collect();
    assert_eq!(covered.len(), all.len(), "a method has two cases");
    let methods = methods();
    let without: Vec<String> = methods.difference(&covered).cloned().collect();
    assert!(without.is_empty(), "methods without a case: {without:#?}");
    let unknown: Vec<&String> = covered.difference(&methods).collect();
    assert!(unknown.is_empty(), "cases without a method: {unknown:#?}");
}

#[test]
fn no_method_lets_one_tenant_see_or_touch_another() {
    run(async {
        let world = World::shared().await;
        let mut failed = Vec::new();
        for (method, case) in all() {
            // Each in a task of its own, so that one panic does not hide the next.
            if let Err(error) = tokio::spawn(case(world)).await {
                failed.push(format!("{method}: {error}"));
            }
        }
        assert!(
            failed.is_empty(),
            "{} of {} cases failed: {failed:#?}",
            failed.len(),
            all().len()
        );
        traces::assert_no_secrets(&world.fleet, &[&world.acme.admin, &world.globex.admin, &world.operator]);
    });
}
