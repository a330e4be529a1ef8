//! Agreement with Zeek and nDPI on public captures. Runs where `GARRISON_CORPORA` names the folder that has them.

use flow_ingest::agreement::{ndpi, zeek};
use garrison_testkit::corpora;

#[test]
fn connections_are_those_of_zeek() {
    let Some(corpora) = corpora("corpora::connections_are_those_of_zeek") else {
        return;
    };
    let sum = zeek::compare(&corpora.join("packets/zeek")).unwrap();
    let least = sum.connections * 99 / 100;
    assert!(sum.accounted() >= least, "{} of {least}", sum.accounted());
}

#[test]
fn flows_are_those_of_ndpi() {
    let Some(corpora) = corpora("corpora::flows_are_those_of_ndpi") else {
        return;
    };
    let sum = ndpi::compare(&corpora.join("packets")).unwrap();
    assert!(sum.octets * 100 >= sum.flows * 99, "{} of {}", sum.octets, sum.flows);
    assert!(
        sum.agreed * 100 >= sum.labelled * 97,
        "{} of {}",
        sum.agreed,
        sum.labelled
    );
    assert!(sum.ja4_equal * 100 >= sum.ja4 * 98, "{} of {}", sum.ja4_equal, sum.ja4);
}
