//! Prints how far the meter agrees with Zeek and nDPI on the public captures. `cargo xtask eval flows` runs it.
//!
//! `cargo run -p flow-ingest --example agreement -- CORPORA [--differences]`

#![allow(missing_docs)]

use std::{path::PathBuf, process::ExitCode};

use flow_ingest::{
    agreement::{AgreementError, ndpi, zeek},
    domain::Sink,
    export::read_folder,
};
use garrison_flow::FlowRow;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(corpora) = arguments.next().map(PathBuf::from) else {
        eprintln!("error: name the folder of the corpora");
        return ExitCode::from(64);
    };
    let all = arguments.any(|argument| argument == "--differences");
    match run(&corpora, all) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(corpora: &std::path::Path, all: bool) -> Result<(), AgreementError> {
    let share = |part: usize, of: usize| format!("{part} of {of} ({:.2} %)", 100.0 * part as f64 / of.max(1) as f64);
    let zeek = zeek::compare(&corpora.join("packets/zeek"))?;
    println!("Zeek's connection logs: {} connections", zeek.connections);
    for (what, part) in [
        ("endpoints", zeek.endpoints),
        ("packets and octets", zeek.counters),
        ("service", zeek.service),
        ("conn_state", zeek.conn_state),
        ("history", zeek.history),
        ("everything", zeek.whole),
        ("everything, or different for a listed reason", zeek.accounted()),
    ] {
        println!("  equal in {what}: {}", share(part, zeek.connections));
    }
    for difference in &zeek.differences {
        let reason = difference.accepted.unwrap_or("NOT ACCEPTED");
        println!("  {}: {reason}", difference.capture);
        if all || difference.accepted.is_none() {
            if let Some(theirs) = &difference.theirs {
                println!("    zeek {}", line(theirs));
            }
            if let Some(ours) = &difference.ours {
                println!("    ours {}", line(ours));
            }
        }
    }

    let ndpi = ndpi::compare(&corpora.join("packets"))?;
    let (read, unread) = ndpi.captures;
    println!(
        "\nnDPI's flow lists: {} flows in {read} captures; {unread} captures have a link layer that is not read",
        ndpi.flows
    );
    println!("  equal in endpoints: {}", share(ndpi.endpoints, ndpi.flows));
    println!("  equal in packets: {}", share(ndpi.packets, ndpi.flows));
    println!("  equal in packets and octets: {}", share(ndpi.octets, ndpi.flows));
    println!(
        "  (later parts of datagrams left out in {} flows: nDPI's reader does not count them)",
        ndpi.in_parts
    );
    println!("  equal in label: {}", share(ndpi.agreed, ndpi.labelled));
    println!("  equal in JA4: {}", share(ndpi.ja4_equal, ndpi.ja4));
    println!("\nnDPI's protocol, ours, flows");
    for ((theirs, ours), count) in &ndpi.confusion {
        println!("  {theirs:<22} {ours:<14} {count}");
    }
    if all {
        println!();
        for difference in &ndpi.differences {
            println!("{difference}");
        }
    }
    exports(&corpora.join("netflow"));
    Ok(())
}

struct Nothing;

impl Sink for Nothing {
    fn record(&mut self, _: &FlowRow<'_>) {}
}

// Datagrams of many exporters: each whose template is there must be read, the invalid ones refused.
fn exports(folder: &std::path::Path) {
    match read_folder(folder, &mut Nothing) {
        Err(error) => println!("\nFlow exports: skipped, {} cannot be read: {error}", folder.display()),
        Ok(report) => {
            println!(
                "\nFlow exports: {} datagrams, {} flow records, {} options records, {} records without two hosts",
                report.datagrams, report.records, report.options, report.without_flow
            );
            for (name, what) in &report.malformed {
                println!("  refused: {name}: {what}");
            }
            for name in &report.without_template {
                println!("  in part without a template in the collection: {name}");
            }
        }
    }
}

fn line(conn: &zeek::Conn) -> String {
    let [src_bytes, dst_bytes, src_packets, dst_packets, src_ip, dst_ip] = conn.numbers;
    format!(
        "{} > {} [{}] {} {} packets {src_packets}/{dst_packets} octets {src_bytes}/{dst_bytes} ip {src_ip}/{dst_ip}",
        conn.src, conn.dst, conn.service, conn.state, conn.history
    )
}
