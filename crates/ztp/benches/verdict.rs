//! Verdicts a second against 10,000 rules, beside a plain walk through the rules in the same run.
//!
//! `cargo bench -p garrison-ztp --bench verdict`

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use garrison_ztp::{Engine, Policy, check, document::Action, ir::Direction};

const POLICIES: u32 = 1_000;
const RULES: u32 = 10;
const FLOWS: usize = 1 << 16;

fn main() {
    let policies: Vec<Policy> = (0..POLICIES).map(policy).collect();
    let started = Instant::now();
    let Ok(engine) = Engine::build(&policies) else {
        println!("the rules are too complex to measure");
        return;
    };
    println!(
        "{POLICIES} policies of {RULES} rules prepared in {:?}",
        started.elapsed()
    );

    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(below)) as u32
    };
    let flows: Vec<(IpAddr, IpAddr, u16)> = (0..FLOWS)
        .map(|_| {
            let src = Ipv4Addr::from(0x0a80_0000 + next(1 << 16));
            let dst = Ipv4Addr::from(0x0a00_0000 + next(POLICIES * 4));
            (src.into(), dst.into(), 8_000 + next(20) as u16)
        })
        .collect();

    let fast = measure(&flows, |src, dst, port| {
        u64::from(engine.decide(src, dst, 6, port).enforced.ingress.denies())
    });
    let slow = measure(&flows[..2_048], |src, dst, port| {
        u64::from(walk(&policies, src, dst, port))
    });
    println!("engine         {:>12.0} flows/s a core", fast);
    println!("walk all rules {:>12.0} flows/s a core", slow);
    println!("ratio          {:>12.0}", fast / slow);
}

/// Governs four addresses; each rule lets a network in on one port.
fn policy(number: u32) -> Policy {
    let mut text = format!(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: p{number}}}\nspec:\n  mode: enforce\n  subject: {{cidrs: [{}/30]}}\n  ingress:\n",
        Ipv4Addr::from(0x0a00_0000 + number * 4)
    );
    for rule in 0..RULES {
        let net = Ipv4Addr::from(0x0a80_0000 + ((number * 37 + rule * 4_099) & 0xffff & !0xff));
        text.push_str(&format!(
            "    - {{name: r{rule}, from: [{{cidr: {net}/24}}], ports: [{{protocol: TCP, port: {}}}]}}\n",
            8_000 + rule
        ));
    }
    match check(&text).documents.pop() {
        Some(document) => document.lower(1),
        None => unreachable!("the benchmark's own document is right"),
    }
}

/// Whether a walk through every policy and rule denies the connection at its destination.
fn walk(policies: &[Policy], src: IpAddr, dst: IpAddr, port: u16) -> bool {
    let mut governed = false;
    for policy in policies.iter().filter(|p| p.subject.addresses.contains(dst)) {
        let rules = policy.rules(Direction::Ingress).unwrap_or_default();
        governed |= policy.rules(Direction::Ingress).is_some();
        let allows = rules.iter().any(|rule| {
            rule.action == Action::Allow && rule.peers.addresses.contains(src) && rule.services.contains(6, port)
        });
        if allows {
            return false;
        }
    }
    governed
}

/// Flows a second, over at least half a second.
fn measure(flows: &[(IpAddr, IpAddr, u16)], decide: impl Fn(IpAddr, IpAddr, u16) -> u64) -> f64 {
    let started = Instant::now();
    let mut count = 0_usize;
    let mut denied = 0;
    while started.elapsed() < Duration::from_millis(500) {
        for (src, dst, port) in flows {
            denied += decide(*src, *dst, *port);
        }
        count += flows.len();
    }
    black_box(denied);
    count as f64 / started.elapsed().as_secs_f64()
}
