//! The language as a whole: verdicts and compilers against independent readings of the same documents.
#![allow(clippy::unwrap_used, missing_docs)]

mod calico;
mod cilium;
mod cloud;
mod cloud_tags;
mod cluster;
mod cluster_mesh;
mod cluster_network_policy;
mod clusterwide;
mod coverage;
mod documents;
mod engine;
mod generate;
mod import;
mod import_mesh;
mod kubernetes;
mod mesh;
mod namespaces;
mod nft_text;
mod nftables;
mod packets;
mod reference;
mod rich;
