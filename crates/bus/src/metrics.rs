use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram, UpDownCounter},
};

/// Instruments of the bus, labelled by stream and consumer.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) handled: Counter<u64>,
    pub(crate) redeliveries: Counter<u64>,
    pub(crate) in_flight: UpDownCounter<i64>,
    pub(crate) lag: Gauge<u64>,
    pub(crate) handler_seconds: Histogram<f64>,
    pub(crate) published: Counter<u64>,
    pub(crate) publish_seconds: Histogram<f64>,
    pub(crate) core_malformed: Counter<u64>,
}

/// Seconds, from tens of microseconds to minutes.
const SECONDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = global::meter("garrison.bus");
        Self {
            handled: meter
                .u64_counter("garrison_bus_handled_messages")
                .with_description(
                    "Messages handled, by disposition: ack, retry, hold, reject, panic; direct when a direct copy was.",
                )
                .build(),
            redeliveries: meter
                .u64_counter("garrison_bus_redelivered_messages")
                .with_description("Messages that the broker delivered more than once.")
                .build(),
            in_flight: meter
                .i64_up_down_counter("garrison_bus_in_flight_messages")
                .with_description("Messages pulled and not yet disposed of.")
                .build(),
            lag: meter
                .u64_gauge("garrison_bus_lag_messages")
                .with_description("Messages in the stream that the consumer has not been given yet.")
                .build(),
            handler_seconds: meter
                .f64_histogram("garrison_bus_handler_duration_seconds")
                .with_description("Time a handler took for one message.")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            published: meter
                .u64_counter("garrison_bus_published_messages")
                .with_description("Messages published, by outcome: stored, duplicate, unavailable, refused, too_large.")
                .build(),
            publish_seconds: meter
                .f64_histogram("garrison_bus_publish_duration_seconds")
                .with_description("Time from publishing to the broker's acknowledgement.")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            core_malformed: meter
                .u64_counter("garrison_bus_core_malformed_messages")
                .with_description("Messages of core subscriptions that were left out because they are malformed.")
                .build(),
        }
    }
}

/// Labels of a consumer's instruments.
pub(crate) fn consumer_labels(stream: &str, consumer: &str) -> [KeyValue; 2] {
    [
        KeyValue::new("stream", stream.to_owned()),
        KeyValue::new("consumer", consumer.to_owned()),
    ]
}
