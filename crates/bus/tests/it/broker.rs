//! A broker of one's own for each test, and a handler that writes down what it is given.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::message::StreamMessage;
use garrison_bus::{
    Bus, ConsumerSpec, Delivery, Dispatch, Disposition, Handler, Message, run_consumer, subject,
    topology::{self, EnforcerNode},
};
use garrison_proto::{TenantId, event::v1::KeySetChanged};
use garrison_testkit::{Nats, NatsOptions, Pki, TRUST_DOMAIN};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) struct Broker {
    pub(crate) nats: Nats,
    pub(crate) pki: Pki,
    _dir: tempfile::TempDir,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let broker = Self::bare();
        let admin = broker.bus("svc/bus-admin").await;
        topology::apply(&admin, &options()).await.unwrap();
        broker
    }

    /// Without streams.
    pub(crate) fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open_or_create(&dir.path().join("pki"), TRUST_DOMAIN).unwrap();
        let nats = Nats::start(&dir.path().join("nats"), &pki, &NatsOptions { enforcers: nodes() }).unwrap();
        Self { nats, pki, _dir: dir }
    }

    pub(crate) fn config(&self, identity: &str) -> garrison_bus::BusConfig {
        let files = self.pki.identity(identity).unwrap();
        let mut config =
            garrison_bus::BusConfig::new(vec![self.nats.url()], files.ca_file, files.cert_file, files.key_file);
        // A broker that is slow is not away; tests of its absence set less.
        config.ack_timeout_ms = 60_000;
        config
    }

    pub(crate) async fn bus(&self, identity: &str) -> Bus {
        Bus::connect(&self.config(identity), identity.rsplit('/').next().unwrap())
            .await
            .unwrap()
    }

    /// The messages of the dead letter stream.
    pub(crate) async fn dead_letters(&self) -> Vec<StreamMessage> {
        let admin = self.bus("svc/bus-admin").await;
        let stream = admin.jetstream().get_stream("DLQ").await.unwrap();
        let mut letters = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            letters.push(stream.get_raw_message(sequence).await.unwrap());
        }
        letters
    }

    /// How many messages a stream holds.
    pub(crate) async fn stored(&self, stream: &str) -> u64 {
        self.state(stream).await.messages
    }

    /// How many messages a stream ever took.
    pub(crate) async fn appended(&self, stream: &str) -> u64 {
        self.state(stream).await.last_sequence
    }

    async fn state(&self, stream: &str) -> async_nats::jetstream::stream::State {
        let admin = self.bus("svc/bus-admin").await;
        let stream = admin.jetstream().get_stream(stream).await.unwrap();
        stream.cached_info().state.clone()
    }
}

pub(crate) fn nodes() -> Vec<EnforcerNode> {
    ["router=*", "edge=acme"].map(|node| node.parse().unwrap()).into()
}

pub(crate) fn options() -> topology::ApplyOptions {
    topology::ApplyOptions {
        enforcers: nodes(),
        ..Default::default()
    }
}

pub(crate) fn acme() -> TenantId {
    "acme".parse().unwrap()
}

/// An event of kind `policy` that carries a number.
pub(crate) fn event(number: usize) -> Message {
    let data = KeySetChanged {
        key_id: number.to_string(),
    };
    Message::proto(subject::events(&acme(), "policy"), "policy", &data)
}

pub(crate) fn number(delivery: &Delivery) -> usize {
    delivery.decode::<KeySetChanged>().unwrap().key_id.parse().unwrap()
}

type Decide = Box<dyn Fn(&Delivery) -> Disposition + Send + Sync>;

/// Writes down (number, attempt) and decides by a closure.
pub(crate) struct Recorder {
    pub(crate) seen: Mutex<Vec<(usize, u64)>>,
    decide: Decide,
    work: Duration,
    gate: Option<Arc<Semaphore>>,
}

impl Recorder {
    pub(crate) fn new(decide: impl Fn(&Delivery) -> Disposition + Send + Sync + 'static) -> Arc<Self> {
        Self::slow(Duration::ZERO, decide)
    }

    pub(crate) fn slow(work: Duration, decide: impl Fn(&Delivery) -> Disposition + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            decide: Box::new(decide),
            work,
            gate: None,
        })
    }

    /// Acknowledges a message once the gate has a permit for it.
    pub(crate) fn gated(gate: &Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            decide: Box::new(|_| Disposition::Ack),
            work: Duration::ZERO,
            gate: Some(Arc::clone(gate)),
        })
    }

    /// Decides one after the other as given, then acknowledges.
    pub(crate) fn script(steps: impl IntoIterator<Item = Disposition>) -> Arc<Self> {
        let steps = Mutex::new(steps.into_iter().collect::<VecDeque<_>>());
        Self::new(move |_| steps.lock().unwrap().pop_front().unwrap_or(Disposition::Ack))
    }

    pub(crate) fn seen(&self) -> Vec<(usize, u64)> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.seen().into_iter().map(|(number, _)| number).collect()
    }
}

impl Handler for Recorder {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        self.seen.lock().unwrap().push((number(&delivery), delivery.attempt));
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        tokio::time::sleep(self.work).await;
        (self.decide)(&delivery)
    }
}

/// A consumer that runs in the background.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), garrison_bus::BusError>>,
}

impl Running {
    pub(crate) fn start<H: Handler>(bus: &Bus, spec: &ConsumerSpec, dispatch: Dispatch, handler: &Arc<H>) -> Self {
        let stop = CancellationToken::new();
        let (bus, spec, handler, token) = (bus.clone(), spec.clone(), Arc::clone(handler), stop.clone());
        let task = tokio::spawn(async move { run_consumer(&bus, &spec, dispatch, handler, token).await });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// Waits until a condition holds, two minutes at most.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}
