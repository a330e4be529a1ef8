//! What the service measures of itself.

use std::sync::{Arc, atomic::Ordering};

use opentelemetry::{KeyValue, metrics::Histogram};

use crate::{
    app::{
        forward::{Forwarded, Forwarder},
        sensor::Sensor,
    },
    bus::queue::Queue,
    export::Tally,
};

/// The instruments that are written to; the others are read from state when they are asked for.
#[derive(Clone)]
pub(crate) struct Metrics {
    latency: Histogram<f64>,
}

impl Metrics {
    /// Registers every instrument.
    pub(crate) fn new(sensors: &[Arc<Sensor>], queue: &Arc<Queue>, forwarders: &[Forwarder]) -> Self {
        let meter = opentelemetry::global::meter("garrison.flow-ingest");
        type Read = fn(&Sensor) -> u64;
        let counters: [(&'static str, &'static str, Read); 13] = [
            (
                "garrison_flow_ingest_packets",
                "Packets that reached the sensor.",
                |s| s.status().counts.received,
            ),
            (
                "garrison_flow_ingest_packets_parsed",
                "Packets counted in a flow or carrying none.",
                |s| s.status().counts.parsed,
            ),
            (
                "garrison_flow_ingest_packets_malformed",
                "Packets whose headers contradict themselves.",
                |s| s.status().counts.malformed,
            ),
            (
                "garrison_flow_ingest_packets_shed",
                "Packets only counted because the table was full.",
                |s| s.status().counts.shed,
            ),
            (
                "garrison_flow_ingest_packets_dropped_by_kernel",
                "Packets the kernel dropped.",
                |s| s.status().dropped_by_kernel,
            ),
            ("garrison_flow_ingest_flows_opened", "Flows begun.", |s| {
                s.status().counts.opened
            }),
            ("garrison_flow_ingest_flows_ended", "Flows ended.", |s| {
                s.status().counts.ended
            }),
            ("garrison_flow_ingest_flows_evicted", "Flows ended to make room.", |s| {
                s.status().counts.evicted
            }),
            ("garrison_flow_ingest_records", "Records made.", |s| {
                s.status().counts.records
            }),
            (
                "garrison_flow_ingest_records_published",
                "Records the broker has stored.",
                |s| s.ledger().records_published,
            ),
            ("garrison_flow_ingest_records_lost", "Records given up.", |s| {
                s.ledger().records_lost
            }),
            (
                "garrison_flow_ingest_ring_packets_dropped",
                "Packets the ring on disk did not keep.",
                |s| s.ring.as_ref().map_or(0, |ring| ring.dropped()),
            ),
            (
                "garrison_flow_ingest_packets_without_flow",
                "Packets that carry no flow.",
                |s| s.status().counts.no_flow,
            ),
        ];
        for (name, description, read) in counters {
            let sensors = sensors.to_vec();
            meter
                .u64_observable_counter(name)
                .with_description(description)
                .with_callback(move |observer| {
                    for sensor in &sensors {
                        observer.observe(read(sensor), &attributes(sensor));
                    }
                })
                .build();
        }
        let gauges: [(&'static str, &'static str, Read); 3] = [
            ("garrison_flow_ingest_active_flows", "Flows in the table.", |s| {
                s.status().active_flows
            }),
            (
                "garrison_flow_ingest_records_waiting",
                "Records on their way to the broker.",
                Sensor::waiting,
            ),
            ("garrison_flow_ingest_ring_bytes", "Octets of packets on disk.", |s| {
                s.ring.as_ref().map_or(0, |ring| ring.bytes())
            }),
        ];
        for (name, description, read) in gauges {
            let sensors = sensors.to_vec();
            meter
                .u64_observable_gauge(name)
                .with_description(description)
                .with_callback(move |observer| {
                    for sensor in &sensors {
                        observer.observe(read(sensor), &attributes(sensor));
                    }
                })
                .build();
        }
        exports(&meter, sensors);
        forwarded(&meter, forwarders);
        let queue = Arc::clone(queue);
        meter
            .u64_observable_gauge("garrison_flow_ingest_spool_bytes")
            .with_description("Octets of batches that wait for the broker.")
            .with_callback(move |observer| {
                let (memory, disk) = queue.waiting();
                observer.observe(memory, &[KeyValue::new("where", "memory")]);
                observer.observe(disk, &[KeyValue::new("where", "disk")]);
            })
            .build();
        Self {
            latency: meter
                .f64_histogram("garrison_flow_ingest_packet_to_broker_seconds")
                .with_description("From the oldest packet of a batch to the broker's acknowledgement.")
                .with_unit("s")
                .with_boundaries(vec![
                    0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
                ])
                .build(),
        }
    }

