//! Agreement with Zeek and nDPI on public captures. Runs where `GARRISON_CORPORA` names the folder that has them.

use flow_ingest::agreement::{ndpi, zeek};
use garrison_testkit::corpora;

#[test]
fn connections_are_those_of_zeek() {
    let Some(corpora) = corpora("corpora::connections_are_those_of_zeek") else {
        return;
    };
    let sum = zeek::compare(&corpora.join("packets/zeek")).unwrap();
    let least = sum.connections * 90 / 100;
    assert!(sum.accounted() >= least, "{sum:?}");
}

#[test]
fn flows_are_those_of_ndpi() {
    let Some(corpora) = corpora("corpora::flows_are_those_of_ndpi") else {
        return;
    };
    let sum = ndpi::compare(&corpora.join("packets")).unwrap();
    assert!(sum.packets * 100 >= sum.flows * 85, "{} of {}", sum.packets, sum.flows);
    assert!(sum.ja4_equal * 100 >= sum.ja4 * 90, "{} of {}", sum.ja4_equal, sum.ja4);
}
