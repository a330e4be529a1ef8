//! The real parts for tests, the development launcher and the demo: PostgreSQL, nats-server, a
//! certificate authority and lab networks. Everything runs on free loopback ports out of one folder, needs
//! no root where user namespaces serve, and ends with the process that started it.

mod corpora;
mod fleet;
mod kubernetes;
pub mod lab;
mod nats;
mod ports;
mod postgres;
mod process;
mod stack;

pub use corpora::corpora;
pub use fleet::{Fleet, FleetError, FleetOptions};
pub use garrison_bootstrap::{self as bootstrap, IdentityFiles, Pki, Secrets, TRUST_DOMAIN};
pub use kubernetes::{
    ApiServer, KUBERNETES_ADMIN, KubernetesPrograms, KubernetesUser, cache_folder, find_kubernetes, kubernetes,
    kubernetes_folder,
};
pub use nats::{Nats, NatsOptions, find_nats_server};
pub use ports::free_port;
pub use postgres::{Postgres, find_postgres};
pub use process::{Process, ProcessError};
pub use rustix::process::Signal;
pub use stack::Stack;