    /// A batch reached the broker this many seconds after its oldest packet was captured.
    pub(crate) fn latency(&self, seconds: f64) {
        self.latency.record(seconds, &[]);
    }
}

// Of collectors that get records as IPFIX. The counters alone are held: a forwarder that is held keeps its thread.
fn forwarded(meter: &opentelemetry::metrics::Meter, forwarders: &[Forwarder]) {
    type Read = fn(&Forwarded) -> u64;
    let counters: [(&'static str, &'static str, Read); 3] = [
        (
            "garrison_flow_ingest_forwarded",
            "Flow records sent to an IPFIX collector.",
            |f| f.sent.load(Ordering::Relaxed),
        ),
        (
            "garrison_flow_ingest_forwarded_lost",
            "Flow records not sent to an IPFIX collector.",
            |f| f.lost.load(Ordering::Relaxed),
        ),
        ("garrison_flow_ingest_forwarded_messages", "IPFIX messages sent.", |f| {
            f.messages.load(Ordering::Relaxed)
        }),
    ];
    for (name, description, read) in counters {
        let counts: Vec<_> = forwarders
            .iter()
            .map(|forwarder| (forwarder.to().to_owned(), Arc::clone(forwarder.counts())))
            .collect();
        meter
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |observer| {
                for (to, counts) in &counts {
                    observer.observe(read(counts), &[KeyValue::new("to", to.clone())]);
                }
            })
            .build();
    }
}

// Of sensors that read flow exports.
fn exports(meter: &opentelemetry::metrics::Meter, sensors: &[Arc<Sensor>]) {
    type Read = fn(&Tally) -> u64;
    let counters: [(&'static str, &'static str, Read); 8] = [
        (
            "garrison_flow_ingest_export_records",
            "Flow records that exporters sent.",
            |t| t.records,
        ),
        (
            "garrison_flow_ingest_export_records_without_flow",
            "Exported records that name no two hosts.",
            |t| t.without_flow,
        ),
        (
            "garrison_flow_ingest_export_options",
            "Exported records about the exporter itself.",
            |t| t.options,
        ),
        (
            "garrison_flow_ingest_export_missing",
            "What is missing by the exporters' sequence numbers: flows, records or datagrams.",
            |t| t.missing,
        ),
        (
            "garrison_flow_ingest_export_late",
            "Datagrams that came after later ones.",
            |t| t.late,
        ),
        (
            "garrison_flow_ingest_export_restarts",
            "Times an exporter's sequence began anew.",
            |t| t.restarts,
        ),
        (
            "garrison_flow_ingest_export_sets_without_template",
            "Sets of records that were not read for want of a template.",
            |t| t.sets_without_template,
        ),
        (
            "garrison_flow_ingest_export_templates_refused",
            "Templates beyond the bound.",
            |t| t.templates_refused,
        ),
    ];
    for (name, description, read) in counters {
        let sensors = sensors.to_vec();
        meter
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |observer| {
                for sensor in &sensors {
                    if let Some(tally) = sensor.status().exports {
                        observer.observe(read(&tally), &attributes(sensor));
                    }
                }
            })
            .build();
    }
    let sensors = sensors.to_vec();
    meter
        .u64_observable_counter("garrison_flow_ingest_interface")
        .with_description("Counters of interfaces that sFlow agents send: octets, packets, discards, errors.")
        .with_callback(move |observer| {
            for sensor in &sensors {
                for ((agent, index), counters) in sensor.status().interfaces.iter() {
                    for (what, direction, value) in [
                        ("octets", "in", counters.in_octets),
                        ("octets", "out", counters.out_octets),
                        ("packets", "in", counters.in_packets),
                        ("packets", "out", counters.out_packets),
                        ("discards", "in", counters.in_discards),
                        ("discards", "out", counters.out_discards),
                        ("errors", "in", counters.in_errors),
                        ("errors", "out", counters.out_errors),
                    ] {
                        let [sensor, tenant] = attributes(sensor);
                        let agent = KeyValue::new("agent", agent.to_string());
                        let interface = KeyValue::new("interface", i64::from(*index));
                        let (what, direction) = (KeyValue::new("what", what), KeyValue::new("direction", direction));
                        observer.observe(value, &[sensor, tenant, agent, interface, what, direction]);
                    }
                }
            }
        })
        .build();
}

fn attributes(sensor: &Sensor) -> [KeyValue; 2] {
    [
        KeyValue::new("sensor", sensor.id.clone()),
        KeyValue::new("tenant", sensor.tenant.to_string()),
    ]
}
