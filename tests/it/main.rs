//! Integration tests: the guarantees of the server, one file each, with the real binary and a
//! private PostgreSQL.
//!
//! Each test has its own cluster, server and data directory, so all tests may run in parallel.
//! Tests wait for conditions, never for a fixed time. The processes of a killed test end with it.

#[path = "../harness/mod.rs"]
mod harness;

mod access;
mod backpressure;
mod backup;
mod browser;
mod command_line;
mod compression;
mod corpus;
mod counts;
mod dead_letters;
mod documents;
mod durability;
mod engines;
mod error_classes;
mod export;
mod gateway;
mod gateway_limits;
mod health;
mod healthcheck;
mod hosts;
mod http;
mod ids;
mod inputs;
mod instances;
mod journal_replay;
mod layers;
mod logs;
mod metrics;
mod monitoring;
mod negotiation;
mod openapi;
mod order;
mod otlp;
mod outage;
mod packages;
mod partitions;
mod pushed_pages;
mod pushgateway;
mod queries;
mod request_head;
mod response_bounds;
mod responses;
mod restart;
mod retention;
mod send;
mod senders;
mod shippers;
mod shutdown;
mod spill;
mod startup;
mod stored_events_dashboard;
mod systemd;
mod tail;
mod tail_command;
mod validation;
