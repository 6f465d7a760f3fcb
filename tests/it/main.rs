//! End-to-end and contract tests: one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
#[cfg(all(feature = "archive", feature = "service-tests"))]
mod archive;
#[cfg(feature = "service-tests")]
mod bridge;
#[cfg(feature = "service-tests")]
mod bus_truth;
mod check;
mod cli;
mod crowds;
mod dead_letters;
#[cfg(feature = "service-tests")]
mod faults;
mod health;
mod http_source;
mod listener;
#[cfg(all(feature = "service-tests", feature = "nats"))]
mod nats_service;
#[cfg(all(feature = "service-tests", feature = "nats"))]
mod nats_source;
#[cfg(feature = "service-tests")]
mod operating;
mod page;
#[cfg(feature = "service-tests")]
mod partitions;
#[cfg(feature = "service-tests")]
mod postgres_store;
mod prefect_environment;
mod read_api;
mod readable;
mod reader;
mod reading;
#[cfg(feature = "service-tests")]
mod redis_source;
#[cfg(feature = "service-tests")]
mod replicas;
mod secrets;
mod server;
#[cfg(feature = "service-tests")]
mod shadow;
mod source_contract;
mod store_contract;
mod support;
mod truth;
#[cfg(feature = "service-tests")]
mod verify;
